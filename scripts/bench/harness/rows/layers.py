"""Reading what a hit has put in place without writing it."""

import os
import shutil
import subprocess
import time

from harness.files import fill, listing
from harness.lab import PROGRAMS
from harness.measure import timed
from harness.row import Bar, Row, Variant
from harness.rows.hits import generator


# Live mounts without passthrough, which is the default, and with it.
KINDS = ("layer", "layer, passthrough")


class Layered(Row):
    """Mounted projects whose `out` is virtual, and the same files beside them."""

    transports = ("uring",)

    def prepare(self, count, size_bytes):
        """Makes the source, and a project of each kind and transport with its hit attached."""
        self.source = self.lab.place / "source"
        if count:
            fill(self.source, count, size_bytes)
        self.project = {}
        for kind in KINDS:
            for transport in self.per_transport():
                name = f"{kind.replace(', ', '-')}-{transport}"
                project = self.lab.project(name, generator(self.source), transport)
                project.env["VOUT_PASSTHROUGH"] = str(int(kind != "layer"))
                self.project[kind, transport] = project
        for project in self.project.values():
            project.run("gen")
            # Where the mount will be, nobody reaches the store.
            self.archive = self.lab.place / "archive.tar.zst"
            shutil.copy(project.expect_hit("gen")["archive"], self.archive)
            subprocess.run(["rm", "-rf", project.path / "out"], check=True)
            project.mount()
            project.run("gen")

    def layers(self, what=""):
        """Returns the variants of something that is done with a layer, on each kind of mount."""
        return [variant for kind in KINDS for variant in self.served(f"{kind}{what}")]

    def of(self, variant):
        """Returns the project of a variant, if it is about one."""
        if variant.name == "native":
            return None
        kind = max((kind for kind in KINDS if variant.name.startswith(kind)), key=len)
        return self.project[kind, variant.transport]

    def place_of(self, variant):
        """Returns where the files of a variant are."""
        return self.source if variant.name == "native" else self.of(variant).path / "out"

    def fresh(self, variant):
        """Attaches the layer anew, so that nothing of it is in any cache, or in the store but its archive."""
        project = self.of(variant)
        project.unmount()
        project.end_daemon()
        shutil.rmtree(project.path / ".vout" / "blobs", ignore_errors=True)
        project.mount()
        project.run("gen")

    def prefetched(self, variant):
        """Attaches the layer anew, and lets the daemon make ready what was read of it before."""
        self.fresh(variant)
        self.of(variant).settle()

    def timed(self, command, place, project=None):
        """Times a command on a project's files, or on others."""
        return project.timed(command, place) if project else timed(command, place, self.lab.env, self.lab.log)

    def touch(self, operation, passes, names, place, project=None):
        """Does something with files and returns the seconds of each pass."""
        list_file = self.lab.scratch / "list"
        list_file.write_text(names)
        command = [self.lab.programs["touch-files"], operation, passes, list_file]
        sample = self.timed(command, place, project)
        return sample, [int(line) / 1e9 for line in self.lab.log.read_text().split()]


class FirstRead(Layered):
    name = "first-read"
    title = "first read of one 8 KiB file out of a layer of 50 k files"
    bars = (Bar("layer", 0.001, "native", kind="difference"),)
    rounds = 15
    seconds = 60

    def variants(self, case):
        return [Variant("native"), *self.layers()]

    def setup(self, case):
        self.count = 5_000 if self.lab.options.quick else 50_000
        self.prepare(self.count, 8192)
        self.names = listing(self.source, self.source.parent).splitlines(keepends=True)
        self.turn = 0

    def before(self, case, variant):
        self.turn += 1
        if variant.name != "native":
            self.fresh(variant)

    def measure(self, case, variant):
        name = self.names[self.turn * 7919 % len(self.names)]
        if variant.name == "native":
            sample, passes = self.touch("read", 1, name, self.source.parent)
        else:
            project, name = self.of(variant), name.replace("source", "out", 1)
            sample, passes = self.touch("read", 1, name, project.path, project)
        return {**sample, "seconds": passes[0]}


class ReadAll(Layered):
    name = "read-all"
    title = "reading all of a layer of 10 k files of 8 KiB"
    bars = (
        Bar("layer, once", 0.8, "extract, read"),
        Bar("layer, prefetched", 0.8, "extract, read"),
        Bar("layer, again", 1.2, "native, again"),
    )
    in_order = True
    rounds = 5
    seconds = 75

    def variants(self, case):
        peers = [Variant("ratarmount, once")] if self.lab.peers.get("ratarmount") else []
        return [
            Variant("extract, read"),
            *self.layers(", once"),
            *self.layers(", again"),
            *self.layers(", later"),
            *self.layers(", prefetched"),
            Variant("native, again"),
            *peers,
        ]

    def setup(self, case):
        self.prepare(1_000 if self.lab.options.quick else 10_000, 8192)
        self.names = listing(self.source, self.source.parent)
        self.outputs = self.names.replace("source/", "out/")

    def before(self, case, variant):
        if variant.name.endswith(", once") and variant.name.startswith("layer"):
            self.fresh(variant)
        if variant.name.endswith(", prefetched"):
            self.prefetched(variant)
        if variant.name.endswith(", later"):
            # Longer than the kernel believes what it is told of files that may change beneath a mount.
            time.sleep(1.5)
        if variant.name == "extract, read":
            subprocess.run(["rm", "-rf", self.lab.place / "extracted"], check=True)
            (self.lab.place / "extracted").mkdir()

    def measure(self, case, variant):
        if variant.name == "extract, read":
            place = self.lab.place / "extracted"
            extracted = timed(["tar", "--zstd", "-xf", self.archive], place, self.lab.env, self.lab.log)
            sample, passes = self.touch("read", 1, self.outputs, place)
            return {"seconds": extracted["seconds"] + passes[0], "cpu": extracted["cpu"] + sample["cpu"]}
        if variant.name.startswith("layer"):
            project = self.of(variant)
            sample, passes = self.touch("read", 1, self.outputs, project.path, project)
            return {**sample, "seconds": passes[0]}
        if variant.name.startswith("ratarmount"):
            return self.ratarmount()
        sample, passes = self.touch("read", 1, self.names, self.source.parent)
        return {**sample, "seconds": passes[0]}

    def ratarmount(self):
        """Reads all through the peer's mount; making its index is not counted."""
        point = self.lab.place / "ratarmount"
        point.mkdir(exist_ok=True)
        subprocess.run(
            [self.lab.peers.get("ratarmount"), self.archive, point], check=True, stdout=subprocess.DEVNULL
        )
        try:
            sample, passes = self.touch("read", 1, self.outputs, point)
            return {**sample, "seconds": passes[0]}
        finally:
            subprocess.run(["umount", point], check=True)


class Walk(Layered):
    name = "walk"
    title = "walking through a layer of 10 k files, freshly mounted"
    rounds = 5
    seconds = 60
    commands = {
        "names": ["find", ".", "-type", "f"],
        "sizes": ["find", ".", "-type", "f", "-size", "+1k"],
        "ls": ["ls", "-lR", "."],
        "contents": ["grep", "-r", "no such text", "."],
    }

    def cases(self):
        return list(self.commands)

    def variants(self, case):
        return [Variant("native"), *self.layers()]

    def setup(self, case):
        self.prepare(1_000 if self.lab.options.quick else 10_000, 1024)

    def before(self, case, variant):
        if variant.name != "native":
            self.fresh(variant)

    def measure(self, case, variant):
        # `grep` tells by its status that it found nothing.
        command = ["sh", "-c", '"$@" || [ $? = 1 ]', "sh", *self.commands[case]]
        return self.timed(command, self.place_of(variant), self.of(variant))


class Exec(Layered):
    name = "exec"
    title = "start of an executable of 100 MiB from a layer"
    bars = tuple(Bar(f"layer, {when}", 2.0, "native") for when in ("first", "again", "prefetched"))
    in_order = True
    rounds = 7
    seconds = 45

    def variants(self, case):
        times = (", first", ", again", ", prefetched")
        return [Variant("native"), *(variant for time in times for variant in self.layers(time))]

    def setup(self, case):
        source = self.lab.place / "source"
        source.mkdir()
        program = source / "large"
        padding = f"-DPADDING={(10 if self.lab.options.quick else 100) << 20}"
        command = ["cc", "-O1", "-static", padding, "-o", program, PROGRAMS / "large.c"]
        subprocess.run(command, check=True)
        # Not only zeros: they would cost nothing to decompress.
        with open(program, "r+b") as file:
            for offset in range(4 << 20, program.stat().st_size - (8 << 20), 1 << 20):
                file.seek(offset)
                file.write(os.urandom(700 << 10))
        self.prepare(0, 0)

    def before(self, case, variant):
        if variant.name.endswith(", first"):
            self.fresh(variant)
        if variant.name.endswith(", prefetched"):
            self.prefetched(variant)

    def measure(self, case, variant):
        return self.timed([self.place_of(variant) / "large"], "/", self.of(variant))

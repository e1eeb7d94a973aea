"""Reading what a hit has put in place without writing it."""

import os
import shutil
import subprocess

from harness.files import fill, listing
from harness.lab import PROGRAMS
from harness.measure import timed
from harness.row import Bar, Row, Variant
from harness.rows.hits import generator


class Layered(Row):
    """A mounted project whose `out` is virtual, and the same files beside it."""

    def prepare(self, count, size_bytes):
        """Makes the source, and a project of each transport with its hit attached."""
        self.source = self.lab.place / "source"
        if count:
            fill(self.source, count, size_bytes)
        self.project = {
            transport: self.lab.project(f"layer-{transport}", generator(self.source), transport)
            for transport in self.per_transport()
        }
        for project in self.project.values():
            project.run("gen")
            # Where the mount will be, nobody reaches the store.
            self.archive = self.lab.place / "archive.tar.zst"
            shutil.copy(project.expect_hit("gen")["archive"], self.archive)
            subprocess.run(["rm", "-rf", project.path / "out"], check=True)
            project.mount()
            project.run("gen")

    def fresh(self, variant):
        """Attaches the layer anew, so that nothing of it is in any cache."""
        project = self.project[variant.transport]
        project.restart()
        project.run("gen")

    def touch(self, operation, passes, names, place):
        """Does something with files and returns the seconds of each pass."""
        list_file = self.lab.scratch / "list"
        list_file.write_text(names)
        command = [self.lab.programs["touch-files"], operation, passes, list_file]
        sample = timed(command, place, self.lab.env, self.lab.log)
        return sample, [int(line) / 1e9 for line in self.lab.log.read_text().split()]


class FirstRead(Layered):
    name = "first-read"
    title = "first read of one 8 KiB file out of a layer of 50 k files"
    bars = (Bar("layer", 0.001, "native", kind="difference"),)
    rounds = 15
    seconds = 60

    def variants(self, case):
        return [Variant("native"), *self.served("layer")]

    def setup(self, case):
        self.count = 5_000 if self.lab.options.quick else 50_000
        self.prepare(self.count, 8192)
        self.names = listing(self.source, self.source.parent).splitlines(keepends=True)
        self.turn = 0

    def before(self, case, variant):
        self.turn += 1
        if variant.name == "layer":
            self.fresh(variant)

    def measure(self, case, variant):
        name = self.names[self.turn * 7919 % len(self.names)]
        if variant.name == "layer":
            place, name = self.project[variant.transport].path, name.replace("source", "out", 1)
        else:
            place = self.source.parent
        sample, passes = self.touch("read", 1, name, place)
        return {**sample, "seconds": passes[0]}


class ReadAll(Layered):
    name = "read-all"
    title = "reading all of a layer of 10 k files of 8 KiB"
    bars = (
        Bar("layer, once", 0.8, "extract, read"),
        Bar("layer, again", 1.2, "native, again"),
    )
    in_order = True
    rounds = 5
    seconds = 75

    def variants(self, case):
        peers = [Variant("ratarmount, once")] if self.lab.peers.get("ratarmount") else []
        return [
            Variant("extract, read"),
            *self.served("layer, once"),
            *self.served("layer, again"),
            Variant("native, again"),
            *peers,
        ]

    def setup(self, case):
        self.prepare(1_000 if self.lab.options.quick else 10_000, 8192)
        self.names = listing(self.source, self.source.parent)
        self.outputs = self.names.replace("source/", "out/")

    def before(self, case, variant):
        if variant.name == "layer, once":
            self.fresh(variant)
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
            place, names = self.project[variant.transport].path, self.outputs
        elif variant.name.startswith("ratarmount"):
            return self.ratarmount()
        else:
            place, names = self.source.parent, self.names
        sample, passes = self.touch("read", 1, names, place)
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


class Exec(Layered):
    name = "exec"
    title = "start of an executable of 100 MiB from a layer"
    bars = (Bar("layer, again", 2.0, "native"), Bar("layer, first", 2.0, "native"))
    in_order = True
    rounds = 7
    seconds = 45

    def variants(self, case):
        return [Variant("native"), *self.served("layer, first"), *self.served("layer, again")]

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
        if variant.name == "layer, first":
            self.fresh(variant)

    def measure(self, case, variant):
        place = self.source if variant.name == "native" else self.project[variant.transport].path / "out"
        return timed([place / "large"], "/", self.lab.env, self.lab.log)

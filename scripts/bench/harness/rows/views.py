"""Single kinds of file system work in a view, timed from inside of it."""

import os
import shutil
import subprocess

from harness.files import fill, listing
from harness.measure import Failed, timed, wait_until
from harness.row import Bar, Row, Variant
from harness.rows.builds import GIT_WORK, make_repository
from harness.rows.trips import waited_for


class InView(Row):
    """Commands whose own time counts: making the view and committing its writes are other rows."""

    transports = ("dev", "uring")

    def bare(self, name, *options):
        """Makes the directory that the other variants work in, and a project of each transport."""
        self.bare_path = self.lab.place / name
        self.bare_path.mkdir(parents=True)
        self.project = {
            transport: self.lab.project(f"{name}-{transport}", "", transport)
            for transport in self.per_transport()
        }

    def place(self, variant):
        """Returns where a variant works."""
        if variant.name.startswith("view"):
            return self.project[variant.transport].path
        return self.bare_path

    def places(self, case):
        """Returns where the variants work; some share a place."""
        return dict.fromkeys(self.place(variant) for variant in self.variants(case))

    def fill_listed(self, case, count):
        """Makes small files everywhere, and the list of them that `touch-files` wants."""
        for place in self.places(case):
            fill(place / "src", count, 64)
            (place / "list").write_text(listing(place / "src", place))

    def mounts(self):
        """Returns what mounts the file systems that are not ours."""
        return {"passthrough_hp": self.mirror, "passthrough_hp, no passthrough": self.mirror}

    def mirror(self, name, point):
        """Mirrors the directory with libfuse's example, over io_uring."""
        program, *options = name.split(", ")
        how = ["--nopassthrough"] if options else []
        with open(self.lab.log, "ab") as log:
            # It stays in the foreground, until it is unmounted.
            subprocess.Popen(
                [self.lab.peers.get(program), "--foreground", *how, "-o", "io_uring", self.bare_path, point],
                stdout=log, stderr=log,
            )
        wait_until(lambda: os.path.ismount(point), f"{name} mounts")

    def inside(self, variant, command):
        """Runs a command where the variant says, and returns what it took by its own clock."""
        clock = self.lab.scratch / "clock"
        command = [self.lab.programs["timed"], clock, *command]
        requests = {}
        if variant.name.startswith("view"):
            report = self.lab.scratch / "report.json"
            how = ["--no-cache", "--report", report]
            if "no passthrough" in variant.name:
                how.append("--no-passthrough")
            sample = self.project[variant.transport].run(*how, "--", *command)
            requests["requests"] = waited_for(report)
        elif variant.name in self.mounts():
            point = self.lab.place / "point"
            point.mkdir(exist_ok=True)
            self.mounts()[variant.name](variant.name, point)
            try:
                sample = timed(command, point, self.lab.env, self.lab.log)
            finally:
                subprocess.run(["umount", point], check=True)
        else:
            sample = timed(command, self.place(variant), self.lab.env, self.lab.log)
        seconds = int(clock.read_text().split()[0]) / 1e9
        return {"seconds": seconds, "whole": sample["seconds"], "cpu": sample["cpu"], **requests}

    def printed(self):
        """Returns the numbers that the last command printed, in seconds."""
        lines = self.lab.log.read_text().splitlines()
        return [int(line) / 1e9 for line in lines if line.isdigit()]


class NodeReads(InView):
    name = "node-reads"
    title = "node stats and reads 50 k files"
    bars = (Bar("view", 1.5, "bare"), Bar("view, no passthrough", 1.5, "bare"))
    rounds = 5
    seconds = 75

    def variants(self, case):
        return [Variant("bare"), *self.served("view"), *self.served("view, no passthrough")]

    def setup(self, case):
        self.bare("node")
        count = 5_000 if self.lab.options.quick else 50_000
        for place in self.places(case):
            fill(place / "src", count, 1024)

    def measure(self, case, variant):
        return self.inside(variant, ["node", self.lab.programs["read-files"], "src"])


class Opens(InView):
    name = "opens"
    title = "static binary, 200 k opens, in passes of 20 k"
    bars = (Bar("view", 2.0, "bare"), Bar("view, no passthrough", 2.0, "bare"))
    rounds = 5
    seconds = 60
    units = {"first": ("ms", 1e3), "later": ("ms", 1e3)}

    def variants(self, case):
        return [Variant("bare"), *self.served("view"), *self.served("view, no passthrough")]

    def setup(self, case):
        self.bare("opens")
        self.fill_listed(case, 2_000 if self.lab.options.quick else 20_000)

    def measure(self, case, variant):
        sample = self.inside(variant, [self.lab.programs["touch-files"], "open", 10, "list"])
        passes = self.printed()
        return {**sample, "first": passes[0], "later": sum(passes[1:]) / len(passes[1:])}


class Callers(InView):
    name = "callers"
    title = "240 k opens by one, two and four processes at once"
    counts = {"view, one caller": 1, "view, two callers": 2, "view, four callers": 4}
    bars = (Bar("view, two callers", 1.0, "view, one caller"), Bar("view, four callers", 1.0, "view, one caller"))
    rounds = 5
    seconds = 60
    passes = 12

    def variants(self, case):
        return [variant for name in self.counts for variant in self.served(name)]

    def setup(self, case):
        self.bare("callers")
        self.fill_listed(case, 2_000 if self.lab.options.quick else 20_000)

    def measure(self, case, variant):
        callers = self.counts[variant.name]
        each = f"{self.lab.programs['touch-files']} open {self.passes // callers} list & "
        return self.inside(variant, ["sh", "-c", each * callers + "wait"])


class Trip(InView):
    name = "trip"
    title = "one request: statfs, which nothing caches"
    rounds = 5
    seconds = 20
    units = {"each": ("us", 1e6)}

    def variants(self, case):
        return [Variant("bare"), *self.served("view")]

    def setup(self, case):
        self.bare("trip")
        self.fill_listed(case, 1_000)

    def measure(self, case, variant):
        sample = self.inside(variant, [self.lab.programs["touch-files"], "fs", 11, "list"])
        # The first pass looks the names up.
        return {**sample, "each": sorted(self.printed()[1:])[5] / 1_000}


class Trees(InView):
    name = "trees"
    title = "20 k small files"
    bars = (
        Bar("view", 0.5, "fuse-overlayfs", cases=("cp -r", "tar -x", "rm -r")),
        Bar("view uring", 0.25, "fuse-overlayfs", cases=("cp -r", "tar -x", "rm -r")),
        Bar("view uring", 3.0, "bare", cases=("cp -r", "tar -x", "rm -r")),
        Bar("view uring", 3.5, "bare", cases=("cat",)),
    )
    rounds = 3
    seconds = 280
    full, quick = 20_000, 2_000
    commands = {
        "cat": ["sh", "-c", "find src -type f -print0 | xargs -0 cat >/dev/null"],
        "cp -r": ["cp", "-r", "src", "made"],
        "tar -x": ["sh", "-c", "mkdir made && tar -xf src.tar -C made"],
        "rm -r": ["rm", "-r", "src"],
    }

    def cases(self):
        return list(self.commands)

    def variants(self, case):
        return [
            Variant("bare"), Variant("overlayfs"), *self.served("view"), *self.per_peer("fuse-overlayfs", "bindfs")
        ]

    def setup(self, case):
        self.bare(self.name)
        count = self.quick if self.lab.options.quick else self.full
        self.master = self.lab.place / "master"
        fill(self.master / "src", count, 1024)
        subprocess.run(["tar", "-cf", self.master / "src.tar", "-C", self.master / "src", "."], check=True)

    def before(self, case, variant):
        place = self.place(variant)
        for name in ("made", "src"):
            subprocess.run(["rm", "-rf", place / name], check=True)
        subprocess.run(["cp", "-r", self.master / "src", place / "src"], check=True)
        shutil.copy(self.master / "src.tar", place / "src.tar")

    def measure(self, case, variant):
        return self.inside(variant, self.commands[case])

    def mounts(self):
        return {
            **super().mounts(), "overlayfs": self.overlay, "fuse-overlayfs": self.overlay, "bindfs": self.bindfs
        }

    def overlay(self, name, point):
        """Mounts a writable layer over the directory, as a view is one."""
        layers = self.lab.place / "layers"
        shutil.rmtree(layers, ignore_errors=True)
        upper, work = layers / "upper", layers / "work"
        upper.mkdir(parents=True)
        work.mkdir()
        options = f"lowerdir={self.bare_path},upperdir={upper},workdir={work}"
        if name == "overlayfs":
            command = ["mount", "-t", "overlay", "overlay", "-o", options, point]
        else:
            command = [self.lab.peers.get(name), "-o", options, point]
        subprocess.run(command, check=True)

    def bindfs(self, name, point):
        """Mirrors the directory."""
        subprocess.run([self.lab.peers.get(name), self.bare_path, point], check=True)


class Mirrors(Trees):
    """`Trees` and more, with few enough files for libfuse's example, which keeps each open, under a usual limit."""

    name = "mirrors"
    transports = ("uring",)
    title = "8 k small files, beside a mirror that records nothing, over io_uring"
    bars = (
        Bar("view uring", 1.0, "passthrough_hp", cases=("cat",)),
        Bar("view uring", 1.2, "passthrough_hp", cases=("cp -r", "tar -x", "rm -r", "node", "opens", "git")),
    )
    rounds = 5
    seconds = 150
    full, quick = 8_000, 1_000

    def __init__(self, lab):
        super().__init__(lab)
        programs = lab.programs
        self.commands = {
            **Trees.commands,
            "node": ["node", programs["read-files"], "src"],
            "opens": [programs["touch-files"], "open", 10, "list"],
            "git": GIT_WORK,
        }

    def setup(self, case):
        super().setup(case)
        for place in self.places(case):
            (place / "list").write_text(listing(self.master / "src", self.master))
            if case == "git":
                make_repository(self.lab, place / "origin", 500 if self.lab.options.quick else 2_000)

    def variants(self, case):
        return [Variant("bare"), *self.served("view"), *self.per_peer("passthrough_hp")]


class Io(InView):
    name = "io"
    title = "data of one file"
    operations = {
        "read": "sequential read",
        "random": "random read",
        "map": "mmap",
        "write": "sequential write",
        "tiny": "sequential write, 4 KiB at a time",
    }
    reading = ("read", "random", "map")
    bars = (
        Bar("view", 1 / 0.97, "bare", cases=reading),
        Bar("view", 1 / 0.9, "bare", cases=("write",)),
        Bar("view", 1.2, "passthrough_hp", cases=(*reading, "write")),
        Bar("view, no passthrough", 1 / 0.6, "bare", metric="again", cases=reading),
        Bar("view, no passthrough", 1.2, "passthrough_hp, no passthrough", metric="again", cases=("map",)),
        Bar("view, no passthrough", 1.2, "passthrough_hp, no passthrough", cases=(*reading, "write")),
    )
    rounds = 7
    seconds = 90
    units = {"again": ("ms", 1e3)}

    def cases(self):
        return list(self.operations)

    def variants(self, case):
        peers = ["passthrough_hp", "passthrough_hp, no passthrough"] if self.lab.peers.get("passthrough_hp") else []
        return [
            Variant("bare"), *self.served("view"), *self.served("view, no passthrough"), *map(Variant, peers)
        ]

    def setup(self, case):
        self.bare("io")
        self.mib = 64 if self.lab.options.quick else {"write": 1024, "tiny": 128}.get(case, 512)
        if case in self.reading:
            for place in self.places(case):
                with open(place / "file", "wb") as file:
                    for _ in range(self.mib):
                        file.write(os.urandom(1 << 20))

    def before(self, case, variant):
        if case not in self.reading:
            (self.place(variant) / "file").unlink(missing_ok=True)
            os.sync()

    def measure(self, case, variant):
        command = f"{self.lab.programs['io']} {case} file {self.mib}"
        times = 2 if case in self.reading else 1
        sample = self.inside(variant, ["sh", "-c", " && ".join([command] * times)])
        printed = self.printed()
        if len(printed) != times:
            raise Failed(f"the program printed {len(printed)} times of {times}")
        # The first time nothing of the file is in the cache of the mount, but all of it in that of the disk.
        return {**sample, "seconds": printed[0], **({"again": printed[1]} if times > 1 else {})}

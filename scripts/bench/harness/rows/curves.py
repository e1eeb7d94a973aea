"""What grows with the number of files, and what does not."""

import subprocess
import time

from harness.files import MANY, fill, fill_alike, listing
from harness.measure import timed
from harness.row import Bar, Row, Variant
from harness.rows.hits import generator


class Memory(Row):
    name = "memory"
    title = "memory of `vout-mountd` with one layer, listed, by files"
    bars = (
        Bar("listed", 60.0, kind="most", metric="now", cases=("50000",)),
        Bar("listed", 500.0, kind="most", metric="now", cases=("1000000",)),
    )
    in_order = True
    rounds = 1
    seconds = 60
    units = {"now": ("MiB", 1.0), "peak": ("MiB", 1.0), "archive": ("MiB", 2**-20)}

    def cases(self):
        if self.lab.options.quick:
            return ["100", "1000", "10000"]
        sizes = ["100", "1000", "10000", "50000"]
        return [*sizes, str(MANY)] if self.lab.options.heavy else sizes

    def variants(self, case):
        return [*self.served("packed"), *self.served("attached"), *self.served("listed")]

    def setup(self, case):
        source = self.lab.place / "source"
        fill(source, int(case), 64)
        self.project = {
            transport: self.lab.project(f"memory-{transport}", generator(source), transport)
            for transport in self.per_transport()
        }

    def measure(self, case, variant):
        project = self.project[variant.transport]
        if variant.name == "packed":
            project.run("gen")
            # What a run took is given back when the daemon was left alone for a second; after ten it ends.
            time.sleep(5)
        elif variant.name == "attached":
            # In a daemon of its own, so that what storing took is not counted.
            subprocess.run(["rm", "-rf", project.path / "out"], check=True)
            project.end_daemon()
            project.mount()
            project.run("gen")
        else:
            subprocess.run(["find", project.path / "out", "-type", "f"], check=True, stdout=subprocess.DEVNULL)
        return {**project.daemon_memory(), "archive": float(project.status()["archive_bytes"])}


class ViewCurve(Row):
    name = "view-curve"
    title = "`cp -r` and read of a tree in a view, by files, whole `vout run`"
    rounds = 3
    seconds = 75

    def cases(self):
        sizes = ["100", "1000"] if self.lab.options.quick else ["100", "1000", "10000", "50000"]
        return [*sizes, str(MANY)] if self.lab.options.heavy else sizes

    def variants(self, case):
        return [Variant("bare"), *self.served("view"), *self.served("view, stored")]

    def setup(self, case):
        self.project = {
            transport: self.lab.project(f"curve-{transport}", "", transport) for transport in self.per_transport()
        }
        self.bare = self.lab.project("curve-bare", "")
        fill_alike([project.path / "src" for project in self.projects()], int(case), 1024)

    def projects(self):
        """Returns all projects."""
        return [*self.project.values(), self.bare]

    def of(self, variant):
        """Returns the project of a variant."""
        return self.bare if variant.name == "bare" else self.project[variant.transport]

    def before(self, case, variant):
        # Two trees of a million files beside their source would not fit.
        for project in self.projects() if int(case) >= MANY else [self.of(variant)]:
            subprocess.run(["rm", "-rf", project.path / "out"], check=True)

    def measure(self, case, variant):
        command = ["cp", "-r", "src", "out"]
        project = self.of(variant)
        if variant.name == "bare":
            return timed(command, project.path, project.env, self.lab.log)
        return project.run("--no-cache" if variant.name == "view" else "--force", "--", *command)


class Layers(Row):
    name = "layers"
    title = "hit and lookup with many layers attached, by layers"
    in_order = True
    rounds = 7
    seconds = 45
    units = {"stat": ("ms", 1e3)}

    def cases(self):
        return ["1", "10"] if self.lab.options.quick else ["1", "10", "100"]

    def variants(self, case):
        return [*self.served("hit, missing"), *self.served("hit, in place"), *self.served("stat of 1000 files")]

    def setup(self, case):
        source = self.lab.place / "source"
        fill(source, 1000, 64)
        config = "".join(
            f'[tasks.t{number}]\ncommand = "cp -r {source} out{number}"\n' for number in range(int(case))
        )
        names = [f"t{number}" for number in range(int(case))]
        self.project = {
            transport: self.lab.project(f"layers-{transport}", config, transport)
            for transport in self.per_transport()
        }
        for project in self.project.values():
            project.mount()
            project.run(*names)
            subprocess.run("rm -rf out*", shell=True, cwd=project.path, check=True)
            project.run(*names)
        self.names = listing(source, source).splitlines(keepends=True)

    def before(self, case, variant):
        project = self.project[variant.transport]
        if variant.name == "hit, missing":
            subprocess.run(["rm", "-rf", project.path / "out0"], check=True)
        elif variant.name.startswith("stat"):
            (self.lab.scratch / "list").write_text("".join(f"out0/{name}" for name in self.names))

    def measure(self, case, variant):
        project = self.project[variant.transport]
        if variant.name.startswith("hit"):
            return project.run("t0")
        command = [self.lab.programs["touch-files"], "stat", 1, self.lab.scratch / "list"]
        return timed(command, project.path, self.lab.env, self.lab.log)

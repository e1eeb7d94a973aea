"""What a run costs after the task itself: splitting, hashing, packing, storing, committing."""

import subprocess
import time

from harness.files import fill, size_and_count
from harness.measure import timed
from harness.row import Bar, Row, Variant


class MissEnd(Row):
    name = "miss-end"
    transports = ("uring",)
    title = "end of a miss, from the task's last moment to the prompt"
    bars = (
        Bar("vout", 1.0, "tar | zstd -3 -T2", cases=("50000x4096",)),
        Bar("vout", 1.03, "tar | zstd -3 -T2", metric="archive", cases=("50000x4096",)),
        Bar("vout", 0.7, "tar | zstd -3 -T2", cases=("8x134217728",)),
    )
    rounds = 5
    seconds = 150
    units = {"archive": ("MiB", 2**-20), "run": ("ms", 1e3)}

    def cases(self):
        return ["5000x4096", "8x8388608"] if self.lab.options.quick else ["50000x4096", "8x134217728"]

    def variants(self, case):
        return [*self.served("vout"), Variant("tar | zstd -3 -T2")]

    def setup(self, case):
        self.source = self.lab.place / "source"
        fill(self.source, *size_and_count(case))
        self.clock = self.lab.scratch / "clock"
        command = f"{self.lab.programs['timed']} {self.clock} cp -r {self.source} out"
        self.project = {
            transport: self.lab.project(f"miss-{transport}", f'[tasks.gen]\ncommand = "{command}"\n', transport)
            for transport in self.per_transport()
        }

    def before(self, case, variant):
        if variant.name == "vout":
            project = self.project[variant.transport]
            project.vout("cache", "clean")
            subprocess.run(["rm", "-rf", project.path / "out"], check=True)

    def measure(self, case, variant):
        if variant.name != "vout":
            archive = self.lab.place / "peer.tar.zst"
            script = f"tar -cf - -C {self.lab.place} source | zstd -q -3 -T2 -f -o {archive}"
            sample = timed(["sh", "-c", script], self.lab.place, self.lab.env, self.lab.log)
            return {**sample, "archive": float(archive.stat().st_size)}
        project = self.project[variant.transport]
        report = self.lab.scratch / "report.json"
        sample = project.run("--report", report, "gen")
        end = time.monotonic()
        task, ended = (int(number) / 1e9 for number in self.clock.read_text().split())
        archive = max((project.path / ".vout").rglob("*.tar.zst"), key=lambda path: path.stat().st_mtime)
        return {**sample, "seconds": end - ended, "run": task, "archive": float(archive.stat().st_size)}

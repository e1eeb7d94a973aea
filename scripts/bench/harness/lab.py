"""What all rows share: the disk, the programs under test, the options."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import tempfile

from harness.disk import Disk
from harness.machine import ROOT, built
from harness.peers import Peers
from harness.project import Project

PROGRAMS = pathlib.Path(__file__).resolve().parents[1] / "programs"


@dataclasses.dataclass
class Options:
    """What the command line says."""

    rounds: int | None
    budget_seconds: float
    quick: bool
    heavy: bool
    transports: list[str]


class Lab:
    """Owns everything outside of the rows; `close` leaves nothing behind."""

    def __init__(self, options: Options, disk_size: str, install: bool):
        self.options = options
        self.results = ROOT / "target" / "bench"
        self.results.mkdir(parents=True, exist_ok=True)
        self.vout = built()
        # A path of a socket has to be short.
        self.scratch = pathlib.Path(tempfile.mkdtemp(dir="/tmp", prefix="vb-"))
        self.log = self.scratch / "last.log"
        self.env = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(self.scratch),
            "TURBO_TELEMETRY_DISABLED": "1",
            "DO_NOT_TRACK": "1",
            "NX_NO_CLOUD": "true",
        }
        self.env.pop("VOUT_STORE", None)
        self.peers = Peers(self.results / "peers", install)
        self.programs = self._compile()
        self.disk = Disk(disk_size)
        self.projects: list[Project] = []

    @property
    def place(self) -> pathlib.Path:
        """Where rows keep their files."""
        return self.disk.path

    def project(self, name: str, config: str, transport: str | None = None) -> Project:
        """Makes a workspace, which is closed with the row's case."""
        project = Project(self, self.place / name, config, transport)
        self.projects.append(project)
        return project

    def clear(self) -> None:
        """Closes the projects and empties the disk."""
        while self.projects:
            self.projects.pop().close()
        for path in self.place.iterdir():
            if path.name != "lost+found":
                subprocess.run(["rm", "-rf", path], check=True)

    def fixture(self, name: str, project: Project) -> None:
        """Copies one of the real projects of scripts/fixtures over a workspace."""
        subprocess.run([ROOT / "scripts" / "fixtures", name], check=True)
        source = ROOT / "target" / "fixtures" / name
        subprocess.run(["cp", "-a", f"{source}/.", project.path], check=True)

    def close(self) -> None:
        """Removes everything but the results."""
        try:
            while self.projects:
                self.projects.pop().close()
        finally:
            self.disk.close()
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _compile(self) -> dict[str, pathlib.Path]:
        place = self.results / "programs"
        place.mkdir(exist_ok=True)
        made = {"read-files": PROGRAMS / "read-files.mjs"}
        for name in ("timed", "touch-files", "io", "ops"):
            made[name] = place / name
            command = ["cc", "-O2", "-static", "-o", made[name], PROGRAMS / f"{name}.c"]
            subprocess.run(command, check=True)
        return made

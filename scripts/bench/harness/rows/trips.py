"""How often the kernel has to ask. Counts are the same on a busy machine, so they can be checked anywhere."""

import json
import subprocess

from harness.measure import Failed
from harness.row import Bar, Row

COUNT = 200

# How the task ends where all went well: with a failure, whose outputs are discarded.
DISCARDED = 42

# What the protocol needs at least for the first and for a later use of a name in a view, where every name has to
# be told to the recorder once. An open has to be answered each time. A new name is looked up before it is made, and
# where the kernel checks permissions (default_permissions) it asks for a directory's attributes again after each
# change in it. A listing is asked for until an empty answer, and makes the kernel forget the directory's access
# time, which opendir(3) then asks for.
LEAST = {
    "stat": (1, 0),
    "stat-absent": (1, 0),
    "open": (2, 1),
    "read": (2, 1),
    "readlink": (2, 0),
    "readdir": (4, 2),
    "chmod": (2, 1),
    "overwrite": (2, 1),
    "create": (3, None),
    "mkdir": (3, None),
    "symlink": (3, None),
    "rename": (4, None),
    "unlink": (3, None),
}

# Nobody waits for the answers of these.
NOT_WAITED_FOR = {"Forget", "BatchForget", "Release", "Releasedir", "Interrupt"}


def waited_for(report):
    """Returns the number of requests that the one task of a report waited for."""
    requests = json.loads(report.read_text())[0]["served"]["requests"]
    return sum(count for name, count in requests.items() if name not in NOT_WAITED_FOR)


class RoundTrips(Row):
    name = "round-trips"
    transports = ("dev", "uring")
    title = "requests that a program waits for, by operation"
    bars = tuple(
        Bar("view", limit + 0.1, kind="most", metric=metric, cases=(case,))
        for case, least in LEAST.items()
        for metric, limit in zip(("first", "again"), least)
        if limit is not None
    )
    rounds = 1
    seconds = 30
    units = {"first": ("requests", 1.0), "again": ("requests", 1.0)}
    strict = True

    def cases(self):
        return list(LEAST)

    def variants(self, case):
        return self.served("view")

    def setup(self, case):
        config = "".join(
            f"[tasks.pass{passes}]\ndiscard_on_failure = true\n"
            f'command = "sh -c \'{self.lab.programs["ops"]} {case} {COUNT} {passes} && exit {DISCARDED}\'"\n'
            for passes in range(3)
        )
        self.project = {
            transport: self.lab.project(f"trips-{transport}", config, transport) for transport in self.per_transport()
        }
        for project in self.project.values():
            place = project.path / "src"
            place.mkdir()
            for number in range(COUNT):
                (place / f"f{number}").write_bytes(b"x" * 4096)
                (place / f"l{number}").symlink_to("f0")
                (place / f"d{number}").mkdir()
                (place / f"d{number}" / "f").write_text("")

    def measure(self, case, variant):
        none, first = self.waited(case, variant, 0), self.waited(case, variant, 1)
        sample = {"first": (first - none) / COUNT}
        if LEAST[case][1] is not None:
            sample["again"] = (self.waited(case, variant, 2) - first) / COUNT
        return sample

    def waited(self, case, variant, passes):
        """Runs an operation in a view that is thrown away, so that each begins with the same files; counts."""
        project = self.project[variant.transport]
        file = self.lab.scratch / "report.json"
        command = [self.lab.vout, "run", "--force", "--report", file, f"pass{passes}"]
        done = subprocess.run(command, cwd=project.path, env=project.env, capture_output=True, check=False)
        if done.returncode != DISCARDED:
            raise Failed(f"{case} ended with {done.returncode}: {done.stderr.decode()}")
        return waited_for(file)

"""Running commands and timing them; statistics over paired samples."""

import dataclasses
import os
import pathlib
import statistics
import subprocess
import time
from collections.abc import Callable

# Between two looks for something to happen.
LOOK_SECONDS = 0.01

# One run of one variant: values by metric. "seconds" is the wall time, "cpu" is user and system time.
Sample = dict[str, float]


class Failed(Exception):
    """A command that is part of a benchmark failed; nothing it measured means anything."""


def timed(command: list, cwd, env: dict, log: pathlib.Path) -> Sample:
    """Runs a command to its end and returns how long it took; its output goes to `log`."""
    command = [str(word) for word in command]
    with open(log, "wb") as out:
        start = time.monotonic()
        child = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, close_fds=False
        )
        _, status, usage = os.wait4(child.pid, 0)
        end = time.monotonic()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        said = log.read_bytes().decode(errors="replace")[-4000:]
        raise Failed(f"{' '.join(command)} ended with {child.returncode} in {cwd}:\n{said}")
    return {"seconds": end - start, "cpu": usage.ru_utime + usage.ru_stime}


@dataclasses.dataclass(frozen=True)
class Summary:
    """Statistics of one sample."""

    count: int
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Summary":
        """Takes the median and the quartiles."""
        if len(values) < 2:
            return cls(len(values), values[0], values[0], values[0])
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(len(values), statistics.median(values), low, high)


def paired(values: list[float], against: list[float], difference: bool = False) -> Summary:
    """Compares runs of the same round: slow rounds are slow for both, so their ratios scatter less."""
    pairs = zip(values, against)
    return Summary.of([a - b if difference else a / b for a, b in pairs])


def wait_until(happened: Callable[[], bool], what: str) -> None:
    """Waits some seconds for something."""
    for _ in range(500):
        if happened():
            return
        time.sleep(LOOK_SECONDS)
    raise Failed(f"in vain: {what}")

"""Where and when something was measured."""

import datetime
import os
import pathlib
import platform
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[3]


def facts() -> dict:
    """Returns what a reader of a figure needs to know about the machine."""
    return {
        "processor": _cpuinfo("model name") or platform.machine(),
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "virtual": "hypervisor" in (_cpuinfo("flags") or "").split(),
        "kernel": platform.release(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _git("describe", "--always", "--dirty", "--abbrev=10"),
        "load": round(os.getloadavg()[0], 2),
    }


def build() -> None:
    """Builds vout as people install it."""
    subprocess.run(["cargo", "build", "--release", "--quiet", "--config", ".cargo/static.toml", "-p", "vout-cli"], cwd=ROOT, check=True)


def built() -> pathlib.Path:
    """Returns where `build` puts `vout`."""
    host = subprocess.run(["rustc", "--print", "host-tuple"], cwd=ROOT, check=True, capture_output=True, text=True)
    return ROOT / "target" / host.stdout.strip() / "release" / "vout"


def has_uring() -> bool:
    """Returns whether the kernel serves FUSE over io_uring."""
    switch = pathlib.Path("/sys/module/fuse/parameters/enable_uring")
    return switch.exists() and switch.read_text().strip() == "Y"


def _cpuinfo(key: str) -> str | None:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"

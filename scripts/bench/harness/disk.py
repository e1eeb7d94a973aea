"""A journaled disk in memory. A root file system without a journal is slow and erratic where deleted files
are made anew; and a disk that other programs write to is no place to measure anything."""

import os
import pathlib
import shutil
import subprocess
import tempfile


class Disk:
    """An ext4 file system in a file in /dev/shm, mounted as long as the object lives."""

    def __init__(self, size: str):
        if os.geteuid() != 0:
            raise SystemExit("bench: mounting a disk image needs root")
        self.image = pathlib.Path(tempfile.mkstemp(dir="/dev/shm", prefix="vout-bench-", suffix=".img")[1])
        self.path = pathlib.Path(tempfile.mkdtemp(dir="/tmp", prefix="vout-bench-"))
        subprocess.run(["truncate", "-s", size, self.image], check=True)
        tools = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        # Sizes of inode tables grow with the disk: millions of files need more of them than by default.
        make = ["mkfs.ext4", "-q", "-F", "-O", "has_journal", "-i", "8192", self.image]
        subprocess.run(make, check=True, env=tools)
        # With discard, what is deleted is memory again.
        subprocess.run(["mount", "-o", "loop,discard,noatime", self.image, self.path], check=True)

    def close(self) -> None:
        """Takes away whatever still lies on the disk, and the disk."""
        for point in reversed(_mounts_below(self.path)):
            subprocess.run(["umount", "-l", point], check=False, stderr=subprocess.DEVNULL)
        if subprocess.run(["umount", self.path], check=False, stderr=subprocess.DEVNULL).returncode != 0:
            subprocess.run(["umount", "-l", self.path], check=False)
        shutil.rmtree(self.path, ignore_errors=True)
        self.image.unlink(missing_ok=True)


def _mounts_below(path: pathlib.Path) -> list[str]:
    lines = pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [point for point in points if point.startswith(f"{path}/")]

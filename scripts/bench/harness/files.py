"""Trees of files to measure with: the same bytes every time."""

import base64
import pathlib
import random
import subprocess

FILES_PER_DIR = 500

# From so many files on, making and removing them takes longer than what is measured: trees are shared where they can be.
MANY = 1_000_000


def fill(path: pathlib.Path, count: int, size_bytes: int) -> None:
    """Makes `count` files of `size_bytes`, which compress to about three quarters, as compiled code does."""
    chance = random.Random(count * 1_000_003 + size_bytes)
    for start in range(0, count, FILES_PER_DIR):
        part = path / str(start // FILES_PER_DIR)
        part.mkdir(parents=True)
        for number in range(start, min(start + FILES_PER_DIR, count)):
            (part / f"f{number % FILES_PER_DIR:03}").write_bytes(_text(chance, size_bytes))


def fill_alike(paths: list[pathlib.Path], count: int, size_bytes: int) -> None:
    """As `fill`, for several trees; many files are hard links, so that they fit into memory once."""
    first, *others = paths
    fill(first, count, size_bytes)
    for path in others:
        if count < MANY:
            fill(path, count, size_bytes)
        else:
            subprocess.run(["cp", "-al", first, path], check=True)


def _text(chance: random.Random, size_bytes: int) -> bytes:
    pieces, left = [], size_bytes
    while left > 0:
        piece = base64.b64encode(chance.randbytes(min(left, 3 << 20)))[:left]
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def listing(path: pathlib.Path, relative_to: pathlib.Path) -> str:
    """Returns the names of all files below `path`, one a line, sorted."""
    names = (str(file.relative_to(relative_to)) for file in path.rglob("*") if file.is_file())
    return "".join(f"{name}\n" for name in sorted(names))


def size_and_count(case: str) -> tuple[int, int]:
    """Reads a case such as '50000x4096'."""
    count, size_bytes = case.split("x")
    return int(count), int(size_bytes)

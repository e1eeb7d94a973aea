"""usage: manifest.py DIRECTORY

Prints all that can be known of a tree, a line per object: two trees are equal when their manifests are.
"""

import hashlib
import os
import stat
import sys

os.chdir(sys.argv[1])
first = {}


def content(path, info):
    if stat.S_ISLNK(info.st_mode):
        return repr(os.readlink(path))
    if not stat.S_ISREG(info.st_mode):
        return "-"
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    # How a file is allocated is the file system's own affair, but a large hole must not have been filled.
    sparse = info.st_blocks * 512 + (1 << 20) <= info.st_size
    return f"{info.st_size} {digest.hexdigest()[:32]} {'sparse' if sparse else 'dense'}"


def attributes(path):
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return []
    return sorted((name, os.getxattr(path, name, follow_symlinks=False)) for name in names if name.startswith("user."))


def line(path):
    info = os.lstat(path)
    alike = "-"
    if not stat.S_ISDIR(info.st_mode) and info.st_nlink > 1:
        alike = f"{info.st_nlink} of {first.setdefault(info.st_ino, path)!r}"
    print(repr(path), oct(info.st_mode), info.st_uid, info.st_gid, info.st_mtime_ns, alike, content(path, info),
          attributes(path))


line(b".")
for at, dirs, files in os.walk(b"."):
    dirs.sort()
    for name in sorted(dirs + files):
        line(os.path.join(at, name))

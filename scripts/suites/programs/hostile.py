"""usage: hostile.py DIRECTORY

Makes a tree of all that file names, kinds, links, modes and times can be. Devices are left out: mounts know none.
"""

import os
import socket
import sys

root = os.path.abspath(sys.argv[1]).encode()
os.umask(0)
os.makedirs(root)
os.chdir(root)


def write(path, content=b"x"):
    with open(path, "wb") as file:
        file.write(content)


names = [b"plain", b" space ", b"new\nline", b"tab\t", b"-dash", b"~tilde", b"*?[]{}", b"'\"`$(:)\\", b"\xff\xfe\x80",
         b"caf\xc3\xa9", b"cafe\xcc\x81", b"\x01\x7f", b".hidden", b"..dots", b"...", b"n" * 255, b"\xe2\x82\xac" * 85,
         b"a:b", b"CON", b"#!"]
for name in names:
    write(name, name)
    os.mkdir(b"dir " + name[:200])
    write(b"dir " + name[:200] + b"/" + name, name[::-1])

for mode in (0o000, 0o400, 0o444, 0o600, 0o666, 0o755, 0o777, 0o4755, 0o2755, 0o6711, 0o1644):
    write(b"mode %o" % mode)
    os.chmod(b"mode %o" % mode, mode)
for mode in (0o500, 0o700, 0o755, 0o1777, 0o2775, 0o3777):
    os.mkdir(b"dir mode %o" % mode)
    os.chmod(b"dir mode %o" % mode, mode)

# Links: in one directory, across directories, of a symbolic link, of a FIFO.
write(b"links 1", b"linked" * 1000)
os.mkdir(b"links")
for number in range(2, 6):
    os.link(b"links 1", b"links/%d" % number)
os.symlink(b"plain", b"symlink")
os.link(b"symlink", b"links/symlink", follow_symlinks=False)
os.symlink(b"nowhere", b"broken")
os.symlink(b"/etc/passwd", b"absolute")
os.symlink(b"..", b"up")
os.symlink(b"loop", b"loop")
os.symlink(b"y" * 4095, b"long target")
os.mkfifo(b"fifo", 0o640)
os.link(b"fifo", b"links/fifo")
listener = socket.socket(socket.AF_UNIX)
listener.bind(b"socket")

# Holes: at the start, in the middle, at the end, everywhere.
for name, pieces, size in ((b"hole front", [(1 << 20, b"end")], None), (b"hole middle", [(0, b"a"), (8 << 20, b"b")], None),
                           (b"hole end", [(0, b"a")], 4 << 20), (b"all hole", [], 16 << 20), (b"empty", [], 0)):
    with open(name, "wb") as file:
        for offset, content in pieces:
            file.seek(offset)
            file.write(content)
        if size is not None:
            file.truncate(size)

directory = b"deep"
for _ in range(40):
    os.mkdir(directory)
    write(directory + b"/file")
    directory += b"/" + b"d" * 20

for name, value in ((b"user.short", b"v"), (b"user.long", b"\x00\xff" * 500), (b"user.empty", b"")):
    os.setxattr(b"plain", name, value)
    os.setxattr(b"links", name, value)

if os.geteuid() == 0:
    write(b"owned")
    os.chown(b"owned", 1234, 4321)
    os.chown(b"broken", 1234, 4321, follow_symlinks=False)

# Times last, with directories after what is in them.
for number, (at, dirs, files) in enumerate(sorted(os.walk(b"."), reverse=True)):
    for offset, name in enumerate(sorted(files + dirs)):
        path = os.path.join(at, name)
        stamp = (1_000_000_000 + number) * 1_000_000_000 + offset * 1_001_001 + 123_456_789
        os.utime(path, ns=(stamp, stamp), follow_symlinks=False)
os.utime(b"empty", ns=(-1_500_000_001, -1_500_000_001))
os.utime(b".", ns=(1_234_567_890_123_456_789,) * 2)

"""usage: history.py COMMITS

Prints a repository for `git fast-import`: two branches, the same bytes each time.
"""

import sys

out = sys.stdout.buffer
commits = int(sys.argv[1])


def blob(text):
    data = text.encode()
    return b"data %d\n%s\n" % (len(data), data)


for number in range(1, commits + 1):
    branch = "other" if number % 3 == 0 else "main"
    out.write(f"commit refs/heads/{branch}\nmark :{number}\n".encode())
    out.write(f"committer A <a@example.com> {1_500_000_000 + number * 60} +0000\n".encode())
    out.write(blob(f"change {number}\n"))
    if number == 3:
        out.write(b"from :2\n")
    for step in range(3):
        name = f"src/{(number * 7 + step) % 40}/{(number * 13 + step) % 50}.txt"
        out.write(f"M {'100755' if number % 11 == 0 else '100644'} inline {name}\n".encode())
        out.write(blob("".join(f"{branch} {number} {row * row}\n" for row in range(number % 60 + 5))))
    if number % 20 == 0:
        out.write(f"M 120000 inline links/{number % 7}\n".encode() + blob(f"../src/{number % 40}"))
    if number % 30 == 0:
        out.write(f"D src/{number % 40}/{number % 50}.txt\n".encode())

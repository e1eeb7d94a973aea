"""usage: database.py speed|crash

Works an SQLite database in WAL mode in the current directory. `speed` does what SQLite's own speedtest does, on a small
scale: inserts with and without an index, look-ups, ranges, updates, deletions, a vacuum. `crash` kills a writer again and
again: what it had committed must be there, and the database whole.
"""

import hashlib
import os
import random
import signal
import sqlite3
import sys


def connect(name):
    database = sqlite3.connect(name, isolation_level=None, timeout=30)
    mode = database.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    assert mode == "wal", mode
    return database


def whole(database):
    answer = database.execute("PRAGMA integrity_check").fetchone()[0]
    assert answer == "ok", answer


def speed():
    chance, database = random.Random(7), connect("speed.db")
    database.execute("CREATE TABLE plain (a INTEGER, b INTEGER, c TEXT)")
    database.execute("CREATE TABLE keyed (a INTEGER PRIMARY KEY, b INTEGER, c TEXT)")
    database.execute("CREATE INDEX by_b ON keyed (b)")
    for table, count in (("plain", 20000), ("keyed", 20000)):
        database.execute("BEGIN")
        for number in range(count):
            row = (number, chance.randrange(10**6), "%x" % chance.getrandbits(256))
            database.execute(f"INSERT INTO {table} VALUES (?, ?, ?)", row)
        database.execute("COMMIT")
    for number in range(300):
        database.execute("INSERT INTO plain VALUES (?, ?, 'one by one')", (number, number))
    reader = connect("speed.db")
    for number in range(200):
        low = chance.randrange(10**6)
        reader.execute("SELECT count(*), avg(b) FROM plain WHERE b BETWEEN ? AND ?", (low, low + 1000)).fetchall()
        reader.execute("SELECT c FROM keyed WHERE b BETWEEN ? AND ?", (low, low + 1000)).fetchall()
        database.execute("UPDATE keyed SET b = b + 1 WHERE a = ?", (chance.randrange(20000),))
    database.execute("DELETE FROM keyed WHERE b % 3 = 0")
    database.execute("CREATE INDEX by_c ON plain (c)")
    reader.close()
    database.execute("VACUUM")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole(database)
    digest = hashlib.sha256()
    for row in database.execute("SELECT * FROM keyed UNION ALL SELECT * FROM plain ORDER BY 1, 2, 3"):
        digest.update(repr(row).encode())
    print("speed", digest.hexdigest())


def writer(pipe):
    database, number = connect("crash.db"), 0
    number = database.execute("SELECT coalesce(max(n), 0) FROM t").fetchone()[0]
    while True:
        database.execute("BEGIN IMMEDIATE")
        for _ in range(5):
            number += 1
            database.execute("INSERT INTO t VALUES (?, ?)", (number, os.urandom(700)))
        database.execute("COMMIT")
        os.write(pipe, number.to_bytes(8, "little"))


def crash():
    database = connect("crash.db")
    database.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, v BLOB)")
    database.close()
    for round_ in range(12):
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reads)
            writer(writes)
        os.close(writes)
        committed = 0
        for _ in range(5 + 17 * round_):
            committed = int.from_bytes(os.read(reads, 8), "little")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while rest := os.read(reads, 8):
            committed = int.from_bytes(rest, "little")
        os.close(reads)
        database = connect("crash.db")
        whole(database)
        count, top = database.execute("SELECT count(*), max(n) FROM t").fetchone()
        assert count == top and committed <= top <= committed + 5, (count, top, committed)
        database.close()
    print("crash ok")


{"speed": speed, "crash": crash}[sys.argv[1]]()

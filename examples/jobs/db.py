"""The job table in SQLite, shared by all processes of this example on one host.

A job is `waiting`, then `running` under a lease, then `done`. A lease that runs out (its worker died) makes the job
available again; only the holder of the newest lease may finish it.
"""

import os
import sqlite3
import time
from pathlib import Path

LEASE_SECONDS = 15
MAX_WAITING = 200
PATH = Path(os.environ.get("DATABASE", "jobs.sqlite3"))

# One step per entry; the file's user_version counts the steps that it has seen.
MIGRATIONS = [
    """
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        key TEXT NOT NULL UNIQUE,
        text TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'running', 'done')),
        made REAL NOT NULL,
        worker TEXT,
        lease_until REAL,
        attempts INTEGER NOT NULL DEFAULT 0,
        finished REAL,
        picture BLOB
    );
    CREATE INDEX jobs_open ON jobs (state, id) WHERE state != 'done';
    """,
    "CREATE TABLE workers (name TEXT PRIMARY KEY, seen REAL NOT NULL);",
]


def connect(must_exist=True):
    """Opens the file. Writes wait up to ten seconds for each other; a commit is on disk when it returns."""
    mode = "rw" if must_exist else "rwc"
    db = sqlite3.connect(f"file:{PATH}?mode={mode}", uri=True, timeout=10, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    return db


def add(db, key, text):
    """Adds a job once; answers its id, or None when too many wait."""
    waiting = db.execute("SELECT count(*) FROM jobs WHERE state != 'done'").fetchone()[0]
    if waiting >= MAX_WAITING:
        return None
    db.execute(
        "INSERT INTO jobs (key, text, made) VALUES (?, ?, ?) ON CONFLICT (key) DO NOTHING",
        (key, text, time.time()),
    )
    return db.execute("SELECT id FROM jobs WHERE key = ?", (key,)).fetchone()["id"]


def claim(db, worker):
    """The oldest job that nobody holds, now held by `worker`; or None."""
    now = time.time()
    return db.execute(
        """
        UPDATE jobs SET state = 'running', worker = ?, attempts = attempts + 1, lease_until = ?
        WHERE id = (
            SELECT id FROM jobs
            WHERE state = 'waiting' OR (state = 'running' AND lease_until < ?)
            ORDER BY id LIMIT 1
        )
        RETURNING id, text, attempts
        """,
        (worker, now + LEASE_SECONDS, now),
    ).fetchone()


def finish(db, job, picture):
    """Stores the result, unless another worker holds the job by now. Answers whether it did."""
    done = db.execute(
        """
        UPDATE jobs SET state = 'done', picture = ?, finished = ?
        WHERE id = ? AND attempts = ? AND state = 'running'
        """,
        (picture, time.time(), job["id"], job["attempts"]),
    )
    return done.rowcount == 1


def give_back(db, job):
    """Makes a held job available at once."""
    db.execute(
        "UPDATE jobs SET state = 'waiting' WHERE id = ? AND attempts = ? AND state = 'running'",
        (job["id"], job["attempts"]),
    )


def alive(db, worker):
    """Notes that `worker` lives."""
    db.execute(
        "INSERT INTO workers VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET seen = excluded.seen",
        (worker, time.time()),
    )


def is_alive(db, worker, seconds):
    """Whether `worker` has been heard of in the last `seconds`."""
    seen = db.execute("SELECT seen FROM workers WHERE name = ?", (worker,)).fetchone()
    return seen is not None and time.time() - seen["seen"] < seconds

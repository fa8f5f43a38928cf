"""Takes jobs from the table and paints them. `worker.py check` is the health check.

On SIGTERM it gives the job in hand back, so that another worker has it at once; on kill -9 the lease runs out.
"""

import os
import signal
import sys
import threading
import time

import db
from paint import Interrupted, paint

NAME = os.environ.get("KEEL_INSTANCE", f"worker-{os.getpid()}")
IDLE_SECONDS = 0.5  # between looks at an empty table
HEARTBEAT_SECONDS = 2
STALE_SECONDS = 10
stopping = threading.Event()


def heartbeat():
    """Apart from the work, because a picture may take longer than a heartbeat may be late."""
    connection = db.connect()
    while not stopping.wait(HEARTBEAT_SECONDS):
        db.alive(connection, NAME)


def work(connection):
    while not stopping.is_set():
        job = db.claim(connection, NAME)
        if job is None:
            stopping.wait(IDLE_SECONDS)
            continue
        begun = time.monotonic()
        try:
            picture = paint(job["text"], stopping.is_set)
        except Interrupted:
            db.give_back(connection, job)
            print(f"job {job['id']}: given back", flush=True)
            break
        kept = db.finish(connection, job, picture)
        outcome = f"{len(picture)} bytes" if kept else "another worker was faster"
        print(f"job {job['id']}: {outcome} in {time.monotonic() - begun:.1f} s", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["check"]:
        sys.exit(0 if db.is_alive(db.connect(), NAME, STALE_SECONDS) else f"{NAME}: no sign of life")
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, lambda *_: stopping.set())
    main = db.connect()
    db.alive(main, NAME)
    threading.Thread(target=heartbeat, daemon=True).start()
    print(f"{NAME} is ready", flush=True)
    work(main)

"""Connections to PostgreSQL: as DATABASE says, with the password from the secret."""

import os
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, LifoQueue

import psycopg2

PASSWORD = Path("/run/secrets/db-password")
# Kept open for the next request; more are made and closed again when more are wanted at once.
idle = LifoQueue(maxsize=8)


def connect():
    return psycopg2.connect(os.environ["DATABASE"], password=PASSWORD.read_text(), connect_timeout=5)


@contextmanager
def cursor():
    """A cursor whose changes are committed at the end of the block, or not at all."""
    try:
        connection = idle.get_nowait()
    except Empty:
        connection = connect()
    try:
        with connection, connection.cursor() as made:
            yield made
    except BaseException:
        connection.close()
        raise
    if idle.full():
        connection.close()
    else:
        idle.put(connection)

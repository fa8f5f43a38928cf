"""Brings the database to the newest form and ends: each missing step in a transaction of its own, safe to run again."""

import sys

import db

connection = db.connect(must_exist=False)
done = connection.execute("PRAGMA user_version").fetchone()[0]
if done > len(db.MIGRATIONS):
    sys.exit(f"{db.PATH} has form {done}, this program knows {len(db.MIGRATIONS)}: run the newer program")
for number, script in enumerate(db.MIGRATIONS[done:], done + 1):
    # executescript would commit first: the statements run one by one inside one transaction instead.
    connection.execute("BEGIN IMMEDIATE")
    for statement in filter(None, map(str.strip, script.split(";"))):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {number}")
    connection.execute("COMMIT")
    print(f"form {number} of {len(db.MIGRATIONS)}", flush=True)
print(f"{db.PATH} is ready", flush=True)

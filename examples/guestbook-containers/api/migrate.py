"""Brings the tables up to date. It may run any number of times, and at the same time as another."""

import database

STEPS = [
    "CREATE TABLE IF NOT EXISTS entry (id bigserial PRIMARY KEY, key text UNIQUE NOT NULL, name text NOT NULL,"
    " text text NOT NULL, at timestamptz NOT NULL DEFAULT now())",
    "ALTER TABLE entry ADD COLUMN IF NOT EXISTS release text NOT NULL DEFAULT ''",
]

with database.cursor() as cursor:
    # One at a time: the lock goes with the transaction.
    cursor.execute("SELECT pg_advisory_xact_lock(4711)")
    for step in STEPS:
        cursor.execute(step)
print("the tables are up to date")

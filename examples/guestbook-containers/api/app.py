"""The guestbook's API: entries in PostgreSQL, visits counted in Redis.

Every write may be repeated: an entry has a key of its sender's, so a request that is sent twice is one entry.
"""

import json
import os

import database
import redis
from httpd import Handler, serve

SHOWN = 50
RELEASE = os.environ.get("RELEASE", "")
cache = redis.Redis.from_url(os.environ["CACHE"], socket_timeout=3)


def entries():
    with database.cursor() as cursor:
        cursor.execute("SELECT name, text FROM entry ORDER BY id DESC LIMIT %s", (SHOWN,))
        newest = cursor.fetchall()
        cursor.execute("SELECT count(*) FROM entry")
        count = cursor.fetchone()[0]
    return {"count": count, "entries": [{"name": name, "text": text} for name, text in newest]}


def write(body):
    entry = json.loads(body)
    row = (str(entry["key"]), str(entry["name"])[:60], str(entry["text"])[:500], RELEASE)
    with database.cursor() as cursor:
        cursor.execute(
            "INSERT INTO entry (key, name, text, release) VALUES (%s, %s, %s, %s) ON CONFLICT (key) DO NOTHING", row
        )
    # Only here is it committed.
    return {"written": row[0]}


class Guestbook(Handler):
    def answer(self, method, path, body):
        try:
            status, answer = self.answered(method, path, body)
        except (KeyError, ValueError) as error:
            status, answer = 400, {"error": f"not an entry: {error}"}
        except (database.psycopg2.Error, redis.RedisError) as error:
            status, answer = 503, {"error": str(error)}
        return status, "application/json", json.dumps(answer).encode(), {}

    def answered(self, method, path, body):
        match method, path:
            case "GET", "/healthz":
                return 200, {"release": RELEASE}
            case "GET", "/":
                return 200, {"guestbook": entries(), "visits": cache.incr("visits"), "release": RELEASE}
            case "POST", "/entries":
                return 201, write(body)
            case _:
                return 404, {"error": f"no {path}"}


serve(Guestbook)

"""The guestbook: its page and its JSON, kept in Redis. `api.py check` is the health check.

Every write may be repeated: an entry's key comes with the form, so a request that is sent twice is one entry.
"""

import html
import http.client
import json
import os
import secrets
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from httpd import INSTANCE, Handler, serve
from redis_client import Redis, RedisError

SHOWN = 50
MAX_NAME, MAX_TEXT = 60, 500
PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
redis = Redis()


def entries():
    count, keys = redis.run(("ZCARD", "guestbook:order"), ("ZREVRANGE", "guestbook:order", 0, SHOWN - 1))
    values = redis.run(("HMGET", "guestbook:entries", *keys))[0] if keys else []
    return count, [json.loads(value) for value in values if value]


def write(name, text, key):
    name, text = name.strip()[:MAX_NAME], text.strip()[:MAX_TEXT]
    if not name or not text:
        return None
    entry = {"name": name, "text": text, "at": int(time.time()), "written_by": INSTANCE}
    redis.run(
        ("HSETNX", "guestbook:entries", key, json.dumps(entry)),
        ("ZADD", "guestbook:order", "NX", int(time.time() * 1000), key),
    )
    return entry


def page(notice=""):
    count, newest = entries()
    items = "".join(
        f"<li><p>{html.escape(entry['text'])}</p><footer><b>{html.escape(entry['name'])}</b> "
        f"<time>{time.strftime('%d %b %Y, %H:%M', time.gmtime(entry['at']))}</time> "
        f"<small>via {html.escape(entry['written_by'])}</small></footer></li>"
        for entry in newest
    )
    filled = PAGE
    for name, value in {
        "notice": f'<p role="alert">{html.escape(notice)}</p>' if notice else "",
        "key": secrets.token_hex(12),
        "count": "No entries yet" if not count else f"{count} {'entry' if count == 1 else 'entries'}",
        "instance": html.escape(INSTANCE),
        "entries": items,  # last: what visitors wrote is not searched for places to fill in
    }.items():
        filled = filled.replace("{{" + name + "}}", value)
    return filled.encode()


class Guestbook(Handler):
    def answer(self, method, path, body):
        path = urlsplit(path).path
        try:
            if path == "/healthz":
                redis.run(("PING",))
                return 200, "text/plain", b"ok\n", {}
            if method == "GET" and path == "/":
                return 200, "text/html; charset=utf-8", page(), {"Cache-Control": "no-store"}
            if method == "GET" and path == "/api/entries":
                count, newest = entries()
                return 200, "application/json", json.dumps({"count": count, "entries": newest}).encode(), {}
            if method == "POST" and path == "/entries":
                form = {key: values[0] for key, values in parse_qs(body.decode(errors="replace")).items()}
                key = form.get("key", "")[:64] or secrets.token_hex(12)
                if write(form.get("name", ""), form.get("text", ""), key):
                    return 303, "text/plain", b"", {"Location": "/"}
                return 422, "text/html; charset=utf-8", page("A name and a few words, please."), {}
        except RedisError as error:
            return 502, "text/plain", f"Redis: {error}\n".encode(), {}
        return 404, "text/plain", b"there is nothing here\n", {}


def check():
    address = os.environ.get("KEEL_ADDRESS", "127.0.0.1"), int(os.environ["PORT"])
    connection = http.client.HTTPConnection(*address, timeout=3)
    connection.request("GET", "/healthz")
    return 0 if connection.getresponse().status == 200 else 1


if __name__ == "__main__":
    if sys.argv[1:] == ["check"]:
        sys.exit(check())
    serve(Guestbook)

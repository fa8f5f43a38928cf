"""The page and API of the picture mill. `web.py check` is the health check."""

import html
import http.client
import json
import os
import secrets
import sys
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import db
from httpd import INSTANCE, Handler, serve

SHOWN = 24
MAX_TEXT = 80
PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
local = threading.local()


def connection():
    """One per thread."""
    if not hasattr(local, "db"):
        local.db = db.connect()
    return local.db


def jobs():
    rows = connection().execute(
        "SELECT id, text, state, worker, attempts, made, finished FROM jobs ORDER BY id DESC LIMIT ?", (SHOWN,)
    )
    return [dict(row) for row in rows]


def tile(job):
    text = html.escape(job["text"])
    if job["state"] == "done":
        seconds = job["finished"] - job["made"]
        tries = f", {job['attempts']} tries" if job["attempts"] > 1 else ""
        return (
            f'<li><img src="/jobs/{job["id"]}.png" alt="" width="320" height="320" loading="lazy"><b>{text}</b>'
            f"<small>{html.escape(job['worker'])}, {seconds:.1f} s{tries}</small></li>"
        )
    who = f"{html.escape(job['worker'])} is painting" if job["state"] == "running" else "waiting"
    return f'<li class="{job["state"]}"><i></i><b>{text}</b><small>{who}</small></li>'


def gallery():
    return "".join(map(tile, jobs())) or "<li class=empty>No picture yet.</li>"


def page(notice=""):
    filled = PAGE
    for name, value in {
        "notice": f'<p role="alert">{html.escape(notice)}</p>' if notice else "",
        "key": secrets.token_hex(12),
        "instance": html.escape(INSTANCE),
        "gallery": gallery(),  # last: what visitors wrote is not searched for places to fill in
    }.items():
        filled = filled.replace("{{" + name + "}}", value)
    return filled.encode()


class Mill(Handler):
    def answer(self, method, path, body):
        path = urlsplit(path).path
        page_type = "text/html; charset=utf-8"
        if path == "/healthz":
            connection().execute("SELECT 1 FROM jobs LIMIT 1").fetchone()
            return 200, "text/plain", b"ok\n", {}
        if method != "POST" and path == "/":
            return 200, page_type, page(), {"Cache-Control": "no-store"}
        if method != "POST" and path == "/gallery":
            return 200, page_type, gallery().encode(), {"Cache-Control": "no-store"}
        if method != "POST" and path == "/api/jobs":
            return 200, "application/json", json.dumps({"jobs": jobs()}).encode(), {}
        if method != "POST" and path.startswith("/jobs/") and path.endswith(".png"):
            row = connection().execute("SELECT picture FROM jobs WHERE id = ?", (path[6:-4],)).fetchone()
            if row and row["picture"]:
                return 200, "image/png", row["picture"], {"Cache-Control": "max-age=86400, immutable"}
        if method == "POST" and path == "/jobs":
            form = {key: values[0] for key, values in parse_qs(body.decode(errors="replace")).items()}
            text = form.get("text", "").strip()[:MAX_TEXT]
            if not text:
                return 422, page_type, page("A word or two, please."), {}
            job = db.add(connection(), form.get("key", "")[:64] or secrets.token_hex(12), text)
            if job is None:
                return 503, page_type, page("The mill is full, please come back in a minute."), {"Retry-After": "60"}
            return 303, "application/json", json.dumps({"id": job}).encode(), {"Location": "/"}
        return 404, "text/plain", b"there is nothing here\n", {}


def check():
    address = os.environ.get("KEEL_ADDRESS", "127.0.0.1"), int(os.environ["PORT"])
    caller = http.client.HTTPConnection(*address, timeout=3)
    caller.request("GET", "/healthz")
    return 0 if caller.getresponse().status == 200 else 1


if __name__ == "__main__":
    if sys.argv[1:] == ["check"]:
        sys.exit(check())
    connection()
    serve(Mill)

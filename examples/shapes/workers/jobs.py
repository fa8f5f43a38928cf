"""Puts jobs on a list, takes them from it, or says that both may begin."""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import redis

store = redis.Redis(host=os.environ["REDIS"], decode_responses=True)


class Web(BaseHTTPRequestHandler):
    def do_GET(self):
        """Every look is a job."""
        store.rpush("jobs", "1")
        done = {name: store.get(name) or "0" for name in ("prepared", "done")}
        body = " ".join(f"{name}={value}" for name, value in done.items()).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def work():
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append("stop"))
    while not told:
        if store.blpop(["jobs"], timeout=1):
            store.incr("done")


match sys.argv[1]:
    case "prepare":
        store.incr("prepared")
    case "work":
        work()
    case "web":
        ThreadingHTTPServer(("0.0.0.0", 8000), Web).serve_forever()

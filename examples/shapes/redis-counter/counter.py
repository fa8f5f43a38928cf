"""Counts requests in Redis."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import redis

cache = redis.Redis(host="redis", retry_on_timeout=True, socket_timeout=3)


class Counter(BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"seen {cache.incr('hits')} times\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("0.0.0.0", 8000), Counter).serve_forever()

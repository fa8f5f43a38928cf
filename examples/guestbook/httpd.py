"""A threaded HTTP/1.1 server from the standard library that can be stopped without losing a request.

On SIGTERM or SIGINT it stops accepting, answers what is in flight or on its way with `Connection: close`, hangs up on
idle connections, and `serve` returns.
"""

import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_BODY_BYTES = 64 * 1024
LINGER_SECONDS = 0.2
INSTANCE = os.environ.get("KEEL_INSTANCE", f"pid-{os.getpid()}")


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests; subclasses have `answer(method, path, body)` → (status, type, body, headers)."""

    protocol_version = "HTTP/1.1"
    timeout = 75  # seconds for an idle connection; callers drop theirs earlier
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave in one piece

    def do_GET(self):
        self.one_request()

    def do_POST(self):
        self.one_request()

    do_HEAD = do_GET

    def one_request(self):
        self.server.set_busy(self.connection, True)
        try:
            length = int(self.headers.get("Content-Length") or 0)
            if length > MAX_BODY_BYTES:
                self.close_connection = True
                return self.reply(413, "text/plain", b"at most 64 KiB, please\n", {})
            body = self.rfile.read(length)
            try:
                outcome = self.answer(self.command, self.path, body)
            except ConnectionError as error:
                outcome = (503, "text/plain", f"{error}\n".encode(), {"Retry-After": "1"})
            self.reply(*outcome)
        finally:
            self.server.set_busy(self.connection, False)

    def reply(self, status, content_type, body, headers):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Instance", INSTANCE)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.server.stopping or self.close_connection:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def log_request(self, code="-", size="-"):
        if code != 200 or self.command != "GET":
            print(self.command, self.path, int(code), flush=True)


class Server(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = False  # closing the server waits for its requests

    def __init__(self, address, handler):
        super().__init__(address, handler)
        self.stopping = False  # answers say that they are the last on their connection
        self.closing = False  # nothing more is read
        self.lock = threading.Lock()
        self.busy = {}  # connection → is it in the middle of a request?

    def set_busy(self, connection, busy):
        with self.lock:
            self.busy[connection] = busy
            if self.closing and not busy:
                self.hang_up(connection)

    def process_request(self, request, client_address):
        with self.lock:
            self.busy[request] = False
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        with self.lock:
            self.busy.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    @staticmethod
    def hang_up(connection):
        """Ends the wait for a next request; one that has arrived already is still read and answered."""
        try:
            connection.shutdown(socket.SHUT_RD)
        except OSError:
            pass  # The other side was faster.

    def stop(self, *_):
        self.stopping = True
        threading.Thread(target=self.shutdown).start()


def serve(handler):
    """Serves on PORT until told to stop."""
    address = (os.environ.get("KEEL_ADDRESS", "127.0.0.1"), int(os.environ.get("PORT", "0")))
    server = Server(address, handler)
    signal.signal(signal.SIGTERM, server.stop)
    signal.signal(signal.SIGINT, server.stop)
    print(f"listening on http://{server.server_address[0]}:{server.server_address[1]}", flush=True)
    server.serve_forever(poll_interval=0.05)
    # What the system has accepted for us would be reset when the socket closes: take it first.
    server.socket.setblocking(False)
    for _ in range(server.request_queue_size):
        try:
            server.process_request(*server.get_request())
        except OSError:
            break
    server.socket.close()
    # A request may be on its way over an idle connection.
    deadline = time.monotonic() + LINGER_SECONDS
    while server.busy and time.monotonic() < deadline:
        time.sleep(0.01)
    with server.lock:
        server.closing = True
        for connection, busy in server.busy.items():
            if not busy:
                server.hang_up(connection)
    server.server_close()

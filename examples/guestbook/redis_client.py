"""The part of Redis' protocol that the guestbook needs, over a small pool of connections."""

import os
import queue
import socket

TIMEOUT_SECONDS = 5
MAX_IDLE = 16


class RedisError(Exception):
    """Redis answered with an error."""


class Connection:
    def __init__(self, address):
        self.socket = socket.create_connection(address, TIMEOUT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = self.socket.makefile("rb")

    def run(self, commands):
        """Sends all commands at once and returns their answers."""
        out = bytearray()
        for command in commands:
            out += b"*%d\r\n" % len(command)
            for word in command:
                word = word if isinstance(word, bytes) else str(word).encode()
                out += b"$%d\r\n%s\r\n" % (len(word), word)
        self.socket.sendall(out)
        answers = [self.read() for _ in commands]
        for answer in answers:
            if isinstance(answer, RedisError):
                raise answer
        return answers

    def read(self):
        line = self.reader.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("Redis closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            return RedisError(rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            if rest == b"-1":
                return None
            body = self.reader.read(int(rest) + 2)
            if len(body) != int(rest) + 2:
                raise ConnectionError("Redis closed the connection")
            return body[:-2]
        if kind == b"*":
            return None if rest == b"-1" else [self.read() for _ in range(int(rest))]
        raise ConnectionError(f"that is not Redis: {line!r}")

    def close(self):
        self.reader.close()
        self.socket.close()


class Redis:
    def __init__(self):
        self.address = (os.environ.get("REDIS_HOST", "127.0.0.1"), int(os.environ.get("REDIS_PORT", "6379")))
        self.idle = queue.LifoQueue(MAX_IDLE)

    def run(self, *commands):
        """Runs commands that may be repeated: what a dead connection swallowed is sent again once, over a new one."""
        try:
            connection = self.idle.get_nowait()
        except queue.Empty:
            return self.over(self.connect(), commands)
        try:
            return self.over(connection, commands)
        except OSError:
            return self.over(self.connect(), commands)

    def over(self, connection, commands):
        try:
            answers = connection.run(commands)
        except OSError as error:
            connection.close()
            raise ConnectionError(f"Redis: {error}") from error
        try:
            self.idle.put_nowait(connection)
        except queue.Full:
            connection.close()
        return answers

    def connect(self):
        try:
            return Connection(self.address)
        except OSError as error:
            raise ConnectionError(f"Redis at {self.address[0]}:{self.address[1]}: {error}") from error

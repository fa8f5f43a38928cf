"""Tests of guestbook and jobs with their real programs, started by hand on loopback: `python3 examples/test_examples.py`.

Needs what the two packages.txt name; a test whose program is missing is skipped, and says so.
"""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from urllib.parse import urlencode

HERE = Path(__file__).parent
DEADLINE_SECONDS = 20


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(condition, what):
    """The first true value of `condition`."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        try:
            value = condition()
        except OSError:
            value = None
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {DEADLINE_SECONDS} s: {what}")


def ask(port, method, path, form=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS)
    try:
        body = urlencode(form) if form is not None else None
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


class Example(unittest.TestCase):
    """Starts programs in an example's folder; whatever still runs at the end is killed."""

    folder = HERE

    def setUp(self):
        self.scratch = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.scratch, ignore_errors=True)

    def start(self, *command, **environment):
        words = {"KEEL_ADDRESS": "127.0.0.1", "PYTHONDONTWRITEBYTECODE": "1", **environment}
        child = subprocess.Popen(command, cwd=self.folder, env={**os.environ, **words}, stdout=subprocess.DEVNULL)
        self.addCleanup(self.end, child)
        return child

    @staticmethod
    def end(child):
        if child.poll() is None:
            child.kill()
        child.wait()

    def healthy(self, port):
        eventually(lambda: ask(port, "GET", "/healthz")[0] == 200, f"health at port {port}")


@unittest.skipUnless(shutil.which("redis-server"), "no redis-server")
class Guestbook(Example):
    folder = HERE / "guestbook"

    def setUp(self):
        super().setUp()
        self.redis_port = free_port()
        self.redis = self.start_redis()
        self.api_port = free_port()
        self.api = self.start_api(self.api_port)

    def start_redis(self):
        # The arguments of compose.yaml, with this test's folder and port.
        options = re.findall(r"^      - (--.*)$", (self.folder / "compose.yaml").read_text(), re.MULTILINE)
        for name, value in {
            "$${KEEL_ADDRESS}": "127.0.0.1",
            "${PORT}": str(self.redis_port),
            "/var/tmp/guestbook/redis": str(self.scratch),
        }.items():
            options = [option.replace(name, value) for option in options]
        self.assertGreaterEqual(len(options), 7)
        return self.start("redis-server", *options, "--loglevel warning")

    def start_api(self, port):
        redis = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(self.redis_port)}
        child = self.start(sys.executable, "api.py", PORT=str(port), **redis)
        self.healthy(port)
        return child

    def sign(self, port, key, text="Hello"):
        return ask(port, "POST", "/entries", {"name": "Ada", "text": text, "key": key})[0]

    def entries(self, port):
        return json.loads(ask(port, "GET", "/api/entries")[1])

    def test_signing_twice_with_one_key_is_one_entry_on_all_replicas(self):
        other = free_port()
        self.start_api(other)
        self.assertEqual(self.sign(self.api_port, "k"), 303)
        self.assertEqual(self.sign(other, "k", "Something else"), 303)
        book = self.entries(other)
        self.assertEqual((book["count"], book["entries"][0]["text"]), (1, "Hello"))

    def test_words_can_not_become_markup(self):
        self.sign(self.api_port, "k", "<script>x</script> {{key}}")
        page = ask(self.api_port, "GET", "/")[1].decode()
        self.assertIn("&lt;script&gt;x&lt;/script&gt; {{key}}", page)
        self.assertEqual(ask(self.api_port, "POST", "/entries", {"name": " ", "text": "x"})[0], 422)

    def test_entries_survive_kill_9_of_everything(self):
        for number in range(20):
            self.assertEqual(self.sign(self.api_port, f"k{number}"), 303)
        for child in (self.redis, self.api):
            child.kill()
            child.wait()
        self.start_redis()
        self.start_api(self.api_port)
        self.assertEqual(self.entries(self.api_port)["count"], 20)

    def test_it_is_unhealthy_without_redis_and_recovers(self):
        self.redis.kill()
        self.redis.wait()
        self.assertEqual(ask(self.api_port, "GET", "/healthz")[0], 503)
        self.start_redis()
        self.healthy(self.api_port)

    def test_a_request_over_an_idle_connection_is_answered_while_stopping(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.api_port, timeout=DEADLINE_SECONDS)
        self.addCleanup(connection.close)
        self.assertFalse(self.one(connection))
        self.api.send_signal(signal.SIGTERM)
        while not self.one(connection):
            pass  # Each is answered; the last one says that it is the last.
        self.assertEqual(self.api.wait(DEADLINE_SECONDS), 0)

    def one(self, connection):
        connection.request("GET", "/api/entries")
        answer = connection.getresponse()
        answer.read()
        self.assertEqual(answer.status, 200)
        return answer.headers["Connection"] == "close"

    @unittest.skipUnless(shutil.which("nginx"), "no nginx")
    def test_nginx_with_the_configuration_in_the_compose_file(self):
        text = (self.folder / "compose.yaml").read_text()
        script = re.search(r"    content: \|\n((?:      .*\n)+)", text)[1]
        file = self.scratch / "nginx.sh"
        file.write_text(re.sub("^      ", "", script, flags=re.MULTILINE).replace("$$", "$"))
        port = free_port()
        api = {"API_HOST": "127.0.0.1", "API_PORT": str(self.api_port)}
        # It works below /tmp/$KEEL_INSTANCE.
        name = f"guestbook-test-{os.getpid()}"
        self.addCleanup(shutil.rmtree, f"/tmp/{name}", ignore_errors=True)
        nginx = self.start("sh", str(file), PORT=str(port), KEEL_INSTANCE=name, **api)
        self.healthy(port)
        self.assertEqual(self.sign(port, "k"), 303)
        status, _, headers = ask(port, "GET", "/")
        self.assertEqual((status, headers["X-Web"]), (200, name))
        nginx.send_signal(signal.SIGQUIT)
        self.assertEqual(nginx.wait(DEADLINE_SECONDS), 0)


class Jobs(Example):
    folder = HERE / "jobs"

    def setUp(self):
        super().setUp()
        self.file = self.scratch / "jobs.sqlite3"
        for _ in range(2):  # Safe to run again.
            migrate = self.start(sys.executable, "migrate.py", DATABASE=str(self.file))
            self.assertEqual(migrate.wait(DEADLINE_SECONDS), 0)

    def worker(self, name):
        return self.start(sys.executable, "worker.py", DATABASE=str(self.file), KEEL_INSTANCE=name)

    def check(self, name):
        return self.start(sys.executable, "worker.py", "check", DATABASE=str(self.file), KEEL_INSTANCE=name).wait()

    def sql(self, statement, *values):
        db = sqlite3.connect(self.file, timeout=10)
        try:
            rows = db.execute(statement, values).fetchall()
            db.commit()
            return rows
        finally:
            db.close()

    def add(self, count):
        for number in range(count):
            self.sql("INSERT INTO jobs (key, text, made) VALUES (?, ?, 0)", f"k{number}", f"word {number}")

    def test_a_word_becomes_a_picture(self):
        port = free_port()
        web = self.start(sys.executable, "web.py", DATABASE=str(self.file), PORT=str(port))
        self.healthy(port)
        for _ in range(2):
            self.assertEqual(ask(port, "POST", "/jobs", {"text": "<lighthouse>", "key": "k"})[0], 303)
        self.assertEqual(ask(port, "GET", "/jobs/1.png")[0], 404)
        self.worker("one")
        eventually(lambda: self.sql("SELECT 1 FROM jobs WHERE state = 'done'"), "the picture")
        status, picture, headers = ask(port, "GET", "/jobs/1.png")
        self.assertEqual((status, headers["Content-Type"], picture[:4]), (200, "image/png", b"\x89PNG"))
        page = ask(port, "GET", "/")[1].decode()
        self.assertIn("&lt;lighthouse&gt;", page)
        self.assertEqual(len(json.loads(ask(port, "GET", "/api/jobs")[1])["jobs"]), 1)
        self.assertEqual(ask(port, "POST", "/jobs", {"text": " "})[0], 422)
        web.send_signal(signal.SIGTERM)
        self.assertEqual(web.wait(DEADLINE_SECONDS), 0)

    def test_a_stopped_worker_gives_back_and_a_killed_one_loses_its_lease(self):
        self.add(2)
        running = "SELECT id FROM jobs WHERE state = 'running' AND worker = ?"
        stopped = self.worker("stopped")
        eventually(lambda: self.sql(running, "stopped"), "the first worker's job")
        stopped.send_signal(signal.SIGTERM)
        self.assertEqual(stopped.wait(DEADLINE_SECONDS), 0)
        self.assertEqual(self.sql("SELECT id FROM jobs WHERE state = 'running'"), [])
        killed = self.worker("killed")
        eventually(lambda: self.sql(running, "killed"), "the second worker's job")
        self.assertEqual((self.check("killed"), self.check("nobody")), (0, 1))
        killed.kill()
        killed.wait()
        self.sql("UPDATE jobs SET lease_until = 1 WHERE state = 'running'")  # As if 15 s had passed.
        self.worker("last")
        eventually(lambda: self.sql("SELECT count(*) FROM jobs WHERE state = 'done'") == [(2,)], "both pictures")

    def test_two_workers_share_the_work_and_do_none_twice(self):
        self.add(4)
        self.worker("one")
        self.worker("two")
        eventually(lambda: self.sql("SELECT count(*) FROM jobs WHERE state = 'done'") == [(4,)], "four pictures")
        self.assertEqual(self.sql("SELECT max(attempts) FROM jobs"), [(1,)])
        self.assertEqual(self.sql("SELECT DISTINCT worker FROM jobs ORDER BY 1"), [("one",), ("two",)])


if __name__ == "__main__":
    unittest.main()

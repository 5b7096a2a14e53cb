"""The judge's side: a small server between a harness and its judge, that keeps each judgment.

A harness asks this server, which asks the judge. What was judged is kept the moment it is there, by
what decides it: the judge's model, the texts, the sampling; not by where the judge is served.
Whenever an evaluation is killed, the same command pays no judgment twice. A reply that is no
judgment is not kept: the same command asks for it anew. The key never reaches the harness.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from aft_factory.engines.engine import KEY, default_key, shown_url
from aft_factory.errors import UsageError, needing
from aft_factory.evaluate.settings import EvalSettings
from aft_factory.network import hint, making_client, read_key, without_proxies
from aft_factory.stage.guard import guarding

if TYPE_CHECKING:
    from httpx import Client

AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})
OF_ONE = frozenset({400, 413, 422})  # refusals that may be of one request: the harness knows best
FIRST_RETRIES = 2  # where nobody is there, that is to be known soon
LONGEST_WAIT = 60.0  # seconds between two attempts


Judges = Callable[[Mapping[str, Any]], bool]


class Judge:
    """A judge at a server, and what it has judged.

    Attributes:
        model: The name it is served by.
        failure: What it answered to a request that no other would do better; None so far.
        asked: How many requests it was sent.
    """

    def __init__(self, settings: EvalSettings, model: str, path: Path, judges: Judges) -> None:
        self.model = model
        self.failure: str | None = None
        self.asked = 0
        self._judges = judges
        self._url = settings.judge_url or _usual_url()
        self._retries = settings.retries
        name = settings.judge_key_env
        self._client = _client(default_key() if name == KEY else read_key(name), settings.timeout)
        self._one_by_one: dict[bytes, threading.Lock] = defaultdict(threading.Lock)
        self._refused: dict[bytes, tuple[int, bytes]] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("CREATE TABLE IF NOT EXISTS judgments (key BLOB PRIMARY KEY, reply BLOB)")

    def ask(self, body: Mapping[str, Any]) -> tuple[int, bytes]:
        """Return the status and body of a judgment, an earlier one where there is one."""
        data = self._data(body)
        status, reply = self._once(data, data, self._retries, self._judges)
        if status != 200 and status not in OF_ONE:
            self.failure = self._told(status, reply)
        return status, reply

    def check(self, body: Mapping[str, Any], judges: Judges) -> bool:
        """Ask this server for one judgment before anything is paid for; tell whether it is one.

        Raises:
            UsageError: If there is no reply, in the judge's words.
        """
        data = self._data(body)
        retries = min(self._retries, FIRST_RETRIES)
        status, reply = self._once(self._url.encode() + data, data, retries, judges)
        if status != 200:
            place = shown_url(self._url)
            raise UsageError(f"the judge {self.model} at {place}: {self._told(status, reply)}")
        return _is_one(reply, judges)

    def _told(self, status: int, reply: bytes) -> str:
        told = reply.decode("utf-8", "replace")[:500]
        return f"{status}: {told}{hint(self._url, told)}"

    def _data(self, body: Mapping[str, Any]) -> bytes:
        return orjson.dumps({**body, "model": self.model}, option=orjson.OPT_SORT_KEYS)

    def _once(self, what: bytes, data: bytes, retries: int, judges: Judges) -> tuple[int, bytes]:
        """Send what was not judged yet; keep what it is known by, if it is a judgment."""
        key = hashlib.blake2b(what, digest_size=16).digest()
        with self._lock:
            one = self._one_by_one[key]
        with one:
            if (kept := self._find(key)) is not None:
                return 200, kept
            if key in self._refused:  # a harness may ask for it again and again
                return self._refused[key]
            status, reply = self._send(data, retries)
            if status == 200 and _is_one(reply, judges):
                keep = "INSERT OR IGNORE INTO judgments VALUES (?, ?)"
                try:
                    with self._lock:
                        self._db.execute(keep, (key, reply))
                except sqlite3.Error as error:  # such as a full disk: what comes next is lost, too
                    return 507, f"judgments cannot be kept: {error}".encode()
            elif status in OF_ONE:
                self._refused[key] = status, reply
            return status, reply

    def _find(self, key: bytes) -> bytes | None:
        with self._lock:
            query = "SELECT reply FROM judgments WHERE key = ?"
            found = self._db.execute(query, (key,)).fetchone()
        return None if found is None else found[0]

    def _send(self, data: bytes, retries: int) -> tuple[int, bytes]:
        from httpx import HTTPError

        url = f"{self._url.rstrip('/')}/chat/completions"
        status, reply = 502, b""
        for attempt in range(retries + 1):
            with self._lock:
                self.asked += 1
            try:
                answer = self._client.post(url, content=data)
                status, reply = answer.status_code, answer.content
            except HTTPError as error:
                status, reply = 502, str(error or type(error).__name__).encode()
            if status not in AGAIN or b"insufficient_quota" in reply:
                break
            wait = min(0.5 * 2**attempt, LONGEST_WAIT)
            if attempt == retries or self._stopping.wait(wait):
                break
        return status, reply

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """Serve a harness; yields the URL. At its end, wait for what the judge is at."""
        judge = self
        self._stopping.clear()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, reply = judge.ask(body)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                with contextlib.suppress(OSError):  # the harness has gone
                    self.wfile.write(reply)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing of each request."""

        class Server(ThreadingHTTPServer):
            daemon_threads = False  # waited for
            request_queue_size = 128

        with Server(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/v1"
            finally:
                self._stopping.set()
                server.shutdown()

    def close(self) -> None:
        """Close what is kept."""
        self._client.close()
        self._db.close()


def run_harness(
    name: str,
    command: Sequence[str],
    judge: Judge,
    where: Path,
    log: Path,
    environment: Mapping[str, str],
) -> str:
    """Run a harness's own command until it ends, or until its judge fails it.

    Args:
        name: Of the harness.
        command: To run.
        judge: That it asks.
        where: The folder to run it in.
        log: Where what it says is kept.
        environment: Added to ours.

    Returns:
        What it says.

    Raises:
        UsageError: If it fails.
    """
    with (
        judge.serving() as url,
        log.open("wb") as out,
        guarding(signal.SIGKILL, patience=0) as enter,
    ):
        # The names that the versions of OpenAI's client know.
        names = {"OPENAI_BASE_URL": url, "OPENAI_API_BASE": url, "OPENAI_API_KEY": "none"}
        env = without_proxies({**os.environ, **names, **environment})
        env.pop("OPENAI_API_KEYS", None)
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            cwd=where,
            env=env,
            start_new_session=True,
            preexec_fn=enter,
        )
        try:
            assert child.stdin is not None
            with contextlib.suppress(OSError), child.stdin as stdin:
                stdin.write(b"\n")  # FastChat waits for Enter
            while judge.failure is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=0.1)
                    break
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if judge.failure is not None:
        raise UsageError(f"{name}: the judge {judge.model}: {judge.failure}")
    with log.open("rb") as stream:
        said = stream.read().decode(errors="replace")
    if child.returncode:
        last = said.strip().splitlines()[-1:]
        raise UsageError(f"{name} ended with {child.returncode}: {''.join(last)} ({log})")
    return said


def _usual_url() -> str:
    """Return where OpenAI's own client asks."""
    return os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"


def _client(key: str, timeout: float) -> Client:
    """Return what asks a judge by this key."""
    with needing("a judge", '"aft-factory[eval]"'):
        import httpx
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    headers["Connection"] = "close"  # servers drop those that are kept, and a request may meet that
    with making_client():
        return httpx.Client(headers=headers, timeout=timeout)


def _is_one(reply: bytes, judges: Judges) -> bool:
    """Tell whether a reply is what a harness can read a judgment from."""
    try:
        return judges(orjson.loads(reply))
    except (ValueError, LookupError, TypeError):
        return False

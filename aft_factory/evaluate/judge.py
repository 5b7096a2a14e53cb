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
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from aft_factory.asking.availability import Retries
from aft_factory.engines.engine import KEY, EngineError, default_key, shown_url
from aft_factory.engines.openai_failures import Kind, failure_of
from aft_factory.engines.openai_replies import parse_body
from aft_factory.errors import UsageError, needing
from aft_factory.evaluate.settings import EvalSettings
from aft_factory.network import hint, making_client, read_key, without_keys

if TYPE_CHECKING:
    from httpx import Client

FIRST_RETRIES = 2  # where nobody is there, that is to be known soon
KEPT_NOT = 507  # status where a judgment cannot be kept
REFUSED = 400  # status of a refusal that the judge gave behind a 200

Judges = Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a judge answered, and why that is no reply."""

    status: int
    reply: bytes
    kind: Kind | None = None


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
        self._retries = Retries(settings.retries)
        name = settings.judge_key_env
        self._client = _client(default_key() if name == KEY else read_key(name), settings.timeout)
        self._one_by_one: dict[bytes, threading.Lock] = defaultdict(threading.Lock)
        self._refused: dict[bytes, _Answer] = {}  # what is of one request: the harness knows best
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        table = "CREATE TABLE IF NOT EXISTS judgments (key BLOB PRIMARY KEY, reply BLOB)"
        try:
            self._db.execute(table)
        except sqlite3.Error as error:
            raise UsageError(f"{path}: no file of judgments can be kept there: {error}") from None

    def ask(self, body: Mapping[str, Any]) -> tuple[int, bytes]:
        """Return the status and body of a judgment, an earlier one where there is one."""
        data = self._data(body)
        answer = self._once(data, data, self._retries, self._judges)
        # A harness that has ended waits for nothing.
        if answer.kind not in (None, "refused") and not self._stopping.is_set():
            self.failure = self._told(answer)
        return answer.status, answer.reply

    def check(self, body: Mapping[str, Any], judges: Judges) -> bool:
        """Ask this server for one judgment before anything is paid for; tell whether it is one.

        Raises:
            UsageError: If there is no reply, in the judge's words.
        """
        data = self._data(body)
        retries = replace(self._retries, most=min(self._retries.most, FIRST_RETRIES))
        answer = self._once(self._url.encode() + data, data, retries, judges)
        if answer.kind is not None:
            place = shown_url(self._url)
            raise UsageError(f"the judge {self.model} at {place}: {self._told(answer)}")
        return _is_one(answer.reply, judges)

    def _told(self, answer: _Answer) -> str:
        told = answer.reply.decode("utf-8", "replace")[:500]
        return f"{answer.status}: {told}{hint(self._url, told)}"

    def _data(self, body: Mapping[str, Any]) -> bytes:
        return orjson.dumps({**body, "model": self.model}, option=orjson.OPT_SORT_KEYS)

    def _once(self, what: bytes, data: bytes, retries: Retries, judges: Judges) -> _Answer:
        """Send what was not judged yet; keep what it is known by, if it is a judgment."""
        key = hashlib.blake2b(what, digest_size=16).digest()
        with self._lock:
            one = self._one_by_one[key]
        with one:
            if (kept := self._find(key)) is not None:
                return _Answer(200, kept)
            if key in self._refused:  # a harness may ask for it again and again
                return self._refused[key]
            answer = self._send(data, retries)
            if answer.kind is None and _is_one(answer.reply, judges):
                keep = "INSERT OR IGNORE INTO judgments VALUES (?, ?)"
                try:
                    with self._lock:
                        self._db.execute(keep, (key, answer.reply))
                except sqlite3.Error as error:  # such as a full disk: what comes next is lost, too
                    told = f"judgments cannot be kept: {error}".encode()
                    return _Answer(KEPT_NOT, told, "fatal")
            elif answer.kind == "refused":
                self._refused[key] = answer
            return answer

    def _find(self, key: bytes) -> bytes | None:
        with self._lock:
            query = "SELECT reply FROM judgments WHERE key = ?"
            found = self._db.execute(query, (key,)).fetchone()
        return None if found is None else found[0]

    def _send(self, data: bytes, retries: Retries) -> _Answer:
        """Ask the judge until it answers, says no, or has failed too often."""
        for attempt in range(retries.most + 1):
            with self._lock:
                self.asked += 1
            answer, after = self._try(data)
            if answer.kind != "retry" or not retries.outlast(after):
                break
            if attempt == retries.most or self._stopping.wait(retries.wait(attempt, after)):
                break
        return answer

    def _try(self, data: bytes) -> tuple[_Answer, float | None]:
        """Ask once; return with the answer the seconds to wait that it asks for."""
        from httpx import HTTPError

        try:
            got = self._client.post(f"{self._url.rstrip('/')}/chat/completions", content=data)
        except HTTPError as error:
            return _Answer(502, str(error or type(error).__name__).encode(), "retry"), None
        try:
            if not got.is_success:
                raise failure_of(got, shown_url(self._url))
            parse_body(got.content, shown_url(self._url))
        except EngineError as error:
            status = REFUSED if got.is_success else got.status_code
            words = without_keys(got.content.decode("utf-8", "replace"))  # a harness keeps them
            return _Answer(status, words.encode(), error.kind), error.retry_after
        return _Answer(200, got.content), None

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

"""An OpenAI-compatible server that babbles, and fails as often as it is told.

    async with FlakyServer(fail_rate=0.2, log=tmp_path / "log.jsonl") as server:
        engine = await OpenAIEngine.connect([server.url])
        ...
        assert server.requests  # every body that came, answered or not: [(path, body), ...]
        assert server.log       # those answered, once wholly sent: [{"key", "n", "seed"}, ...]

    python tests/flaky_server.py --port 8001 --fail-rate 0.2 --log log.jsonl  # prints its URL

Replies depend on the request alone: sample i on (prompt, seed + i), cut to max_tokens words. A token
is a word in what it writes, and 4 characters in what it reads.
"""

import argparse
import asyncio
import contextlib
import hashlib
import inspect
import json
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from aft_factory.engines.sampling import Request, Sampling
from aft_factory.engines.scripted import CHARACTERS_PER_TOKEN, WORDS, babble

FAILURES = ("429", "500", "503", "reset", "hang")


def digest(value: object) -> str:
    """The name of a request or prompt: the sha-256 of its canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def expected_texts(prompt, n: int, seed: int, max_tokens: int = 4096) -> list[str]:
    """What the server answers to a prompt (messages or a text)."""
    mixed = int(digest(prompt)[:12], 16) + seed
    texts = (babble(Request(prompt, 1, Sampling(), mixed + i))[0] for i in range(n))
    return [" ".join(text.split()[:max_tokens]) for text in texts]


class FlakyServer:
    """See the module. Runs between `__aenter__` and `__aexit__`.

    Args:
        port: 0 takes a free one; `server.port` and `server.url` then say which.
        fail_rate: Fraction of requests that fail instead of being answered, drawn by `seed`.
        failures: Kinds of failure, in rotation: an HTTP status, `reset` or `hang`.
        delay: Seconds before each answer.
        hang: Seconds that a hanging request waits before it is reset.
        log: File that gets a JSON line per request answered, after the last byte was sent.
        models: Names offered; a request for another one is a 404. None: any name, and no /models.
        max_model_len: In tokens; a longer prompt is a 400 in vLLM's words.
        api_key: Wanted in the Authorization header; None wants none.
        most_choices: Answer with no more choices than this, whatever `n` says.
        answer: From (path, body) to the response to send instead, awaited if it must be; None from
            it sends the usual.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        fail_rate: float = 0.0,
        failures: tuple[str, ...] = FAILURES,
        seed: int = 0,
        delay: float = 0.0,
        hang: float = 3600.0,
        log: Path | None = None,
        models: tuple[str, ...] | None = ("flaky",),
        max_model_len: int | None = None,
        api_key: str | None = None,
        most_choices: int | None = None,
        answer: Callable[[str, dict], web.Response | Awaitable | None] | None = None,
    ) -> None:
        self.port = port
        self.requests: list[tuple[str, dict]] = []
        self.probes: list[dict] = []
        self.log: list[dict] = []
        self.failed: list[str] = []
        self.in_flight = self.most_in_flight = 0
        self.fail_rate, self.failures, self.delay, self.hang = fail_rate, failures, delay, hang
        self.log_path, self.models, self.max_model_len = log, models, max_model_len
        self.api_key, self.most_choices, self.answer = api_key, most_choices, answer
        self._draw = random.Random(seed)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> "FlakyServer":
        app = web.Application(client_max_size=2**30)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/{path:chat/completions|completions}", self._completions)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, backlog=2048)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_) -> None:
        await self._runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        if not self._allowed(request):
            return error(401, "Unauthorized")
        if self.models is None:
            return error(404, "Not Found")
        cards = [
            {
                "id": name,
                "object": "model",
                "owned_by": "nobody",
                "max_model_len": self.max_model_len,
            }
            for name in self.models
        ]
        return web.json_response({"object": "list", "data": cards})

    def _allowed(self, request: web.Request) -> bool:
        return self.api_key in (None, request.headers.get("Authorization", "")[len("Bearer ") :])

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        path = request.match_info["path"]
        if "seed" not in body and body.get("max_tokens") == 1:  # finds out what it takes
            self.probes.append(body)
            return (self.answer and self.answer(path, body)) or self._usual(path, body)
        self.requests.append((path, body))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self._draw.random() < self.fail_rate:
                return await self._fail(request)
            await asyncio.sleep(self.delay)
            if not self._allowed(request):
                return error(401, "Unauthorized")
            response = self.answer(path, body) if self.answer else None
            if inspect.isawaitable(response):
                response = await response
            response = response or self._usual(path, body)
            await response.prepare(request)
            await response.write_eof()
            if response.status == 200:
                self._note(
                    {"key": digest([path, body]), "n": body.get("n", 1), "seed": body.get("seed")}
                )
            return response
        finally:
            self.in_flight -= 1

    def _note(self, entry: dict) -> None:
        self.log.append(entry)
        if self.log_path:
            with open(self.log_path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")

    async def _fail(self, request: web.Request) -> web.StreamResponse:
        kind = self.failures[len(self.failed) % len(self.failures)]
        self.failed.append(kind)
        if kind not in ("reset", "hang"):
            headers = {"Retry-After": "0.1"} if kind == "429" else {}
            return error(int(kind), f"made to fail with {kind}", headers)
        if kind == "hang":
            await asyncio.sleep(self.hang)
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"id": "cmpl-1", "choices": [')
        if request.transport:
            request.transport.abort()
        return response

    def _usual(self, path: str, body: dict) -> web.Response:
        prompt = body["messages"] if path == "chat/completions" else body["prompt"]
        text = prompt if isinstance(prompt, str) else "".join(m["content"] for m in prompt)
        prompt_ids = [ord(character) for character in text[::CHARACTERS_PER_TOKEN]]
        if self.models is not None and body["model"] not in self.models:
            return error(404, f"The model `{body['model']}` does not exist.")
        if self.max_model_len and len(prompt_ids) > self.max_model_len:
            return error(
                400,
                f"This model's maximum context length is {self.max_model_len} tokens. However, your "
                f"prompt contains {len(prompt_ids)} input tokens.",
            )
        n, most = body.get("n", 1), body.get("max_tokens", 16)
        if self.most_choices is not None:
            n = min(n, self.most_choices)
        choices, written = [], 0
        for i, words in enumerate(expected_texts(prompt, n, body.get("seed", 0), most)):
            ids = [WORDS.index(word) for word in words.split()]
            written += len(ids)
            choice = {"index": i, "finish_reason": "length" if len(ids) == most else "stop"}
            if path == "completions":
                choice["text"] = words
            else:
                choice["message"] = {"role": "assistant", "content": words}
            choices.append(choice | ({"token_ids": ids} if body.get("return_token_ids") else {}))
        usage = {"prompt_tokens": len(prompt_ids), "completion_tokens": written}
        usage |= {
            "total_tokens": sum(usage.values()),
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        reply = {"id": "cmpl-1", "model": body["model"], "choices": choices, "usage": usage}
        if body.get("return_token_ids"):
            reply["prompt_token_ids"] = prompt_ids
        return web.json_response(reply)


def error(status: int, message: str, headers: dict | None = None) -> web.Response:
    """An error as vLLM gives it."""
    body = {"error": {"message": message, "type": "Error", "param": None, "code": status}}
    return web.json_response(body, status=status, headers=headers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--fail-rate", type=float, default=0.0)
    parser.add_argument("--failures", nargs="+", default=FAILURES, help=" ".join(FAILURES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--hang", type=float, default=3600.0)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--models", nargs="+", default=["flaky"])
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--api-key")
    parser.add_argument("--most-choices", type=int)
    asyncio.run(serve(FlakyServer(**vars(parser.parse_args()))))


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


@contextlib.contextmanager
def serving(**options):
    """A flaky server on a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def do(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

    server = FlakyServer(**options)
    do(server.__aenter__())
    try:
        yield server
    finally:
        do(server.__aexit__())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def serve(server: FlakyServer) -> None:
    async with server:
        print(server.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)

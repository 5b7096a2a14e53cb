"""Our server in this process, on a scripted engine, for several test files."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

import openai

from aft_factory.asking.journal import Journal
from aft_factory.engines.scripted import ScriptedEngine, babble
from aft_factory.prompts.rendering import load_template
from aft_factory.serve.serving import begin, listen, web_server
from aft_factory.serve.settings import ServeSettings
from aft_factory.serve.state import State
from aft_factory.stage.engines import OpenEngines, fitters_of

QUESTION = [{"role": "user", "content": "How many pails are there?"}]


class Watched(ScriptedEngine):
    """A scripted engine that knows which requests are with it now."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.with_it = []

    async def sample(self, request):
        return await self._watched(request, super().sample(request))

    async def stream(self, request, told):
        return await self._watched(request, super().stream(request, told))

    async def _watched(self, request, work):
        self.with_it.append(request)
        try:
            return await work
        finally:
            self.with_it.remove(request)


def drafts_of(request):
    """A script: each sample says by which prompt, sampling and seed it was drawn."""
    aggregates = "\n" in request.prompt[0]["content"] and request.prompt[0]["role"] == "system"
    kind = "aggregation" if aggregates else "draft"
    temperature = request.sampling.temperature
    return [f"{kind} {i} at {temperature} by {request.seed % 1000}" for i in range(request.n)]


@dataclass
class Served:
    """A server at work."""

    url: str
    engine: Any
    state: State
    loop: asyncio.AbstractEventLoop

    def client(self, **options):
        """The official client of it; it does not ask again by itself."""
        options = {"api_key": "none", "max_retries": 0, "timeout": 60, **options}
        return openai.OpenAI(**{"base_url": self.url, **options})

    def ask(self, model="aft", messages=QUESTION, **fields):
        """Ask by the official client."""
        return self.client().chat.completions.create(model=model, messages=messages, **fields)

    def run(self, work, timeout=60):
        """Run a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)


@contextlib.asynccontextmanager
async def at_work(engine, *, journal=None, in_flight=256, ready=True, no_system=(), **settings):
    """Serve an engine from the loop that runs; yields a `Served`."""
    usual = {"scripted": True, "width": 3, "layers": 1, "grace": 5.0}
    settings = ServeSettings(**usual | settings)
    settings.refuse_wrong()
    async with contextlib.AsyncExitStack() as stack:
        listener = listen("127.0.0.1", 0)
        state = State(settings)
        server = web_server(state)
        web = asyncio.create_task(server.serve([listener]))
        try:
            more = {"name": engine.model, "no_system": frozenset(no_system)}
            fitters = fitters_of({"": engine}, load_template(settings.template), no_system)
            opened = OpenEngines({"": engine}, fitters, in_flight, None, **more)
            kept = None if journal is None else stack.enter_context(Journal(journal))
            if ready:
                await stack.enter_async_context(begin(state, opened, kept))
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
            yield Served(url, engine, state, asyncio.get_running_loop())
            await state.stop()
        finally:
            server.should_exit = True
            await web


@contextlib.contextmanager
def served(engine=None, **options):
    """Serve an engine, by default one that babbles, from a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    work = at_work(engine or Watched(babble), **options)

    def do(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    try:
        yield do(work.__aenter__())
        do(work.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def raw_request(server, model, stream, messages=QUESTION, key="", cut=0):
    """Ask, and return the socket, with the answer still to be read from it."""
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    body = json.dumps({"model": model, "messages": messages, "stream": stream}).encode()
    http = socket.create_connection((host, int(port)))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    http.sendall(f"{head}Authorization: Bearer {key}\r\n\r\n".encode() + body[cut:])
    return http


def until(condition, seconds=1.0):
    """Wait until something holds; return how long that took, fail if it does not."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it does not"
        time.sleep(0.005)
    return time.monotonic() - began

"""Benchmark of the server: what it adds to a request, and many streams at once.

    python benchmarks/serve.py                      # no model: a scripted engine
    python benchmarks/serve.py --model DIR          # the same beside vLLM in this process
    python benchmarks/serve.py --seconds 60         # streams for a minute

* Overhead: propose-and-aggregate (K=5, L=1), asked one request at a time: by hand, as two calls of
  the engine one after the other, without a server, a runner or a journal; and over HTTP, plain and
  streamed. All ask for as many samples, by prompts of one length. Goal: a median of at most 5 ms
  above the calls by hand, pair by pair.
  Who asks over HTTP is a process of its own, as clients are.
* First token: for streams, the time from the end of the last draft to the first byte of the answer,
  beside that by hand. Goal with vLLM: at most 1.1 times of it, or 5 ms more: a model that needs but
  10 ms for its first token shows the server's own milliseconds as a share, which larger ones hide.
* Streams: `--streams` (256) clients that each ask again as soon as their answer has come, on the
  scripted engine; how many answers, what failed, the slowest in medians, and the memory of the
  server after a third of the time and at its end. Goals: no failure, the slowest within 2 medians,
  memory flat. The clients are in this process too, so the answers a second say little.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from aft_factory.engines.engine import Engine
from aft_factory.engines.sampling import Piece, Request
from aft_factory.engines.scripted import ScriptedEngine
from aft_factory.prompts.rendering import load_template, with_aggregator
from aft_factory.serve.serving import begin, listen, web_server
from aft_factory.serve.settings import ServeSettings
from aft_factory.serve.state import State
from aft_factory.stage.engines import OpenEngines, fitters_of

WIDTH, TOKENS = 5, 32
MOST_OVERHEAD, MOST_FIRST, MOST_SLOW, MOST_GROWTH = 0.005, 1.1, 2.0, 0.05
TINY_ARGS = {"dtype": "float32", "enforce_eager": True, "max_model_len": 2048, "max_num_seqs": 64}


@asynccontextmanager
async def serving(engine: Engine) -> AsyncIterator[int]:
    """Serve an engine; yields the port."""
    settings = ServeSettings(
        scripted=True, width=WIDTH, layers=1, max_tokens=TOKENS, queue=10000, grace=1.0
    )
    state = State(settings)
    listener = listen("127.0.0.1", 0)
    server = web_server(state)
    web = asyncio.create_task(server.serve([listener]))
    fitters = fitters_of({"": engine}, load_template(settings.template))
    async with begin(state, OpenEngines({"": engine}, fitters, 4096, None, name=""), None):
        yield listener.getsockname()[1]
        await state.stop()
    server.should_exit = True
    await web


class Client:
    """A connection that is kept, and as little of HTTP as the server speaks to it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, port: int) -> Client:
        """Open a connection."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=2**24))

    async def ask(self, question: str) -> str:
        """Return the text of a stream."""
        messages = [{"role": "user", "content": question}]
        body = json.dumps({"model": "aft", "messages": messages, "stream": True}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        status = await self._reader.readline()
        headers = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in status:
            raise RuntimeError(f"{status!r} {headers!r}")
        text = ""
        while size := int(await self._reader.readline(), 16):
            block = await self._reader.readexactly(size + 2)
            for event in block.split(b"\n\n"):
                if not event.startswith(b"data: {"):
                    continue
                chunk = json.loads(event[6:])
                if "error" in chunk:
                    raise RuntimeError(chunk["error"])
                text += "".join(c["delta"].get("content") or "" for c in chunk["choices"])
        await self._reader.readline()
        return text

    def close(self) -> None:
        """Close it."""
        self._writer.close()


def keep_asking(wire: Any) -> None:
    """In a process of its own: ask what comes through a pipe, until it is closed.

    Gives back, in seconds of the system's clock: when it began, the first text came, and it ended.
    """
    while (asked := wire.recv()) is not None:
        port, question, stream = asked
        http_wire = http.client.HTTPConnection("127.0.0.1", port)
        http_wire.connect()
        messages = [{"role": "user", "content": question}]
        body = json.dumps({"model": "aft", "messages": messages, "stream": stream})
        began, first = time.perf_counter(), 0.0
        http_wire.request("POST", "/v1/chat/completions", body)
        answer = http_wire.getresponse()
        if not stream:
            json.loads(answer.read())["choices"][0]["message"]["content"]
        else:
            for line in answer:
                if not first and b'"content":"' in line and b'"content":""' not in line:
                    first = time.perf_counter()
        wire.send((began, first, time.perf_counter()))
        http_wire.close()


class Timed:
    """An engine that knows what it was asked, and when it had answered."""

    def __init__(self, engine: Engine) -> None:
        self.__dict__.update(_engine=engine, asked=[], ended=[])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def sample(self, request: Request) -> Any:
        """Ask it."""
        return await self._timed(request, self._engine.sample(request))

    async def stream(self, request: Request, told: Callable[[Piece], object]) -> Any:
        """Ask it."""
        return await self._timed(request, self._engine.stream(request, told))

    async def _timed(self, request: Request, work: Any) -> Any:
        self.asked.append(request)
        reply = await work
        self.ended.append(time.perf_counter())
        return reply


async def by_hand(engine: Engine, question: str, like: Sequence[Request]) -> float:
    """Ask for drafts and for their aggregation, as a script would, under the same settings.

    Returns:
        The seconds from the last draft to the first text of the answer.
    """
    messages: list[Any] = [{"role": "user", "content": question}]
    drafts, final = like
    reply = await engine.sample(Request(messages, WIDTH, drafts.sampling, drafts.seed))
    drafted = time.perf_counter()
    texts = [completion.text for completion in reply.completions]
    prompt = with_aggregator(messages, texts, load_template("paper"))
    heard: list[float] = []

    def hear(piece: Piece) -> None:
        if piece.text and not heard:
            heard.append(time.perf_counter())

    await engine.stream(Request(prompt, 1, final.sampling, final.seed), hear)
    return heard[0] - drafted


async def overhead(engine: Engine, count: int) -> dict[str, float]:
    """Measure requests one at a time, each way in its turn; medians of seconds."""
    timed: Any = Timed(engine)
    times: dict[str, list[float]] = {name: [] for name in ("by hand", "plain", "stream")}
    firsts: dict[str, list[float]] = {"by hand": [], "stream": []}
    ours, its = multiprocessing.Pipe()
    asking = multiprocessing.get_context("spawn").Process(target=keep_asking, args=(its,))
    asking.start()

    async def ask(question: str, *, stream: bool) -> tuple[float, float, float]:
        ours.send((port, question, stream))
        got: tuple[float, float, float] = await asyncio.to_thread(ours.recv)
        return got

    async with serving(timed) as port:
        await ask("How many pails are there, if each holds one?", stream=False)
        like = list(timed.asked)
        for i in range(count):
            ways = list(times)
            for way in [*ways[i % 3 :], *ways[: i % 3]]:
                # A question of its own: nobody finds in the cache what another one read.
                question = f"{i} {way}: how many pails?".rjust(40)
                timed.ended.clear()
                if way == "by hand":
                    began = time.perf_counter()
                    firsts[way].append(await by_hand(engine, question, like))
                    ended = time.perf_counter()
                else:
                    began, first, ended = await ask(question, stream=way == "stream")
                times[way].append(ended - began)
                if way == "stream":
                    firsts[way].append(first - timed.ended[0])
    ours.send(None)
    asking.join()
    found = {name: statistics.median(values) for name, values in times.items()}
    for way in ("plain", "stream"):
        pairs = zip(times[way], times["by hand"], strict=True)
        found[f"{way} more"] = statistics.median(ours - hand for ours, hand in pairs)
    found |= {f"first {way}": statistics.median(values) for way, values in firsts.items()}
    return found


async def streams(count: int, seconds: float) -> dict[str, float]:
    """Let many clients ask at once, each again and again."""
    engine = ScriptedEngine(delay=0.5, record=False)
    times: list[float] = []
    failures: list[str] = []
    memory: list[int] = []
    async with serving(engine) as port:
        end = time.monotonic() + seconds

        async def one(i: int) -> None:
            client, turn = await Client.connect(port), 0
            while time.monotonic() < end:
                began = time.monotonic()
                try:
                    await client.ask(f"question {i} {turn}")
                except Exception as error:
                    failures.append(repr(error))
                    break
                times.append(time.monotonic() - began)
                turn += 1
            client.close()

        async def watch() -> None:
            await asyncio.sleep(seconds / 3)
            memory.append(resident())

        await asyncio.gather(watch(), *(one(i) for i in range(count)))
        memory.append(resident())
    for problem in failures[:3]:
        print(f"  failed: {problem}", file=sys.stderr)
    return {
        "answers": len(times),
        "failures": len(failures),
        "median": statistics.median(times),
        "slowest": max(times),
        "memory": memory[0],
        "memory at the end": memory[1],
    }


def resident() -> int:
    """Return the memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure all of it."""
    found = {"scripted engine": await overhead(ScriptedEngine(record=False), args.requests)}
    for model in args.model:
        from aft_factory.engines.vllm_engine import VllmEngine

        engine = await VllmEngine.start(model, engine_args=TINY_ARGS)
        try:
            found[f"vLLM, {Path(model).name}"] = await overhead(engine, args.requests)
        finally:
            await engine.close()
    found["streams"] = await streams(args.streams, args.seconds)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=[], help="folders, for vLLM in this process")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args(argv)
    found = asyncio.run(measure(args))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))
    missed = False
    for name, one in found.items():
        if name == "streams":
            continue
        print(f"{name}: by hand {1000 * one['by hand']:.1f} ms")
        for way in ("plain", "stream"):
            more = one[f"{way} more"]
            missed |= way == "plain" and more > MOST_OVERHEAD
            print(
                f"  {way}: {1000 * more:+.1f} ms (goal for plain: at most {1000 * MOST_OVERHEAD:g})"
            )
        ratio = one["first stream"] / one["first by hand"]
        late = ratio > MOST_FIRST and one["first stream"] - one["first by hand"] > MOST_OVERHEAD
        missed |= name != "scripted engine" and late
        print(
            f"  first token after the drafts: {1000 * one['first stream']:.1f} ms, "
            f"{ratio:.2f} of that by hand (goal with vLLM: at most {MOST_FIRST})"
        )
    one = found["streams"]
    slow, growth = one["slowest"] / one["median"], one["memory at the end"] / one["memory"] - 1
    missed |= bool(one["failures"]) or slow > MOST_SLOW or growth > MOST_GROWTH
    print(
        f"{args.streams} streams: {one['answers']} answers, {one['failures']} failures; median "
        f"{one['median']:.2f} s, slowest {slow:.2f} medians; memory {growth:+.1%}"
    )
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())

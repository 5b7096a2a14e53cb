"""Benchmark of scale: what a driver carries, and a model of runs that are too large to try.

    python benchmarks/scale.py                    # what the driver carries; the model, checked
    python benchmarks/scale.py --model-only       # no Ray: only the table of the model

1. The driver. Propose-and-aggregate as `python -m aft_factory.run` has it, on scripted engines that
   answer at once: in this process without and with a journal on disk, and as two actors on a local
   Ray. Contenders take turns; of each the best turn counts, in requests a second of this process's
   CPU time. Goal: at least 900 requests a second and core through Ray.
2. The model (`scale_model.py`): queries, replicas with slots, a driver that takes its time for each
   request, replicas that fail and load again. It is checked against real runs through Ray, of
   engines that take a fixed time for a token and die at moments of chance: the same lengths, slots
   and limits; goal: each within 15%.
3. Runs that nobody tried here, by the model.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

from scale_model import Cluster, Load, simulate
from uf_rows import RESPONSE_LENGTHS

from aft_factory.asking.asker import Asker
from aft_factory.asking.journal import Journal
from aft_factory.engines.engine import Engine
from aft_factory.engines.ray_cluster import joined
from aft_factory.engines.ray_engine import RayEngine
from aft_factory.engines.sampling import Reply, Request, Sampling
from aft_factory.engines.scripted import ScriptedEngine
from aft_factory.inference.drafting_options import DraftingOptions
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.queries import Query
from aft_factory.inference.runner import Runner, window
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.prompts.rendering import load_template

LEAST_REQUESTS, MOST_OFF = 900, 0.15
SLOTS, STEP = 32, 0.004  # of the engines that the model is checked with
FEW = 4  # replicas that stand for many


def lengths_of(seed: int, n: int, scale: float = 1.0) -> list[int]:
    """Return the lengths of n samples in tokens: quantiles of real answers, by the seed."""
    draw = random.Random(seed)
    steps = [draw.randrange(len(RESPONSE_LENGTHS) - 1) for _ in range(n)]
    found = [draw.randint(*RESPONSE_LENGTHS[i : i + 2]) // 4 for i in steps]
    return [max(1, round(scale * length)) for length in found]


class Timed(ScriptedEngine):
    """An engine that writes so many samples at a time, each for as long as it is; it may die."""

    def __init__(self, scale: float, life: float) -> None:
        super().__init__(model="timed", record=False)
        self.most = asyncio.Semaphore(SLOTS)
        self.scale = scale
        if life:
            asyncio.get_running_loop().call_later(life, os._exit, 1)

    async def sample(self, request: Request) -> Reply:
        """Take the time that the samples take."""

        async def write(length: int) -> None:
            async with self.most:
                await asyncio.sleep(length * STEP)

        await asyncio.gather(*map(write, lengths_of(request.seed, request.n, self.scale)))
        return await super().sample(request)


async def scripted() -> ScriptedEngine:
    return ScriptedEngine(record=False)


async def timed(scale: float, life: float) -> Timed:
    return Timed(scale, life)


async def run(engine: Engine, count: int, in_flight: int, *, keep: bool = True) -> dict[str, float]:
    """Answer queries at K=5, L=2; return seconds, CPU seconds of this process and requests."""
    queries = [
        Query(f"q{i}", [[{"role": "user", "content": f"What is {i}+{i}?"}]], {})
        for i in range(count)
    ]
    sampling = Sampling(max_tokens=40)
    options = DraftingOptions(load_template("paper"), sampling, sampling)
    problems: list[str] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        journal = stack.enter_context(Journal(folder / "journal")) if keep else None
        async with Asker({"": engine}, journal, in_flight) as asker:
            strategy = STRATEGIES["propose_and_aggregate"]
            runner = Runner(strategy, {"width": 5, "layers": 2}, options, asker, engine.model, {})
            fingerprint = runner.fingerprint
            start, cpu = time.perf_counter(), time.process_time()

            def ended(query: Query, outcome: Outcome) -> None:
                problems.extend([outcome.problem] if outcome.problem else [])
                if journal is not None:
                    key = runner.outcome_key(query, fingerprint)
                    journal.keep_outcome(key, outcome, done=True)

            await runner.answer_all(queries, window(in_flight), ended)
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            requests = asker.counts.asked.requests
        size = (folder / "journal").stat().st_size if keep else 0
    assert not problems, problems[0]
    return {"seconds": seconds, "cpu": cpu, "requests": requests, "bytes": size}


@contextlib.asynccontextmanager
async def replicas(opening: object, count: int = 2) -> AsyncIterator[RayEngine]:
    async with joined("local"):
        engine = await RayEngine.start(opening, count, 0, what="replicas")  # type: ignore[arg-type]
        try:
            yield engine
        finally:
            await engine.close()


async def measure_driver(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Let the contenders take turns; return the best turn of each."""
    best: dict[str, dict[str, float]] = {}
    async with replicas(scripted) as engine:
        own = await scripted()
        for _ in range(args.repeats):
            for name, asked, keep in (
                ("in this process, nothing kept", own, False),
                ("in this process, with a journal", own, True),
                ("two replicas on Ray, with a journal", engine, True),
            ):
                turn = await run(asked, args.queries, 512, keep=keep)
                best[name] = min(best.get(name, turn), turn, key=lambda t: t["cpu"])
    return best


async def check_model(args: argparse.Namespace, cost: float) -> list[tuple[str, float, float]]:
    """Return real and modelled seconds of small runs: without failures, and with."""
    found = []
    for count, life in ((1, 0.0), (2, 0.0), (1, 8.0), (2, 8.0)):
        async with replicas(partial(timed, args.scale, life), count) as engine:
            real = await run(engine, args.check, 2 * SLOTS * count)
        load = Load(args.check, 5, 2, partial(lengths_of, scale=args.scale))
        cluster = Cluster(count, SLOTS, STEP, cost, life, args.reload, even=True)
        lives = f"each is lost after {life:.0f} s" if life else "no failures"
        name = f"{count} replica{'s' if count > 1 else ''}, {lives}"
        found.append((name, real["seconds"], simulate(load, cluster).seconds))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--queries", type=int, default=1000, help="of the driver's turns (default: 1000)")
    add("--check", type=int, default=150, help="queries of the checks (default: 150)")
    add("--scale", type=float, default=0.3, help="shortens the checks' samples (default: 0.3)")
    add("--reload", type=float, default=3.0, help="seconds to begin a replica (default: 3)")
    add("--repeats", type=int, default=2, help="turns of all contenders (default: 2)")
    add("--cost", type=float, default=1 / 900, help="--model-only: CPU seconds of a request")
    add("--model-only", action="store_true", help="only the table of the model")
    args = parser.parse_args(argv)
    missed, cost = [], args.cost
    if not args.model_only:
        best = asyncio.run(measure_driver(args))
        print("| scripted engine | requests/s a core | x the first | journal bytes a request |")
        print("|---|--:|--:|--:|")
        first = min(best.values(), key=lambda t: t["cpu"])["cpu"]
        for name, turn in best.items():
            rate, size = turn["requests"] / turn["cpu"], turn["bytes"] / turn["requests"]
            print(f"| {name} | {rate:.0f} | {turn['cpu'] / first:.2f} | {size:.0f} |")
        if rate < LEAST_REQUESTS:
            missed.append(f"{rate:.0f} requests a second and core, not {LEAST_REQUESTS}")
        cost = 1 / rate
        print("\n| small run | real s | model s |\n|---|--:|--:|")
        for name, real, modelled in asyncio.run(check_model(args, cost)):
            print(f"| {name} | {real:.1f} | {modelled:.1f} |")
            if abs(modelled / real - 1) > MOST_OFF:
                missed.append(f"model and run differ by {modelled / real - 1:+.0%}: {name}")
    print("\n| GPUs | K, L | mean life | hours for 1M queries | busy | driver | lost |")
    print("|--:|---|---|--:|--:|--:|--:|")
    cases = [(count, 5, 2, life) for count in (8, 64, 128, 256) for life in (0.0, 1.0)]
    for count, width, layers, life in [*cases, (128, 16, 4, 0.0), (512, 16, 4, 0.0)]:
        load = Load(1600 * FEW, width, layers, lengths_of)
        # vLLM on a GPU of its own: 256 samples at a time, 30 ms a token, 5 minutes to load. A few
        # stand for all: of the driver, each has as much as it has of that of many.
        share = cost * count / FEW
        told = simulate(load, Cluster(FEW, 256, 0.03, share, life * 3600, 300.0))
        hours = told.steady * 1e6 / load.queries / 3600 * FEW / count
        lost = told.lost / (load.queries * (width * layers + 1))
        lives = f"{life:.0f} h" if life else "for ever"
        line = f"| {count} | {width}, {layers} | {lives} | {hours:.1f} | {told.busy:.0%} |"
        print(f"{line} {told.driver:.0%} | {lost:.1%} |", flush=True)
    print("\n" + ("\n".join(f"goal missed: {sentence}" for sentence in missed) or "all goals met"))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Ways to run strategies on a scripted engine, for several test files."""

import asyncio
import json
from dataclasses import replace

from aft_factory.asking.asker import Asker
from aft_factory.asking.availability import Retries
from aft_factory.engines.engine import EngineError
from aft_factory.engines.sampling import Sampling
from aft_factory.engines.scripted import ScriptedEngine, babble
from aft_factory.inference.drafting import Drafting
from aft_factory.inference.drafting_options import DraftingOptions, Trace
from aft_factory.inference.queries import Query
from aft_factory.inference.runner import Runner
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.prompts.rendering import load_template
from aft_factory.run.__main__ import main
from aft_factory.stage import engines

SETTINGS = DraftingOptions(load_template("paper"), Sampling(), Sampling(temperature=0.9))
QUICK = Retries(most=3, first=0.001, longest=0.002)


def numbered():
    """Return a script that counts samples: "draft 0", "draft 1", ..."""
    count = iter(range(10**6))
    return lambda request: [f"draft {next(count)}" for _ in range(request.n)]


def query(text="What is 1+1?", name="q", **more):
    return Query(name, [[{"role": "user", "content": text}]], {"query": text}, **more)


def solve(strategy, script=None, *, messages=None, score=None, settings=SETTINGS, **options):
    """Run one strategy on one query; return (answer, engine, trace)."""
    engine = ScriptedEngine(script or numbered())
    trace = Trace()

    async def run():
        asker = Asker(dict.fromkeys(("", "a", "b", "c"), engine), None, 100, QUICK)
        sample = Drafting("q", 0, settings, asker, {}, trace)
        extra = options if score is None else {**options, "score": score}
        chosen = STRATEGIES[strategy]
        return await chosen.run(
            messages or [{"role": "user", "content": "What is 1+1?"}],
            sample,
            **chosen.settled(extra),
        )

    return asyncio.run(run()), engine, trace


def runner(engine, *, strategy="propose_and_aggregate", journal=None, in_flight=100, **changes):
    """Return a Runner on one engine; to be made inside a running event loop."""
    options = STRATEGIES[strategy].settled(changes.pop("options", {"width": 3, "layers": 2}))
    settings = replace(SETTINGS, **changes)
    asker = Asker({"": engine}, journal, in_flight, QUICK)
    return Runner(STRATEGIES[strategy], options, settings, asker, engine.model, {})


def answer(engine, queries, **options):
    """Answer queries; return their outcomes by id, in order of their ends."""
    outcomes = {}

    async def run():
        one = runner(engine, **options)
        await one.answer_all(queries, 1000, lambda q, o: outcomes.__setitem__(q.id, o))

    asyncio.run(run())
    return outcomes


def fails(words):
    """Return a script that refuses prompts with these words in their last message."""

    def script(request):
        said = request.prompt[-1]["content"]
        return EngineError(f"no {words}", "refused") if words in said else babble(request)

    return script


def command(monkeypatch, capsys, script, source, output, *flags):
    """Run `python -m aft_factory.run` on engines with a script; return (code, stdout, stderr)."""

    def engine(own=script or babble, **more):
        return ScriptedEngine(own, **more)

    monkeypatch.setattr(engines, "ScriptedEngine", engine)
    capsys.readouterr()
    code = main([str(source), "--output", str(output), "--quiet", "--scripted", *flags])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def write_lines(path, rows):
    """Write rows, or lines as they stand, to a file of JSON Lines."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def read_lines(path):
    """Read a file of JSON Lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]

"""Benchmark of the runner: propose-and-aggregate beside lock-step batches and vLLM's own limit.

    python benchmarks/runner.py                                       # tiny model on a CPU
    python benchmarks/runner.py --lengths alpaca_eval_proposals.jsonl.gz --json runner.json
    python benchmarks/runner.py --model DIR --scale 1 --queries 1000  # on a GPU
    python benchmarks/runner.py --memory                              # no model; 1k to 100k rows

Contenders, in one process, on one vLLM engine, in turns (every second turn backwards), from the
same queries to their final answers:

* `lock-step`: as the published code: batches of 8 queries, every prompt K times with n=1, without
  prefix caching, and the whole batch waits for its slowest sample in every layer;
* `lock-step, prefixes cached`: the same with prefix caching, which all others have;
* `layer by layer`: all queries at once, with n=K, a barrier after every layer;
* `aft-factory`: `Runner`, `Asker` and a journal on disk, as `python -m aft_factory.run` has them;
* `engine limit`: the very prompts, seeds and lengths of `aft-factory`, encoded beforehand, all
  handed to vLLM at once as independent samples: no order of work can be much better.

All ask for the same samples under the same seeds with the same sampling, so prompts are the same in
kind (float rounding depends on what else is in a batch, so that a text may differ after a while;
the shares are printed). The model writes nonsense and never ends by itself: each single sample is
cut at a length drawn from real responses, by its seed, which is a function of (query, layer, slot)
alone. So the K samples of a request end at different times, for every contender alike, and a
request with n=K stays one. Totals of tokens written are checked to be equal.

`--lengths` is JSON Lines, plain or .gz, with `responses`, a list of `{model, response}` (four
characters are a token), `--of` the model to take; without it, quantiles of UltraFeedback's.
`--scale` shortens responses and queries alike, for a CPU. The prefix cache is emptied before
each turn. Occupancy is the mean number of samples
that vLLM had running, from its own time stamps, as a share of `max_num_seqs`; process CPU is that
of this process, without vLLM's own two. Seconds are those of each contender's best turn. Goals:
aft-factory at least 3 times as fast as lock-step, and at least 0.95 of the engine's limit.

What a full batch gains depends on what a step costs by itself: on a GPU nearly all of it, as the
weights are read once for all; on a CPU much less, where every sample costs time of its own. So the
speed-up on a CPU says little about a GPU; the occupancy says more.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import gzip
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import yaml
from runner_contenders import Measured, Work
from runner_memory import measure_memory
from tiny_model import make_tiny_model
from uf_rows import INSTRUCTION_LENGTHS, RESPONSE_LENGTHS, Texts

from aft_factory.engines.sampling import Request, Sampling
from aft_factory.inference.drafting_options import DraftingOptions
from aft_factory.inference.queries import Query
from aft_factory.prompts.rendering import load_template

LOCK_STEP, CACHED = "lock-step", "lock-step, prefixes cached"
BY_LAYER, OURS, LIMIT = "layer by layer", "aft-factory", "engine limit"
SEED = 42
CHARACTERS_PER_TOKEN = 4
LEAST_SPEED_UP, LEAST_SHARE = 3.0, 0.95
# As small as vLLM's build for CPUs takes it: of a larger one the sampler, which sorts a vocabulary
# for every token, and attention take most of the time, in proportion to the batch.
TINY = {"vocabulary": 1000, "hidden": 32, "layers": 1}
TINY_ARGS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 4096,
    "max_num_batched_tokens": 4096,
    # vLLM 0.23 on a CPU dies of a prompt in chunks under a seed of its own.
    "enable_chunked_prefill": False,
}


def read_lengths(path: Path | None, model: str, scale: float) -> list[int]:
    """Return lengths of responses in tokens, in an order of chance."""
    characters: list[int] = []
    if path is None:
        draw = random.Random(SEED)
        steps = [draw.randrange(len(RESPONSE_LENGTHS) - 1) for _ in range(1000)]
        characters = [draw.randint(*RESPONSE_LENGTHS[i : i + 2]) for i in steps]
    else:
        opener: Any = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                found = [r["response"] for r in row["responses"] if r["model"] == model]
                characters += map(len, found)
    if not characters:
        raise SystemExit(f"{path}: no responses of {model!r}; name one with --of")
    # A few tokens at least, for a text of nothing but special tokens would be an empty draft.
    lengths = [max(8, round(scale * c / CHARACTERS_PER_TOKEN)) for c in characters]
    random.Random(SEED).shuffle(lengths)
    return lengths


def make_queries(count: int, scale: float) -> list[Query]:
    texts = Texts(SEED)
    sizes = [max(8, round(scale * size)) for size in INSTRUCTION_LENGTHS]
    return [
        Query(f"q{i}", [[{"role": "user", "content": texts.text(sizes).strip() or "?"}]], {})
        for i in range(count)
    ]


async def turn(work: Work, contend: Callable[[], Awaitable[object]]) -> dict[str, Any]:
    """Let one contender run once, on an empty prefix cache."""
    await work.engine.forget()
    start, cpu = time.perf_counter(), time.process_time()
    answers = await contend()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    spent = work.engine.spent
    return {
        "seconds": seconds,
        "process_cpu": cpu,
        "occupancy": spent.running / seconds / work.engine.max_sequences,
        "written": spent.written,
        "read": spent.read,
        "cached": spent.cached,
        "asked": spent.asked,
        "answers": answers,
    }


async def benchmark(args: argparse.Namespace, model: str) -> dict[str, Any]:
    """Measure all contenders in turns and return the numbers behind the table."""
    lengths = read_lengths(args.lengths, args.of, args.scale)
    engine_args = {"disable_log_stats": False} | dict(args.engine_arg)  # for the time stamps
    if args.max_num_seqs is not None:
        engine_args["max_num_seqs"] = args.max_num_seqs
    engine = await Measured.start(model, chat_template=args.chat_template, engine_args=engine_args)
    assert isinstance(engine, Measured)
    gc.freeze()  # as `stage.job.Job`
    engine.lengths = lengths
    sampling = Sampling(top_p=args.top_p, max_tokens=max(lengths))
    settings = DraftingOptions(load_template("paper"), sampling, sampling, seed=SEED)
    in_flight = args.in_flight or 2 * engine.max_sequences
    queries = make_queries(args.queries, args.scale)
    work = Work(engine, queries, args.width, args.layers, settings, in_flight)
    asked: list[tuple[list[int], Request, int]] = []
    contenders: dict[str, Callable[[], Awaitable[object]]] = {
        LOCK_STEP: work.as_published,
        CACHED: work.lock_step,
        BY_LAYER: lambda: work.layer_by_layer(work.queries, copies=False),
        OURS: work.ours,
        LIMIT: lambda: engine.replay(asked),
    }
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    try:
        print("warming up", file=sys.stderr, flush=True)
        await replace(work, queries=queries[:32]).ours()
        for number in range(args.repeats):
            for name in list(contenders)[:: -1 if number % 2 else 1]:
                result = await turn(work, contenders[name])
                if name == OURS and not asked:
                    asked += result["asked"]
                taken[name].append(result)
                line = f"turn {number + 1}, {name}: {result['seconds']:.2f} s"
                print(line, file=sys.stderr, flush=True)
    finally:
        await engine.close()
    answers = taken[OURS][0]["answers"]
    total = taken[OURS][0]["written"]
    results: dict[str, Any] = {
        **{
            key: getattr(args, key)
            for key in ("queries", "width", "layers", "scale", "top_p", "repeats")
        },
        "max_num_seqs": engine.max_sequences,
        "in_flight": in_flight,
        "samples": len(asked),
        "tokens_written": total,
        "longest": max(lengths),
    }
    for name, turns in taken.items():
        assert all(t["written"] == total for t in turns), "not the same work"
        best = min(turns, key=lambda t: float(t["seconds"]))
        same = [a == answers[q] for t in turns for q, a in (t["answers"] or {}).items()]
        results[name] = {
            "seconds": best["seconds"],
            "all_seconds": [t["seconds"] for t in turns],
            "process_cpu": best["process_cpu"],
            "occupancy": best["occupancy"],
            "tokens_per_second": total / best["seconds"],
            "prompt_tokens": best["read"],
            "cached_tokens": best["cached"],
            "same_answers": sum(same) / len(same) if same else None,
        }
    for name in contenders:
        results[name]["speed_up"] = results[LOCK_STEP]["seconds"] / results[name]["seconds"]
        results[name]["share_of_limit"] = results[LIMIT]["seconds"] / results[name]["seconds"]
    return results


def print_table(results: dict[str, Any]) -> None:
    print(
        f"{results['queries']} queries, K={results['width']}, L={results['layers']}: "
        f"{results['samples']} samples, {results['tokens_written']} tokens written; "
        f"max_num_seqs {results['max_num_seqs']}, best of {results['repeats']} turns\n"
    )
    heads = (
        "",
        "seconds",
        "(all turns)",
        "x lock-step",
        "of limit",
        "occupancy",
        "tokens/s",
        "process CPU s",
    )
    print("| " + " | ".join((*heads, "prompt tokens (cached)", "same answers")) + " |")
    print("|---" + "|--:" * (len(heads) + 1) + "|")
    for name in (LOCK_STEP, CACHED, BY_LAYER, OURS, LIMIT):
        row = results[name]
        turns = ", ".join(f"{seconds:.1f}" for seconds in row["all_seconds"])
        same = "" if row["same_answers"] is None else f"{row['same_answers']:.0%}"
        print(
            f"| {name} | {row['seconds']:.1f} | {turns} | {row['speed_up']:.2f} "
            f"| {row['share_of_limit']:.3f} | {row['occupancy']:.0%} "
            f"| {row['tokens_per_second']:.0f} | {row['process_cpu']:.1f} "
            f"| {row['prompt_tokens']} ({row['cached_tokens']}) | {same} |"
        )


def missed_goals(results: dict[str, Any]) -> list[str]:
    """Return a sentence for each goal that was missed."""
    missed, ours = [], results[OURS]
    if ours["speed_up"] < LEAST_SPEED_UP:
        missed.append(f"{ours['speed_up']:.2f} x lock-step, not {LEAST_SPEED_UP}")
    if ours["share_of_limit"] < LEAST_SHARE:
        missed.append(f"{ours['share_of_limit']:.3f} of the engine's limit, not {LEAST_SHARE}")
    return missed


def key_value(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    return key, yaml.safe_load(value)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", metavar="DIR", help="default: a tiny Llama of random weights, made here")
    add("--chat-template", default="llama3", help="default: llama3")
    add("--queries", type=int, default=200, help="default: 200")
    add("--width", type=int, default=5, help="K (default: 5)")
    add("--layers", type=int, default=2, help="L (default: 2)")
    add("--lengths", type=Path, metavar="FILE", help="real responses (see above)")
    add("--of", default="Meta-Llama-3-8B-Instruct", metavar="MODEL", help="whose responses")
    add("--scale", type=float, default=0.15, help="shortens all texts (default: 0.15)")
    add("--top-p", type=float, default=0.95, help="default: 0.95, the paper's")
    add("--max-num-seqs", type=int, help="samples that vLLM runs at a time (default: vLLM's)")
    add("--engine-arg", type=key_value, action="append", default=[], metavar="KEY=VALUE")
    add("--in-flight", type=int, help="default: twice --max-num-seqs, as the command has it")
    add("--repeats", type=int, default=2, help="turns of all contenders (default: 2)")
    add("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    add("--memory", action="store_true", help="memory of the command by input size, instead")
    args = parser.parse_args(argv)
    if args.memory:
        results, missed = measure_memory()
    else:
        with tempfile.TemporaryDirectory() as folder:
            if args.model is None:
                words = [Texts(SEED, 1 << 16).text([1 << 14, 1 << 14]) for _ in range(8)]
                make_tiny_model("llama3", Path(folder), words, **TINY)
                args.engine_arg = [*TINY_ARGS.items(), *args.engine_arg]
            results = asyncio.run(benchmark(args, args.model or folder))
        print_table(results)
        missed = missed_goals(results)
    if args.json:
        text = json.dumps(results | {"missed": missed}, indent=2) + "\n"
        args.json.write_text(text, encoding="utf-8")
    print("\n" + ("\n".join(f"goal missed: {sentence}" for sentence in missed) or "all goals met"))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())

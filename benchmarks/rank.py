"""Benchmark of scoring with a reward model: ours beside the usual scripts, on a CPU.

    python benchmarks/rank.py              # synthetic lengths, about half an hour
    python benchmarks/rank.py --data alpaca_eval_proposals.jsonl.gz --json rank.json

`--data` is JSON Lines, plain or .gz, with `instruction` and `responses`, a list of `{response}` or
of texts: real queries and drafts. Without it lengths are drawn from a log-normal distribution.
The reward model is a small Llama classifier of random weights.

Contenders, in one process, in turns, each from conversation and response to a score:

* `batch 1, padded to 2048` (--max-length): the usual script, one pair at a time, each as long as
  the limit it would be cut at (`padding="max_length"`);
* `pipeline, batch 1`: transformers' text-classification pipeline, one pair at a time, not padded;
* `padded to the longest`: batches of 16 in the order given, as long as the longest pair of all;
* `padded in the batch`: the same, each as long as its own longest pair (`padding=True`);
* `aft-factory`: `TransformersReward`.

All scores must be equal; so pairs that are longer than the limit, which the usual script cuts, are
left out. Numbers are wall time of each contender's best turn. Goal: at least 3 times as fast as the
usual script. (A CPU gains little from batches, so that one pair at a time, not padded, does well
here; a GPU would be idle most of the time.)
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from tiny_model import make_tiny_reward_model

from aft_factory.engines.reward import Pair, PairEncoder
from aft_factory.engines.transformers_reward import TransformersReward
from aft_factory.prompts.tokenizer import load_tokenizer, tokenizer_markers

Score = Callable[[Sequence[Pair]], list[float]]
OURS, USUAL = "aft-factory", "batch 1, padded to {}"
BATCH = 16
LEAST_SPEED_UP, TOLERANCE = 3.0, 1e-3
WORDS = ["so", "the", "answer", "is", "found", "by", "adding", "both", "numbers", "and"]


def read_pairs(path: Path, count: int) -> list[Pair]:
    """Return up to `count` queries with a response, the responses of a query side by side."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    pairs: list[Pair] = []
    with opener(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            for response in row["responses"]:
                text = response if isinstance(response, str) else response["response"]
                pairs.append(([{"role": "user", "content": row["instruction"]}], text))
    # Whole queries, from all over the file.
    size = 15
    starts = random.Random(0).sample(range(0, len(pairs), size), -(-count // size))
    return [pair for start in starts for pair in pairs[start : start + size]][:count]


def draw_pairs(count: int) -> list[Pair]:
    """Return synthetic pairs, of lengths as drafts have them."""
    draw = random.Random(0)

    def text(median: float, sigma: float) -> str:
        words = min(1500, int(draw.lognormvariate(0, sigma) * median))
        return " ".join(draw.choices(WORDS, k=words + 1))

    return [([{"role": "user", "content": text(20, 0.8)}], text(150, 0.9)) for _ in range(count)]


def rendered(tokenizer: Any, pairs: Sequence[Pair]) -> list[str]:
    """What a script hands to the tokenizer: BOS removed, since the tokenizer adds it."""
    chats = [[*messages, {"role": "assistant", "content": text}] for messages, text in pairs]
    texts = tokenizer.apply_chat_template(chats, tokenize=False)
    return [text.replace(tokenizer.bos_token, "") for text in texts]


def pipeline_batch_1(folder: Path) -> Score:
    """The usual script."""
    from transformers import pipeline

    pipe = pipeline("text-classification", model=str(folder), device="cpu")

    def score(pairs: Sequence[Pair]) -> list[float]:
        texts = rendered(pipe.tokenizer, pairs)
        return [row["score"] for row in pipe(texts, batch_size=1, function_to_apply="none")]

    return score


def padded(folder: Path, longest: int | None, batch_size: int = BATCH) -> Score:
    """Batches in the order given; pad is not eos, else scores would be wrong."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "<|finetune_right_pad_id|>"
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, pad_token_id=tokenizer.pad_token_id
    ).eval()
    padding = {"padding": True} if longest is None else {"padding": "max_length"}

    def score(pairs: Sequence[Pair]) -> list[float]:
        texts, scores = rendered(tokenizer, pairs), []
        for start in range(0, len(texts), batch_size):
            batch = texts[start : start + batch_size]
            inputs = tokenizer(batch, **padding, max_length=longest, return_tensors="pt")
            with torch.inference_mode():
                scores += model(**inputs).logits[:, 0].tolist()
        return scores

    return score


def ours(folder: Path) -> Score:
    """`TransformersReward`."""
    model = TransformersReward.load(str(folder))

    def score(pairs: Sequence[Pair]) -> list[float]:
        scores = asyncio.run(model.score(pairs))
        return [score for score in scores if isinstance(score, float)]

    return score


def benchmark(pairs: list[Pair], repeats: int, limit: int, folder: Path) -> dict[str, Any]:
    """Measure all contenders in turns, print the table and return its numbers."""
    texts = [text for messages, response in pairs for text in (messages[0]["content"], response)]
    make_tiny_reward_model(folder, texts, hidden=256, layers=4, context=1 << 17, vocabulary=16_000)
    tokenizer = load_tokenizer(str(folder))
    encoder = PairEncoder(tokenizer, "own", None)
    markers = tokenizer_markers(tokenizer, tokenizer.chat_template)
    pairs = [  # scripts do not do it, so that inputs are equal
        (
            markers.sanitise_all(messages),
            markers.sanitise(text),
        )
        for messages, text in pairs
    ]
    encoded = encoder.encode(pairs)
    sizes = [len(ids) if isinstance(ids, list) else limit + 1 for ids in encoded]
    left_out = sum(size > limit for size in sizes)
    pairs = [pair for pair, size in zip(pairs, sizes, strict=True) if size <= limit]
    lengths = sorted(size for size in sizes if size <= limit)
    tokens = {"mean": sum(lengths) / len(lengths), "median": lengths[len(lengths) // 2]}
    print(f"{len(pairs)} pairs; tokens: {tokens}, longest {lengths[-1]}", flush=True)
    print(f"{left_out} pairs of more than {limit} tokens are left out\n", flush=True)

    usual = USUAL.format(limit)
    contenders = {
        usual: padded(folder, limit, batch_size=1),
        "pipeline, batch 1": pipeline_batch_1(folder),
        "padded to the longest": padded(folder, lengths[-1]),
        "padded in the batch": padded(folder, None),
        OURS: ours(folder),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    scores: dict[str, list[float]] = {}
    for score in contenders.values():
        score(pairs[:BATCH])
    for turn in range(repeats):
        for name, score in contenders.items():
            start = time.perf_counter()
            scores[name] = score(pairs)
            seconds[name].append(time.perf_counter() - start)
            print(f"  turn {turn + 1}, {name}: {seconds[name][-1]:.1f} s", file=sys.stderr)
    differences = {
        name: max(abs(a - b) for a, b in zip(scores[name], scores[OURS], strict=True))
        for name in contenders
    }
    best = {name: min(times) for name, times in seconds.items()}
    print("| | pairs/s | aft-factory is faster by | largest difference of a score |")
    print("| --- | --- | --- | --- |")
    for name, time_taken in best.items():
        ratio = f"{time_taken / best[OURS]:.1f} x"
        print(f"| {name} | {len(pairs) / time_taken:.1f} | {ratio} | {differences[name]:.0e} |")
    ratios = {name: time_taken / best[OURS] for name, time_taken in best.items()}
    return {
        "usual": usual,
        "tokens": tokens,
        "left_out": left_out,
        "seconds": seconds,
        "ratios": ratios,
        "differences": differences,
    }


def missed_goals(results: dict[str, Any]) -> list[str]:
    """Return a sentence for each goal that was missed."""
    missed = [
        f"{name}: scores differ by {difference}"
        for name, difference in results["differences"].items()
        if difference > TOLERANCE
    ]
    usual = results["usual"]
    if (ratio := results["ratios"][usual]) < LEAST_SPEED_UP:
        missed.append(f"{ratio:.1f} x as fast as {usual}, not {LEAST_SPEED_UP}")
    return missed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="FILE", help="real queries and responses (see above)")
    add("--pairs", type=int, default=300, help="pairs to score (default: 300)")
    add("--repeats", type=int, default=3, help="turns of all contenders (default: 3)")
    add("--max-length", type=int, default=2048, help="the usual script's limit (default: 2048)")
    add("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    args = parser.parse_args(argv)
    pairs = read_pairs(args.data, args.pairs) if args.data else draw_pairs(args.pairs)
    with tempfile.TemporaryDirectory() as folder:
        results = benchmark(pairs, args.repeats, args.max_length, Path(folder))
    missed = missed_goals(results)
    if args.json:
        text = json.dumps(results | {"missed": missed}, indent=2) + "\n"
        args.json.write_text(text, encoding="utf-8")
    print("\n" + ("\n".join(f"goal missed: {sentence}" for sentence in missed) or "all goals met"))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())

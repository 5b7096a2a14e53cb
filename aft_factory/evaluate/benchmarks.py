"""The benchmarks that have a name here: whose code scores them, and how the paper runs them.

Any other name is a task of lm-eval's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from aft_factory.inference.queries import Query
from aft_factory.records.record import Row
from aft_factory.run.settings import PRESETS

Harness = Literal["lm-eval", "alpaca-eval", "FastChat"]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark.

    Attributes:
        name: Of `aft eval NAME`.
        harness: Whose code scores it.
        task: What the harness calls it.
        folder: Where in lm-eval's folder of tasks it is, to be found without reading all of them;
            "" where its file is one of ours.
        metrics: Which of the harness's metrics count; none for all.
        scale: What makes a percentage of them.
        rows_by: Column that says which of lm-eval's tasks a local row belongs to.
        plain: Whether the paper runs it without aggregation, as its answers carry too little.
    """

    name: str
    harness: Harness = "lm-eval"
    task: str = ""
    folder: str | None = None
    metrics: tuple[str, ...] = ()
    scale: float = 1.0
    rows_by: str | None = None
    plain: bool = False

    @property
    def preset(self) -> str | None:
        """The name of the paper's settings for it, where there is a file of them."""
        return self.name if (PRESETS / f"{self.name}.yaml").exists() else None


@dataclass(frozen=True, slots=True)
class Score:
    """What a harness says of one run.

    Attributes:
        metric: Its name.
        value: As the harness has it.
        error: The harness's own standard error, over the questions.
        n: Of how many questions.
    """

    metric: str
    value: float
    error: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Part:
    """A benchmark that is ready to be asked and scored.

    Attributes:
        benchmark: Which.
        queries: What one run asks.
        of: How many questions the benchmark has.
        facts: What a result is to say of it: harness, version, task version, hash of the data.
        score: From the answers to the turns of each query, and where to keep what the harness
            writes, to the scores.
        judged: How many requests to a judge one run takes.
        more: Results beside the scores, such as those by category, from the same folder.
    """

    benchmark: Benchmark
    queries: list[Query]
    of: int
    facts: Row
    score: Callable[..., list[Score]]
    judged: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)


IFEVAL = tuple(
    f"{by}_level_{how}_acc,none" for how in ("strict", "loose") for by in ("prompt", "inst")
)

_rate = partial(Benchmark, scale=100)
_ours = partial(_rate, folder="", plain=True)
BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        _rate(
            "gsm8k",
            task="gsm8k_cot_zeroshot",
            folder="gsm8k",
            metrics=("exact_match,flexible-extract",),
        ),
        _rate("ifeval", task="ifeval", folder="ifeval", metrics=IFEVAL),
        _rate(
            "mmlu",
            task="mmlu_cot_llama",
            folder="llama3/instruct/mmlu_cot",
            metrics=("exact_match,strict_match",),
            rows_by="subject",
            plain=True,
        ),
        _ours("arc_c", task="aft_arc_challenge", metrics=("exact_match,best-answer",)),
        _ours("strategyqa", task="aft_strategyqa", metrics=("exact_match,answer-is",)),
        Benchmark("alpaca_eval", harness="alpaca-eval"),
        Benchmark("mt_bench", harness="FastChat"),
    )
}


def benchmark_named(name: str) -> Benchmark:
    """Return a benchmark; a name that is not one of ours is lm-eval's own."""
    return BENCHMARKS.get(name, Benchmark(name, task=name))

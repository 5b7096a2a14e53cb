"""The settings of `aft eval`: those of a run, and what the harnesses need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from aft_factory.engines.engine import KEY, is_url, shown_url
from aft_factory.evaluate.benchmarks import BENCHMARKS, Benchmark
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.run.__main__ import RunArguments, preset_settings
from aft_factory.run.settings import RunSettings
from aft_factory.stage.command import ConfigArguments
from aft_factory.stage.declaring import COMMON, argument, setting, switch, written
from aft_factory.stage.job_settings import FILES, missing_keys
from aft_factory.stage.reading import ROWS, at_least

JUDGE = "the judge"  # headings of `--help`
HARNESS = "the harnesses"


@dataclass(frozen=True, slots=True)
class EvalArguments(ConfigArguments):
    """What an evaluation takes beside its settings: what a file of settings cannot say."""

    benchmarks: list[str] | None = argument(
        None, f"{', '.join(BENCHMARKS)}, or any generative task of lm-eval's", "BENCHMARK"
    )
    output: Path | None = written(
        "folder for all that it leaves; results.json comes last", "DIR", group=COMMON
    )
    dry_run: bool = switch("only tell requests, tokens and FLOPs to expect", group=COMMON)
    overwrite: bool = switch("replace existing results", group=FILES)
    quiet: bool = switch("no progress bar", group=FILES)
    compare: list[str] = setting(
        [], "print evaluations side by side, and leave", "DIR", group=FILES
    )
    csv: Path | None = written("of --compare: the numbers, a row a metric", "FILE", group=FILES)


@dataclass(frozen=True, slots=True)
class EvalSettings(RunSettings):
    """What an evaluation is to do; see the help texts."""

    data: dict[str, str] = setting(
        {}, "a local copy of a benchmark's data", "BENCHMARK=FILE", group=ROWS
    )
    limit: int | None = setting(
        None, "only the first N questions of each benchmark", "N", group=ROWS
    )
    include: list[str] = setting(
        [], "folders with lm-eval task files of your own", "DIR", group=HARNESS
    )
    repeats: int = setting(
        1,
        "runs, under the seeds s, s+1, ...: the mean, and its standard error over runs",
        "N",
        group=COMMON,
    )
    judge: str | None = setting(
        None,
        "alpaca_eval: an annotator of alpaca-eval's (default: weighted_alpaca_eval_gpt4_turbo); "
        "with --judge-url, the served model",
        "NAME",
        group=JUDGE,
    )
    judge_url: str | None = setting(
        None, "an OpenAI-compatible judge (default: OpenAI, or OPENAI_BASE_URL)", "URL", group=JUDGE
    )
    judge_key_env: str = setting(KEY, "environment variable with its key", "NAME", group=JUDGE)
    reference: Path | None = setting(
        None, "alpaca_eval: the answers to compare with (default: the hub's)", "FILE", group=HARNESS
    )
    harness_python: Path | None = setting(
        None,
        "mt_bench: the Python of an environment that has FastChat (make fastchat)",
        group=HARNESS,
    )
    lc_data: Path | None = setting(
        None,
        "alpaca_eval: df_gamed.csv, for the length-controlled rate (default: the hub's)",
        group=HARNESS,
    )
    # What a run over one file has; here the benchmarks say it.
    without: ClassVar[tuple[str, ...]] = (
        *("split", "data_subset", "data_revision", "shard", "column", "rejects"),
        *("use_proposals", "task", "task_output"),
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        problems = RunSettings.problems(self) + at_least(self, ("repeats", 1))
        problems += [
            f"include: {name}: no such folder" for name in self.include if not Path(name).is_dir()
        ]
        problems += [
            f"data: {name}: {path}: no such file"
            for name, path in self.data.items()
            if not Path(path).exists()
        ]
        problems += [
            f"{name}: {path}: no such file"
            for name in ("reference", "lc_data")
            if (path := getattr(self, name)) is not None and not path.is_file()
        ]
        if self.judge_key_env != KEY:  # which a judge of one's own may do without
            problems += missing_keys("judge_key_env", [self.judge_key_env])
        url = self.judge_url
        if url is not None and not (is_url(url) and shown_url(url) == url):
            problems.append(
                "judge_url: expected http://HOST:PORT/v1 without login and query, as neither is "
                "sent; judge_key_env names a variable with the key"
            )
        return problems


def paper_settings(
    benchmark: Benchmark, _: EvalArguments, given: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any]]:
    """Return how the paper runs a benchmark, which file and flags override."""
    if benchmark.preset is not None:
        where, below = preset_settings(RunArguments(preset=benchmark.preset), given)
        return where, {key: value for key, value in below.items() if key != "task"}
    strategy = STRATEGIES.get(given.get("strategy", EvalSettings().strategy))
    aggregates = strategy is not None and "layers" in strategy.options
    return "the paper", {"layers": 0} if benchmark.plain and aggregates else {}

"""The settings of `aft eval`: those of a run, and what the harnesses need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from aft_factory.evaluate.benchmarks import BENCHMARKS, Benchmark
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.run.__main__ import RunArguments, preset_settings
from aft_factory.run.settings import RunSettings
from aft_factory.stage.declaring import argument, setting, switch, written
from aft_factory.stage.reading import at_least

# What a run is told of its one input file; here the benchmarks say it.
SET_HERE = ("split", "shard", "column", "rejects", "task", "task_output")


@dataclass(frozen=True, slots=True)
class EvalArguments:
    """What an evaluation takes beside its settings: what a file of settings cannot say."""

    benchmarks: list[str] | None = argument(
        None, f"{', '.join(BENCHMARKS)}, or any generative task of lm-eval's", "BENCHMARK"
    )
    output: Path | None = written("folder for all that it leaves; results.json comes last", "DIR")
    config: Path | None = setting(None, "file of settings; flags override it", "YAML")
    dry_run: bool = switch("only tell requests, tokens and FLOPs to expect")
    overwrite: bool = switch("replace existing results")
    quiet: bool = switch("no progress bar")
    compare: list[str] = setting([], "print evaluations side by side, and leave", "DIR")


@dataclass(frozen=True, slots=True)
class EvalSettings(RunSettings):
    """What an evaluation is to do; see the help texts."""

    data: dict[str, str] = setting({}, "a local copy of a benchmark's data", "BENCHMARK=FILE")
    include: list[str] = setting([], "folders with lm-eval task files of your own", "DIR")
    repeats: int = setting(
        1, "runs, under the seeds s, s+1, ...: the mean, and its standard error over runs", "N"
    )
    judge: str | None = setting(
        None,
        "alpaca_eval: an annotator of alpaca-eval's (default: weighted_alpaca_eval_gpt4_turbo); "
        "with --judge-url, the served model",
        "NAME",
    )
    judge_url: str | None = setting(
        None, "an OpenAI-compatible judge (default: OpenAI, or OPENAI_BASE_URL)", "URL"
    )
    judge_key_env: str = setting("OPENAI_API_KEY", "environment variable with its key", "NAME")
    reference: Path | None = setting(
        None, "alpaca_eval: the answers to compare with (default: the hub's)", "FILE"
    )
    harness_python: Path | None = setting(
        None, "mt_bench: the Python of an environment that has FastChat (make fastchat)"
    )
    lc_data: Path | None = setting(
        None, "alpaca_eval: df_gamed.csv, for the length-controlled rate (default: the hub's)"
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        default = {field.name: field for field in fields(self)}
        problems = RunSettings.problems(self) + at_least(self, ("repeats", 1))
        for name in SET_HERE:
            plain = default[name].default
            if getattr(self, name) not in (plain, {}):
                problems.append(f"{name}: an evaluation sets it by the benchmark; leave it out")
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
        return problems


def paper_settings(benchmark: Benchmark, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how the paper runs a benchmark, which file and flags override."""
    if benchmark.preset is not None:
        _, below = preset_settings(RunArguments(preset=benchmark.preset), given)
        return {key: value for key, value in below.items() if key != "task"}
    strategy = STRATEGIES.get(given.get("strategy", EvalSettings().strategy))
    aggregates = strategy is not None and "layers" in strategy.options
    return {"layers": 0} if benchmark.plain and aggregates else {}

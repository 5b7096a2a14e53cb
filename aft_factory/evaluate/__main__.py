"""The command `aft eval`: prepare all benchmarks, ask their questions as one job, score, report."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from aft_factory.errors import UsageError
from aft_factory.evaluate import alpaca, lm_harness, mt_bench
from aft_factory.evaluate.asking import Asked, Plan, ask, dry_run, seeds, told
from aft_factory.evaluate.benchmarks import BENCHMARKS, Benchmark, Part, Score, benchmark_named
from aft_factory.evaluate.compare import compare
from aft_factory.evaluate.results import FILE, results_of, table, write_results
from aft_factory.evaluate.settings import EvalArguments, EvalSettings, paper_settings
from aft_factory.records.replacing import check_writable
from aft_factory.stage.command import ConfiguredCommand
from aft_factory.stage.console import guarded
from aft_factory.stage.flags import with_argument
from aft_factory.stage.leaves import Leaves

_log = logging.getLogger(__name__)

EXAMPLES = """\
examples:
  # GSM8K and IFEval as in the paper: three runs each, mean and standard error
  aft eval gsm8k ifeval --output eval/aft --model saves/llama-aft --repeats 3

  # local copies of the data; what would it take?
  aft eval gsm8k mmlu --output eval/aft --base-url http://gpu1:8000/v1 --dry-run \\
      --data gsm8k=test.jsonl --data mmlu=mmlu_all.parquet

  # AlpacaEval 2 by the official judge (805 requests to it), or by one of your own
  aft eval alpaca_eval --output eval/alpaca --model saves/llama-aft
  aft eval alpaca_eval --output eval/alpaca --model saves/llama-aft \\
      --judge-url http://judge:8000/v1 --judge Qwen/Qwen2.5-72B-Instruct

  # runs side by side
  aft eval --compare eval/sft eval/aft --csv eval/both.csv
"""


@dataclass(frozen=True, kw_only=True)
class EvalCommand(ConfiguredCommand[EvalSettings]):
    """The command: a job on the questions of several benchmarks, and their harnesses' scores."""

    asks: bool = True

    def run(self, given: Mapping[str, Any]) -> int:
        """Run it, and show errors as messages.

        Returns:
            The exit code: 0, 1 (answers are missing), 2 (usage), 130.
        """
        given = with_argument(given, "benchmarks", BENCHMARKS.__contains__, *self.kinds)
        return guarded(lambda: self._run(given), lines=True)

    def leaves(self, given: Mapping[str, Any], settings: EvalSettings) -> Leaves:
        """Tell what it leaves."""
        return Leaves([Path(given["output"]) / FILE])

    def _run(self, given: Mapping[str, Any]) -> int:
        args = self._arguments(given)
        if args.csv is not None:
            check_writable(args.csv, overwrite=args.overwrite)
        if args.compare:
            print("\n".join(compare([Path(name) for name in args.compare], args.csv)))
            return 0
        if args.csv is not None:
            raise UsageError("csv: of what --compare prints")
        settings = self.read(given)
        names = list(dict.fromkeys(args.benchmarks or []))
        if not names:
            raise UsageError("name a BENCHMARK (see --help)")
        if unknown := set(settings.data) - set(names):
            raise UsageError(f"data: {', '.join(sorted(unknown))}: not among the benchmarks asked")
        if args.dry_run:
            with tempfile.TemporaryDirectory() as folder:
                plans = self._plans(names, given, Path(folder))
                dry_run(plans, settings, Path(folder), quiet=args.quiet)
            for plan in plans:
                if count := plan.part.judged * settings.repeats:
                    print(f"{plan.part.benchmark.name}: {count} requests to the judge")
            return 0
        if args.output is None:
            raise UsageError("--output is missing (it is optional only with --dry-run)")
        if (args.output / FILE).exists() and not args.overwrite:
            raise UsageError(f"{args.output / FILE} exists; --overwrite replaces it")
        args.output.mkdir(parents=True, exist_ok=True)
        plans = self._plans(names, given, args.output)
        asked = ask(plans, settings, args.output, quiet=args.quiet)
        return 130 if asked is None else _report(plans, settings, asked, args.output)

    def _plans(self, names: Sequence[str], given: Mapping[str, Any], folder: Path) -> list[Plan]:
        plans = []
        for name in names:
            benchmark = benchmark_named(name)
            settings = replace(self, below=partial(paper_settings, benchmark)).read(given)
            part = _prepared(benchmark, settings, folder, ask=not self._arguments(given).dry_run)
            plans.append(Plan(part, settings))
            for text in told(plans[-1]):
                _log.warning("%s", text)
        return plans


def _prepared(benchmark: Benchmark, settings: EvalSettings, folder: Path, *, ask: bool) -> Part:
    if benchmark.harness == "alpaca-eval":
        return alpaca.prepare(benchmark, settings, folder, ask=ask)
    if benchmark.harness == "FastChat":
        return mt_bench.prepare(benchmark, settings, folder, ask=ask)
    return lm_harness.prepare(benchmark, settings, folder)


def _report(plans: Sequence[Plan], settings: EvalSettings, asked: Asked, folder: Path) -> int:
    """Have the harnesses score the answers, and tell what came out."""
    scores: dict[tuple[str, int], list[Score]] = {}
    for plan in plans:
        name = plan.part.benchmark.name
        for seed in seeds(settings):
            where = folder / name / f"seed{seed}"
            scores[name, seed] = plan.part.score(asked.answers[name, seed], where)
    content = results_of(plans, settings, asked, scores)
    write_results(folder, content)
    print("\n".join(table(content)))
    print(f"{folder / FILE}: and each harness's own files in the folders beside it")
    missing = sum(asked.missing.values())
    unjudged = sum(sum(one["unjudged"]) for one in content["benchmarks"])
    for count, what in ((missing, "answers"), (unjudged, "judgments")):
        if count:
            print(
                f"{count} {what} are missing; with --overwrite the same command asks for them anew"
            )
    return 1 if missing or unjudged else 0


COMMAND = EvalCommand(
    name="eval",
    description="Benchmarks through their own harnesses, a strategy as the model.",
    examples=EXAMPLES,
    settings=EvalSettings,
    arguments=EvalArguments,
)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())

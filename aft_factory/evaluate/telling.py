"""What a harness makes of an answer: how lm-eval finds and compares it, and verdicts kept.

For who reads drafts. No data is loaded and nobody is asked.

    samples.jsonl                       lm-eval: {"task", "doc_id", "filter", "metrics", METRIC: n}
    annotations.json                    alpaca-eval: [{"instruction", "preference": from 1 to 2}]
    model_judgment/gpt-4_single.jsonl   FastChat: {"question_id", "turn", "score"}
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aft_factory.evaluate.benchmarks import benchmark_named
from aft_factory.evaluate.lm_harness import EXACT, task_manager
from aft_factory.evaluate.lm_tasks import config_of
from aft_factory.records.files import read_text
from aft_factory.records.tables import read_rows

Verdict = tuple[int, str, float]  # of which turn, what, and how much
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Telling:
    """How an answer is found in a text, and compared.

    Attributes:
        by: What tells it, for people.
        tell: From a text, and whether it is whole, to the answer in it; None where it finds none.
        same: Whether one answer is another, or the target.
    """

    by: str
    tell: Callable[[str, bool], str | None]
    same: Callable[[str, str], bool]


def telling_of(benchmark: str, task: str, include: Sequence[str]) -> Telling | None:
    """Return how a task of lm-eval's tells answers; None if it does not compare them with a target.

    Args:
        benchmark: As `aft eval` was asked for it.
        task: lm-eval's, whose question it is.
        include: Folders with task files of the user's own.

    Raises:
        MissingPackage: If lm-eval is not installed.
    """
    known = benchmark_named(benchmark)
    manager = task_manager(known, include)
    if task not in manager.task_index:
        return None
    config = config_of(manager.task_index, task)
    metrics = {one["metric"]: one for one in config.get("metric_list") or ()}
    filters = {one["name"]: one["filter"] for one in config.get("filter_list") or ()}
    metric, _, by = (known.metrics[0] if known.metrics else EXACT).partition(",")
    by = by or next(iter(filters), "none")
    if metric != EXACT or EXACT not in metrics:
        return None
    steps = filters.get(by, [{"function": "take_first"}])
    usual = ("metric", "aggregation", "higher_is_better")
    how = {key: value for key, value in metrics[EXACT].items() if key not in usual}
    return _telling(f"{task}, {by}", steps, how)


def _telling(by: str, steps: Sequence[dict[str, Any]], how: dict[str, Any]) -> Telling | None:
    from lm_eval.api.registry import get_metric
    from lm_eval.filters import build_filter_ensemble

    parts = [
        (step["function"], {key: step[key] for key in step if key != "function"}) for step in steps
    ]
    ensemble, exact = build_filter_ensemble(by, parts), get_metric(EXACT)

    def found(text: str) -> str:
        responses: Any = [[text]]
        for step in ensemble.filters:
            responses = step().apply(responses, [{}])
        [response] = responses
        return response if isinstance(response, str) else str(response[0])

    def same(told: str, other: str) -> bool:
        return bool(exact(predictions=[told], references=[other], **how)[EXACT])

    try:
        nothing = found("")
        same(nothing, nothing)
    except Exception as error:  # filters of a task's own read its data, and raise anything
        _log.warning("%s: answers of drafts cannot be told without its data: %r", by, error)
        return None

    def tell(text: str, whole: bool) -> str | None:
        told = found(text)
        return None if told == nothing else told

    return Telling(by, tell, same)


def verdicts_in(folder: Path, benchmark: str) -> dict[str, list[Verdict]]:
    """Return what a harness has said of the answers of one run, as far as it was kept.

    Args:
        folder: Of the evaluation.
        benchmark: Which of its benchmarks.

    Returns:
        By the id of a query; of AlpacaEval, which has none, by the instruction.
    """
    found: dict[str, list[Verdict]] = {}
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        for name, verdict in _kept(folder, benchmark):
            found.setdefault(name, []).append(verdict)
    return found


def _kept(folder: Path, benchmark: str) -> Iterator[tuple[str, Verdict]]:
    harness = benchmark_named(benchmark).harness
    if harness == "alpaca-eval":
        for one in json.loads(read_text(folder / "annotations.json")):
            if one["preference"] is not None:
                yield one["instruction"], (0, "preferred", one["preference"] - 1)
    elif harness == "FastChat":
        for line in read_rows(str(folder / "model_judgment" / "gpt-4_single.jsonl")):
            one = line.value
            if one["score"] != -1:
                name = f"{benchmark}/{one['question_id']}"
                yield name, (one["turn"] - 1, "judged", one["score"])
    else:
        for line in read_rows(str(folder / "samples.jsonl")):
            one = line.value
            name = f"{benchmark}/{one['task']}/{one['doc_id']}"
            for metric in one["metrics"]:
                if isinstance(one[metric], int | float):
                    yield name, (0, f"{metric},{one['filter']}", float(one[metric]))

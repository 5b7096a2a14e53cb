"""How the answer to a query is told, in its final form and in its drafts: as what scores it does.

`aft run` on GSM8K      final numbers (`answers.extract_number`), as its accuracy
`aft run` on records    the same, where the reference is a number
`aft eval`              lm-eval's own filter and metric, where its task compares with a target;
                        beside it what the harness has said, once the evaluation has ended
else                    not at all, and that is said
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from aft_factory.errors import MissingPackage, RecordError
from aft_factory.evaluate.benchmarks import benchmark_named
from aft_factory.evaluate.settings import EvalSettings
from aft_factory.evaluate.telling import Telling, Verdict, telling_of, verdicts_in
from aft_factory.inference.answers import extract_number
from aft_factory.inference.queries import Query
from aft_factory.inference.tasks import TASKS
from aft_factory.records.record import Row, record_from_row
from aft_factory.run.settings import RunSettings

REFERENCES = ("answer", "solution", "target")  # columns of benchmarks, where there is no other
SHORT = 4  # words: in a last line that is no more, a number need not be announced
NUMBERS = Telling(
    "final numbers", lambda text, whole: extract_number(text, whole=whole), str.__eq__
)


@dataclass(frozen=True, slots=True)
class Grading:
    """How the answer to one query is told.

    Attributes:
        told: By what, or why not; for people.
        telling: How; None if it cannot be.
        target: The right answer, as told; None if it is not known.
        reference: It in words.
        verdicts: What the benchmark's harness has said.
        scores: Whether the first verdict is 1 of a right answer, and 0 of a wrong one.
    """

    told: str
    telling: Telling | None = None
    target: str | None = None
    reference: str | None = None
    verdicts: Sequence[Verdict] = ()
    scores: bool = False

    def canonical(self) -> Callable[[str, bool], str | None]:
        """Return what makes equal answers of this query equal texts; the right one is `target`."""
        known = [] if self.target is None else [self.target]
        telling = self.telling or NUMBERS
        found = cache(telling.tell)  # the answer is often one of the drafts

        def tell(text: str, whole: bool) -> str | None:
            told = found(text, whole)
            if told is None:
                return None
            same = next((one for one in known if telling.same(told, one)), None)
            if same is None:
                known.append(told)
            return same or told

        return tell

    def is_right(self, told: str | None) -> bool | None:
        """Tell whether the final answer is right; None where that is not known."""
        if self.target is not None:
            return told == self.target
        return bool(self.verdicts[0][2]) if self.scores and self.verdicts else None


def reference_number(reference: str | None) -> str | None:
    """Return the number that a reference announces, or that its last line is; None of a text."""
    if reference is None or not reference.strip():
        return None
    last = reference.strip().splitlines()[-1]
    announced = extract_number(reference, whole=False)
    short = len(last.split()) <= SHORT
    return extract_number(last) if announced is None and short else announced


@dataclass(frozen=True, slots=True)
class RunGrading:
    """Grades the queries of `aft run`.

    Attributes:
        settings: Of the run.
        task: Of its rows.
    """

    settings: RunSettings
    task: str

    def __call__(self, query: Query) -> Grading:
        """Tell how a query's answer is told."""
        if self.task not in ("records", "gsm8k"):
            return Grading(f"its scorer is not run here ({self.task})")
        reference = self._reference(query.row)
        if TASKS[self.task].is_right is not None:
            target = extract_number(query.row["answer"])
        else:
            target = reference_number(reference)
        if target is None:
            why = "no reference" if reference is None else "the reference is a text, no number"
            return Grading(why, reference=reference)
        return Grading(NUMBERS.by, NUMBERS, target, reference)

    def _reference(self, row: Row) -> str | None:
        try:
            reference = record_from_row(row, self.settings.columns()).reference
        except RecordError:
            reference = None
        return reference or _words(row)


@dataclass(slots=True)
class EvalGrading:
    """Grades the queries of `aft eval`.

    Attributes:
        settings: Of the evaluation.
        folder: Where the harnesses' own files are.
    """

    settings: EvalSettings
    folder: Path
    _telling: Any = field(init=False)
    _verdicts: Any = field(init=False)

    def __post_init__(self) -> None:
        self._telling = cache(partial(_known_telling, tuple(self.settings.include)))
        self._verdicts = cache(verdicts_in)

    def __call__(self, query: Query) -> Grading:
        """Tell how a query's answer is told."""
        row, benchmark = query.row, query.row["benchmark"]
        kept = self._verdicts(self.folder / benchmark / f"seed{query.seed}", benchmark)
        verdicts = kept.get(query.id) or kept.get(query.turns[0][-1]["content"]) or ()
        more: dict[str, Any] = {"verdicts": verdicts, "reference": _words(row)}
        more["scores"] = benchmark_named(benchmark).harness == "lm-eval" and any(
            value in (0, 1) for _, _, value in verdicts[:1]
        )
        if (target := row.get("target")) is None:
            how = "by its harness, final answers only" if kept else "not scored by its harness yet"
            return Grading(f"{benchmark}: {how}", **more)
        telling, why = self._telling(benchmark, row["task"])
        if telling is None:
            return Grading(f"{benchmark}: {why}", **more)
        # A target may be a worked solution: what counts is the answer in it.
        short = telling.tell(target, True)
        target = short if short is not None and telling.same(short, target) else target
        return Grading(f"{benchmark}: {telling.by}", telling, target, **more)


def _words(row: Row) -> str | None:
    known = (row.get(name) for name in REFERENCES)
    return next((str(one) for one in known if type(one) in (str, int, float)), None)


def _known_telling(include: Sequence[str], benchmark: str, task: str) -> tuple[Telling | None, str]:
    try:
        telling = telling_of(benchmark, task, include)
    except MissingPackage as error:
        return None, str(error)
    return telling, f"drafts are not graded: how {task} finds an answer takes its data"

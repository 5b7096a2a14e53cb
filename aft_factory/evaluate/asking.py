"""The questions of all benchmarks and runs as one job: no barrier, one journal, one account.

requests.jsonl    what is asked: id, benchmark, seed, turns, settings that differ by benchmark
journal.sqlite    what was answered, the moment it was (--journal: several evaluations share one)
answers.jsonl     the answers, with what each took; answers.rejects.jsonl, answers.summary.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import orjson

from aft_factory.asking.journal import Journal
from aft_factory.evaluate.benchmarks import Part
from aft_factory.evaluate.settings import EvalSettings
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.queries import Query
from aft_factory.inference.runner import Runner
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.inference.tasks import TASKS, Task
from aft_factory.network import without_secrets
from aft_factory.records.files import read_text
from aft_factory.records.record import Row, content_id
from aft_factory.records.replacing import write_whole
from aft_factory.run.answering import build_stage, output_row
from aft_factory.run.decoding import BY_ROW, decoded, decoding_told
from aft_factory.run.settings import SAMPLED, RunSettings
from aft_factory.stage.job import Job
from aft_factory.stage.output import read_summary
from aft_factory.stage.stage import Files
from aft_factory.stage.totals import Totals


@dataclass(frozen=True, slots=True)
class Plan:
    """A benchmark and the settings it is asked by.

    Attributes:
        part: The benchmark.
        settings: The evaluation's, and under them what the paper says of it.
    """

    part: Part
    settings: EvalSettings

    @property
    def task(self) -> Task:
        """How answers are decoded, beside what each query says; lm-eval's tasks say it there."""
        ours = self.part.benchmark.harness != "lm-eval"
        return TASKS[self.part.benchmark.name if ours else "records"]

    def decoding(self) -> Row:
        """Return what the benchmark says of the final layer: a value, or that each row has one."""
        found: Row = {}
        for query in self.part.queries:
            for name, value in {**self.task.decoding, **query.final}.items():
                if name in SAMPLED and found.setdefault(name, value) != value:
                    found[name] = BY_ROW
        return found

    def queries(self, seed: int) -> Iterator[Query]:
        """Go through the queries of one run, with all that they override."""
        final = {name: getattr(self.settings.final(), name) for name in SAMPLED}
        for query in self.part.queries:
            query = decoded(query, self.settings, self.task)
            options = self.settings.options()
            yield replace(query, final={**final, **query.final}, options=options, seed=seed)


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked and answered.

    Attributes:
        answers: By (benchmark, seed): the answers to the turns of each query, "" where one is
            missing.
        missing: By (benchmark, seed): how many queries have no answer.
        totals: By benchmark, what its queries took under all seeds.
        flops: By benchmark.
        summary: Of the job.
    """

    answers: dict[tuple[str, int], list[list[str]]]
    missing: dict[tuple[str, int], int]
    totals: dict[str, Totals]
    flops: dict[str, Any]
    summary: Row


def told(plan: Plan) -> list[str]:
    """Return what the user is to know of how a benchmark is asked, before it is."""
    name, repeats = plan.part.benchmark.name, plan.settings.repeats
    told = decoding_told(plan.settings, name, plan.decoding())
    said = [f"{name}: {text}" for text in told]
    greedy = all(query.final["temperature"] == 0 for query in plan.queries(0))
    if greedy and repeats > 1 and plan.settings.options().get("layers") == 0:
        said.append(f"{name}: greedy and without drafts: {repeats} runs differ by rounding only")
    return said


def seeds(settings: EvalSettings) -> list[int]:
    """Return the seed of each run."""
    return [settings.seed + i for i in range(settings.repeats)]


def dry_run(plans: Sequence[Plan], settings: EvalSettings, folder: Path, *, quiet: bool) -> None:
    """Tell what it would take to ask."""
    requests = folder / "requests.jsonl"
    write_whole(requests, b"".join(_lines(plans, settings)))
    _job(plans, settings, requests, None, quiet=quiet).dry_run()


def ask(
    plans: Sequence[Plan], settings: EvalSettings, folder: Path, *, quiet: bool
) -> Asked | None:
    """Answer what is not answered yet; None if it was stopped."""
    requests, output = folder / "requests.jsonl", folder / "answers.jsonl"
    write_whole(requests, b"".join(_lines(plans, settings)))
    job = _job(plans, settings, requests, output, quiet=quiet)
    if not _is_done(job) and job.run() is None:
        return None
    return _collect(plans, job, requests)


def _lines(plans: Sequence[Plan], settings: EvalSettings) -> Iterator[bytes]:
    for seed in seeds(settings):
        for plan in plans:
            for query in plan.queries(seed):
                row: Row = {
                    "id": query.id,
                    "benchmark": plan.part.benchmark.name,
                    "seed": query.seed,
                }
                row |= {"turns": query.turns, "final": query.final, "options": query.options}
                yield orjson.dumps(row | {"row": query.row}, default=str) + b"\n"


def read_request(row: Any) -> Query:
    """Read a line of requests.jsonl."""
    final = row["final"] | {"stop": tuple(row["final"].get("stop", ()))}
    columns = {"benchmark": row["benchmark"], "turns": row["turns"], **row["row"]}
    return Query(
        *(row["id"], row["turns"], columns), final=final, options=row["options"], seed=row["seed"]
    )


def _job(
    plans: Sequence[Plan],
    settings: EvalSettings,
    requests: Path,
    output: Path | None,
    *,
    quiet: bool,
) -> Job:
    # `limit` is of each benchmark, which is what was prepared.
    own = replace(settings, limit=None)
    if output is not None:
        own = replace(own, journal=own.journal or output.with_name("journal.sqlite"))
    usual = build_stage(own, "records")
    stage = replace(
        usual,
        read_row=read_request,
        write_row=lambda query, outcome: (
            output_row(query, outcome, own) | {"seed": query.seed, "options": query.options}
        ),
        # By the formula of one width and depth; those differ by benchmark.
        strategy=replace(usual.strategy, flops=None),
        used={"requests": content_id([], [read_text(requests)])},
        exports=False,
    )
    count = sum(len(plan.part.queries) for plan in plans) * settings.repeats
    files = Files(str(requests), output, None, overwrite=True, quiet=quiet)
    return Job(files, own, stage, count)


def _is_done(job: Job) -> bool:
    """Tell whether all of this was answered by these settings: no model need be loaded for it."""
    if not (found := job.before):
        return False
    kept = without_secrets(asdict(job.settings)) | dict(job.stage.used)
    wanted = json.loads(json.dumps(kept, default=str))
    # What a harness or a judge needs has nothing to do with the answers.
    same = {field.name for field in fields(RunSettings)} - {"by_flag"} | {"requests"}
    settings = found["settings"]
    return not found["rejected"] and all(settings[name] == wanted[name] for name in same)


def _collect(plans: Sequence[Plan], job: Job, requests: Path) -> Asked:
    """Return what the journal has for each query."""
    summary = read_summary(job.output)
    asked, fingerprint = Asked({}, {}, {}, {}, summary), summary["run"]
    with Journal(job.journal_path, read_only=True) as journal:
        for line in job.settings.lines(str(requests)):
            query = read_request(line.value)
            name, key = line.value["benchmark"], Runner.outcome_key(query, fingerprint)
            outcome = Outcome(**(journal.outcome(key) or {"problem": "lost"}))
            totals = asked.totals.setdefault(name, Totals())
            totals.count(outcome, key)
            run = (name, line.value["seed"])
            missing = outcome.problem is not None
            asked.missing[run] = asked.missing.get(run, 0) + missing
            empty = [""] * (len(query.turns) - len(outcome.answers))
            asked.answers.setdefault(run, []).append([*outcome.answers, *empty])
    for plan in plans:
        name, strategy = plan.part.benchmark.name, STRATEGIES[plan.settings.strategy]
        asked.flops[name] = job.flops_of(asked.totals[name], strategy, plan.settings.options())
    return asked

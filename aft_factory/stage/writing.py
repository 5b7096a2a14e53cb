"""The end of a job: its files written from the journal, and its account printed."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aft_factory.asking.journal import Journal
from aft_factory.errors import AftError, UsageError
from aft_factory.inference.accounting import ModelShape
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.runner import Runner
from aft_factory.records.rejects import Rejects
from aft_factory.records.tables import TableWriter
from aft_factory.stage.output import Outputs, summary_path, write_summary
from aft_factory.stage.totals import Totals, describe, summary

if TYPE_CHECKING:
    from aft_factory.stage.job import Job


def write_outputs(job: Job, journal: Journal) -> Totals:
    """Write the outputs from the journal, and print the account.

    The output appears last: where it is, all is there, and where it is not, the same command ends
    what was begun.
    """
    fingerprint = journal.last_run()
    if fingerprint is None:
        raise UsageError(f"{job.journal_path}: no run has begun in it")

    def outcome_of(key: bytes) -> Outcome | None:
        content = journal.outcome(key)
        return None if content is None else Outcome(**content)

    key_of = partial(Runner.outcome_key, fingerprint=fingerprint)
    task_output, overwrite = job.files.task_output, job.files.overwrite
    with (
        contextlib.ExitStack() as until,
        TableWriter(job.output, overwrite=overwrite) as table,
        Rejects(job.rejects_path, overwrite=True, until=until) as rejects,
    ):
        outputs = Outputs(
            table,
            rejects,
            job.stage.write_row,
            task_row=job.stage.task_row,
            unread=job.stage.unread,
            is_right=job.stage.is_right,
            on_problem=job.stage.tally.on_problem,
            of_drafts=job.stage.of_drafts,
        )
        with contextlib.suppress(_NotDoneError), contextlib.ExitStack() as stack:
            if task_output is not None:
                task_table = TableWriter(task_output, overwrite=overwrite, until=until)
                outputs = replace(outputs, task_table=stack.enter_context(task_table))
            totals = outputs.write(job.lines(), job.query, key_of, outcome_of)
            if totals.unfinished:
                raise _NotDoneError  # leaves the benchmark's file out, which would look complete
        flops = flops_of(job, totals)
        sessions = journal.sessions()
        more = {
            "seconds": round(sum(session["seconds"] for session in sessions), 3),
            "sessions": sessions,
            "session": job.session,
            "settings": asdict(job.settings) | dict(job.stage.used),
            "input": job.files.source,
            **job.stage.tally.summary(),
        }
        write_summary(summary_path(job.output), summary(totals, flops, more))
    counts = f"{totals.written} written to {job.output}, {totals.rejected} rejected"
    if totals.rejected:
        counts += f" ({job.rejects_path})"
    if totals.unfinished:
        counts += f", {totals.unfinished} not done yet"
    print(f"read {totals.read} rows: {counts}")
    for name, (count, first) in totals.rejects.items():
        print(f"  {count} x {name}: {first}")
    if task_output is not None:
        print("\n".join(_told_of_task(totals, task_output)))
    print("\n".join([*describe(totals, flops), *job.stage.tally.describe()]))
    return totals


def flops_of(job: Job, totals: Totals) -> dict[str, float | None] | None:
    """Return the FLOPs of what a job asked; None where the model's size is unknown."""
    own = _shape(job.shapes[0])
    if own is None:
        return None
    # Of another model at a server its name is all there is to go by.
    others = {name: _shape(name) for name in totals.by_model if name and _is_named(name)}
    reward = None if totals.scored is None else _shape(job.shapes[1], classifier=True)
    return totals.flops({"": own, **others}, reward, job.stage.strategy, job.stage.options)


class _NotDoneError(Exception):
    """Some rows are not done yet."""


def _told_of_task(totals: Totals, path: Path) -> list[str]:
    """Return what there is to know of a benchmark's file."""
    if totals.unfinished:
        return [f"{path} is not written: {totals.unfinished} rows are not done yet"]
    rows = totals.written + totals.marked
    told = [f"{path}: {rows} rows"]
    if totals.marked:
        told[0] += f", {totals.marked} of them with an empty answer, marked `rejected`"
    if totals.unnamed:
        told.append(
            f"{path}: {totals.unnamed} rows are not in it, as they lack what its scorer knows "
            "them by"
        )
    return told


def _is_named(name: str) -> bool:
    """Tell whether a name is a folder or OWNER/NAME; a server may call a model by any word."""
    return name.count("/") == 1 or Path(name).is_dir()


def _shape(name: str | None, *, classifier: bool = False) -> ModelShape | None:
    if name is None:
        return None
    try:
        return ModelShape.load(name, classifier=classifier)
    except AftError:  # a served name that is no folder and no hub name here
        return None

"""STAGE 4, `python -m aft_factory.aggregate`: aggregation targets, written by a strong model.

Reads records with proposals; writes them with an aggregation, for which the model read the
proposals in the aggregator prompt (2501.11877, section 3.2), or, with `--pseudo`, the model's
direct answer, which never saw them (the paper's ablation). Quality gates flag what should not be
learned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from aft_factory.aggregate import gates
from aft_factory.engines.sampling import Completion
from aft_factory.errors import RecordError, suggest
from aft_factory.inference.drafting_options import DraftingOptions
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.queries import Query, read_record, read_with_proposals
from aft_factory.inference.strategy import Answer, Conversation, Sample, Strategy
from aft_factory.prompts.rendering import load_template
from aft_factory.records.files import readable
from aft_factory.records.record import Row, record_from_row
from aft_factory.records.table_writer import TableWriter
from aft_factory.records.tables import Line
from aft_factory.records.told import with_told
from aft_factory.stage.declaring import COMMON, setting
from aft_factory.stage.engines import dry_run_engines, dry_run_note, open_engines
from aft_factory.stage.job_settings import AskSettings
from aft_factory.stage.reading import AGGREGATOR, refused
from aft_factory.stage.rehearsing import filler, records
from aft_factory.stage.stage import Stage, Tally

DEFAULT_MODEL = "Qwen/Qwen2.5-72B-Instruct"  # the paper's


@dataclass(frozen=True, slots=True)
class AggregateSettings(AskSettings):
    """How aggregations are written; see the help texts."""

    template: str = setting("paper", AGGREGATOR, group=COMMON)
    pseudo: bool = setting(
        False, "answer without seeing the proposals (the paper's ablation)", group=COMMON
    )
    keep_thoughts: bool = setting(
        False,
        "keep what the model thought before each aggregation, to train models that think",
        group=COMMON,
    )
    drop: list[str] = setting(
        [],
        f"gates whose rows are rejected, as empty ones always are: {', '.join(gates.GATES)}",
        "GATE",
        group=COMMON,
    )
    copy_threshold: float = setting(
        0.9, "overlap with a proposal from which it is a copy", group=COMMON
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        problems = AskSettings.problems(self)
        for name in self.drop:
            if name not in gates.GATES:
                problems.append(f"drop: unknown gate {name!r}; {suggest(name, gates.GATES)}")
        if not 0 < self.copy_threshold <= 1:
            problems.append(f"copy_threshold: expected a share up to 1, got {self.copy_threshold}")
        return problems + refused(lambda: load_template(self.template))


def defaults(_: object, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return what file and flags override: the paper's model, if the model runs in this process."""
    elsewhere = given.get("base_url") or given.get("scripted")
    return "defaults", {} if elsewhere else {"model": DEFAULT_MODEL}


async def aggregate_proposals(
    query: Conversation, sample: Sample, *, proposals: Sequence[Completion]
) -> Answer:
    """Aggregate the proposals that a record brings along: the target of equation 1."""
    [aggregation] = await sample(query, proposals, layer=1, final=True)
    return Answer(aggregation)


async def pseudo_aggregation(query: Conversation, sample: Sample) -> Answer:
    """Answer the query directly: the ablation's target, which never saw the proposals."""
    [answer] = await sample(query, layer=0, final=True)
    return Answer(answer)


AGGREGATE = Strategy("aggregate_proposals", aggregate_proposals, needs=frozenset({"proposals"}))
PSEUDO = Strategy("pseudo_aggregation", pseudo_aggregation)


@dataclass(slots=True)
class Gated(Tally):
    """Writes rows through the quality gates, and counts what these found.

    Attributes:
        settings: Of the command.
        flagged: Rows that were written, by gate.
        rejected: Rows that were not, by gate.
    """

    settings: AggregateSettings
    flagged: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)

    def write_row(self, query: Query, outcome: Outcome) -> Row:
        """Return the record with its aggregation.

        Raises:
            RecordError: If a gate whose rows are to be dropped caught it.
        """
        settings, text = self.settings, outcome.answers[0]
        found = gates.check(
            text,
            query.proposals,
            outcome.finish_reasons[0],
            query=query.turns[0][-1]["content"],
            copy_threshold=settings.copy_threshold,
        )
        dropped = [name for name in found if name in settings.drop]
        (self.rejected if dropped else self.flagged).update(found)
        if dropped:
            raise RecordError("aggregation", f"caught by the gate {', '.join(dropped)}")
        record = record_from_row(query.row, settings.columns())
        about: dict[str, Any] = {
            "model": outcome.model or settings.model,
            "template": None if settings.pseudo else readable(settings.template),
            "pseudo": settings.pseudo,
            "seed": settings.seed,
            "finish_reason": outcome.finish_reasons[0],
            "gates": found,
            "events": outcome.events,
        }
        meta = with_told(record.meta, "aggregating", about)
        thought = outcome.thoughts[0] if settings.keep_thoughts else None
        return replace(record, aggregation=text, aggregation_thought=thought, meta=meta).to_row()

    def on_problem(self, outcome: Outcome) -> None:
        """Count an aggregation that was empty or cut off, and so never came to the gates."""
        names = ("truncated" if e["event"] == "filtered" else e["event"] for e in outcome.events)
        told = [name for name in names if name in gates.GATES]
        if outcome.about == "drafts":
            self.rejected.update(told[-1:])

    def summary(self) -> Row:
        """Return the counts."""
        return {"gates": {"flagged": dict(self.flagged), "rejected": dict(self.rejected)}}

    def describe(self) -> list[str]:
        """Return the counts, a line per gate."""
        lines = [
            f"gate {name}: {count} rows {what}"
            for what, counts in (("flagged", self.flagged), ("rejected", self.rejected))
            for name, count in counts.most_common()
        ]
        return lines or ["gates: nothing found"]


def build_stage(settings: AggregateSettings) -> Stage:
    """Return what happens to a row."""
    gated = Gated(settings)
    return Stage(
        read_row=partial(
            read_record if settings.pseudo else read_with_proposals, columns=settings.columns()
        ),
        strategy=PSEUDO if settings.pseudo else AGGREGATE,
        options={},
        drafting=lambda: DraftingOptions(
            load_template(settings.template),
            settings.proposal(),
            settings.final(),
            seed=settings.seed,
            policy=settings.policy(),
        ),
        write_row=gated.write_row,
        open=lambda: open_engines(settings, settings.template),
        dry_run=dry_run_engines(settings),
        dry_run_note=dry_run_note(settings),
        tally=gated,
        following=lambda output: (
            *("aft", "convert", "proposals", output, "--output", output.with_name("my_aft.jsonl")),
            *("--register", output.parent),
        ),
    )


def rehearse(settings: AggregateSettings, lines: Iterator[Line], table: TableWriter) -> str:
    """Write the rows that it would leave."""
    for record in records(lines, settings, proposals=not settings.pseudo):
        table.write(replace(record, aggregation=filler(settings)).to_row())
    return ""

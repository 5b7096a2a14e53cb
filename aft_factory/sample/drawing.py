"""STAGE 2, `python -m aft_factory.sample`: on-policy proposals from a base model.

Reads queries (records or rows with a query, instruction or prompt); writes records whose proposals
the model drew by in-context learning (URIAL prompts) or, with `--chat`, by its chat template. The
paper's settings are the defaults (2501.11877, section 3.2): 10 samples, temperature 1.0, top_k 50,
top_p 0.95. How each draft ended, what is wrong with it and what became of others is kept in the
record's `meta`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from aft_factory.engines.sampling import Completion, Sampling
from aft_factory.inference.drafting_options import CompletionPrompts, DraftingOptions
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.queries import Query, read_record
from aft_factory.inference.strategy import Answer, Conversation, Sample, Strategy
from aft_factory.prompts.rendering import load_template, template_names
from aft_factory.records.files import readable
from aft_factory.records.record import Row, record_from_row
from aft_factory.records.table_writer import TableWriter
from aft_factory.records.tables import Line
from aft_factory.records.told import with_told
from aft_factory.sample import urial
from aft_factory.stage.declaring import COMMON, setting
from aft_factory.stage.engines import dry_run_engines, dry_run_note, open_engines
from aft_factory.stage.job_settings import DECODING, AskSettings
from aft_factory.stage.reading import MOST_SAMPLES, at_least, refused
from aft_factory.stage.rehearsing import filler, records
from aft_factory.stage.stage import Stage, Tally

ENDING = "\n```\n\n"  # of an answer to a URIAL prompt
PROMPTS = template_names("propose")


@dataclass(frozen=True, slots=True)
class SampleSettings(AskSettings):
    """What is sampled; see the help texts."""

    samples: int = setting(10, "proposals per query", group=COMMON)
    prompt: str = setting(
        urial.DEFAULT, f"URIAL prompt: {', '.join(PROMPTS)} or a .jinja file", group=COMMON
    )
    chat: bool = setting(False, "ask by the chat template: for instruct models", group=COMMON)
    temperature: float = setting(1.0, "of sampling; 0 is greedy", group=COMMON)
    top_k: int | None = setting(50, "of sampling", group=DECODING)
    max_tokens: int = setting(2048, "most tokens of a proposal", group=COMMON)

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        problems = AskSettings.problems(self)
        problems += at_least(self, ("samples", 1), most=MOST_SAMPLES)
        prompt = refused(lambda: urial.load_propose_template(self.prompt))
        return problems + [f"prompt: {problem}" for problem in prompt]

    def proposal(self) -> Sampling:
        """Return the sampling of proposals, which end where the next query would begin."""
        sampling = AskSettings.proposal(self)
        return sampling if self.chat else replace(sampling, stop=urial.STOP)


async def draw_proposals(query: Conversation, sample: Sample, *, samples: int) -> Answer:
    """Draw proposals, P(0) of equation 2; the outcome's layers hold them."""
    drafts = await sample(query, layer=0, n=samples)
    return Answer(drafts[0], {"problems": [_problem(draft) for draft in drafts]})


def _problem(draft: Completion) -> str | None:
    ended = "cut off" if draft.cut_off else "filtered" if draft.filtered else None
    return draft.problem or ended


@dataclass(slots=True)
class Drawn(Tally):
    """Writes rows, and counts what is wrong with their proposals."""

    settings: SampleSettings
    problems: Counter[str] = field(default_factory=Counter)

    def write_row(self, query: Query, outcome: Outcome) -> Row:
        """Return the record with the proposals drawn for it."""
        settings, drafts = self.settings, outcome.layers[0]["drafts"]
        model = outcome.model or settings.model
        problems = outcome.details[0]["problems"]
        self.problems.update(problem for problem in problems if problem is not None)
        record = record_from_row(query.row, settings.columns())
        about: dict[str, Any] = {
            "model": model,
            "prompt": "chat" if settings.chat else readable(settings.prompt),
            "seed": settings.seed,
            "finish_reasons": [draft["finish_reason"] for draft in drafts],
            "problems": problems,
            "events": outcome.events,
        }
        return replace(
            record,
            proposals=[draft["text"] for draft in drafts],
            proposal_models=None if model is None else [model for _ in drafts],
            scores=None,
            meta=with_told(record.meta, "sampling", about),
        ).to_row()

    def summary(self) -> Row:
        """Return the counts of problems."""
        return {"problems": dict(self.problems)}

    def describe(self) -> list[str]:
        """Return how many have no closing fence; how many were cut off is told of every job."""
        count = self.problems["no closing fence"]
        return (
            [f"{count} drafts without a closing fence: see meta.sampling.problems"] if count else []
        )


def build_stage(settings: SampleSettings) -> Stage:
    """Return what happens to a row."""
    drawn = Drawn(settings)
    return Stage(
        read_row=partial(read_record, columns=settings.columns()),
        strategy=Strategy("draw_proposals", draw_proposals),
        options={"samples": settings.samples},
        drafting=lambda: drafting(settings),
        write_row=drawn.write_row,
        open=lambda: open_engines(settings, "paper", chat=settings.chat, aggregates=False),
        dry_run=dry_run_engines(settings, ending="" if settings.chat else ENDING),
        dry_run_note=dry_run_note(settings),
        keep_drafts=True,
        of_drafts=True,
        tally=drawn,
        following=lambda output: (
            *("aft", "rank", output, "--output"),
            output.with_name("ranked.jsonl"),
        ),
    )


def rehearse(settings: SampleSettings, lines: Iterator[Line], table: TableWriter) -> str:
    """Write the rows that it would leave."""
    proposals = [filler(settings)] * settings.samples
    for record in records(lines, settings, proposals=False):
        drawn = replace(record, proposals=proposals, scores=None, proposal_models=None)
        table.write(drawn.to_row())
    return ""


def drafting(settings: SampleSettings) -> DraftingOptions:
    """Return what all queries have in common."""
    completion = None
    if not settings.chat:
        text = urial.render(settings.prompt, [{"role": "user", "content": ""}])
        completion = CompletionPrompts(
            hashlib.blake2b(text.encode(), digest_size=8).hexdigest(),
            lambda messages: urial.render(settings.prompt, messages),
            read_completion,
        )
    return DraftingOptions(
        load_template("paper"),
        settings.proposal(),
        settings.proposal(),
        seed=settings.seed,
        policy=settings.policy(),
        completion=completion,
    )


def read_completion(completion: Completion) -> Completion:
    """Take the answer out of what the model wrote after a URIAL prompt.

    What ran into the limit only after the answer's end was not cut off; what ended by itself
    without a closing fence was not either, and has that as its problem.
    """
    parsed = urial.parse(completion.text, completion.finish_reason)
    reason = completion.finish_reason
    if completion.cut_off and parsed.problem != "cut off":
        reason = "stop"
    return replace(completion, text=parsed.answer, finish_reason=reason, problem=parsed.problem)

"""Selection: which of a record's proposals go into its prompt, and the prompt they make. Pure."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from aft_factory.errors import RecordError, UsageError
from aft_factory.prompts.markers import Markers, known_markers
from aft_factory.prompts.rendering import AggregatorTemplate, load_template, with_aggregator
from aft_factory.prompts.thoughts import ThoughtWords
from aft_factory.records.fields import known
from aft_factory.records.messages import Message
from aft_factory.records.record import Record

PLAIN = "#plain"  # ends the id of a row that `mix_plain` added


@dataclass(frozen=True, slots=True)
class Aggregation:
    """How a record becomes a prompt. The defaults are the paper's.

    Attributes:
        template: `paper`, `moa`, `release`, or the path of a Jinja file that uses `proposals`.
        max_proposals: Keep the first K proposals (after shuffling); None keeps all.
        shuffle_proposals: Put the proposals in an order drawn from `seed` and the record's id.
        seed: Of the shuffle.
        ablation: `without_proposals` trains on query -> aggregation (the paper's ablation a), `sft`
            on query -> best response (its SFT baseline, see `best_response`).
        min_proposals: Give each record a width of its own, drawn between this and K from `seed` and
            its id (augmentation); None gives all the same.
        mix_plain: Share of records that are (also) trained on without proposals, so that plain
            answers, layer 0 of propose-and-aggregate, stay strong. A converter adds rows; the
            plugin, which cannot, turns them.
        loaded: The template, as its file was when this was made.
    """

    template: str = "paper"
    max_proposals: int | None = None
    shuffle_proposals: bool = False
    seed: int = 42
    ablation: Literal["none", "without_proposals", "sft"] = "none"
    min_proposals: int | None = None
    mix_plain: float = 0.0
    loaded: AggregatorTemplate = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        problems = []
        for name in ("max_proposals", "min_proposals"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                problems.append(f"{name}: expected a number from 1, got {value!r}")
        if not problems and (self.min_proposals or 1) > (self.max_proposals or sys.maxsize):
            problems.append(f"min_proposals: {self.min_proposals} is above max_proposals")
        if type(self.mix_plain) not in (int, float) or not 0 <= self.mix_plain <= 1:
            problems.append(f"mix_plain: expected a share from 0 to 1, got {self.mix_plain!r}")
        if not isinstance(self.shuffle_proposals, bool):
            problems.append(
                f"shuffle_proposals: expected true or false, got {self.shuffle_proposals!r}"
            )
        if type(self.seed) is not int:
            problems.append(f"seed: expected a whole number, got {self.seed!r}")
        if self.ablation not in ("none", "without_proposals", "sft"):
            problems.append(
                f"ablation: expected 'none', 'without_proposals' or 'sft', got {self.ablation!r}"
            )
        for name in ("min_proposals", "mix_plain"):
            if self.ablation == "sft" and getattr(self, name):
                problems.append(f"{name}: the ablation 'sft' has no proposals; leave it out")
        try:
            if not isinstance(self.template, str):
                raise UsageError(f"expected a name or a path, got {self.template!r}")
            object.__setattr__(self, "loaded", load_template(self.template))
        except UsageError as error:
            problems.append(f"template: {error}")
        if problems:
            raise UsageError("; ".join(problems))


PAPER = Aggregation()


def usable(record: Record) -> list[int]:
    """Return where the record's proposals that are not blank stand."""
    return [i for i, text in enumerate(record.proposals) if text and not text.isspace()]


def select(record: Record, options: Aggregation = PAPER) -> Record:
    """Return the record with the proposals that go into its prompt.

    Blank proposals are left out; then the rest are shuffled and cut to the first K as asked. Scores
    and model names stay with their proposals. What is drawn depends on the seed and the id alone.
    """
    kept = usable(record)
    if options.ablation != "none":
        kept = []
    if options.shuffle_proposals:
        random.Random(f"{options.seed}:{record.id}").shuffle(kept)
    kept = kept[: options.max_proposals]
    if options.min_proposals is not None and len(kept) > options.min_proposals:
        draw = random.Random(f"{options.seed}:{record.id}:width")
        kept = kept[: draw.randint(options.min_proposals, len(kept))]
    if kept == list(range(len(record.proposals))):
        return record
    scores, models = record.scores, record.proposal_models
    return replace(
        record,
        proposals=[record.proposals[i] for i in kept],
        scores=[scores[i] for i in kept] or None if scores else None,
        proposal_models=[models[i] for i in kept] or None if models else None,
    )


def best_response(record: Record) -> str | None:
    """Return what the SFT baseline trains on: the reference, else the best-scored proposal."""
    if record.reference is not None and record.reference.strip():
        return record.reference
    scored = [
        (score, -i)
        for i, score in enumerate(record.scores or [])
        if known(score) is not None and record.proposals[i].strip()
    ]
    return record.proposals[-max(scored)[1]] if scored else None


def is_plain(record: Record, options: Aggregation) -> bool:
    """Tell whether a record is of the share that `mix_plain` trains on without proposals."""
    share = options.mix_plain
    return share > 0 and random.Random(f"{options.seed}:{record.id}:plain").random() < share


def plain(record: Record) -> Record:
    """Return a record without its proposals, to train on query -> aggregation."""
    return replace(record, proposals=[], scores=None, proposal_models=None)


def refuse_copy(record: Record) -> None:
    """Refuse a row that `mix_plain` added, where no row has proposals: it would be there twice.

    Raises:
        RecordError: If it is one.
    """
    if record.id.endswith(PLAIN):
        raise RecordError(
            "id",
            f"{record.id!r} is a row that mix_plain added once more: without proposals it would be "
            "trained on twice; take the file from before mix_plain",
        )


def whole_target(record: Record, safe: Callable[[str], str] = str) -> str | None:
    """Return the text that AFT trains on: the aggregation, behind its thought if that was kept.

    Args:
        record: The record.
        safe: Breaks control tokens in a text; those around the thought are whole.
    """
    answer, thought = record.aggregation, record.aggregation_thought
    if answer is None or not (thought and thought.strip()):
        return answer and safe(answer)
    return ThoughtWords().around(safe(thought), safe(answer))


def conversation(record: Record, options: Aggregation = PAPER) -> list[Message]:
    """Return the messages a model reads for this record, without the answer (eq. 1's prompt)."""
    return selected_conversation(select(record, options), options)


def selected_conversation(
    record: Record, options: Aggregation = PAPER, markers: Markers | None = None
) -> list[Message]:
    """Return the same for a record as `select` returned it; to select twice would shuffle twice.

    Args:
        record: The record; its texts may hold control tokens' markers.
        options: How it becomes a prompt.
        markers: What is broken in its texts; None breaks those of all known families.
    """
    markers = markers or known_markers()
    proposals = [markers.sanitise(text) for text in record.proposals]
    messages = markers.sanitise_all(record.messages)
    return with_aggregator(messages, proposals, options.loaded)

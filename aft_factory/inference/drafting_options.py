"""What all queries of a run have in common, and the trace of what became of one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aft_factory.engines.sampling import Completion, Sampling, Usage
from aft_factory.inference.policy import Policy
from aft_factory.prompts.rendering import AggregatorTemplate
from aft_factory.records.messages import Message


@dataclass(frozen=True, slots=True)
class CompletionPrompts:
    """How a base model is asked, which knows no chat: by a text to complete.

    Attributes:
        name: Tells it from others, in journals.
        render: From a conversation to the text.
        read: From what the model wrote to the draft in it.
    """

    name: str
    render: Callable[[Sequence[Message]], str]
    read: Callable[[Completion], Completion]


@dataclass(frozen=True, slots=True)
class DraftingOptions:
    """What all queries of a run have in common.

    Attributes:
        template: The aggregator prompt.
        proposal: Sampling of proposals, which no drafts are read for.
        final: Sampling of the final layer.
        proposer_system: System message of plain queries that have none; None sends none.
        seed: Of the run.
        policy: For unusable drafts.
        final_policy: The same for the answer, where one text of the final layer is it; None if it
            is as that of drafts.
        capped: Whether the final layer's length is never doubled, as who asks has set it.
        completion: How to ask a base model; None asks by chat.
        reads: What the next layer reads of a draft: its `answer`, all of it (`full`), or the last
            N tokens of all (`tail:N`, four characters each where the tokenizer is not known), or
            the model's own `summary` of all.
        middle: Sampling of the layers between; None takes that of proposals.
    """

    template: AggregatorTemplate
    proposal: Sampling
    final: Sampling
    proposer_system: str | None = None
    seed: int = 42
    policy: Policy = Policy()  # noqa: RUF009 - frozen
    final_policy: Policy | None = None
    capped: bool = False
    completion: CompletionPrompts | None = None
    reads: str = "answer"
    middle: Sampling | None = None


@dataclass(slots=True)
class Trace:
    """What happened to one query: how each layer's drafts came about.

    Attributes:
        usage: By (turn, layer), of all models.
        by_model: The same of all layers, by the name of the model; "" is the run's own.
        drafts: By (turn, layer): (slot, completion) of every draft that was used.
        events: Every use of a policy: {turn, layer, slot, event}.
        answers: By turn, all answers that were drawn from the same drafts.
        shortened: Where drafts were shortened to be read: {turn, layer, slot, kept}, the
            characters kept of each.
    """

    usage: dict[tuple[int, int], Usage] = field(default_factory=dict)
    by_model: dict[str, Usage] = field(default_factory=dict)
    drafts: dict[tuple[int, int], list[tuple[int, Completion]]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[int, list[Completion]] = field(default_factory=dict)
    shortened: list[dict[str, Any]] = field(default_factory=list)

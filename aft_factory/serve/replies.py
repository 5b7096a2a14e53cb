"""The bodies of answers, as the clients of OpenAI's API read them. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from aft_factory.engines.endings import is_cut_off, is_filtered
from aft_factory.engines.sampling import Completion, Usage
from aft_factory.inference.outcome import Outcome
from aft_factory.serve.variants import Variant

OWNER = "aft-factory"
THOUGHT = "**Thought of the answer**\n\n"  # stands over it where drafts were shown


def model_card(variant: Variant, created: int, context: int | None) -> dict[str, Any]:
    """Return the entry of a model in the list of models."""
    return {
        "id": variant.name,
        "object": "model",
        "created": created,
        "owned_by": OWNER,
        "name": variant.title,
        "max_model_len": context,
    }


def finish_reason(reason: str) -> str:
    """Return the word of OpenAI's API for why a text ended."""
    return "length" if is_cut_off(reason) else "content_filter" if is_filtered(reason) else "stop"


def choices_of(outcome: Outcome, variant: Variant) -> list[Completion]:
    """Return the answers, with their thoughts."""
    first = {"text": outcome.answers[-1], "finish_reason": outcome.finish_reasons[-1]}
    last = outcome.layers[-1]["drafts"]
    choices = []
    for index, choice in enumerate([first, *outcome.more]):
        if variant.strategy.single:
            thought = last[index]["thought"]
        else:
            thought = next((d["thought"] for d in last if d["text"] == choice["text"]), "")
        choices.append(Completion(choice["text"], choice["finish_reason"], thought=thought))
    return choices


def heading(layer: int, slot: int) -> str:
    """Return what stands over a draft that is shown."""
    return f"**Draft {slot + 1}, layer {layer + 1}**\n\n"


def shows_thoughts(variant: Variant) -> bool:
    """Tell whether drafts are shown with their thoughts: as the next layer reads them."""
    return variant.drafting.reads != "answer"


def drafts_text(outcome: Outcome, variant: Variant) -> str:
    """Return the drafts of all layers as one text, but the answers."""
    names = ("thought", "text") if shows_thoughts(variant) else ("text",)
    layers: Sequence[Mapping[str, Any]] = outcome.layers
    if variant.strategy.single:
        layers = layers[:-1]
    return "\n\n".join(
        heading(layer["layer"], draft["slot"]) + "\n\n".join(filter(None, map(draft.get, names)))
        for layer in layers
        for draft in layer["drafts"]
    )


def usage_of(outcome: Outcome, variant: Variant) -> dict[str, Any] | None:
    """Return the tokens of all layers; None where the model's server does not tell them."""
    layers = outcome.layer_usage
    total = sum(layers.values(), Usage())
    if total.prompt is None or total.completion is None:
        return None
    usage: dict[str, Any] = {
        "prompt_tokens": total.prompt,
        "completion_tokens": total.completion,
        "total_tokens": total.prompt + total.completion,
    }
    if total.cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": total.cached}
    if variant.strategy.single:
        last = max(layers, default=(0, 0))
        drafts = sum((one for place, one in layers.items() if place != last), Usage())
        tokens = (drafts.completion or 0) + (layers[last].thought or 0)
        usage["completion_tokens_details"] = {"reasoning_tokens": tokens}
    return usage


def account(outcome: Outcome, variant: Variant, seed: int) -> dict[str, Any]:
    """Return how an answer came about: the field `aft` of a body."""
    return {
        "strategy": variant.strategy.name,
        "options": {k: v for k, v in variant.options.items() if isinstance(v, int)},
        "seed": seed,
        "layers": [
            {
                name: row[name]
                for name in ("layer", "requests", "samples", "prompt", "cached", "completion")
            }
            for row in outcome.usage
        ],
        "events": [{k: v for k, v in event.items() if k != "turn"} for event in outcome.events],
        "details": outcome.details[-1],
    }


class Head:
    """What the bodies, or chunks, of one answer have in common.

    Args:
        number: Of the request.
        model: By which name the client asked.
    """

    def __init__(self, number: str, model: str) -> None:
        self._id = f"chatcmpl-{number}"
        self._created = int(time.time())
        self._model = model

    def _of(self, kind: str) -> dict[str, Any]:
        head = {"id": self._id, "object": kind, "created": self._created, "model": self._model}
        return head

    def completion(
        self,
        choices: Sequence[Completion],
        usage: Mapping[str, Any] | None,
        aft: Mapping[str, Any],
        drafts: str,
        names: Sequence[str],
    ) -> dict[str, Any]:
        """Return the body of an answer; these fields have its thought, and drafts before that."""
        thoughts = [choice.thought for choice in choices]
        if drafts:
            thoughts[0] = f"{drafts}\n\n{THOUGHT}{thoughts[0]}" if thoughts[0] else drafts
        reasoning = [dict.fromkeys(names, text) if text else {} for text in thoughts]
        return {
            **self._of("chat.completion"),
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": choice.text, **before},
                    "logprobs": None,
                    "finish_reason": finish_reason(choice.finish_reason),
                }
                for index, (choice, before) in enumerate(zip(choices, reasoning, strict=True))
            ],
            "usage": usage,
            "aft": aft,
        }

    def chunk(
        self, index: int, delta: Mapping[str, str], reason: str | None = None, **more: Any
    ) -> dict[str, Any]:
        """Return a chunk of a stream."""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._of("chat.completion.chunk"), "choices": [choice], **more}

    def last_chunk(self, usage: Mapping[str, Any] | None, aft: Mapping[str, Any]) -> dict[str, Any]:
        """Return the chunk that tells what all of it took."""
        return {**self._of("chat.completion.chunk"), "choices": [], "usage": usage, "aft": aft}

"""What a chat template does by itself, with proposals or without, that who adds them has to know.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aft_factory.prompts.prelude import without_prelude
from aft_factory.prompts.probing import (
    BARE,
    QUERY,
    SYSTEM,
    ChatTemplate,
    Probe,
    alike,
    conversations,
    failure_of,
    opened,
    outcome_of,
)
from aft_factory.prompts.thought_probes import thought_words
from aft_factory.prompts.thoughts import SWITCHES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def own_limits(chat: str, tokens: Mapping[str, Any] | None = None) -> list[str]:
    """Tell what a chat template cannot render by itself, whether there are proposals or not."""
    plain, shapes = opened(without_prelude(chat), tokens)
    found = []
    if plain.tools:
        without = outcome_of(ChatTemplate(chat, tokens), BARE)
        found.append(f"conversations without tools ({without})")
    for probe in conversations():
        if probe == probe.bare() and shapes and (error := failure_of(plain, shapes[0](probe))):
            found.append(f"conversations of {len(probe.messages)} turns ({error})")
    return found


def own_system(chat: str, tokens: Mapping[str, Any] | None = None, **more: Any) -> str:
    """Return the system message that a chat template writes where a conversation has none.

    Args:
        chat: The chat template.
        tokens: A tokenizer's `special_tokens_map`.
        more: What it is rendered with, such as `thinking`.
    """
    plain, shapes = opened(without_prelude(chat), tokens)
    said = Probe("", [{"role": "system", "content": SYSTEM}, *BARE.messages])
    probes = [shape(probe) for shape in shapes[:1] for probe in (BARE, said)]
    outcomes = [outcome_of(plain, probe, **more) for probe in probes]
    texts = [outcome.partition(QUERY.strip())[0] for outcome in outcomes]
    if not texts or SYSTEM.strip() not in texts[1]:
        return ""
    before, _, behind = texts[1].partition(SYSTEM.strip())
    rest = texts[0][alike(texts[0], before) :]
    return rest[: len(rest) - alike(rest[::-1], behind[::-1])].strip()


def asks_for_thoughts(
    tokenizer: PreTrainedTokenizerFast | None, chat: str | None, kwargs: Mapping[str, Any]
) -> bool:
    """Tell whether a model is asked for thoughts by its chat template's own system message.

    Args:
        tokenizer: Whose template it is.
        chat: The chat template.
        kwargs: What it is rendered with.
    """
    if tokenizer is None or chat is None:
        return False
    words = thought_words(tokenizer, chat, kwargs)
    said = own_system(chat, tokenizer.special_tokens_map, **kwargs)
    return words.own and any(word and word in said for word in (words.opening, words.frame[1]))


def thinking_switch(chat: str, tokens: Mapping[str, Any] | None = None) -> str | None:
    """Return the variable by which a chat template is told whether to think; None if by none."""
    plain, _ = opened(without_prelude(chat), tokens)
    for name in SWITCHES:
        told = [outcome_of(plain, BARE, **{name: think}) for think in (True, False)]
        if told[0] != told[1]:
            return name
    return None

"""The chat template that a trained or exported model carries: it writes what training wrote.

It is the model's own with our prelude where that is shown to write the same, for it may know of
tools, images and thoughts what LLaMA-Factory's template does not say; else it is made from that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from aft_factory.errors import UsageError
from aft_factory.plugin.slots import (
    TextTokenizer,
    chat_template_of,
    thinks,
    written_by,
    written_prompt,
)
from aft_factory.prompts.markers import known_markers
from aft_factory.prompts.prelude import FORMS, THINKING, Prelude
from aft_factory.prompts.probing import (
    ChatTemplate,
    Probe,
    conversations,
    first_difference,
    first_loss,
)
from aft_factory.prompts.rendering import load_template, with_aggregator
from aft_factory.prompts.tokenizer import tokenizer_markers


def prelude_for(template: Any, tokenizer: Any, aggregator: str, name: str) -> Prelude:
    """Return the prelude for what a template trains: its markers, and whether it thinks.

    Args:
        template: LLaMA-Factory's, as a run has set it up.
        tokenizer: The model's; None if it is not known.
        aggregator: Name or path of the aggregator prompt.
        name: For a later look.
    """
    return Prelude(
        aggregator=aggregator,
        markers=tokenizer and tokenizer_markers(tokenizer, written_by(template)),
        thinking=THINKING[template.enable_thinking] if thinks(template) else None,
        name=name,
    )


@dataclass(frozen=True, slots=True)
class Training:
    """What is written in training for a conversation, by a template of LLaMA-Factory."""

    template: Any
    tokenizer: TextTokenizer
    prelude: Prelude

    def __call__(self, probe: Probe) -> str:
        """Return the prompt."""
        if not probe.proposals:
            return written_prompt(self.template, self.tokenizer, probe.messages)
        safe = self.prelude.markers or known_markers()
        aggregator = load_template(self.prelude.aggregator)
        drafts = [safe.sanitise(text) for text in probe.proposals]
        messages = with_aggregator(safe.sanitise_all(probe.messages), drafts, aggregator)
        return written_prompt(self.template, self.tokenizer, messages)

    def probes(self) -> list[Probe]:
        """Return the conversations to compare: with a thought in an earlier answer, if need be."""
        if not thinks(self.template):
            return conversations()
        begins, ends = self.template.thought_words
        return [*conversations(), *conversations(f"{begins}Five and one.{ends}Six.")]

    def difference(self, chat: str, tokens: Mapping[str, Any] | None) -> str | None:
        """Tell where a chat template writes something else; None if it does not."""
        try:
            return first_difference(ChatTemplate(chat, tokens), self, self.probes())
        except UsageError as error:
            return str(error)


def chat_template_for(
    template: Any, prelude: Prelude, tokenizer: Any | None, own: str | None, of: str
) -> tuple[str, str]:
    """Return the chat template of a model, and why it is this one.

    Args:
        template: LLaMA-Factory's, as a run has set it up.
        prelude: All but the form.
        tokenizer: The model's; None leaves its tokens to their names in Jinja.
        own: The chat template that the model came with, if any.
        of: What LLaMA-Factory calls its template.

    Raises:
        UsageError: If none writes what training writes.
    """
    text_tokenizer = TextTokenizer() if tokenizer is None else TextTokenizer.of(tokenizer)
    tokens = {"bos_token": text_tokenizer.bos_token_id, "eos_token": text_tokenizer.eos_token_id}
    if tokenizer is not None:
        tokens = tokenizer.special_tokens_map
    training = Training(template, text_tokenizer, prelude)
    why = "no model is named" if tokenizer is None else "the model has none"
    if own is not None:
        problems = []
        for form in FORMS:
            text = replace(prelude, form=form).before(own)
            problem = training.difference(text, tokens) or first_loss(text, tokens)
            if problem is None:
                return text, f"the model's own, which writes what {of!r} trains"
            problems.append(problem)
        why = f"the model's own writes something else: {problems[0]}"
    try:
        text = prelude.before(chat_template_of(template, text_tokenizer))
        problem = training.difference(text, tokens) or first_loss(text, tokens)
    except UsageError as error:
        problem = str(error)
    if problem is not None:
        raise UsageError(f"no chat template writes what {of!r} trains: {problem}")
    return text, f"made from LLaMA-Factory's {of!r}: {why}"

"""Our chat templates among LLaMA-Factory's: `aft_llama3`, `aft_mistral` and their variants.

They encode exactly as LLaMA-Factory's `llama3` and `mistral` do. What they add: the trained or
exported tokenizer carries our Jinja chat template, which takes `proposals`. `aft_llama3` has the
paper's aggregator prompt inside, `aft_llama3_moa` and `aft_llama3_release` the others.
"""

from __future__ import annotations

import copy
from types import ModuleType

from aft_factory.prompts import chat_template
from aft_factory.selection import PAPER

CHATS = ("llama3", "mistral")
AGGREGATORS = ("paper", "moa", "release")


class CarriedChatTemplate:
    """Stands in for a template's `_get_jinja_template`: our text, not one made from the slots."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, tokenizer: object) -> str:
        """Return the Jinja text."""
        return self.text


def template_name(chat: str, aggregator: str) -> str:
    """`("llama3", "paper") -> "aft_llama3"`, `("llama3", "moa") -> "aft_llama3_moa"`."""
    return f"aft_{chat}" if aggregator == PAPER.template else f"aft_{chat}_{aggregator}"


def aggregator_of(name: str | None) -> str | None:
    """Return the aggregator prompt inside one of our templates, None for all others."""
    names = {
        template_name(chat, aggregator): aggregator for chat in CHATS for aggregator in AGGREGATORS
    }
    return names.get(name or "")


def hook_template(module: ModuleType) -> None:
    """Add our templates to `llamafactory.data.template.TEMPLATES`."""
    for chat in CHATS:
        for aggregator in AGGREGATORS:
            template = copy.deepcopy(module.TEMPLATES[chat])
            template.replace_jinja_template = True
            template._get_jinja_template = CarriedChatTemplate(chat_template(chat, aggregator))
            module.TEMPLATES[template_name(chat, aggregator)] = template

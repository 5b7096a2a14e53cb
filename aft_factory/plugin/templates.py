"""Our chat templates among LLaMA-Factory's: `aft_llama3`, `aft_mistral` and their variants.

They encode exactly as LLaMA-Factory's `llama3` and `mistral` do. What they add: the trained or exported
tokenizer carries our Jinja chat template, which takes `proposals`. `aft_llama3` has the paper's
aggregator prompt inside, `aft_llama3_moa` and `aft_llama3_release` the others.
"""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

from llamafactory.data.template import Llama2Template, Template

from aft_factory.prompts import PAPER, chat_template

CHATS = {"llama3": Template, "mistral": Llama2Template}
AGGREGATORS = ("paper", "moa", "release")


class _CarriesChatTemplate:
    """Mixin: the Jinja text is ours instead of one derived from the slots."""

    aft_chat_template: str

    def _get_jinja_template(self, tokenizer: Any) -> str:
        return self.aft_chat_template


class AftTemplate(_CarriesChatTemplate, Template):  # type: ignore[misc]
    """LLaMA-Factory's general template with our Jinja text."""


class AftLlama2Template(_CarriesChatTemplate, Llama2Template):  # type: ignore[misc]
    """LLaMA-Factory's template that fuses the system text into the first turn, with our Jinja text."""


def template_name(chat: str, aggregator: str) -> str:
    """`("llama3", "paper") -> "aft_llama3"`, `("llama3", "moa") -> "aft_llama3_moa"`."""
    return f"aft_{chat}" if aggregator == PAPER.template else f"aft_{chat}_{aggregator}"


def aggregator_of(name: str | None) -> str | None:
    """Return the aggregator prompt inside one of our templates, None for all others."""
    names = {template_name(chat, aggregator): aggregator for chat in CHATS for aggregator in AGGREGATORS}
    return names.get(name or "")


def hook_template(module: ModuleType) -> None:
    """Add our templates to `llamafactory.data.template.TEMPLATES`."""
    for chat, kind in CHATS.items():
        for aggregator in AGGREGATORS:
            template = copy.deepcopy(module.TEMPLATES[chat])
            if type(template) is not kind:
                raise TypeError(f"template {chat} is a {type(template).__name__}, expected {kind.__name__}")
            template.__class__ = AftTemplate if kind is Template else AftLlama2Template
            template.replace_jinja_template = True
            template.aft_chat_template = chat_template(chat, aggregator)
            module.TEMPLATES[template_name(chat, aggregator)] = template

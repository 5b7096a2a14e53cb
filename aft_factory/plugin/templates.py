"""Our chat templates among LLaMA-Factory's: `aft_llama3`, `aft_mistral` and their variants.

They encode exactly as LLaMA-Factory's `llama3` and `mistral` do. What they add: the trained or
exported tokenizer carries our Jinja chat template, which takes `proposals`. `aft_llama3` has the
paper's aggregator prompt inside, `aft_llama3_moa` and `aft_llama3_release` the others.
"""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

from aft_factory.prompts.rendering import chat_template
from aft_factory.prompts.selection import PAPER
from aft_factory.prompts.tokenizer import tokenizer_markers

CHATS = ("llama3", "mistral")
AGGREGATORS = ("paper", "moa", "release")


class CarriedChatTemplate:
    """Stands in for a template's `_get_jinja_template`: our text, not one made from the slots."""

    def __init__(self, chat: str, aggregator: str, template: Any) -> None:
        self.chat, self.aggregator, self.template = chat, aggregator, template

    def __call__(self, tokenizer: Any) -> str:
        """Return the Jinja text, which breaks the very markers that training breaks."""
        markers = tokenizer_markers(tokenizer, written_by(self.template))
        return chat_template(self.chat, self.aggregator, markers, self.template.default_system)


def written_by(template: Any) -> str:
    """Return all that one of LLaMA-Factory's templates may write by itself, or looks for in texts.

    Words around thoughts count where the template sees to thoughts, and placeholders of images and
    the like where it takes them for such.
    """
    slots = [part.slots for part in vars(template).values() if hasattr(part, "slots")]
    words = [template.stop_words]
    kind: Any = type(template)
    plain: Any = kind.__mro__[-2]  # all templates are of this kind or refine it
    if kind.encode_multiturn is not plain.encode_multiturn:
        words.append(template.thought_words)
    media = vars(template.mm_plugin)
    tokens = [media.get(f"{name}_token") for name in ("image", "video", "audio")]
    if any(tokens):
        words += [tokens, ("<image>", "<video>", "<audio>")]
    texts = (text for part in (*slots, *words) for text in part)
    named = (text.get("token") if isinstance(text, dict) else text for text in texts)
    return "\n".join(text for text in named if isinstance(text, str))


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
            template._get_jinja_template = CarriedChatTemplate(chat, aggregator, template)
            module.TEMPLATES[template_name(chat, aggregator)] = template

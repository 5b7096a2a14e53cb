"""The prelude: what stands before any chat template so that it takes `proposals`.

The chat template itself follows unchanged and reads the conversation that the prelude has made:
with the aggregator prompt as its system message, or at the head of the first turn of the user where
a model has no system message. Without proposals nothing changes. Pure text; `probing` tells which
form a chat template needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Template
from typing import Literal

from aft_factory.errors import UsageError, suggest
from aft_factory.prompts.markers import Markers, known_markers
from aft_factory.prompts.rendering import TEMPLATES, load_template
from aft_factory.prompts.selection import PAPER
from aft_factory.prompts.thoughts import SWITCHES
from aft_factory.records.files import read_text

# Where the aggregator prompt stands: as the system message, in the shape of the others (text or
# parts); as the system message, always as text; or at the head of the user's first turn.
Form = Literal["system", "system text", "user"]
FORMS: tuple[Form, ...] = ("system", "system text", "user")
# LLaMA-Factory's `enable_thinking`, as Jinja writes it.
Thinking = Literal["true", "false", "none"]
THINKING: Mapping[bool | None, Thinking] = {True: "true", False: "false", None: "none"}

_HEAD = "{#- aft-factory: "
_TAIL = "\n{#- The chat template itself follows. #}\n"


@dataclass(frozen=True, slots=True)
class Prelude:
    """What a prelude is made of.

    Attributes:
        form: Where the aggregator prompt stands.
        aggregator: Name or path of the aggregator prompt.
        markers: What to break in texts; None breaks those of all known families.
        thinking: Whether the model thinks where a request does not say; None leaves that to the
            chat template.
        switch: The variable that says so.
        name: Who made it, which a later look finds in the text; such as `aft_llama3`.
    """

    form: Form = "system"
    aggregator: str = PAPER.template
    markers: Markers | None = None
    thinking: Thinking | None = None
    switch: str = SWITCHES[0]
    name: str = "aft template"

    def before(self, chat: str) -> str:
        """Return a chat template with this prelude, in place of one that it may have already."""
        defaults = ""
        if self.thinking is not None:
            default = f"{{%- set {self.switch} = {self.thinking} -%}}"
            defaults = f"{{%- if {self.switch} is not defined -%}}{default}{{%- endif -%}}"
        words = (self.markers or known_markers()).words
        return fill(
            "prelude",
            name=re.sub(r"[#{}\s]+", " ", self.name),  # one line of a comment
            form=self.form,
            defaults=defaults,
            aggregator=load_template(self.aggregator).source.removesuffix("\n"),
            markers=_items(words),
        ) + without_prelude(chat)


def chat_template(chat: str, aggregate: str = "paper", markers: Markers | None = None) -> str:
    """Return the chat template `llama3` or `mistral` with the given aggregator prompt inside.

    The text is self-contained: it can be a model's `chat_template.jinja`, after which
    `tokenizer.apply_chat_template(messages, proposals=[...])` gives the training tokens.

    Args:
        chat: Which of `templates/chat/`.
        aggregate: Name or path of the aggregator prompt.
        markers: What to break in texts; None breaks those of all known families.

    Raises:
        UsageError: If either name is unknown.
    """
    path = TEMPLATES / "chat" / f"{chat}.jinja"
    if not path.is_file():
        raise UsageError(f"no chat template {chat!r}; {suggest(chat, chat_templates())}")
    prelude = Prelude(aggregator=aggregate, markers=markers, name=f"aft template {chat}")
    return prelude.before(read_text(path))


def chat_templates() -> list[str]:
    """Return the names of the chat templates that come with us."""
    return [path.stem for path in sorted((TEMPLATES / "chat").glob("*.jinja"))]


def has_prelude(chat: str) -> bool:
    """Tell whether a chat template begins with a prelude."""
    return chat.startswith(_HEAD) and _TAIL in chat


def made_by(chat: str) -> str | None:
    """Return the name in a chat template's prelude; None if it has none."""
    return chat.removeprefix(_HEAD).partition(".\n")[0] if has_prelude(chat) else None


def without_prelude(chat: str) -> str:
    """Return what follows the prelude; the text itself if it has none."""
    return chat.partition(_TAIL)[2] if has_prelude(chat) else chat


def fill(file: str, **values: str) -> str:
    """Return a file of `templates/twin/` with its `${places}` filled."""
    return Template(read_text(TEMPLATES / "twin" / f"{file}.jinja")).substitute(values)


def quoted(text: str) -> str:
    """Return a text as an expression of Jinja."""
    escaped = re.sub(r"(['\\])", r"\\\1", text).replace("\n", r"\n").replace("\r", r"\r")
    return f"'{escaped}'"


def _items(words: tuple[str, ...]) -> str:
    """Return the items of a list in Jinja, in lines."""
    lines = [""]
    for item in map(quoted, words):
        if lines[-1] and len(lines[-1]) + len(item) > 100:
            lines.append("")
        lines[-1] += f" {item}," if lines[-1] else f"    {item},"
    return "\n".join(lines).removesuffix(",")

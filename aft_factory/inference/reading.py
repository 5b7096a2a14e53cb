"""What the next layer reads of a draft: its answer, and as much of its thought as was asked for."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence

from aft_factory.engines.sampling import Completion
from aft_factory.prompts.estimating import BYTES_PER_TOKEN
from aft_factory.prompts.fitting import Fitter
from aft_factory.prompts.rendering import load_jinja
from aft_factory.records.messages import Message

FORMS = "answer, full, tail:N or summary"
_FORM = re.compile(r"answer|full|summary|tail:[1-9]\d{0,8}")


def is_form(text: str) -> bool:
    """Tell whether a text is one of the forms in which drafts are read."""
    return _FORM.fullmatch(text) is not None


async def read_drafts(
    drafts: Sequence[Completion],
    form: str,
    fitter: Fitter | None,
    summarise: Callable[[str], Awaitable[str]],
) -> list[str]:
    """Return what is read of drafts.

    Args:
        drafts: As they came.
        form: `answer`; `full`, with the thought before it; `tail:N`, the last N tokens of that; or
            `summary` of that.
        fitter: Counts tokens; without it, four characters are one.
        summarise: From a whole draft to its summary.
    """
    if form == "answer":
        return [draft.text for draft in drafts]
    whole = [f"{d.thought}\n\n{d.text}" if d.thought else d.text for d in drafts]
    if form == "summary":
        return [await summarise(text) for text in whole]
    if form == "full":
        return whole
    most = int(form.removeprefix("tail:"))
    if fitter is None:
        return [text[-BYTES_PER_TOKEN * most :] for text in whole]
    return [fitter.tail(text, most) for text in whole]


def summary_prompt(draft: str) -> list[Message]:
    """Return the conversation that asks for the summary of a draft, sanitised already."""
    text = load_jinja("summarise", "default", "draft").render(draft=draft)
    return [{"role": "user", "content": text}]

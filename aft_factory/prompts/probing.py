"""Probes: a chat template is rendered for a few conversations, and shows what it does with texts.

So the form of its prelude is found out, and no list of families is needed: one template refuses a
system message, the next drops it without a word. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any

from aft_factory.errors import UsageError
from aft_factory.prompts.chat_jinja import compiled
from aft_factory.prompts.prelude import FORMS, Prelude, without_prelude
from aft_factory.prompts.thoughts import SWITCHES

# Edges that templates are known to trim, and characters that they may take for their own.
SYSTEM = " Be 'brief' \\ and \"kind\".\n"
QUERY = "\nHow many pails?\n\n"
ANSWER = " {{ 6 }} pails: 5 + 1.\n"
NEXT = "And litres? "
TOOL = {
    "type": "function",
    "function": {
        "name": "pails",
        "description": "Counts pails.",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}
DRAFTS = ("\nIt is thirty.", "5 x 6 = 30 {% l %}\n")


@dataclass(frozen=True, slots=True)
class Probe:
    """A conversation to render.

    Attributes:
        about: What is special about it.
        messages: An optional system message and turns, the user's last.
        proposals: Drafts, or none.
    """

    about: str
    messages: list[Any]
    proposals: tuple[str, ...] = ()

    def texts(self) -> list[str]:
        """Return what a prompt must hold once: the last query, a system message and the drafts."""
        said = [m["content"] for m in self.messages if m["role"] == "system"]
        return [text.strip() for text in (*said, self.messages[-1]["content"], *self.proposals)]

    def bare(self) -> Probe:
        """Return the same conversation without proposals and a system message."""
        turns = [message for message in self.messages if message["role"] != "system"]
        return Probe(f"no system message, {len(turns)} turns", turns)

    def in_parts(self) -> Probe:
        """Return the same conversation with texts as lists of parts."""
        parts = [
            message | {"content": [{"type": "text", "text": message["content"]}]}
            for message in self.messages
        ]
        return replace(self, messages=parts)


BARE = Probe("a query", [{"role": "user", "content": QUERY}])


def conversations(answer: str = ANSWER) -> list[Probe]:
    """Return the probes: with and without a system message, history and proposals."""
    found = []
    for system in ([], [{"role": "system", "content": SYSTEM}]):
        for turns in ([QUERY], [QUERY, answer, NEXT]):
            roles = ("user", "assistant") * len(turns)
            said = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]
            about = f"{'a' if system else 'no'} system message, {len(turns)} turns"
            found.append(Probe(about, [*system, *said]))
            found.append(Probe(f"{about}, proposals", [*system, *said], DRAFTS))
    return found


class ChatTemplate:
    """A chat template that renders as transformers and vLLM render it."""

    def __init__(
        self, source: str, tokens: Mapping[str, Any] | None = None, tools: list[Any] | None = None
    ) -> None:
        """Compile it.

        Args:
            source: Its text.
            tokens: A tokenizer's `special_tokens_map`.
            tools: What it is given where a call says nothing else.

        Raises:
            UsageError: If it is no Jinja.
        """
        self.variables, self._compiled = compiled(source)
        self.tools = tools
        self._given = dict(tokens or {"bos_token": "<s>", "eos_token": "</s>"})
        self._given |= {"tools": tools, "documents": None, "add_generation_prompt": True}

    def render(self, messages: Sequence[Mapping[str, Any]], **more: Any) -> str:
        """Return the text of a conversation."""
        return self._compiled.render(messages=messages, **self._given | more)

    def __call__(self, probe: Probe, **more: Any) -> str:
        """Return the text of a probe."""
        if probe.proposals:
            more["proposals"] = list(probe.proposals)
        return self.render(probe.messages, **more)


def fitting_prelude(
    chat: str, prelude: Prelude, tokens: Mapping[str, Any] | None = None
) -> Prelude:
    """Return the prelude in the form that a chat template needs.

    Args:
        chat: The chat template.
        prelude: All but the form.
        tokens: A tokenizer's `special_tokens_map`.

    Raises:
        UsageError: If no form works; says what happened with each.
    """
    problems = []
    if not opened(chat, tokens)[1]:
        raise UsageError(
            f"proposals do not get through this chat template: {unshown(chat, tokens)}"
        )
    for form in FORMS:
        candidate = replace(prelude, form=form)
        problem = first_loss(candidate.before(chat), tokens)
        if problem is None:
            return candidate
        problems.append(f"in the form {form!r}: {problem}")
    raise UsageError("proposals do not get through this chat template; " + "; ".join(problems))


def first_loss(chat: str, tokens: Mapping[str, Any] | None = None) -> str | None:
    """Tell what a chat template loses or repeats of conversations with proposals.

    Texts are handed over as the chat template behind the prelude wants them, text or parts.

    Returns:
        What was asked, and what became of it; None if all is well.
    """
    if "proposals" not in ChatTemplate(chat, tokens).variables:
        return "it has no variable `proposals`"
    plain, shapes = opened(without_prelude(chat), tokens)
    if not shapes:
        return unshown(without_prelude(chat), tokens)
    template = ChatTemplate(chat, tokens, plain.tools)
    for probe in conversations():
        for shape in shapes if probe.proposals else []:
            text = outcome_of(template, shape(probe))
            if not _has_once(text, probe.texts()) and not failure_of(plain, shape(probe.bare())):
                return f"for {probe.about} it writes {text[-120:]!r}"
    return None


def takes_system(chat: str, tokens: Mapping[str, Any] | None = None) -> bool:
    """Tell whether a chat template shows system messages; some refuse them, some drop them."""
    template, shapes = opened(chat, tokens)
    probes = [p for p in conversations() if p.messages[0]["role"] == "system" and not p.proposals]
    return not shapes or all(
        _has_once(outcome_of(template, shapes[0](probe)), probe.texts())
        or bool(failure_of(template, shapes[0](probe.bare())))
        for probe in probes
    )


Shape = Callable[[Probe], Probe]


def opened(chat: str, tokens: Mapping[str, Any] | None = None) -> tuple[ChatTemplate, list[Shape]]:
    """Return a chat template as it shows a plain query, and the shapes of messages that it takes.

    Some are for conversations with tools only.
    """
    template = ChatTemplate(chat, tokens)
    for each in (template, ChatTemplate(chat, tokens, [TOOL])):
        if shapes := _shapes(each):
            return each, shapes
    return template, []


def unshown(chat: str, tokens: Mapping[str, Any] | None = None) -> str:
    """Tell that a chat template does not show a plain query."""
    written = outcome_of(ChatTemplate(chat, tokens), BARE)
    return f"it does not show a plain query: it writes {written!r}"


def _shapes(template: ChatTemplate) -> list[Shape]:
    """Return the shapes of messages that a chat template takes: texts, parts or both."""
    text, parts = outcome_of(template, BARE), outcome_of(template, BARE.in_parts())
    shapes: list[Shape] = [lambda probe: probe] if _has_once(text, BARE.texts()) else []
    # Parts that it does not know may be shown too, as a list of Python's.
    if _has_once(parts, BARE.texts()) and (parts == text or not shapes):
        shapes.append(Probe.in_parts)
    return shapes


def first_change(chat: str, tokens: Mapping[str, Any] | None = None) -> str | None:
    """Tell what a prelude changes of conversations without proposals; None if nothing.

    Whether to think is said, since it may set what holds where nothing is said.
    """
    plain, _ = opened(without_prelude(chat), tokens)
    whole = ChatTemplate(chat, tokens, plain.tools)
    probes = [probe for probe in conversations() if not probe.proposals]
    for thinking in (True, False):
        more: dict[str, Any] = dict.fromkeys(SWITCHES, thinking)
        problem = first_difference(
            partial(outcome_of, whole, **more), partial(outcome_of, plain, **more), probes
        )
        if problem is not None:
            return problem
    return None


def first_difference(
    chat: Callable[[Probe], str], expected: Callable[[Probe], str], probes: Sequence[Probe]
) -> str | None:
    """Tell where two ways to render conversations differ; None if they do not."""
    for probe in probes:
        wanted = expected(probe)
        try:
            got = chat(probe)
        except Exception as error:  # a template is a program, and can fail in any way
            return f"for {probe.about} it fails: {error}"
        if got != wanted:
            at = alike(got, wanted)
            shown = slice(max(0, at - 12), at + 24)
            return f"for {probe.about} it writes {got[shown]!r}, not {wanted[shown]!r}"
    return None


def alike(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    pairs = zip(one, other, strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _has_once(text: str, said: Sequence[str]) -> bool:
    return all(text.count(each) == 1 for each in said)


def outcome_of(template: ChatTemplate, probe: Probe, **more: Any) -> str:
    """Return what a chat template makes of a probe, be it an error."""
    try:
        return template(probe, **more)
    except Exception as error:  # a template is a program, and can fail in any way
        return f"{type(error).__name__}: {error}"


def failure_of(template: ChatTemplate, probe: Probe) -> str | None:
    """Return the error by which a chat template refuses a probe; None if it does not."""
    try:
        template(probe)
    except Exception as error:  # a template is a program, and can fail in any way
        return f"{type(error).__name__}: {error}"
    return None

"""Which fields of a request a server takes, and what its refusals say of those that it does not.

Fields are left out or called otherwise as the user says (`--omit`), or as the server does: what is
refused by name (OpenAI's `param`, pydantic's `loc`) as unknown or unsupported is not sent again,
which is told. Pure; knows no server by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aft_factory.engines.openai_failures import UNTAKEN, read_json
from aft_factory.errors import UsageError

NOT_SETTINGS = frozenset({"model", "messages", "prompt", "stream"})
SUCCESSORS = {"max_tokens": "max_completion_tokens"}  # as OpenAI has renamed it
ONLY_STREAMS = re.compile(r"\bstream", re.IGNORECASE)
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
LENGTHS = frozenset({"max_tokens", "max_completion_tokens"})
FLAGS = {"n": "--split-samples", "prompt": "--chat", **dict.fromkeys(LENGTHS, "--max-tokens")}


class Fields:
    """The fields that one server takes.

    Args:
        omit: Fields to leave out (`top_p`), or to call otherwise (`max_tokens=max_new_tokens`).
    """

    def __init__(self, omit: Sequence[str] = ()) -> None:
        self._names: dict[str, str | None] = dict(map(read_omission, omit))
        self._more: dict[str, Any] = {}

    @property
    def one_by_one(self) -> bool:
        """Whether samples are to be asked for one by one, as the server takes no `n`."""
        return self._names.get("n", "n") is None

    def applied(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body as the server takes it."""
        named = ((self._names.get(name, name), value) for name, value in body.items())
        return {name: value for name, value in named if name is not None} | self._more

    def learn(self, refusal: Any, sent: Mapping[str, Any]) -> list[str]:
        """Learn from a refusal; return what will be done, in words; nothing if nothing can be.

        Args:
            refusal: The body of the answer.
            sent: The body of the request, as `applied` returned it.
        """
        told: list[str] = []
        if ONLY_STREAMS.search(str(refusal)) and "stream" not in sent:
            self._more = {name: STREAM[name] for name in STREAM if self._names.get(name, name)}
            return ["answers are read as streams"]
        for name in sorted(_named(refusal) & (sent.keys() - NOT_SETTINGS)):
            if not UNTAKEN.search(str(refusal)):
                continue
            successor = SUCCESSORS.get(name)
            if successor is not None and successor not in sent:
                self._names[name] = successor
                told.append(f"{name} is sent as {successor}")
            elif name not in SUCCESSORS.values():
                self._names[name] = None
                self._more.pop(name, None)
                told.append(f"{name} is not sent")
        return told

    def hopeless(self, refusal: Any, sent: Mapping[str, Any]) -> list[str]:
        """Return what is refused by name and cannot be left out: a text to complete."""
        lost = {"prompt"} & sent.keys() & _named(refusal)
        return list(lost) if UNTAKEN.search(str(refusal)) else []

    def blamed(self, words: str, sent: Mapping[str, Any]) -> list[str]:
        """Return the settings that a refusal speaks of, though it names no field for programs.

        The n of a line break that is spelled out is none.
        """
        names = sent.keys() - NOT_SETTINGS
        return [name for name in names if re.search(rf"(?<!\\)\b{re.escape(name)}\b", words)]


class Needed(Fields):
    """Fields that are all needed: none is left out, and none is a setting to blame."""

    def learn(self, refusal: Any, sent: Mapping[str, Any]) -> list[str]:
        """Learn nothing."""
        return []

    def blamed(self, words: str, sent: Mapping[str, Any]) -> list[str]:
        """Blame nothing."""
        return []


def read_omission(text: str) -> tuple[str, str | None]:
    """`top_p` -> ("top_p", None); `max_tokens=max_new_tokens` -> both.

    Raises:
        UsageError: If it is neither.
    """
    name, equals, other = text.partition("=")
    if not re.fullmatch(r"\w+", name) or name in NOT_SETTINGS or (equals and not other):
        raise UsageError(f"omit: expected a field of requests, such as top_p, got {text!r}")
    return name, other or None


def hint(names: Sequence[str]) -> str:
    """Return which flags help against the refusal of these fields."""
    flags = [FLAGS.get(name, f"--omit {name}") for name in sorted(names)]
    return f"; see {' or '.join(dict.fromkeys(flags))}" if flags else ""


def _named(refusal: Any) -> set[str]:
    """Return the names in every `param`, and at the end of every `loc`, wherever they stand."""
    return set(_names_in(refusal))


def _names_in(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("param"), str):
            yield value["param"]
        place = value.get("loc")
        if isinstance(place, list) and place and isinstance(place[-1], str):
            yield place[-1]
        for inner in value.values():
            yield from _names_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _names_in(inner)
    elif isinstance(value, str) and value.startswith("{"):  # an error that is passed on as a text
        yield from _names_in(read_json(value.encode(errors="replace")))

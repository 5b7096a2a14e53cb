"""From the body of a request to what it asks: read, or refused by the name of a field. Pure.

What a request says of decoding holds for the answer; drafts are decoded as the server says, or as
`aft.proposal` does. Nothing that would change an answer is left out silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from aft_factory.errors import RecordError, suggest
from aft_factory.records.fields import kind
from aft_factory.records.messages import Message, parse_messages
from aft_factory.run.settings import OPTIONS
from aft_factory.serve.refusals import Refusal, unsupported, wrong

IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "parallel_tool_calls"),
    }
)
# What only an engine that is asked directly can do, and the values that ask for nothing of it.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": (),
    "verbosity": (),
    "best_of": (1,),
    "echo": (False,),
    "suffix": (),
}
# (least, most) of numbers that decode the answer; `Sampling` has the first four, engines the rest.
NUMBERS: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (1e-9, 1),
    "top_k": (-1, 2**31 - 1),
    "max_tokens": (1, 2**31 - 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (1e-9, 10),
}
WHOLE = frozenset({"top_k", "max_tokens", "n", "seed", *OPTIONS})
OF_SAMPLING = ("temperature", "top_p", "top_k", "max_tokens")
KINDS = {dict: "an object", bool: "true or false", str: "a text"}
MOST_STOPS, LONGEST_STOP = 32, 1000
OF_AFT = ("strategy", *OPTIONS, "keep_drafts", "proposal")
KNOWN = frozenset(
    {
        *("messages", "model", "n", "stop", "seed", "stream", "stream_options", "aft"),
        *("max_completion_tokens", "chat_template_kwargs", "tools"),
        *(*NUMBERS, *IGNORED, *UNSUPPORTED),
    }
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks.

    Attributes:
        messages: The conversation to answer.
        model: The name of a variant; None leaves it to the server.
        n: How many answers.
        final: Fields of `Sampling` for the answer.
        extra: Further settings of the engine for the answer.
        template: Variables of the chat template, for every layer.
        seed: The run seed; None leaves it to the server.
        stream: Whether the answer is to be streamed.
        include_usage: Whether the stream ends with what it took.
        changes: Settings of the variant that the client wants otherwise, by name.
        keep_drafts: Whether the answer comes with the drafts.
        body: The request as it came.
        beyond: Why it cannot be answered but by an engine that gets it as it came; None if it can.
        offers_tools: Whether it has tools that an answer may use, but need not.
    """

    messages: list[Message]
    model: str | None = None
    n: int = 1
    final: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    template: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    stream: bool = False
    include_usage: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    keep_drafts: bool = False
    body: Mapping[str, Any] = field(default_factory=dict)
    beyond: Refusal | None = None
    offers_tools: bool = False


def read_request(body: Any) -> Asked:
    """Read the body of a request for a chat completion.

    Raises:
        Refusal: If nobody could answer it as it stands.
    """
    if not isinstance(body, dict):
        raise Refusal(400, f"expected a JSON object, got {kind(body)}", "invalid_body")
    given = {name: value for name, value in body.items() if value is not None}
    if "max_completion_tokens" in given:
        given["max_tokens"] = given["max_completion_tokens"]
    numbers = {name: _number(given, name, *NUMBERS[name]) for name in NUMBERS if name in given}
    if numbers.get("top_k", 1) < 1:
        del numbers["top_k"]  # as vLLM has it: of all tokens
    final = {name: numbers[name] for name in OF_SAMPLING if name in numbers}
    if stops := _stops(given):
        final["stop"] = stops
    aft = _typed(given, "aft", dict) or {}
    for name in aft:
        if name not in OF_AFT:
            raise wrong(f"aft.{name}", f"unknown; {suggest(name, OF_AFT)}")
    proposal = _typed(aft, "proposal", dict, "aft.") or {}
    for name in proposal:
        if name not in OF_SAMPLING:
            raise wrong(f"aft.proposal.{name}", f"unknown; {suggest(name, OF_SAMPLING)}")
    strategy = _typed(aft, "strategy", str, "aft.")
    changes: dict[str, Any] = {} if strategy is None else {"strategy": strategy}
    changes |= {
        name: _number(aft, name, 0, 2**31 - 1, "aft.")
        for name in OPTIONS
        if aft.get(name) is not None
    }
    changes |= {
        name: _number(proposal, name, *NUMBERS[name], "aft.proposal.")
        for name in proposal
        if proposal[name] is not None
    }
    options = _typed(given, "stream_options", dict) or {}
    messages, beyond = _messages(given)
    return Asked(
        messages=messages,
        model=_typed(given, "model", str),
        n=_number(given, "n", 1, 2**31 - 1) if "n" in given else 1,
        final=final,
        extra={name: numbers[name] for name in numbers if name not in OF_SAMPLING},
        template=_typed(given, "chat_template_kwargs", dict) or {},
        seed=_number(given, "seed", -(2**63), 2**63 - 1) if "seed" in given else None,
        stream=bool(_typed(given, "stream", bool)),
        include_usage=bool(_typed(options, "include_usage", bool, "stream_options.")),
        changes=changes,
        keep_drafts=bool(_typed(aft, "keep_drafts", bool, "aft.")),
        body=body,
        beyond=_beyond(given, options) or beyond,
        offers_tools=bool(given.get("tools")),
    )


def _beyond(given: Mapping[str, Any], options: Mapping[str, Any]) -> Refusal | None:
    """Return the refusal of the first field that only an engine itself could follow, if any is."""
    for name, value in given.items():
        if name not in KNOWN:
            meant = suggest(name, KNOWN) if get_close_matches(name, KNOWN) else "leave it out"
            return unsupported(name, f"unknown here; {meant}")
        if name in UNSUPPORTED and value not in UNSUPPORTED[name]:
            return unsupported(name, "not to be had through drafts and aggregation; leave it out")
    for name, value in options.items():
        if name != "include_usage" and value:
            return unsupported(f"stream_options.{name}", "only include_usage can be had")
    return None


def _messages(given: Mapping[str, Any]) -> tuple[list[Message], Refusal | None]:
    """Return the conversation; or none, and why it is none that can be drafted for."""
    value = given.get("messages")
    if not isinstance(value, list):
        raise wrong("messages", f"expected a list of messages, got {kind(value)}")
    try:
        return parse_messages(value, "messages", join=True), None
    except RecordError as error:
        return [], wrong(error.field, error.problem)


def _number(given: Mapping[str, Any], name: str, least: float, most: float, where: str = "") -> Any:
    value = given[name]
    types = (int,) if name in WHOLE else (int, float)
    if isinstance(value, bool) or not isinstance(value, types) or not least <= value <= most:
        what = "a whole number" if name in WHOLE else "a number"
        above = "above 0" if 0 < least < 1 else f"from {least}"
        raise wrong(where + name, f"expected {what} {above} to {most}, got {kind(value)}")
    return value if name in WHOLE else float(value)  # as settings have it: 1 is 1.0


def _stops(given: Mapping[str, Any]) -> tuple[str, ...]:
    value = given.get("stop", [])
    stops = [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > MOST_STOPS
        or not all(isinstance(one, str) and 0 < len(one) <= LONGEST_STOP for one in stops)
    ):
        problem = f"expected a text, or up to {MOST_STOPS} of them in a list, got {kind(value)}"
        raise wrong("stop", problem)
    return tuple(stops)


def _typed(given: Mapping[str, Any], name: str, wanted: type, where: str = "") -> Any:
    """Return a value of this type; None where there is none."""
    value = given.get(name)
    if value is not None and not isinstance(value, wanted):
        raise wrong(where + name, f"expected {KINDS[wanted]}, got {kind(value)}")
    return value

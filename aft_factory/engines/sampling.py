"""What is asked of a model and what comes back: the shapes between strategies and engines.

A request is n samples of one prompt under one seed; it is known by the hash of all that decides its
answer, which is the journal's key. Pure; knows no engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Any

import orjson

from aft_factory.engines.endings import is_cut_off, is_filtered
from aft_factory.errors import UsageError
from aft_factory.prompts.thoughts import ThoughtWords
from aft_factory.records.messages import Message

Prompt = Sequence[Message] | str  # a conversation to answer, or a text to complete as it stands


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a model decodes. The defaults are the paper's for proposals and middle layers.

    Attributes:
        temperature: 0 decodes greedily.
        top_p: Nucleus, (0, 1].
        top_k: Keep the k likeliest tokens; None keeps all.
        max_tokens: Most tokens of one completion.
        stop: Texts before which a completion ends.
        extra: Further settings of the engine, passed through as they are (`min_p`, `ignore_eos`).
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int | None = None
    max_tokens: int = 4096
    stop: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = []
        if not _is_number(self.temperature) or not 0 <= self.temperature <= 10:
            problems.append(f"temperature: expected a number from 0, got {self.temperature!r}")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            problems.append(f"top_p: expected a number above 0 and up to 1, got {self.top_p!r}")
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            problems.append(f"top_k: expected a whole number from 1, got {self.top_k!r}")
        if type(self.max_tokens) is not int or self.max_tokens < 1:
            problems.append(f"max_tokens: expected a whole number from 1, got {self.max_tokens!r}")
        variables = self.extra.get("chat_template_kwargs") or {}
        if not isinstance(variables, Mapping):
            problems.append(
                "chat_template_kwargs: expected names with values, such as "
                f"{{enable_thinking: false}}, got {variables!r}"
            )
        if problems:
            raise UsageError("; ".join(problems))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Request:
    """n samples of one prompt, asked for at once so that the prompt is read once.

    Attributes:
        prompt: The conversation, or the text to complete.
        n: Number of samples.
        sampling: How to decode.
        seed: Sample i is drawn under `seed + i`, where the engine knows seeds.
        model: Which of several models (strategy `moa`); None is the run's one.
        prompt_ids: The prompt in tokens, by the model's own tokenizer and template, where known:
            an engine in this process need not encode it again. They follow from `prompt`.
    """

    prompt: Prompt
    n: int
    sampling: Sampling
    seed: int
    model: str | None = None
    prompt_ids: Sequence[int] | None = field(default=None, compare=False, repr=False)

    def key(self, model: str) -> bytes:
        """Return the 16 bytes that name this request to `model`: equal if the answer may be."""
        sampling = {name: getattr(self.sampling, name) for name in Sampling.__dataclass_fields__}
        content = [model, self.prompt, sampling, self.n, self.seed]
        data = orjson.dumps(content, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
        return hashlib.blake2b(data, digest_size=16).digest()


def identity_seed(run_seed: int, *identity: str | int) -> int:
    """Return the seed of a place in a run, such as (query id, layer, slot): 31 bits.

    It depends on nothing else: not on the order of the input, on concurrency or on interruptions.
    """
    data = orjson.dumps([run_seed, *identity])
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "big") >> 1


@dataclass(frozen=True, slots=True)
class Usage:
    """What requests took; None is unknown, and unknown plus anything is unknown.

    Attributes:
        requests: How many were answered, as they were sent; of a reward model, pairs.
        samples: Completions of them.
        prompt: Tokens of the prompts, each counted as often as it was read: once for n samples,
            unless the server had to be asked on.
        cached: Those of `prompt` that the engine had computed before (prefix caching). A server
            tells that only of a request for one sample: of several, its figure is that of one of
            them, and most of them find what the first one read. vLLM's server tells it only with
            --enable-prompt-tokens-details, and where it has not told yet, a 0 is unknown.
        completion: Tokens written, of all samples.
        attended: Sum of the positions of all tokens computed: what attention costs. Where a server
            tells only the sum of n completions, each is taken to have an n-th of it.
        thought: Tokens of `completion` that are thoughts, not answers.
    """

    requests: int = 0
    samples: int = 0
    prompt: int | None = 0
    cached: int | None = 0
    completion: int | None = 0
    attended: int | None = 0
    thought: int | None = 0

    @classmethod
    def of_pairs(cls, lengths: Iterable[int | None]) -> Usage:
        """Count pairs that a reward model read, by their tokens; None: it could not be read."""
        read = [length for length in lengths if length is not None]
        attended = round(sum(_positions(0, length) for length in read))
        return cls(requests=len(read), prompt=sum(read), attended=attended)

    def __add__(self, other: Usage) -> Usage:
        pairs = zip(_counts(self), _counts(other), strict=True)
        sums: list[Any] = [None if a is None or b is None else a + b for a, b in pairs]
        return Usage(*sums)

    @property
    def computed(self) -> int | None:
        """Tokens that went through the model: of prompts, less the cached ones, and written."""
        if self.prompt is None or self.completion is None:
            return None
        return self.prompt - (self.cached or 0) + self.completion


_counts = attrgetter(*(field.name for field in fields(Usage)))


def _positions(start: float, end: float) -> float:
    """start+1 + start+2 + ... + end."""
    return (end * (end + 1) - start * (start + 1)) / 2 if end > start else 0


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample.

    Attributes:
        text: What the model wrote, without control tokens.
        finish_reason: `stop` where it ended by itself, `length` where `max_tokens` cut it off, or
            another word of the server's: see `cut_off` and `filtered`.
        tokens: How many tokens it wrote, where known.
        problem: What is wrong with the text, where it was taken out of what the model wrote.
        instead: What the model gave instead of a text: a thought, a call of a tool.
        thought: What it wrote before its text and apart from it.
        stopped: Whether a text of `stop` ended it; None where that is not told.
    """

    text: str
    finish_reason: str = "stop"
    tokens: int | None = None
    problem: str | None = None
    instead: str | None = None
    thought: str = ""
    stopped: bool | None = None

    def split(self, words: ThoughtWords) -> Completion:
        """Return it with the thought that its text holds apart."""
        early = not self.thought and (self.cut_off or bool(self.stopped))
        thought, text = words.split(self.text, cut_off=early)
        if not thought or self.thought:
            return self if text == self.text else replace(self, text=text)
        return replace(self, text=text, thought=thought).told()

    def before(self, stops: Sequence[str], *, included: bool = False) -> Completion:
        """Return it as it ends before the first of these texts, or with it."""
        places = ((self.text.find(stop), stop) for stop in stops)
        ends = [(place, place + included * len(stop)) for place, stop in places if place >= 0]
        return replace(self, text=self.text[: min(ends)[1]]) if ends else self

    def told(self) -> Completion:
        """Return it with what it has instead of a text, if that is a whole thought."""
        if self.instead or self.text.strip() or not self.thought or self.cut_off:
            return self
        return replace(self, instead="a thought without an answer")

    @property
    def cut_off(self) -> bool:
        """Whether a limit of tokens cut it off."""
        return is_cut_off(self.finish_reason)

    @property
    def filtered(self) -> bool:
        """Whether a filter of contents ended it."""
        return is_filtered(self.finish_reason)

    @property
    def whole(self) -> bool:
        """Whether it came to an end of its own."""
        return not (self.cut_off or self.filtered)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for a request.

    Attributes:
        completions: n samples, in order.
        usage: What they took, however many requests were sent for them.
    """

    completions: tuple[Completion, ...]
    usage: Usage

    @classmethod
    def of(
        cls,
        completions: Iterable[Completion],
        prompt: int | None,
        cached: int | None,
        written: int | None,
        thought: int | None = None,
    ) -> Reply:
        """Return the reply to one request, from the tokens it took; see `Usage`."""
        completions = tuple(completions)
        attended = None
        if prompt is not None and written is not None:
            share = written / len(completions)
            lengths = [share if c.tokens is None else c.tokens for c in completions]
            behind = sum(_positions(prompt, prompt + length) for length in lengths)
            attended = round(_positions(cached or 0, prompt) + behind)
        if not any(c.thought for c in completions):
            thought = 0
        usage = Usage(1, len(completions), prompt, cached, written, attended, thought)
        return cls(completions, usage)


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a sample, while it is written.

    Attributes:
        index: Which of the request's samples.
        text: What was written now.
        start: How many characters of the sample come before it; 0 begins it, or begins it anew.
        ended: Whether the sample ends with it.
        thought: Whether it is of the thought before the sample's text, and counted in that.
    """

    index: int
    text: str
    start: int
    ended: bool = False
    thought: bool = False


Told = Callable[[Piece], object]  # hears of a request's samples while they are written


def shifted(told: Told | None, by: int) -> Told | None:
    """Return who hears of samples that are `by` places further on in the whole."""
    if told is None or by == 0:
        return told
    return lambda piece: told(replace(piece, index=piece.index + by))


def joined(replies: Sequence[Reply]) -> Reply:
    """Return several replies to one prompt as one, in order."""
    return Reply(
        tuple(completion for reply in replies for completion in reply.completions),
        sum((reply.usage for reply in replies), Usage()),
    )

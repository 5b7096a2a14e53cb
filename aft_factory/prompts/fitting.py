"""Fitting: shorten proposals so that a row fits a token budget, and nothing else loses a token.

LLaMA-Factory cuts the tail of a prompt at `cutoff_len`, and the query stands at the tail: a long
row silently loses its query. Here the proposals are shortened instead, as `shortening` says, and
never the query, the instructions or the target. A row that the chat template refuses, or that does
not fit even so, is handed back with its reason. Pure but for the tokenizer it is handed.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import orjson
from jinja2 import TemplateSyntaxError

from aft_factory.errors import RecordError, UsageError
from aft_factory.prompts.markers import Markers
from aft_factory.prompts.rendering import AggregatorTemplate, with_aggregator
from aft_factory.prompts.shortening import DoesNotFit, Fitted, shorten
from aft_factory.prompts.tokenizer import tokenizer_markers
from aft_factory.records.messages import Message

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerFast

Conversation = tuple[list[Message], Sequence[str], str | None]  # messages, proposals, target


def token_boundaries(tokenizer: PreTrainedTokenizerFast) -> Callable[[str], list[int]]:
    """Return the `boundaries` of `fit` for a fast tokenizer.

    Raises:
        UsageError: If the tokenizer is a slow one, which cannot tell where its tokens end.
    """
    require_fast(tokenizer)

    def boundaries(text: str) -> list[int]:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [end for _, end in encoding["offset_mapping"]]

    return boundaries


def require_fast(tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a tokenizer that cannot tell where its tokens end.

    Raises:
        UsageError: If it is a slow one.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            "fitting needs a fast tokenizer (a tokenizer.json); convert this one first"
        )


@dataclass(slots=True)
class Fitter:
    """Measures and fits rows for one tokenizer and chat template.

    Attributes:
        tokenizer: A fast Hugging Face tokenizer.
        chat: Jinja text of the chat template that training will use.
        limit: `cutoff_len`; None measures only.
        template: The aggregator prompt.
        kwargs: What the chat template is rendered with, such as `enable_thinking`.
        system: Whether the model has system messages; see `rendering.with_aggregator`.
    """

    tokenizer: PreTrainedTokenizerFast
    chat: str
    limit: int | None
    template: AggregatorTemplate
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    system: bool = True
    markers: Markers = field(init=False)

    def __post_init__(self) -> None:
        require_fast(self.tokenizer)
        # Leaves its core as it is to be here: without the padding or cut-off it was saved with.
        self.tokenizer("", add_special_tokens=False)
        self.markers = tokenizer_markers(self.tokenizer, self.chat)

    def but(self, **changes: Any) -> Fitter:
        """Return one with another limit, template or kwargs; unlike a new one, it costs nothing."""
        other = copy.copy(self)
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    @property
    def fingerprint(self) -> str:
        """Names all that decides what becomes of a row, wherever the tokenizer's files lie."""
        content = [
            *(self.chat, self.limit, self.template.fingerprint, dict(self.kwargs), self.system),
            *(str(self.tokenizer.special_tokens_map), self.tokenizer.backend_tokenizer.to_str()),
        ]
        return hashlib.blake2b(orjson.dumps(content), digest_size=8).hexdigest()

    def fit_all(self, rows: Sequence[Conversation]) -> list[Fitted | DoesNotFit]:
        """Fit rows (see `shortening.fit`), all of them at once and then all that are too long.

        Their texts may hold markers; the proposals returned hold none. A row that a template
        refuses does not fit; without a limit all others do. Of a row without a target, the prompt
        is handed back as well: whoever asks a model need not render and encode it again.
        """
        safe = self.markers.sanitise
        rows = [
            (
                self.markers.sanitise_all(messages),
                [safe(text) for text in proposals],
                target and safe(target),
            )
            for messages, proposals, target in rows
        ]
        results: dict[int, Fitted | DoesNotFit] = {}
        segments = self._rendered(dict(enumerate(rows)), results)
        texts = [text for _, *pair in segments.values() for text in pair]
        encoded = iter(self._encoded(texts))
        attempts: dict[int, Generator[list[str], int, Fitted]] = {}
        after_prompt = {}

        def told(i: int, found: Fitted, asked: list[Message], prompt: Encoding) -> Fitted:
            if rows[i][2] is not None:
                return found
            return replace(found, messages=asked, prompt_ids=prompt.ids)

        for i, (asked, _, _) in segments.items():
            messages, proposals, _ = rows[i]
            prompt, answer = next(encoded), next(encoded)
            after_prompt[i] = len(answer) + _seams(messages)
            total = len(prompt) + after_prompt[i]
            if self.limit is None or total <= self.limit:
                results[i] = told(i, Fitted(list(proposals), total), asked, prompt)
            else:
                attempts[i] = shorten(proposals, self.limit, self._ends(proposals), total)

        tries = {i: next(attempt) for i, attempt in attempts.items()}
        while tries:
            again = {i: (rows[i][0], shorter, rows[i][2]) for i, shorter in tries.items()}
            segments, tries = self._rendered(again, results), {}
            prompts = self._encoded([prompt for _, prompt, _ in segments.values()])
            for (i, (asked, _, _)), prompt in zip(segments.items(), prompts, strict=True):
                try:
                    tries[i] = attempts[i].send(len(prompt) + after_prompt[i])
                except StopIteration as done:
                    results[i] = told(i, done.value, asked, prompt)
                except DoesNotFit as error:
                    results[i] = error
        return [results[i] for i in range(len(rows))]

    def tail(self, text: str, tokens: int) -> str:
        """Return the last so many tokens of a text."""
        [ends] = self._ends([text])
        return text if len(ends) <= tokens else text[ends[-tokens - 1] :]

    def _rendered(
        self, rows: Mapping[int, Conversation], results: dict[int, Fitted | DoesNotFit]
    ) -> dict[int, tuple[list[Message], str, str]]:
        """Return the segments of rows; those that the chat template refuses have their result."""
        segments = {}
        for i, row in rows.items():
            try:
                segments[i] = self._segments(*row)
            except DoesNotFit as error:
                results[i] = error
        return segments

    def _encoded(self, texts: Sequence[str]) -> list[Encoding]:
        encode = self.tokenizer.backend_tokenizer.encode_batch_fast
        return encode(list(texts), add_special_tokens=False)  # type: ignore[no-any-return]

    def _ends(self, proposals: Sequence[str]) -> list[list[int]]:
        """Return where the tokens of each proposal end, were it by itself."""
        encode = self.tokenizer.backend_tokenizer.encode_batch
        encoded = encode(list(proposals), add_special_tokens=False)
        return [[end for _, end in encoding.offsets] for encoding in encoded]

    def _segments(
        self, messages: list[Message], proposals: Sequence[str], target: str | None
    ) -> tuple[list[Message], str, str]:
        """Return the conversation, and prompt and target as the texts that are encoded apart."""
        try:
            messages = with_aggregator(messages, proposals, self.template, system=self.system)
        except RecordError as error:
            raise DoesNotFit(error.problem, error.field) from None
        prompt = self._render(messages, add_generation_prompt=True)
        if target is None:
            return messages, prompt, ""
        whole = self._render([*messages, {"role": "assistant", "content": target}])
        if not whole.startswith(prompt):
            return messages, whole, ""
        return messages, prompt, whole[len(prompt) :]

    def _render(self, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
        try:
            return self.tokenizer.apply_chat_template(  # type: ignore[no-any-return]
                messages,
                chat_template=self.chat,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self.kwargs,
            )
        except TemplateSyntaxError as error:
            raise UsageError(f"the chat template is no Jinja: {error}") from error
        except Exception as error:  # a template is a program, and can fail in any way
            raise DoesNotFit(f"refused by the chat template: {error}", "messages") from error


def _seams(messages: Sequence[Message]) -> int:
    """LLaMA-Factory encodes earlier answers apart, which may cost a token on each side."""
    return 2 * sum(message["role"] == "assistant" for message in messages)

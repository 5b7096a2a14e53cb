"""Streams of an OpenAI-compatible server, joined to the answers that they stand for. Pure."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from aft_factory.engines.engine import EngineError
from aft_factory.engines.openai_failures import error_words, read_json, undisguised
from aft_factory.engines.openai_parts import as_object, text_of, thought_in
from aft_factory.engines.sampling import Piece, Told
from aft_factory.records.messages import THOUGHT_FIELDS

STOPPED_BY = ("stop_reason", "matched_stop")  # vLLM's and SGLang's: the text or token, or null
DATA, DONE = b"data:", b"[DONE]"
BEGINNINGS = (DATA, b"event:", b"id:", b"retry:", b":")  # of its lines


def is_stream(body: bytes) -> bool:
    """Tell whether a body is a stream of events."""
    return body.lstrip()[:6].startswith(BEGINNINGS)


async def lines_of(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Go through the lines of a stream, which end where bytes say so.

    As a text it would also be split at U+2028 and its like, which are part of what is said.
    """
    rest = b""
    async for piece in pieces:
        lines = (rest + piece).splitlines(keepends=True)
        rest = b"" if not lines or lines[-1].endswith((b"\n", b"\r")) else lines.pop()
        for line in lines:
            yield line
    yield rest


class Joining:
    """Joins the chunks of a stream to the one answer that they stand for.

    Args:
        url: Of the server, for messages.
        told: Hears of the texts in them.
    """

    def __init__(self, url: str, told: Told = lambda _: None) -> None:
        self._url = url
        self._told = told
        self._choices: dict[int, dict[str, Any]] = {}
        self._answer: dict[str, Any] = {}
        self._done = False

    def take(self, line: bytes) -> dict[str, Any] | None:
        """Take the next line; return the chunk in it, None if there is none.

        Raises:
            EngineError: If what is in it cannot be read: the text in it would be lost.
        """
        data = line[len(DATA) :].strip() if line.startswith(DATA) else b""
        if not data or data.startswith(b":"):  # a comment that a gateway has passed on as data
            return None
        if data == DONE:
            self._done = True
            return None
        chunk = read_json(data)
        if isinstance(chunk, list):
            chunk = undisguised(chunk)
        if not isinstance(chunk, dict):
            told = f"{self._url}: a chunk of the stream is no JSON: {error_words(data)}"
            raise EngineError(told, "retry")
        self._add(chunk)
        return chunk

    def _add(self, chunk: dict[str, Any]) -> None:
        self._answer |= {name: value for name, value in chunk.items() if value is not None}
        for part in map(as_object, chunk.get("choices") or ()):
            index = part.get("index") or 0
            choice = self._choices.setdefault(index, {"message": {}})
            # Some send the whole message, as if nobody had asked for a stream.
            message, delta = choice["message"], _plain(part.get("delta", part.get("message")))
            texts = (choice, "text", part.get("text")), (message, "content", delta.get("content"))
            start = sum(len(at.get(name) or "") for at, name, _ in texts)
            thought = next(
                (name for name in THOUGHT_FIELDS if isinstance(delta.get(name), str)), None
            )
            if thought is not None and delta[thought]:
                before = len(message.get(thought) or "")
                self._told(Piece(index, delta[thought], before, thought=True))
            reason = part.get("finish_reason")
            reason = None if reason == "null" else reason
            choice["finish_reason"] = reason or choice.get("finish_reason")
            if reason:
                choice |= {name: part[name] for name in STOPPED_BY if name in part}
            _add_text(*texts[0])
            for name, value in delta.items():
                _add_text(message, name, value)
            said = "".join(new for _, _, new in texts if isinstance(new, str))
            self._told(Piece(index, said, start, ended=bool(reason)))

    def answer(self) -> dict[str, Any]:
        """Return the answer.

        Raises:
            EngineError: If the stream broke off, or ended in an error.
        """
        undisguised({name: value for name, value in self._answer.items() if name != "choices"})
        choices = self._choices
        ended = self._done or all(choice["finish_reason"] for choice in choices.values())
        if not choices or not ended:
            raise EngineError(f"{self._url}: the stream of the answer broke off", "retry")
        return self._answer | {"choices": [choice for _, choice in sorted(choices.items())]}


def joined_stream(body: bytes, url: str) -> dict[str, Any]:
    """Return a stream of chunks as the one answer that it stands for."""
    joining = Joining(url)
    for line in body.splitlines():
        joining.take(line)
    return joining.answer()


def _plain(delta: Any) -> dict[str, Any]:
    """Return a delta whose content, if it is in parts, is a text, and its thought a field."""
    plain = as_object(delta)
    content = plain.get("content")
    if not isinstance(content, list):
        return plain
    return {**plain, "content": text_of(content), THOUGHT_FIELDS[0]: thought_in(content)}


def _add_text(message: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(value, str):
        message[name] = (message.get(name) or "") + value
    elif value is not None:
        message.setdefault(name, value)

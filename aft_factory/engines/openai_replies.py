"""What an OpenAI-compatible server answered: completions, or why there are none. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from aft_factory.engines.endings import is_broken, is_filtered
from aft_factory.engines.engine import EngineError
from aft_factory.engines.sampling import Completion, Piece, Reply, Told
from aft_factory.network import proxy_hint
from aft_factory.prompts.thoughts import FIELDS, ThoughtWords
from aft_factory.records import exact_json

MOST_WORDS = 500  # characters of a server's error message
# Of 429s, which mostly pass, these do not.
SPENT = re.compile(r"insufficient|billing|payment|credit|balance", re.IGNORECASE)
ABSENT = (404, 405)
Kind = Literal["retry", "refused", "fatal"]


def kind_of(status: int) -> Kind:
    """Tell whether to ask again after an HTTP status, give this request up, or the run."""
    if status in (408, 409, 425, 429) or status >= 500:
        return "retry"
    return "fatal" if status in (401, 402, 403, 404, 405, 407) else "refused"


def failure_of(response: Any, url: str, absent: str = "") -> EngineError:
    """Return what an answer says that is no success, in the server's own words.

    Args:
        response: The answer, as httpx or httpx2 has it.
        url: Of the server, for the message.
        absent: What to add where there is nothing at that URL.
    """
    status, words = response.status_code, error_words(response.content)
    kind, after = kind_of(status), retry_after(response.headers)
    if status == 429 and after is None and SPENT.search(response.text):
        kind = "fatal"  # a quota that is used up does not pass
    problem = words if kind == "refused" else f"{url} answered {status}: {words}"
    if kind != "refused":
        problem += proxy_hint(url)
    return EngineError(problem + (absent if status in ABSENT else ""), kind, after)


def read_json(body: bytes) -> Any:
    """Return the JSON value of a body, None if it is none; NaN and halves of emoji are read."""
    try:
        return exact_json.load(body)
    except ValueError:
        return None


def error_words(body: bytes) -> str:
    """Return the message inside an error's body, whatever its shape: the server's own words."""
    found = read_json(body)
    if found is None:
        found = body.decode(errors="replace")
    while isinstance(found, dict):
        inner = (found.get(key) for key in ("error", "message", "detail"))
        found = next((value for value in inner if value), None) or exact_json.dump(found).decode()
    words = found if isinstance(found, str) else exact_json.dump(found).decode()
    words = "".join(c if c.isprintable() else " " for c in words)  # it may reach a terminal
    return " ".join(words.split())[:MOST_WORDS] or "(no message)"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait that a server asks for, by any of the headers in use."""
    for name, scale in (("retry-after-ms", 1000), ("retry-after", 1)):
        text = headers.get(name, "")
        try:
            seconds = float(text) / scale
        except ValueError:
            try:
                date = parsedate_to_datetime(text)
            except ValueError:
                continue
            seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None


def parse_body(body: bytes, url: str) -> dict[str, Any]:
    """Return the object in a body of status 200, unless it is an error in disguise."""
    data = parse_answer(body, url)
    if isinstance(data, list):
        raise _no_object(body, url)
    return data


def parse_answer(body: bytes, url: str) -> dict[str, Any] | list[Any]:
    """Return the same, or an array: some list their models in a bare one."""
    data = _joined_stream(body, url) if _is_stream(body) else read_json(body)
    if isinstance(data, list):
        return data
    if not isinstance(data, dict):
        raise _no_object(body, url)
    return undisguised(data)


def models_in(answer: dict[str, Any] | list[Any]) -> Any:
    """Return the list of models in an answer that should have one."""
    return answer if isinstance(answer, list) else answer.get("data")


def _no_object(body: bytes, url: str) -> EngineError:
    return EngineError(f"{url}: expected a JSON object, got: {error_words(body)}", "retry")


def undisguised(data: dict[str, Any]) -> dict[str, Any]:
    """Return the body of an answer of status 200, unless it is an error in disguise."""
    error = data.get("error")
    if error or data.get("object") == "error":
        code = str(error.get("code") if isinstance(error, dict) else data.get("code"))
        kind = kind_of(int(code)) if code in map(str, range(400, 600)) else "retry"
        raise EngineError(error_words(exact_json.dump(data)), kind)
    return data


def read_reply(
    data: dict[str, Any],
    n: int,
    cached: Callable[[int | None, int], int | None],
    words: ThoughtWords | None = None,
) -> Reply:
    """Read a completion's body; of more than n choices, the first n.

    Args:
        data: The body.
        n: How many were asked for.
        cached: From what the body says of cached tokens, and of how many samples, to what is known.
        words: Around a thought, where the text may hold one.
    """
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices:
        raise EngineError(
            f"expected choices, got none: {error_words(exact_json.dump(data))}", "refused"
        )
    usage = _object(data.get("usage"))
    told = whole(_object(usage.get("prompt_tokens_details")).get("cached_tokens"))
    written = whole(usage.get("completion_tokens"))
    thought = whole(_object(usage.get("completion_tokens_details")).get("reasoning_tokens"))
    completions = []
    for choice in map(_object, choices[:n]):
        reason = choice.get("finish_reason") or "stop"
        message = _object(choice.get("message"))
        text = _text_of(choice["text"] if "text" in choice else message.get("content"))
        if is_broken(reason) or not isinstance(text, str | None):
            raise EngineError(f"a choice failed: {error_words(exact_json.dump(choice))}", "retry")
        instead = None
        if not (text and text.strip()) and message.get("tool_calls"):
            instead = "a call of a tool"
        elif not text and message.get("refusal") and not is_filtered(reason):
            instead = "a refusal"
        tokens = written if len(choices) == 1 else None
        if isinstance(ids := choice.get("token_ids"), list):  # by a user's `return_token_ids`
            tokens = len(ids)
        completion = Completion(
            text or "",
            str(reason),
            tokens,
            instead=instead,
            thought=_thought_of(message),
        ).told()
        completions.append(completion if words is None else completion.split(words))
    tokens_read = whole(usage.get("prompt_tokens"))
    before = cached(told, len(completions))
    # A server that tells no thoughts in a text from its answer counts none.
    return Reply.of(completions, tokens_read, before, written, thought or None)


def _text_of(content: Any) -> Any:
    """Return the text of an answer: of one in parts, all that is no thought."""
    if not isinstance(content, list):
        return content
    parts = [part if isinstance(part, dict) else {"text": part} for part in content]
    return "".join(
        part["text"]
        for part in parts
        if isinstance(part.get("text"), str) and "text" in part.get("type", "text")
    )


def _thought_of(message: Mapping[str, Any]) -> str:
    """Return the thought that a message has beside its text."""
    parts = message.get("content")
    inner = [_object(part) for part in parts] if isinstance(parts, list) else []
    thoughts = [part.get(part["type"]) for part in inner if "think" in str(part.get("type"))]
    thoughts += [message.get(name) for name in FIELDS]
    return next(filter(None, map(_words_in, thoughts)), "")


def _words_in(thought: Any) -> str:
    """Return the text of a thought, which may be in parts."""
    if isinstance(thought, list):
        return "".join(map(_words_in, thought))
    found = thought.get("text") if isinstance(thought, dict) else thought
    return found.strip() if isinstance(found, str) else ""


def _is_stream(body: bytes) -> bool:
    return body.lstrip()[:6].startswith((b"data:", b"event:", b":"))


class Joining:
    """Joins the chunks of a stream to the one answer that they stand for.

    Args:
        told: Hears of the texts in them.
    """

    def __init__(self, told: Told = lambda _: None) -> None:
        self._told = told
        self._choices: dict[int, dict[str, Any]] = {}
        self._answer: dict[str, Any] = {}

    def add(self, chunk: dict[str, Any]) -> None:
        """Take the next chunk."""
        self._answer |= {name: value for name, value in chunk.items() if value is not None}
        for part in map(_object, chunk.get("choices") or ()):
            index = part.get("index") or 0
            choice = self._choices.setdefault(index, {"message": {}})
            message, delta = choice["message"], _object(part.get("delta"))
            texts = (choice, "text", part.get("text")), (message, "content", delta.get("content"))
            start = sum(len(at.get(name) or "") for at, name, _ in texts)
            thought = next((name for name in FIELDS if isinstance(delta.get(name), str)), None)
            if thought is not None and delta[thought]:
                before = len(message.get(thought) or "")
                self._told(Piece(index, delta[thought], before, thought=True))
            choice["finish_reason"] = part.get("finish_reason") or choice.get("finish_reason")
            _add_text(*texts[0])
            for name, value in delta.items():
                _add_text(message, name, value)
            said = "".join(new for _, _, new in texts if isinstance(new, str))
            self._told(Piece(index, said, start, ended=bool(part.get("finish_reason"))))

    def answer(self, url: str) -> dict[str, Any]:
        """Return the answer.

        Raises:
            EngineError: If the stream broke off, or ended in an error.
        """
        if "error" in self._answer:
            return self._answer
        choices = self._choices
        if not choices or not all(choice["finish_reason"] for choice in choices.values()):
            raise EngineError(f"{url}: the stream of the answer broke off", "retry")
        return self._answer | {"choices": [choice for _, choice in sorted(choices.items())]}


def _joined_stream(body: bytes, url: str) -> dict[str, Any]:
    """Return a stream of chunks as the one answer that it stands for."""
    joining = Joining()
    for line in body.splitlines():
        if (chunk := read_chunk(line)) is not None:
            joining.add(chunk)
    return joining.answer(url)


def _add_text(message: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(value, str):
        message[name] = (message.get(name) or "") + value
    elif value is not None:
        message.setdefault(name, value)


def read_chunk(line: bytes) -> dict[str, Any] | None:
    """Return the chunk in a line of a stream, None if there is none."""
    chunk = read_json(line[5:]) if line.startswith(b"data:") else None
    return chunk if isinstance(chunk, dict) else None


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def whole(value: object) -> int | None:
    """Return a whole number, None for anything else."""
    return value if type(value) is int else None

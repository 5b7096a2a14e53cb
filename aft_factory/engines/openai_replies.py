"""What an OpenAI-compatible server answered: completions, or why there are none. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import orjson

from aft_factory.engines.engine import EngineError
from aft_factory.engines.sampling import Completion, Reply

MOST_WORDS = 500  # characters of a server's error message


def kind_of(status: int) -> Literal["retry", "refused", "fatal"]:
    """Tell whether to ask again after an HTTP status, give this request up, or the run."""
    if status in (408, 409, 425, 429) or status >= 500:
        return "retry"
    return "fatal" if status in (401, 402, 403, 404, 405) else "refused"


def error_words(body: bytes) -> str:
    """Return the message inside an error's body, whatever its shape: the server's own words."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        found = body.decode(errors="replace")
    while isinstance(found, dict):
        inner = (found.get(key) for key in ("error", "message", "detail"))
        found = next((value for value in inner if value), None) or orjson.dumps(found).decode()
    words = found if isinstance(found, str) else orjson.dumps(found).decode()
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
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        raise EngineError(f"{url}: expected a JSON object, got: {error_words(body)}", "retry")
    error = data.get("error")
    if error or data.get("object") == "error":
        code = str(error.get("code") if isinstance(error, dict) else data.get("code"))
        kind = kind_of(int(code)) if code in map(str, range(400, 600)) else "retry"
        raise EngineError(error_words(body), kind)
    return data


def read_reply(
    data: dict[str, Any], n: int, cached: Callable[[int | None, int], int | None]
) -> Reply:
    """Read a completion's body; of more than n choices, the first n.

    Args:
        data: The body.
        n: How many were asked for.
        cached: From what the body says of cached tokens, and of how many samples, to what is known.
    """
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices:
        raise EngineError(
            f"expected choices, got none: {error_words(orjson.dumps(data))}", "refused"
        )
    usage = _object(data.get("usage"))
    told = whole(_object(usage.get("prompt_tokens_details")).get("cached_tokens"))
    written = whole(usage.get("completion_tokens"))
    completions = []
    for choice in map(_object, choices[:n]):
        reason = choice.get("finish_reason") or "stop"
        message = _object(choice.get("message"))
        text = choice["text"] if "text" in choice else message.get("content")
        if reason in ("error", "abort") or not isinstance(text, str | None):
            raise EngineError(f"a choice failed: {error_words(orjson.dumps(choice))}", "retry")
        tokens = written if len(choices) == 1 else None
        if isinstance(ids := choice.get("token_ids"), list):  # by a user's `return_token_ids`
            tokens = len(ids)
        completions.append(Completion(text or "", str(reason), tokens))
    tokens_read = whole(usage.get("prompt_tokens"))
    before = cached(told, len(completions))
    return Reply.of(completions, tokens_read, before, written)


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def whole(value: object) -> int | None:
    """Return a whole number, None for anything else."""
    return value if type(value) is int else None

"""JSON read and written without loss, at orjson's speed.

Pure. What users' files hold and orjson alone refuses or changes: `NaN`, numbers beyond 64 bits,
half of a surrogate pair (an emoji cut in two), which becomes U+FFFD.
"""

from __future__ import annotations

import json
import math
from typing import Any

import orjson


def load(text: bytes | str) -> Any:
    """Read one JSON value. NaN and infinity stay what they are: readers take them for unknown.

    Raises:
        ValueError: If it is no JSON.
    """
    try:
        value = orjson.loads(text)
        if not _may_be_rounded(value):
            return value
    except orjson.JSONDecodeError as error:
        try:
            return _whole(json.loads(text if isinstance(text, str) else text.decode()))
        except (ValueError, RecursionError):
            raise error from None
    return json.loads(text)


def dump(value: Any, *, default: Any = None) -> bytes:
    """Write one value as JSON; NaN and infinity become null.

    Args:
        value: What to write.
        default: Called for what JSON has no form for; without it, that is refused.

    Raises:
        TypeError: If JSON has no form for something in it, such as half of a surrogate pair.
    """
    try:
        return orjson.dumps(value, default=default)
    except TypeError as error:
        try:
            separators = (",", ":")
            value = _finite(value)
            text = json.dumps(value, default=default, ensure_ascii=False, separators=separators)
            return text.encode()
        except (ValueError, RecursionError):
            raise error from None


def _may_be_rounded(value: Any) -> bool:
    """Tell whether orjson may have made a fraction of a whole number beyond 64 bits."""
    kind = type(value)
    if kind is float:
        return bool(abs(value) >= 2**63)
    try:
        if kind is dict:
            return any(map(_may_be_rounded, value.values()))
        return bool(kind is list and any(map(_may_be_rounded, value)))
    except RecursionError:
        return False


def _whole(value: Any) -> Any:
    """Replace halves of surrogate pairs, which no file in UTF-8 can hold."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_whole(key): _whole(item) for key, item in value.items()}
    return list(map(_whole, value)) if isinstance(value, list) else value


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return list(map(_finite, value)) if isinstance(value, list) else value

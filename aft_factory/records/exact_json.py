"""JSON read and written without loss, at orjson's speed.

Pure. What users' files hold and orjson alone refuses or changes: `NaN`, numbers beyond 64 bits,
half of a surrogate pair (an emoji cut in two), which becomes U+FFFD.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

import orjson

PIECE = 1 << 17  # of an array: one rare character makes four bytes of each that is read with it
# Finds where a value ends; control characters in it are for its reader to refuse.
_decode = json.JSONDecoder(strict=False).raw_decode
_blanks = json.decoder.WHITESPACE.match  # type: ignore[attr-defined]
_DIGITS = bytes(48 if 48 <= byte < 58 else 32 for byte in range(256))  # each becomes a 0
_NAME_END, _QUOTED_NAME_END = re.compile(rb'":'), re.compile(rb'\\":')  # faster than `count`
LONGEST_WORD = 16  # characters: more than `-Infinity`, or an escape, has


def load(text: bytes | str) -> Any:
    """Read one JSON value. NaN and infinity stay what they are: readers take them for unknown.

    Raises:
        ValueError: If it is no JSON.
    """
    try:
        value = orjson.loads(text)
        if not (_may_hold_long_number(text) and _may_be_rounded(value)):
            return value
    except orjson.JSONDecodeError as error:
        try:
            return _whole(json.loads(text if isinstance(text, str) else text.decode()))
        except (ValueError, RecursionError):
            raise error from None
    return json.loads(text)


def load_given(text: bytes | str) -> Any:
    """Read one JSON value of a user's, in which no object has a name twice.

    Of two values by one name all readers take the last: a query would be lost without a word.

    Raises:
        ValueError: If it is no JSON, or an object has; names it.
    """
    value = load(text)
    data = text if isinstance(text, bytes) else text.encode(errors="replace")
    names = len(_NAME_END.findall(data))
    if type(value) is dict and names == len(value):  # the usual case
        return value
    # Also uneven by a blank before a colon, or a text such as ":)".
    if names - len(_QUOTED_NAME_END.findall(data)) != _count_names(value):
        with contextlib.suppress(RecursionError):
            json.loads(text, object_pairs_hook=_object)
    return value


def array_elements(stream: IO[bytes]) -> Iterator[bytes]:
    r"""Split the text of a JSON array into the texts of its elements, holding one at a time.

    Example:
        >>> list(array_elements(io.BytesIO(b'[{"a": [1]}, "],"]')))
        [b'{"a": [1]}', b'"],"']

    Args:
        stream: At the array's opening bracket.

    Raises:
        ValueError: If the array is damaged or does not end, or the text goes on after it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text, start, mark = decoder.decode(stream.read(PIECE)), 1, "["
    while mark != "]":
        start = _blanks(text, start).end()
        try:
            if mark == "[" and text[start] == "]":
                start += 1
                break
            _, end = _decode(text, start)
            after = _blanks(text, end).end()
            if text[after] not in ",]":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, after)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        except (json.JSONDecodeError, IndexError) as error:
            if isinstance(error, json.JSONDecodeError) and not _is_cut_off(error):
                raise ValueError(error.msg) from None
            # An element goes beyond what was read; twice the text keeps the time linear.
            more = stream.read(max(PIECE, len(text) - start))
            if not more:
                raise ValueError("the array does not end") from None
            text, start = text[start:] + decoder.decode(more), 0
            continue
        yield text[start:end].encode(errors="surrogateescape")
        mark, start = text[after], after + 1
    if text[start:].strip() or stream.read(PIECE).strip():
        raise ValueError("there is more after the array")


def values(stream: IO[bytes]) -> Iterator[bytes]:
    r"""Split a text of JSON values, one after another however they stand, into their texts.

    Example:
        >>> list(values(io.BytesIO(b'{"a": 1}{\n "a": 2\n}\r{}')))
        [b'{"a": 1}', b'{\n "a": 2\n}', b'{}']

    Raises:
        ValueError: If one is damaged.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text, start = "", 0
    while True:
        start = _blanks(text, start).end()
        try:
            _, end = _decode(text, start)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        except json.JSONDecodeError as error:
            more = stream.read(max(PIECE, len(text) - start))
            if not more and start == len(text):
                return
            if not more or not _is_cut_off(error):
                raise ValueError(error.msg) from None
            text, start = text[start:] + decoder.decode(more), 0
            continue
        yield text[start:end].encode(errors="surrogateescape")
        start = end


def _is_cut_off(error: json.JSONDecodeError) -> bool:
    """Tell whether a text may be JSON as far as it goes."""
    return error.msg.startswith("Unterminated") or error.pos > len(error.doc) - LONGEST_WORD


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


def _may_hold_long_number(text: bytes | str) -> bool:
    """Tell whether a text may have 19 digits in a row, by a look at each sixth byte."""
    if isinstance(text, str):
        text = text.encode(errors="replace")
    return b"000" in text[::6].translate(_DIGITS)


def _count_names(value: Any) -> int:
    """Return how many names the objects in a value have, together."""
    count, left = 0, [value]
    while left:
        value = left.pop()
        if type(value) is dict:
            count += len(value)
            left += value.values()
        elif type(value) is list:
            left += value
    return count


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {name!r} is given twice")
    return made


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

"""JSON read and written without loss, at orjson's speed.

Pure. What users' files hold and orjson alone refuses or changes: `NaN`, numbers beyond 64 bits,
half of a surrogate pair (an emoji cut in two), which becomes U+FFFD.
"""

from __future__ import annotations

import codecs
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
# A name ends in a quote and a colon; so do some texts, as `":"` begins and `"{\"a\": 1}"` goes on.
_NAME_END = re.compile(rb'"\s*+:')
_UNESCAPED_NAME_END = re.compile(rb'"(?<!(?<!\\)\\")\s*+:')
START = 64  # bytes, in which most files with blanks between names and values have one
LONGEST_WORD = 16  # characters: more than `-Infinity`, or an escape, has


def load(text: bytes | str) -> Any:
    """Read one JSON value. NaN and infinity stay what they are: readers take them for unknown.

    Raises:
        ValueError: If it is no JSON.
    """
    return _load(text)[0]


def load_given(text: bytes | str) -> Any:
    """Read one JSON value of a user's, in which no object has a name twice.

    Of two values by one name all readers take the last: a query would be lost without a word.

    Raises:
        ValueError: If it is no JSON, or an object has; names it.
    """
    value, names = _load(text)
    if names is None:
        return value
    data = text if isinstance(text, bytes) else text.encode(errors="replace")
    # There are at least as many ends as names, and mostly no more.
    if len(_NAME_END.findall(data)) != names and len(_UNESCAPED_NAME_END.findall(data)) != names:
        try:
            json.loads(text, object_pairs_hook=_object)
        except RecursionError:
            raise ValueError("nested too deeply") from None
    return value


def _load(text: bytes | str) -> tuple[Any, int | None]:
    """Read one JSON value; return how many names its objects have too, or -1 if not counted.

    None if it is known that nothing was lost: what was read is the same text when it is written.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        try:
            return _whole(json.loads(text if isinstance(text, str) else text.decode())), -1
        except (ValueError, RecursionError):
            raise error from None
    data = text if isinstance(text, bytes) else text.encode()
    if b'": ' not in data[:START] and _is_written_so(value, data):
        return value, None
    names, left = 0, [value]
    for item in left:  # grows with it
        kind = type(item)
        if kind is dict:
            names += len(item)
            left += item.values()
        elif kind is list:
            left += item
        elif kind is float and abs(item) >= 2**63:
            # May be made of a whole number beyond 64 bits.
            return json.loads(text), -1
    return value, names


def _is_written_so(value: Any, data: bytes) -> bool:
    """Tell whether a text is just what we write for a value, as in all files of ours."""
    try:
        return orjson.dumps(value) == data.strip()
    except TypeError:  # nested more deeply than can be written
        return False


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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = {_whole(name): value for name, value in pairs}
    if len(made) < len(pairs):
        [(name, _)] = Counter(_whole(name) for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {name!r} is given twice")
    return made


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

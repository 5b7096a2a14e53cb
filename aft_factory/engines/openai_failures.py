"""What an OpenAI-compatible server says where it gives no answer: its words, and what they mean.

Pure. Knows no server by name, but the shapes in which errors come: with a status of their own, or
in disguise behind a 200; an object, an array of one, or a text; a gateway's around a provider's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from aft_factory.engines.engine import EngineError
from aft_factory.engines.openai_parts import as_object
from aft_factory.network import hint, without_keys
from aft_factory.records import exact_json

MOST_WORDS = 500  # characters of a server's error message
# Of 429s, which mostly pass, these do not.
SPENT = re.compile(r"insufficient|billing|payment|credit|balance", re.IGNORECASE)
# Whatever the status: a text that is too long will be so the next time, and so will be roles that a
# chat template does not take.
LASTING = re.compile(
    r"context\b.{0,40}\b(?:exceed|overflow)|"
    r"(?:exceed\w*|(?:great|long|larg)er than)\b.{0,40}\bcontext|"
    r"\bjinja\b|raise_exception|\broles? (?:must|not|are|is not)\b",
    re.IGNORECASE,
)
# How servers say in words when to come again: "try again in 7m12.5s", "retry after 10 seconds".
_TIME = r"(\d+(?:\.\d+)?)\s*(ms|mil|[hms])"
_UNIT_ENDS = r"(?:ours?|rs?|in(?:ute)?s?|ec(?:ond)?s?|liseconds?)?(?![a-z])"  # not: "retry 3 more"
AGAIN = re.compile(
    rf"\b(?:again|retry|wait)\s+(?:(?:in|after|for)\s+)?(?:{_TIME}{_UNIT_ENDS}\s*)+",
    re.IGNORECASE,
)
UNITS = {"ms": 0.001, "mil": 0.001, "s": 1, "m": 60, "h": 3600}
UNTAKEN = re.compile(
    r"unsupported|not[ _](?:supported?|permitted|allowed|taken|accepted)|does(?: not|n't) support|"
    r"unknown|unrecogni[sz]ed|unexpected|forbidden",
    re.IGNORECASE,
)
# An error without a status is what it says: the first of these that is found in it counts.
SAID = {
    status: re.compile(words, re.IGNORECASE)
    for status, words in {
        429: r"rate.?limit|too.many.requests|quota|billing",
        503: r"overload|busy|time.?out|timed.out|unavailable|temporar|again.(?:later|in|soon)|"
        r"internal|(?:server|api|unexpected|unknown).error",
        401: r"api.?key|authenti|unauthori[sz]ed|permission",
        404: r"endpoint|not.?found|not.exist|no.models?.loaded",
        400: rf"invalid|bad.?request|validation|must|required|expected|missing|render|only|"
        rf"{UNTAKEN.pattern}",
    }.items()
}
ABSENT = (404, 405)
STATUSES = range(400, 600)
WITHIN = ("error", "message", "detail", "raw")  # what holds an error's words
DEEPEST = 10  # errors around an error
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
    body = read_json(response.content)
    kind, after = _meaning(status, words, body, retry_after(response.headers))
    problem = words if kind == "refused" else f"{url} answered {status}: {words}{hint(url, '')}"
    return EngineError(problem + (absent if status in ABSENT else ""), kind, after, body, status)


def _meaning(
    status: int, words: str, body: Any, after: float | None = None
) -> tuple[Kind, float | None]:
    """Return what a status means with what else is said, and the seconds to wait."""
    kind, after = kind_of(status), _delay_in(body) if after is None else after
    if kind == "retry" and after is None and (again := AGAIN.search(words)):
        parts = re.findall(_TIME, again[0].lower())
        after = sum(float(number) * UNITS[unit] for number, unit in parts)
    if status == 429 and after is None and SPENT.search(exact_json.dump([words, body]).decode()):
        kind = "fatal"  # a quota that is used up does not pass
    elif kind == "retry" and LASTING.search(words):
        kind = "refused"
    elif kind == "refused" and after is not None:  # of whatever status: it says that it passes
        kind = "retry"
    return kind, after


def _status_said(error: Any, words: str) -> int | None:
    """Return the status that fits an error without one, by its type, else by its words."""
    types = " ".join(str(as_object(error).get(name)) for name in ("type", "code", "status"))
    found = (status for text in (types, words) for status in SAID if SAID[status].search(text))
    return next(found, None)


def undisguised(data: Any) -> Any:
    """Return the body of an answer of status 200, unless it is an error in disguise."""
    for one in data if isinstance(data, list) else [data]:
        if not isinstance(one, dict):
            continue
        error = one.get("error")
        inner = error if isinstance(error, dict) else one
        codes = (str(inner.get(name)) for name in ("code", "status", "status_code"))
        code = next((int(code) for code in codes if code in map(str, STATUSES)), None)
        bare = code is not None and not one.get("choices") and not one.get("data")
        if error or one.get("object") == "error" or bare:
            words = error_words(exact_json.dump(one))
            status = code or _status_said(inner, words) or 503
            raise EngineError(words, *_meaning(status, words, one), one, status)
    return data


def read_json(body: bytes) -> Any:
    """Return the JSON value of a body, None if it is none; NaN and halves of emoji are read.

    Around it may stand what belongs to no JSON: a byte order mark, or the end of a stream.
    """
    body = body.removeprefix(b"\xef\xbb\xbf").rstrip().removesuffix(b"data: [DONE]")
    try:
        return exact_json.load(body)
    except ValueError:
        return None


def error_words(body: bytes) -> str:
    """Return the message inside an error's body, whatever its shape: the server's own words."""
    found = read_json(body)
    if found is None:
        found = _page_words(body.decode(errors="replace"))
    words = ": ".join(dict.fromkeys(_words_in(found)))
    words = "".join(c if c.isprintable() else " " for c in words)  # it may reach a terminal
    words = without_keys(" ".join(words.split()))  # before one could be cut in two
    return words[:MOST_WORDS] or "(no message)"


def _words_in(found: Any, depth: int = 0) -> Iterator[str]:
    """Find the words of an error, then those of the error that it passes on."""
    if isinstance(found, list) and len(found) == 1 and set(WITHIN) & set(as_object(found[0])):
        found = found[0]
    if isinstance(found, str) and found.startswith("{"):  # passed on as a text
        found = as_object(read_json(found.encode(errors="replace"))) or found
    inner = metadata = None
    if isinstance(found, dict) and depth < DEEPEST:
        inner = next((found[name] for name in WITHIN if found.get(name)), None)
        inner = inner or (found["data"] if isinstance(found.get("data"), str) else None)
        metadata = as_object(found.get("metadata")).get("raw")
    if inner is None:
        yield found if isinstance(found, str) else exact_json.dump(found).decode()
    else:
        yield from _words_in(inner, depth + 1)
    if metadata:
        yield from _words_in(metadata, depth + 1)


def _page_words(text: str) -> str:
    """Return what a page is called, where a server answers with one; any other text as it is."""
    if not re.match(r"\s*<(!doctype|html|head)\b", text, re.IGNORECASE):
        return text
    found = re.findall(r"<(title|h1)\b[^>]*>(.*?)</\1>", text, re.IGNORECASE | re.DOTALL)
    told = [" ".join(re.sub(r"<[^>]*>", " ", inner).split()) for _, inner in found]
    return ": ".join(dict.fromkeys(["a page of HTML", *told])) if any(told) else text


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


def _delay_in(value: Any, depth: int = 0) -> float | None:
    """Return the seconds to wait that the body of an error asks for (`"retryDelay": "17s"`)."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    said = value.get("retryDelay") if isinstance(value, dict) else None
    if seconds := re.fullmatch(r"(\d+(?:\.\d+)?)s", said) if isinstance(said, str) else None:
        return float(seconds[1])
    found = (_delay_in(one, depth + 1) for one in inner if depth < DEEPEST)
    return next((seconds for seconds in found if seconds is not None), None)

"""Reads what the client of an OpenAI-compatible server gets: a whole answer, a stream, a list."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from aft_factory.engines.engine import EngineError, Heard, shown_url
from aft_factory.engines.openai_replies import models_in, parse_answer, parse_body
from aft_factory.engines.openai_streams import Joining, lines_of
from aft_factory.engines.sampling import Told


async def read_whole(call: Awaitable[Any], url: str, longest: float) -> dict[str, Any]:
    """Return the answer to a request.

    Args:
        call: Of the client, to come back with the raw answer.
        url: Of the server, for messages.
        longest: Most seconds for all of it: a body may come by drops, and never end.

    Raises:
        EngineError: If there is none.
    """
    try:
        async with asyncio.timeout(longest):
            response = (await call).http_response
    except TimeoutError:
        raise EngineError(f"{url}: no whole answer within {longest:g} s", "retry") from None
    if response.request.method != "POST":
        raise EngineError(f"{url}: no answer{moved(response)}", "fatal")
    return parse_body(response.content, url)


async def follow(stream: Any, url: str, told: Told | None, heard: Heard | None) -> dict[str, Any]:
    """Read an answer while it is written, if the server streams it.

    Args:
        stream: Of the client, with the answer.
        url: Of the server, for messages.
        told: Hears of the texts.
        heard: Hears of the chunks.

    Raises:
        EngineError: If there is none, or it breaks off.
    """
    async with stream as response:
        if "event-stream" not in response.headers.get("content-type", ""):
            return parse_body(await response.read(), url)
        joining = Joining(url, told or _nobody)
        heard = heard or _nobody
        try:
            async for line in lines_of(response.iter_bytes()):
                chunk = joining.take(line)
                if chunk is not None and "error" not in chunk:  # which is told as all failures are
                    heard(chunk)
        except EngineError:
            raise
        except Exception as error:  # of whatever package carries the bytes
            raise EngineError(f"{url}: the stream broke off: {error!r}", "retry") from error
        return joining.answer()


async def read_list(call: Awaitable[Any], url: str) -> Any:
    """Return the list of models."""
    return models_in(parse_answer((await call).http_response.content, url))


def moved(response: Any) -> str:
    """Say where a request was sent on to: as one of another kind, often."""
    if not response.history:
        return ""
    place = shown_url(str(response.url))
    return f" (it was redirected to {place}; name the server that answers there)"


def _nobody(_: object) -> None:
    """Hear nothing."""

"""The endpoint of chat completions: whole answers and streams, for as long as somebody waits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aft_factory.asking.limiter import client
from aft_factory.inference.outcome import Outcome
from aft_factory.records import exact_json
from aft_factory.serve.answering import Answering, Task
from aft_factory.serve.asked import Asked, read_request
from aft_factory.serve.events import Events, event
from aft_factory.serve.refusals import NEVER, Refusal, later, of_outcome
from aft_factory.serve.replies import (
    Head,
    account,
    choices_of,
    drafts_text,
    finish_reason,
    shows_thoughts,
    usage_of,
)
from aft_factory.serve.showing import Showing
from aft_factory.serve.state import State

LONGEST_SEND = 60.0  # seconds that a client may take to send its request
FIRST = 0.5  # seconds within which what is wrong still has a status of its own
LONGEST_LAST = 5.0  # seconds that it may take to tell of a failure in mid-stream
NO_CACHE = {"cache-control": "no-cache", "x-accel-buffering": "no"}
UNKNOWN = "unknown"  # the variant of a request that names none on offer, for metrics

T = TypeVar("T")
_log = logging.getLogger(__name__)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] = {}) -> Response:
    """Return an answer in JSON."""
    body = exact_json.dump(content)
    return Response(body, status, {"content-type": "application/json", **headers})


def refused(refusal: Refusal) -> Response:
    """Return the answer to a request that is refused."""
    return json_response(refusal.body, refusal.status, refusal.headers)


class Chat:
    """`POST /v1/chat/completions`, as an ASGI application.

    Args:
        state: Of the server.
    """

    def __init__(self, state: State) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = _Exchange(self._state, scope, receive, send)
        exchange.count(await exchange.run())


class _Exchange:
    """One request and its answer."""

    def __init__(self, state: State, scope: Scope, receive: Receive, send: Send) -> None:
        self._state = state
        self._request = Request(scope, receive)
        self._scope, self._receive, self._send = scope, receive, send
        self._client = str(scope.get("aft.client", ""))
        self._started = time.monotonic()
        self._first: float | None = None
        self._streaming = False
        self._variant = UNKNOWN

    def count(self, status: str) -> None:
        """Tell the metrics how it ended."""
        seconds = time.monotonic() - self._started
        self._state.metrics.ended(self._variant, status, seconds, self._first)

    async def run(self) -> str:
        """Answer; return how it ended: the status, or `gone`."""
        try:
            self._state.ready()
            body = await self._body()
            with self._state.admitted(self._client) as answering:
                return await self._while_wanted(answering, read_request(body))
        except Refusal as refusal:
            return await self._refuse(refusal)
        except ClientDisconnect:
            return "gone"
        except Exception:
            _log.exception("a request failed")
            return await self._refuse(Refusal(500, "the server failed", "internal_error"))

    async def _refuse(self, refusal: Refusal) -> str:
        if self._streaming:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(LONGEST_LAST):  # of one that has stopped to read
                    await self._send_body(event(exact_json.dump(refusal.body)))
                    await self._send({"type": "http.response.body", "body": b""})
        else:
            await refused(refusal)(self._scope, self._receive, self._send)
        return str(refusal.status)

    async def _body(self) -> Any:
        """Read what was sent.

        Raises:
            Refusal: If it is too long, too slow or no JSON.
        """
        headers = self._request.headers
        if headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "the request is compressed; send it as it is", "invalid_body")
        # A page of others may send what is not called JSON without asking the server before.
        if "origin" in headers and "json" not in headers.get("content-type", ""):
            raise Refusal(415, "content-type: expected application/json", "invalid_body")
        most, parts, size = self._state.settings.max_body, [], 0
        try:
            async with asyncio.timeout(LONGEST_SEND):
                async for part in self._request.stream():
                    parts.append(part)
                    size += len(part)
                    if size > most:
                        raise Refusal(413, f"the request is longer than {most} bytes", "too_long")
        except TimeoutError:
            raise Refusal(408, "the request did not come whole", "timeout", None, NEVER) from None
        try:
            return exact_json.load(b"".join(parts))
        except ValueError as error:
            raise Refusal(400, f"the request is no JSON: {error}", "invalid_json") from None

    async def _while_wanted(self, answering: Answering, asked: Asked) -> str:
        """Answer, as long as the client is there and the server is not aborted."""
        client.set(self._client)
        task = answering.prepare(asked)
        self._variant = task.variant.name
        answer = self._stream if asked.stream else self._whole
        if task.relayed:
            answer = self._relay
        work = asyncio.create_task(answer(answering, task))
        gone = asyncio.create_task(self._disconnected())
        aborted = asyncio.create_task(self._state.aborted.wait())
        tasks = (work, gone, aborted)
        try:
            limit = self._state.settings.time_limit
            await asyncio.wait(tasks, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return await work
        finally:
            for one in tasks:
                one.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if gone.done() and not gone.cancelled():
            return "gone"
        if self._state.aborted.is_set():
            raise later("the server stops", "stopping")
        raise Refusal(504, f"no answer within {limit:g} s", "timeout", None, NEVER)

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _whole(self, answering: Answering, task: Task) -> str:
        """Answer in one piece."""
        outcome = await self._usable(answering.answer(task))
        asked, variant = task.asked, task.variant
        names = self._state.settings.reasoning_fields
        drafts = drafts_text(outcome, variant) if asked.keep_drafts else ""
        content = self._head(task).completion(
            choices_of(outcome, variant),
            usage_of(outcome, variant),
            account(outcome, variant, task.seed),
            drafts,
            names or ("reasoning_content",) * asked.keep_drafts,
        )
        return await self._whole_of(task, content)

    async def _whole_of(self, task: Task, content: Any) -> str:
        self._first = time.monotonic() - self._started
        response = json_response(content, headers=self._headers(task))
        await response(self._scope, self._receive, self._send)
        return "200"

    def _head(self, task: Task) -> Head:
        return Head(uuid.uuid4().hex, task.asked.model or task.variant.name)

    def _headers(self, task: Task) -> dict[str, str]:
        return NO_CACHE | ({"x-aft-replayed": "true"} if task.replayed else {})

    async def _stream(self, answering: Answering, task: Task) -> str:
        """Answer piece by piece."""
        asked, head, events = task.asked, self._head(task), Events()
        usage: dict[str, Any] = {"usage": None} if asked.include_usage else {}

        def put(index: int, delta: Mapping[str, str], reason: str | None = None) -> None:
            events.put(exact_json.dump(head.chunk(index, delta, reason, **usage)))

        names = self._state.settings.reasoning_fields
        showing = Showing(
            answering.markers,
            lambda index, text: put(index, {"content": text}),
            (lambda index, text: put(index, dict.fromkeys(names, text))) if names else None,
            whole=shows_thoughts(task.variant),
        )
        opening = [
            exact_json.dump(head.chunk(index, {"role": "assistant", "content": ""}, **usage))
            for index in range(asked.n)
        ]
        work = answering.answer(task, showing)
        outcome = await self._while_made(task, events, opening, self._usable(work))
        for index, choice in enumerate(choices_of(outcome, task.variant)):
            if not showing.ends_as(index, choice):
                raise Refusal(500, "the model began anew, and wrote another answer", "rewritten")
            put(index, {}, finish_reason(choice.finish_reason))
        if asked.include_usage:
            took = usage_of(outcome, task.variant)
            last = head.last_chunk(took, account(outcome, task.variant, task.seed))
            events.put(exact_json.dump(last))
        return await self._end(events)

    async def _relay(self, answering: Answering, task: Task) -> str:
        """Answer as the engine does, to the request as it came."""
        named = {"model": task.asked.model or task.variant.name}
        if not task.asked.stream:
            return await self._whole_of(task, await answering.relay(task) | named)
        events = Events()
        work = answering.relay(task, lambda chunk: events.put(exact_json.dump(chunk | named)))
        await self._while_made(task, events, [], work)
        return await self._end(events)

    async def _while_made(
        self, task: Task, events: Events, opening: Sequence[bytes], work: Coroutine[Any, Any, T]
    ) -> T:
        """Send events while what makes them is at work; return its result.

        Args:
            task: The request.
            events: To be sent behind those of the opening.
            opening: Sent once it is clear that it does not fail at once.
            work: Makes them.
        """
        making = asyncio.create_task(work)
        making.add_done_callback(events.end)
        try:
            await events.begun(FIRST)
            if making.done():  # what fails at once has a status of its own
                await making
            headers = {"content-type": "text/event-stream; charset=utf-8"} | self._headers(task)
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            await self._send({"type": "http.response.start", "status": 200, "headers": raw})
            self._streaming = True
            self._first = time.monotonic() - self._started
            await self._send_body(b"".join(map(event, opening)))
            async for some in events.sendable():
                await self._send_body(some)
            return await making
        finally:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)

    async def _end(self, events: Events) -> str:
        """Send what is left of a stream."""
        events.put(b"[DONE]")
        events.end()
        async for some in events.sendable():
            await self._send_body(some)
        await self._send({"type": "http.response.body", "body": b""})
        return "200"

    async def _send_body(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _usable(self, work: Awaitable[Outcome]) -> Outcome:
        """Return an outcome, if there is an answer in it.

        Raises:
            Refusal: If there is none.
        """
        outcome = await work
        self._state.metrics.took(outcome)
        if outcome.problem is not None:
            raise of_outcome(outcome)
        return outcome

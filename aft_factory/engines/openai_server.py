"""One OpenAI-compatible server: its client, its load and whether to send it requests now.

Of several servers, one that fails is left alone for a while, each time twice as long; one that asks
for less (429) as long as it says. A single server is always asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from aft_factory.engines.engine import EngineError, Heard
from aft_factory.engines.openai_failures import ABSENT, failure_of
from aft_factory.engines.openai_fields import STREAM, Fields
from aft_factory.engines.openai_neutral import neutral_fields
from aft_factory.engines.openai_reading import follow, moved, read_list, read_whole
from aft_factory.engines.openai_vetting import Vetting
from aft_factory.engines.sampling import Told
from aft_factory.network import hint

if TYPE_CHECKING:
    from openai import AsyncOpenAI

LONGEST_PAUSE = 60.0  # seconds a failing server is left alone at most, unless it asks for more

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Server:
    """One URL.

    Args:
        url: Of the server.
        client: Asks it.
        http: What the client asks by.
        omit: See `Fields`.
        wait: Most seconds for what is no answer of a model.

    Attributes:
        alone: Whether there is no other server.
        in_flight: Requests under way, and such as wait for them to show what the server takes.
        back_at: Until then it is left alone, on the clock `time.monotonic`.
        denies: Whether it last answered that no request will do: wrong key, no such model.
        fields: The fields of requests that it takes.
        tried: Requests that were sent by `try_out`.
    """

    def __init__(
        self, url: str, client: AsyncOpenAI, http: Any, omit: Sequence[str], wait: float
    ) -> None:
        self.url = url
        self.client = client
        self._wait = wait
        self.fields = Fields(omit)
        self.tried = 0
        self._vetting = Vetting(url, self.fields, self._post, self._deny)
        # By what a request has (`messages` or `prompt`); None: it did not answer yet.
        self._neutral: dict[str, dict[str, Any]] | None = None
        self._http = http
        self.alone = False
        self.in_flight = 0
        self.back_at = 0.0
        self.denies = False
        self._in_doubt = False
        self._rests = 0  # in a row
        self._rested_at = 0.0  # when the last one began
        self._tells_cached = False

    def is_live(self, now: float) -> bool:
        """Whether to send it a request: while it is in doubt or new, one at a time."""
        new = self._neutral is None
        return now >= self.back_at and not ((self._in_doubt or new) and self.in_flight)

    async def ask(self, body: dict[str, Any], told: Told | None = None) -> dict[str, Any]:
        """Send one request and return the body of the answer; see `Vetting.ask`.

        What is left out in it and the server would fill in by itself is sent, if it takes that.

        Args:
            body: What to send.
            told: Hears of the texts while they are written.
        """
        self.in_flight += 1
        try:
            kind = "messages" if "messages" in body else "prompt"
            body = await self._filled(kind) | body
            if told is None:
                return await self._vetting.ask(body)
            return await self._vetting.ask(STREAM | body, partial(self._post, told=told))
        finally:
            self.in_flight -= 1

    async def relay(
        self, own: dict[str, Any], body: dict[str, Any], heard: Heard | None
    ) -> dict[str, Any]:
        """Send somebody's body as it is, and return the body of the answer.

        Nothing is learned from what is refused in it, as it says nothing of others.

        Args:
            own: What is sent besides, of what the server takes.
            body: What to send.
            heard: Hears of the chunks of a stream.
        """
        self.in_flight += 1
        try:
            sent = self.fields.applied(await self._filled("messages") | own) | body
            return await self._post(sent, heard=heard, sampling=False)
        finally:
            self.in_flight -= 1

    async def _filled(self, kind: str) -> dict[str, Any]:
        """Return what is sent so that the server does not fill it in."""
        if self._neutral is None:  # it did not answer at the start
            await self._meet()
        assert self._neutral is not None
        return self._neutral.get(kind, {})

    async def try_out(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """Return what it answers to a request that is no run's; see `Vetting.try_out`.

        Returns:
            None if it refused it; nothing in it where it did not answer, which tells nothing.

        Raises:
            EngineError: If it answers nobody.
        """
        self.tried += 1
        try:
            return await self._vetting.try_out(body)
        except EngineError as error:
            if error.kind == "fatal":
                raise
            return {} if error.kind == "retry" else None

    async def _post(
        self,
        body: Mapping[str, Any],
        told: Told | None = None,
        heard: Heard | None = None,
        *,
        sampling: bool = True,
    ) -> dict[str, Any]:
        chat = "messages" in body
        endpoint: Any = self.client.chat.completions if chat else self.client.completions
        # In `extra_body` all of it goes out as it is, whatever the client knows of it.
        absent = "" if chat else " (does it complete texts? --chat asks by chat)"
        needed = {name: body[name] for name in ("model", "messages", "prompt") if name in body}
        more = {name: value for name, value in body.items() if name not in needed}
        if told is None and heard is None:
            longest = self._http.timeout.read + self._wait
            whole = endpoint.with_raw_response.create(**needed, extra_body=more)
            answer = read_whole(whole, self.url, longest)
        else:
            stream = endpoint.with_streaming_response.create(**needed, extra_body=more)
            answer = follow(stream, self.url, told, heard)
        return await self._call(answer, sampling=sampling, absent=absent)

    async def models(self) -> list[dict[str, Any]]:
        """Return what it offers; nothing if it does not tell.

        Raises:
            EngineError: If it does not answer, or the key is wrong.
        """
        listing = self.client.models.with_raw_response.list(timeout=self._wait)
        try:
            entries = await self._call(read_list(listing, self.url), sampling=False)
        except EngineError as error:
            status = error.status
            lasts = status in (500, 501) or error.__cause__ is None  # it answers, but with no list
            if status == 401 or (error.kind == "retry" and not lasts):
                raise
            level = logging.INFO if status in ABSENT else logging.WARNING
            _log.log(level, "%s does not list its models: %s", self.url, error)
            return []
        entries = entries if isinstance(entries, list) else []
        named = [e for e in entries if isinstance(e, dict) and isinstance(e.get("id"), str)]
        return [entry for entry in named if entry["id"].isprintable()]  # it goes to terminals, too

    async def _meet(self) -> None:
        """Find out what it takes, or that it does not answer yet."""
        offer: list[dict[str, Any]] = []
        try:
            offer = await self.models()
        except EngineError as error:
            if error.kind == "retry":
                raise  # a wrong key is told by the request itself
        await self.learn_fields(offer)

    async def learn_fields(self, offer: list[dict[str, Any]]) -> None:
        """Find out which fields it would fill in by itself; see `neutral_fields`."""
        self._neutral = await neutral_fields(self._http, self.url, self._wait, offer)

    def cached(self, told: int | None, samples: int) -> int | None:
        """Return how many tokens of a prompt were computed before, from what an answer tells.

        vLLM leaves out a 0, so that nothing told means 0 where it told before. Of several samples
        it tells what the one that ended last found, and most find what the first one read.
        """
        self._tells_cached |= told is not None
        if told is None and self._tells_cached:
            return 0
        return told if samples == 1 or told == 0 else None

    async def _call(self, call: Awaitable[T], *, sampling: bool = True, absent: str = "") -> T:
        """Await a call of the client; turn its failures into EngineError and note them."""
        import openai

        started = time.monotonic()
        try:
            answer = await call
        except openai.APIStatusError as error:
            failure = failure_of(error.response, self.url, self._elsewhere or absent)
            failure.problem += moved(error.response)
            if failure.kind == "retry" or (failure.kind == "fatal" and sampling):
                in_doubt = failure.kind == "fatal" or error.status_code >= 500
                self._fails(started, failure, in_doubt=in_doubt)
            else:
                self._works(started)
            raise failure from error
        except openai.APIError as error:  # no whole answer came
            problem = f"{self.url}: {error.message} {error.__cause__ or ''}".strip()
            failure = EngineError(problem + hint(self.url, problem), "retry")
            self._fails(started, failure, in_doubt=True)
            raise failure from error
        except EngineError as failure:  # of status 200
            if failure.kind == "refused":
                self._works(started)
            else:
                words = failure.problem.removeprefix(f"{self.url}: ")
                misplaced = failure.kind == "fatal" or not sampling
                failure.problem = f"{self.url}: {words}{self._elsewhere * misplaced}"
                self._fails(started, failure, in_doubt=failure.kind == "fatal")
            raise
        self._works(started)
        return answer

    @property
    def _elsewhere(self) -> str:
        return "" if self.url.endswith("/v1") else " (should the URL end in /v1?)"

    def _deny(self, refusal: EngineError) -> None:
        """Take note that no request of some settings will do."""
        self._fails(time.monotonic(), refusal, in_doubt=True)

    def _works(self, started: float) -> None:
        self.denies = False
        if self._in_doubt or started >= self._rested_at:  # else it was let in before the limit
            self._rests, self.back_at, self._in_doubt = 0, 0.0, False

    def _fails(self, started: float, failure: EngineError, *, in_doubt: bool) -> None:
        self.denies = failure.kind == "fatal"
        if self.alone or started < self._rested_at:
            return  # one failure meets all requests in flight; it counts once
        pause = min(2.0 ** min(self._rests, 30), LONGEST_PAUSE)  # 2.0 ** 1024 overflows
        pause = failure.retry_after or pause
        self._rests += 1
        self._rested_at = time.monotonic()
        self._in_doubt = in_doubt
        self.back_at = self._rested_at + pause
        words = failure.problem.removeprefix(self.url).lstrip(": ")
        level = logging.WARNING if in_doubt else logging.INFO
        _log.log(level, "%s is left alone for %g s: %s", self.url, pause, words)

"""Whether a server takes the settings of requests: found out once, by the first of them.

What a server refuses for its settings, it would refuse for every row. So the first request of some
settings goes ahead of the others; a field that the server does not know is left out from then on,
and where the settings cannot do, all of them fail at once, in the server's words.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, TypeVar

from aft_factory.engines.engine import EngineError
from aft_factory.engines.openai_fields import LENGTHS, Fields, hint

LEAD = 1.0  # seconds that the first request goes ahead: a refusal comes sooner than an answer
MOST_REFUSED = 4  # requests in a row, before nobody may be answered any more
MOST_SETTINGS = 1000  # remembered: those who ask a server of ours may name any
SHORT_QUESTION = "Say hello."
# What servers say of a conversation that they have nothing to render with; not of its variables.
TEMPLATE = re.compile(r"chat[ _]template(?!_)", re.IGNORECASE)
NO_TEMPLATE = (
    "the served model has no chat template that renders even a short question: start the server "
    "with one (vLLM's --chat-template), or serve a model that has one; its words"
)
QUESTION = ("messages", "prompt", "input", "seed")  # differ between requests of equal settings

_log = logging.getLogger(__name__)
T = TypeVar("T")
Post = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]


class _Settings:
    """What is known of requests of the same settings.

    Attributes:
        gate: Lets the first of them through alone.
        passed: Whether the others need not wait for it any more.
        answered: Whether the server has answered one.
        refused: How often it refused all of them; why, the last time, is `refusal`.
    """

    def __init__(self, *, answered: bool = False) -> None:
        self.gate = asyncio.Lock()
        self.passed = self.answered = answered
        self.refused = 0
        self.refusal: EngineError | None = None

    def note(self, asked: asyncio.Task[dict[str, Any]]) -> None:
        """Take note of how a request ended."""
        error = None if asked.cancelled() else asked.exception()
        if isinstance(error, EngineError) and error.kind == "fatal":
            self.refused, self.refusal = self.refused + 1, error


@dataclass(eq=False)
class Vetting:
    """Asks one server, and learns what it takes.

    Attributes:
        url: Of the server, for messages.
        fields: What it takes.
        post: Sends a body as it is.
        deny: Told that no request of some settings will do.
        short: The question of a short request; None says hello.
        advice: From the settings that a refusal speaks of to what helps.
    """

    url: str
    fields: Fields
    post: Post
    deny: Callable[[EngineError], object] = lambda _: None
    _: KW_ONLY
    short: Mapping[str, Any] | None = None
    advice: Callable[[Sequence[str]], str] = hint
    _settings: dict[str, _Settings] = field(default_factory=dict, init=False)
    _answered: bool = field(default=False, init=False)
    _in_a_row: int = field(default=0, init=False)  # refused since somebody was answered
    _patience: int = field(default=MOST_REFUSED, init=False)
    _doubting: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def ask(self, body: Mapping[str, Any], post: Post | None = None) -> dict[str, Any]:
        """Send one request and return the body of the answer.

        The first request of its settings goes ahead of the others: what is refused in it for its
        settings would be refused in all.

        Args:
            body: What to send.
            post: Sends it in another way than all others.

        Raises:
            EngineError: If there is none; of kind `fatal`, if the settings are refused.
        """
        post, shape = post or self.post, _shape(body)
        while shape not in self._settings and len(self._settings) >= MOST_SETTINGS:
            del self._settings[next(iter(self._settings))]
        settings = self._settings.setdefault(shape, _Settings())
        if settings.passed:
            return await self._ask(body, settings, post)
        refused = settings.refused
        async with settings.gate:
            if settings.refused > refused:  # meanwhile: so would this one be
                assert settings.refusal is not None
                raise settings.refusal
            first = asyncio.create_task(self._ask(body, settings, post))
            first.add_done_callback(settings.note)
            if not settings.passed:
                await _or_cancel(first, asyncio.wait({first}, timeout=LEAD))
                settings.passed |= not first.done()
        return await _or_cancel(first, first)

    async def try_out(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request that stands for no others; what is refused in it is judged by nobody.

        Raises:
            EngineError: If there is no answer.
        """
        return await self._ask(body, _Settings(answered=True), self.post)

    async def _ask(
        self, body: Mapping[str, Any], settings: _Settings, post: Post
    ) -> dict[str, Any]:
        refused = settings.refused
        while True:
            sent = self.fields.applied(body)
            try:
                answer = await post(sent)
            except EngineError as error:
                if error.kind == "fatal" and self._may_be_of_one(error):
                    await self._doubt(error, sent, settings, refused)
                if error.kind != "refused":
                    raise
                refusal = error.body
                if lost := self.fields.hopeless(refusal, sent):
                    raise self._refused(error, lost) from error
                told = self.fields.learn(refusal, sent)
                if not told:
                    if settings.answered:
                        await self._doubt(error, sent, settings, refused)
                    else:
                        await self._judge(error, sent, settings)
                    raise
                _log.warning("%s: %s; its words: %s", self.url, ", ".join(told), error)
            else:
                settings.passed = settings.answered = self._answered = True
                self._in_a_row = 0
                return answer

    def _may_be_of_one(self, error: EngineError) -> bool:
        """Tell whether a refusal may be of one text: by a filter of contents, or its firewall."""
        return error.status == 403 or (error.status == 404 and self._answered)

    async def _doubt(
        self, error: EngineError, sent: Mapping[str, Any], settings: _Settings, refused: int
    ) -> None:
        """Find out whether what was refused is one request, or all from now on: a spent budget.

        Raises:
            EngineError: Of kind `fatal`, if not even a short question is answered; `refused`, if
                it is, though the server put it as if all were.
        """
        async with self._doubting:
            if settings.refused > refused:  # meanwhile
                assert settings.refusal is not None
                raise settings.refusal
            self._in_a_row += 1
            if error.kind == "refused" and self._in_a_row < self._patience:
                return
            try:
                await self._ask_shortly(sent)
            except EngineError as again:
                if again.kind == "refused":
                    words = f"refuses even a short question by now: {again.problem}"
                    again = self._denied(f"{self.url} {words}")
                if again.kind == "fatal":
                    settings.refused, settings.refusal = settings.refused + 1, again
                raise again from error
            self._in_a_row, self._patience = 0, 2 * self._patience
            self._answered = True
        if error.kind == "fatal":
            raise EngineError(error.problem, "refused") from error

    async def _ask_shortly(self, sent: Mapping[str, Any]) -> None:
        """Ask something short by the settings of a request.

        Raises:
            EngineError: If there is no answer.
        """
        short = [{"role": "user", "content": SHORT_QUESTION}]
        asked = {"messages": short} if "messages" in sent else {"prompt": SHORT_QUESTION}
        await self.post({**sent, **(self.short or asked)})

    async def _judge(
        self, error: EngineError, sent: Mapping[str, Any], settings: _Settings
    ) -> None:
        """Find out whether what was refused is one request, or the settings of all.

        Raises:
            EngineError: Of kind `fatal`, if it is the settings: the server speaks of one, or
                refuses even a short question.
        """
        named = self.fields.blamed(error.problem, sent)
        repeated = self.fields.blamed(str(sent.get("messages", sent.get("prompt"))), sent)
        if not set(named) - LENGTHS - set(repeated):  # the words may be those of the question
            try:
                await self._ask_shortly(sent)
            except EngineError as again:
                if again.kind != "refused":
                    return
                if "messages" in sent and TEMPLATE.search(again.problem):
                    raise self._denied(f"{self.url}: {NO_TEMPLATE}: {again.problem}") from error
                named = self.fields.blamed(again.problem, sent) or named
            else:
                settings.passed = settings.answered = True
                return
        raise self._refused(error, named) from error

    def _refused(self, error: EngineError, named: Sequence[str]) -> EngineError:
        words = f"refuses these settings: {error.problem}{self.advice(named)}"
        return self._denied(f"{self.url} {words}")

    def _denied(self, problem: str) -> EngineError:
        refusal = EngineError(problem, "fatal")
        self.deny(refusal)
        return refusal


def _shape(body: Mapping[str, Any]) -> str:
    """Return the settings of a request: all of it but what is asked, and the seed."""
    settings = {k: v for k, v in body.items() if k not in QUESTION}
    return json.dumps([settings, "messages" in body], sort_keys=True, default=str)


async def _or_cancel(task: asyncio.Task[dict[str, Any]], waiting: Awaitable[T]) -> T:
    """Wait; where that is cancelled, the task is."""
    try:
        return await waiting
    except asyncio.CancelledError:
        task.cancel()
        raise

"""A replica, on its node: a Ray actor that holds what answers. Its driver's side is `ray_replicas`.

Errors that people are to read come back as values: raised, they would come wrapped in Ray's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import pickle
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aft_factory import __version__
from aft_factory.engines.engine import EngineError
from aft_factory.engines.identity import contents, fingerprint
from aft_factory.engines.sampling import Piece, Reply, Request
from aft_factory.errors import UsageError

Opening = Callable[[], Awaitable[Any]]  # loads what answers; pickled, and called on its node
TELL_EVERY = 0.02  # seconds between two messages of a stream, of which each costs Ray a millisecond


@dataclass(frozen=True, slots=True)
class Hello:
    """What a replica says of itself.

    Attributes:
        node: Where it is.
        version: Of aft-factory there.
        identity: See `comparable`.
        facts: What the driver has asked to know of it.
    """

    node: str
    version: str
    identity: str
    facts: dict[str, Any]


class Absent:
    """The answer of a replica that holds nothing: it was begun anew since it was last loaded."""


def comparable(identity: str, folders: Sequence[str]) -> str:
    """Return an identity that is the same for copies of the same files on several nodes.

    Names and sizes of files count, but not their times: each copy has its own.
    """
    for folder in folders:
        identity = identity.replace(fingerprint(folder), contents(folder))
    return identity


class Replica:
    """The actor.

    Args:
        opening: Loads what answers.
        folders: Of models that are part of its identity.
        facts: Attributes of it that the driver is told.
        here: The driver's folder, of which relative paths are; a node may not have it.
    """

    def __init__(
        self, opening: Opening, folders: Sequence[str], facts: Sequence[str], here: str
    ) -> None:
        with contextlib.suppress(OSError):
            os.chdir(here)
        self._opening, self._folders, self._facts = opening, folders, facts
        self._held: Any = None

    async def start(self) -> Hello | UsageError:
        """Load what answers, unless that is done; return why not where it cannot be."""
        node = socket.gethostname()
        try:
            if self._held is None:
                self._held = await self._opening()
        except Exception as error:  # the loaders raise anything
            return UsageError(f"{node}: {error or repr(error)}")
        identity = getattr(self._held, "identity", self._held.model)
        facts = {name: getattr(self._held, name, None) for name in self._facts}
        return Hello(node, __version__, comparable(identity, self._folders), facts)

    async def call(self, packed: bytes) -> bytes:
        """Call a method, in a thread of its own if it is not asynchronous."""
        name, given = pickle.loads(packed)
        return pickle.dumps(await self._called(name, *given), pickle.HIGHEST_PROTOCOL)

    async def stream(
        self, request: Request
    ) -> AsyncIterator[list[Piece] | Reply | EngineError | Absent]:
        """Go through what is told of a request's samples; the reply comes last."""
        if self._held is None:
            yield Absent()
            return
        pieces: list[Piece] = []
        news = asyncio.Event()

        def told(piece: Piece) -> None:
            pieces.append(piece)
            news.set()

        task = asyncio.ensure_future(self._held.stream(request, told))
        task.add_done_callback(lambda _: news.set())
        try:
            while not task.done() or pieces:
                await news.wait()
                if pieces:
                    now, pieces[:] = list(pieces), []
                    yield now
                if not task.done():
                    news.clear()
                    await asyncio.sleep(TELL_EVERY)
            yield await task
        except EngineError as error:
            yield await self._judged(error)
        finally:
            task.cancel()

    async def close(self) -> None:
        """Give back what it holds."""
        if self._held is not None:
            await self._held.close()

    async def _called(self, name: str, *given: Any) -> Any:
        if self._held is None:
            return Absent()
        method = getattr(self._held, name)
        try:
            if inspect.iscoroutinefunction(method):
                return await method(*given)
            return await asyncio.to_thread(method, *given)
        except EngineError as error:
            return await self._judged(error)

    async def _judged(self, error: EngineError) -> EngineError:
        if error.kind == "fatal" and not await self._held.reachable():
            os._exit(1)  # what answers has died: Ray begins a new process, and all is loaded anew
        return error

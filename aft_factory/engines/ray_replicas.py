"""Replicas: the driver's side. What answers, once on each of several nodes; one lost is begun anew.

A call goes to the replica with the least to do. Ray repeats no call by itself: one that is lost
with its replica goes to another, and whoever asked hears nothing of it. A replica that is down or
loading gets no calls; where none is ready, calls wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from aft_factory import __version__
from aft_factory.engines.engine import EngineError
from aft_factory.engines.ray_actor import Absent, Hello, Opening, Replica, comparable
from aft_factory.engines.ray_calls import result, words_of
from aft_factory.errors import UsageError

if TYPE_CHECKING:
    from aft_factory.engines.vllm_served import Served

CALLS = 65536  # at once, of one replica: no limit of Ray's own below those of a run
MOST_LOST = 5  # replicas lost with one call in turn: perhaps it is the call that ends them
MOST_STARTS = 5  # that end with the process, until a replica is given up
LONGEST_PAUSE = 30.0  # seconds between two starts, and for a replica to close
TELL_AFTER = 60.0  # seconds without any replica

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Member:
    """A replica, as the driver knows it.

    Attributes:
        name: For people.
        actor: Ray's handle.
        hello: What it said last; None while it does not answer.
        busy: The weight of the calls it is at.
        began: How often it was begun anew; a call that fails counts for the time it was sent in.
        loading: Waits until it answers.
    """

    name: str
    actor: Any
    hello: Hello | None = None
    busy: int = 0
    began: int = 0
    loading: asyncio.Task[None] = field(init=False)


class Replicas:
    """All replicas of one model. Made by `start`.

    Attributes:
        facts: What the driver wants to know of it.
        count: How many there are to be.
    """

    facts: ClassVar[Sequence[str]] = ()

    def __init__(self, actors: Sequence[Any], what: str, identity: str | None) -> None:
        self._members = [_Member(f"replica {i} of {what}", one) for i, one in enumerate(actors)]
        self._identity = identity
        self._changed = asyncio.Event()  # one is ready, or none can be
        self._failure: UsageError | None = None
        self._any = False  # whether one was ever ready
        self.count = len(actors)

    @classmethod
    async def start(
        cls,
        opening: Opening,
        count: int,
        gpus: int,
        *,
        what: str,
        folders: Sequence[str] = (),
        served: Served | None = None,
    ) -> Self:
        """Begin them all, and wait for the first.

        Args:
            opening: Loads what answers.
            count: How many.
            gpus: Of each.
            what: The model, for people.
            folders: Models that are part of its identity, where they are folders.
            served: What is to answer, as it is here; None takes the first one's word for all.

        Raises:
            UsageError: If the first that comes to an end of loading cannot load; of several, each
                is tried twice.
        """
        import ray

        actor = ray.remote(Replica).options(
            num_gpus=gpus,
            num_cpus=0 if gpus else 1,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=CALLS,
            scheduling_strategy="SPREAD",
        )
        expected = None if served is None else comparable(served.identity, folders)
        given = (opening, list(folders), list(cls.facts), os.getcwd())
        actors = [actor.remote(*given) for _ in range(count)]
        replicas = cls(actors, what, expected)
        for member in replicas._members:
            member.loading = asyncio.create_task(replicas._load(member))
        try:
            first = (await replicas._some()).hello
        except BaseException:
            await replicas.close()
            raise
        assert first is not None
        replicas._begun(first, what, served)
        return replicas

    def _begun(self, first: Hello, what: str, served: Served | None) -> None:
        """Take note of what they are, by what the first that was ready said."""

    async def reachable(self) -> bool:
        """Tell whether any is ready, or may be."""
        return self._failure is None

    async def call(self, weight: int, name: str, *given: Any) -> Any:
        """Have a replica call a method of what it holds; see `ask`."""
        # Bytes of our own, as Ray takes twice as long to pack anything else.
        packed = pickle.dumps((name, given), pickle.HIGHEST_PROTOCOL)
        return await self.ask(weight, lambda actor: result(actor.call.remote(packed)))

    async def ask(self, weight: int, call: Callable[[Any], Awaitable[Any]]) -> Any:
        """Have a replica do something, and another one if it is lost meanwhile.

        Args:
            weight: How much it is to do.
            call: Does it, by the actor.

        Raises:
            EngineError: What it answered; of kind `retry`, if several are lost in turn; of kind
                `fatal`, if none is left.
        """
        from ray.exceptions import RayError, RayTaskError

        words = ""
        for _ in range(MOST_LOST):
            try:
                member = await self._some()
            except UsageError as error:
                raise EngineError(str(error), "fatal") from error
            began = member.began
            member.busy += weight
            try:
                answer = await call(member.actor)
            except RayTaskError as error:  # our own error, or an answer that cannot be carried
                raise EngineError(f"{member.name}: {words_of(error)}", "retry") from error
            except RayError as error:  # its process, its node or its answer is gone
                answer, words = Absent(), words_of(error)
            finally:
                member.busy -= weight
            if isinstance(answer, EngineError):
                raise answer
            if not isinstance(answer, Absent):
                return answer
            if member.began == began:
                self._lose(member, words or "it was begun anew")
        raise EngineError(f"{MOST_LOST} replicas in turn were lost with this: {words}", "retry")

    async def close(self) -> None:
        """End them all."""
        import ray

        loading = [member.loading for member in self._members]
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)

        async def end(member: _Member) -> None:
            with contextlib.suppress(Exception):  # one that is dying is gone all the same
                if member.hello is not None:
                    await asyncio.wait_for(member.actor.close.remote(), LONGEST_PAUSE)
            with contextlib.suppress(Exception):
                ray.kill(member.actor)

        await asyncio.gather(*map(end, self._members))

    async def _some(self) -> _Member:
        """Return the ready one with the least to do; wait for one if need be.

        Raises:
            UsageError: If none can be.
        """
        while True:
            if self._failure is not None:
                raise self._failure
            ready = [member for member in self._members if member.hello is not None]
            if ready:
                return min(ready, key=lambda member: member.busy)
            await self._changed.wait()

    def _lose(self, member: _Member, words: str) -> None:
        """Take note that one does not answer any more, and wait for it to be there again."""
        member.hello = None
        member.began += 1
        left = sum(other.hello is not None for other in self._members)
        told = f"{left} are left" if left else "none is left, requests wait"
        _log.warning("%s is lost (%s), and begun anew: %s", member.name, told, words)
        if not left:
            self._changed.clear()
        member.loading = asyncio.create_task(self._load(member))

    async def _load(self, member: _Member) -> None:
        """Wait until one answers, or cannot."""
        began = time.monotonic()
        said = await self._said(member)
        if isinstance(said, Hello):
            if member.began:
                seconds = time.monotonic() - began
                _log.warning("%s is there again after %.0f s", member.name, seconds)
            self._any = True
            member.hello = said
            self._changed.set()
            return
        problem = UsageError(f"{member.name} cannot be loaded: {said}")
        others = [other for other in self._members if other is not member]
        hopes = any(other.hello or not other.loading.done() for other in others)
        if self._any and hopes:
            _log.warning("%s; the others go on without it", problem)
        else:  # all would tell the same; or it was the last one
            self._failure = problem
            self._changed.set()

    async def _said(self, member: _Member) -> Hello | UsageError:
        """Begin one as often as it takes; return what it says, or why it cannot be."""
        from ray.exceptions import RayError, RayTaskError

        said: Hello | UsageError
        for failed in range(1, MOST_STARTS + 1):
            try:
                said = await self._started(member)
                # Who loads beside it may have taken its port, or who was there before it still
                # have the GPU's memory; but where none has loaded yet, all may tell the same.
                most = MOST_STARTS if self._any else 1 if len(self._members) == 1 else 2
                if isinstance(said, Hello) or failed >= most:
                    break
                _log.warning("%s cannot be loaded, and is tried again: %s", member.name, said)
            except RayTaskError as error:
                said = UsageError(words_of(error))
                break
            except RayError as error:
                said = UsageError(words_of(error))
                if getattr(error, "actor_init_failed", False):
                    return UsageError(f"{said}; every node needs the aft-factory that is here")
            await asyncio.sleep(min(2.0**failed, LONGEST_PAUSE))
        return self._vetted(said) if isinstance(said, Hello) else said

    def _vetted(self, said: Hello) -> Hello | UsageError:
        """Return what one says, or that it is not what all are to be."""
        self._identity = self._identity or said.identity
        if said.version != __version__:
            here = f"here is {__version__}: all nodes need the same"
            return UsageError(f"{said.node} has aft-factory {said.version}, {here}")
        if said.identity != self._identity:
            return UsageError(
                f"{said.node} has another model than is here: its files differ in names or sizes, "
                f"or its chat template or settings do ({said.identity}, not {self._identity})"
            )
        return said

    async def _started(self, member: _Member) -> Hello | UsageError:
        """Have one load; say so now and then where no other is there to answer."""
        start = asyncio.ensure_future(result(member.actor.start.remote()))
        try:
            while not (await asyncio.wait([start], timeout=TELL_AFTER))[0]:
                if not any(other.hello for other in self._members):
                    _log.warning("%s is loading, or waits for free GPUs", member.name)
            said: Hello | UsageError = await start
            return said
        finally:
            start.cancel()

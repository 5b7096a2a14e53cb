"""The server at work: it listens, loads the model, answers, and stops when it is asked to."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import sys
from collections.abc import Iterator
from functools import partial

import uvicorn

from aft_factory.asking.asker import Asker
from aft_factory.asking.availability import Retries
from aft_factory.asking.journal import Journal
from aft_factory.errors import UsageError
from aft_factory.run.answering import open_run, proposers_of
from aft_factory.serve.answering import Answering
from aft_factory.serve.app import build_app
from aft_factory.serve.settings import KEY_VARIABLE, ServeSettings
from aft_factory.serve.state import State
from aft_factory.stage.engines import OpenEngines
from aft_factory.stage.signals import graceful

BACKLOG = 2048  # connections that may wait to be taken; the system has a limit of its own
LAST_SENDS = 5  # seconds that connections have to take what was sent

_log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: `graceful` has them."""
        yield


def web_server(state: State) -> uvicorn.Server:
    """Return what listens and speaks HTTP; to be ended by its `should_exit`."""
    config = uvicorn.Config(
        build_app(state),
        lifespan="off",
        backlog=BACKLOG,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=LAST_SENDS,
    )
    return _Server(config)


def begin(state: State, opened: OpenEngines, journal: Journal | None) -> Asker:
    """Begin to answer; return what asks, to be entered and left."""
    settings = state.settings
    retries = Retries(settings.retries)
    asker = Asker(opened.engines, journal, opened.in_flight, retries, keep_sent=False)
    state.metrics.watch(asker.limiter)
    state.answering = Answering(settings, opened, asker, journal)
    return asker


async def serve(settings: ServeSettings) -> None:
    """Serve until a signal ends it.

    Raises:
        UsageError: If the address cannot be listened on, or the model not be loaded.
    """
    listener = listen(settings.host, settings.port)
    if not settings.keys() and not _is_loopback(settings.host):
        _log.warning(
            "everybody who reaches %s may ask, as no key is set; see %s and --client-key-file",
            *(settings.host, KEY_VARIABLE),
        )
    state = State(settings)
    server = web_server(state)
    web = asyncio.create_task(server.serve([listener]))
    try:
        await _answer(settings, state, listener)
    finally:
        state.aborted.set()
        server.should_exit = True
        await web


async def _answer(settings: ServeSettings, state: State, listener: socket.socket) -> None:
    """Load the model, and answer until a signal comes."""
    asked_to_stop = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        journal = None if settings.journal is None else Journal(settings.journal)
        if journal is not None:
            stack.enter_context(journal)
        stack.enter_context(graceful(asked_to_stop.set))
        opening = partial(open_run, settings, proposers_of(settings), settings.needs())
        loading = asyncio.create_task(stack.enter_async_context(opening()))
        waiting = asyncio.create_task(asked_to_stop.wait())
        try:
            await asyncio.wait({loading, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                return
            opened = loading.result()
        finally:
            for one in (loading, waiting):
                one.cancel()
            await asyncio.gather(loading, waiting, return_exceptions=True)
        await stack.enter_async_context(begin(state, opened, journal))
        assert state.answering is not None
        host, port = listener.getsockname()[:2]
        names = ", ".join(state.answering.variants.listed)
        place = f"[{host}]" if ":" in host else host
        print(f"serving {names} at http://{place}:{port}/v1", file=sys.stderr, flush=True)
        await asked_to_stop.wait()
        await state.stop()


def listen(host: str, port: int) -> socket.socket:
    """Take the address, before a model is loaded.

    Raises:
        UsageError: If it cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        # With its protocol named, or asyncio would not send short packets at once (TCP_NODELAY).
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}, port {port}: {error.strerror}") from None
    listener.setblocking(False)
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

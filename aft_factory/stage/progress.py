"""The progress of a run: queries done, tokens a second, samples in flight, time to go."""

from __future__ import annotations

import asyncio
import time

from tqdm import tqdm

from aft_factory.asking.asker import Asker

EVERY = 0.5  # seconds


class Progress:
    """A bar on stderr, refreshed while the event loop runs."""

    def __init__(self, total: int, asker: Asker, *, quiet: bool) -> None:
        self._asker = asker
        self._bar = tqdm(total=total, unit=" queries", disable=True if quiet else None)
        self._started = time.monotonic()
        self._ticking: asyncio.Task[None] | None = None

    def __enter__(self) -> Progress:
        self._ticking = asyncio.get_running_loop().create_task(self._tick())
        return self

    def __exit__(self, *error: object) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
        self._show()
        self._bar.close()

    def advance(self) -> None:
        """Count one query more."""
        self._bar.update()

    async def _tick(self) -> None:
        while True:
            self._show()
            await asyncio.sleep(EVERY)

    def _show(self) -> None:
        counts = self._asker.counts
        tokens = counts.asked.completion
        shown = {"in flight": self._asker.limiter.taken}
        if tokens is not None:
            shown["tok/s"] = round(tokens / max(time.monotonic() - self._started, 1e-9))
        if counts.retried:
            shown["retries"] = counts.retried
        self._bar.set_postfix(shown)

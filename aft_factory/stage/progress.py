"""Progress on stderr: a bar in a terminal, a line a minute elsewhere (a log file, a batch job)."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from tqdm import tqdm

from aft_factory.asking.asker import Asker

EVERY = 0.5  # seconds, of a bar
LINE_EVERY = 60.0  # seconds


def progress_bar(*of: Any, quiet: bool, **shown: Any) -> Any:
    """Return a bar of tqdm's.

    Args:
        of: What it goes through, if that is an iterable.
        quiet: Whether to show nothing.
        shown: Such as `total`, `unit` and `desc`.
    """
    kind = tqdm if quiet or sys.stderr.isatty() else _Lines
    return kind(*of, disable=quiet, **shown)


class _Lines(tqdm):  # type: ignore[misc]
    """Writes a line now and then where a bar would draw itself anew."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._last = time.monotonic()
        super().__init__(*args, leave=False, **kwargs)

    def display(self, *_: Any, **__: Any) -> None:
        if time.monotonic() - self._last >= LINE_EVERY:
            self._last = time.monotonic()
            print(self, file=self.fp, flush=True)

    def close(self) -> None:
        self.disable = True  # there is no bar to wipe away
        super().close()


class Progress:
    """The progress of a run: queries done, tokens a second, samples in flight, time to go.

    It is refreshed while the event loop runs.
    """

    def __init__(self, total: int, asker: Asker, *, quiet: bool) -> None:
        self._asker = asker
        self._bar = progress_bar(total=total, unit=" queries", quiet=quiet)
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

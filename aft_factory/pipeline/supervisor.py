"""Runs a stage as a process, which hears of signals once and never outlives its pipeline.

A stage is in a session of its own, so that what the terminal sends to the pipeline reaches it by
way of the pipeline alone, as often as it was sent. It can then finish what is in flight.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from aft_factory.stage.following import PIPELINE
from aft_factory.stage.guard import guarding

SIGNALS = (signal.SIGINT, signal.SIGTERM)

PATIENCE = 30  # seconds to wait for processes to end when they are asked to


class Supervisor:
    """Runs commands one after another; while it is entered, signals go to the one that runs.

    Attributes:
        asked: Whether a signal asked to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._process: subprocess.Popen[bytes] | None = None
        self._training = False
        self._end = signal.SIGKILL
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Supervisor:
        self._before = {number: signal.signal(number, self._forward) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str], *, training: bool = False) -> int:
        """Run a command to its end; return its exit code.

        Args:
            command: Program and arguments.
            training: It is LLaMA-Factory's, of which all processes hear of a signal, and as
                SIGTERM: torchrun ends its workers then, but not if it is killed, which is what its
                launcher does at SIGINT. Our own stages see to theirs.

        Raises:
            OSError: If it cannot be started.
        """
        self._training = training
        self._end = signal.SIGTERM if training else signal.SIGKILL
        with guarding(self._end, PATIENCE) as enter:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

            def prepare() -> None:
                enter()
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

            try:
                self._process = subprocess.Popen(
                    command,
                    start_new_session=True,
                    preexec_fn=prepare,
                    env=os.environ | ({} if training else {PIPELINE: "1"}),
                )
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                code = self._process.wait()
                if code < 0:  # it could not end the processes that it had started
                    self._end_others(self._process.pid)
                return code
            finally:
                self._process = None
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, True
        if self._process is None:
            return
        if self._training:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL if again else self._end)
        else:
            self._process.send_signal(number)

    def _end_others(self, group: int) -> None:
        """End what a stage has left behind, and wait for it; what does not heed it is killed."""
        until = time.monotonic() + PATIENCE
        with contextlib.suppress(ProcessLookupError):
            if not (self._training and self.asked):  # then they have heard of it
                os.killpg(group, self._end)
            while time.monotonic() < until:
                os.killpg(group, 0)
                time.sleep(0.05)
            os.killpg(group, signal.SIGKILL)

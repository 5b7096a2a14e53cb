"""Sees to it that a process which a command starts never outlives the command, kill -9 included."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator

# The guard's input ends when the command does; it then ends all processes of the group, vLLM's
# among them, which would hold the GPU's memory: those that do not heed the signal by SIGKILL after
# so many seconds. A second line says that all is well.
GUARD = """\
read group || exit
read _ && exit
kill -s "$0" -- "-$group"
for second in $(seq "$1"); do sleep 1; kill -s 0 -- "-$group" || exit; done
kill -s KILL -- "-$group"
"""


@contextlib.contextmanager
def guarding(end: signal.Signals, patience: int) -> Iterator[Callable[[], None]]:
    """Guard a process for as long as this is entered.

    Yields what the process is to do before all else (`preexec_fn`), so that nothing can happen to
    the command in between; it is to lead a session of its own.

    Args:
        end: The signal that ends its group.
        patience: Seconds to wait for those that do not heed it.
    """
    guard = subprocess.Popen(
        ["sh", "-c", GUARD, end.name.removeprefix("SIG"), str(patience)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert guard.stdin is not None
    pipe = guard.stdin.fileno()

    def enter() -> None:
        os.write(pipe, b"%d\n" % os.getpid())

    try:
        yield enter
    finally:
        guard.communicate(b"\n")

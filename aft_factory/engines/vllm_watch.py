"""Ends vLLM's processes when the process that started them is gone, however it went.

vLLM's core does not notice that its parent was killed: it would stay, and hold the GPU. So this
runs beside it, is told the core's process id on stdin, and kills it when stdin ends. A process that
has ended by then is left alone, even if another one has its id. Loads nothing of ours, to be small.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    """Read process ids, a line each, to the end; then kill those processes."""
    processes = []
    for line in sys.stdin:
        with contextlib.suppress(OSError):  # it has ended already
            processes.append(os.pidfd_open(int(line)))
    for process in processes:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(process, signal.SIGKILL)


if __name__ == "__main__":
    main()

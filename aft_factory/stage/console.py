"""What every command does around its work: errors become messages, and its output cannot break."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from collections.abc import Callable

from aft_factory.errors import AftError, UsageError, printable
from aft_factory.records.hub import fetched_once

RESUMES = "interrupted; the same command goes on where this one was"


def show(text: str) -> None:
    """Print what may hold texts of models, servers and files."""
    try:
        print(printable(text), flush=True)
    except OSError:  # nothing more can be printed, and Python would try once more at its end
        _print_no_more()
        raise


def guarded(run: Callable[[], int], interrupted: str = RESUMES, *, lines: bool = False) -> int:
    """Run a command and show its errors as messages instead of tracebacks.

    Args:
        run: Does the work and returns the exit code.
        interrupted: What to say after Ctrl-C.
        lines: Whether a message may have several lines, as each of several problems has its own.

    Returns:
        The exit code: 2 after an error, 130 after Ctrl-C.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, and the next file opened would be in its place
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what is shown may hold any character
    try:
        with fetched_once():
            return run()
    except UsageError as error:
        problems = [str(problem) for problem in error.args]
    except AftError as error:
        problems = [str(error)]
    except BrokenPipeError:  # such as `| head`, which has seen enough
        _print_no_more()
        return 0
    except OSError as error:
        problems = [f"{error.filename}: {error.strerror}" if error.filename else str(error)]
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(interrupted, file=sys.stderr)
        return 130
    told = problems if lines else [" ".join(problem.split()) for problem in problems]
    told = [printable(problem) for problem in told]
    print("error: " + "\n".join(told), file=sys.stderr)
    return 2


def _print_no_more() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""The errors a user can meet. Each says what was expected, what was got and what to do.

One base, and each is also the standard-library type it specialises, so `except ValueError` works.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator

MOST_LISTED = 20  # names that a message may list


class AftError(Exception):
    """Base of every error that a command shows as a message instead of a traceback."""


class UsageError(AftError, ValueError):
    """Options, paths or settings that cannot work: a problem, or several."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class RecordError(AftError, ValueError):
    """A row that is not a record.

    Attributes:
        field: Where in the row the problem is, such as `messages[2].role`.
        problem: What was expected and what was got.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)  # positional: so it pickles across workers
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


class NoAnswer(AftError, RuntimeError):
    """A query that got no answer, such as one whose drafts are all empty."""


class TooLong(NoAnswer):
    """A query that does not fit the model's context."""


class MissingPackage(AftError, ImportError):
    """A feature whose optional package is not installed."""

    def __init__(self, feature: str, package: str) -> None:
        super().__init__(f"{feature} needs {package}; install it with: pip install {package}")


@contextlib.contextmanager
def needing(feature: str, package: str) -> Iterator[None]:
    """Import what a feature needs.

    Raises:
        MissingPackage: If it is not installed.
    """
    try:
        yield
    except ImportError:
        raise MissingPackage(feature, package) from None


def printable(text: str) -> str:
    """Spell out control characters: what a model or a server says must not steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a sentence that helps with an unknown name: the closest known one, or all of a few.

    Example:
        >>> suggest("tempalte", ["template", "seed"])
        "did you mean 'template'?"
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if len(known) <= MOST_LISTED else "--help lists those known"

"""What became of a training's aggregation data: counted where rows are made, told once.

LLaMA-Factory makes rows in batches, and perhaps in several processes. Each of them appends what it
did to a file of its own, in a folder that an environment variable names: as part of what
`datasets.map` is handed, the folder would change the name of its cache.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from aft_factory.errors import UsageError
from aft_factory.records.files import read_text

FOLDER = "AFT_FACTORY_ACCOUNT"


@dataclass(slots=True)
class Account:
    """What became of the rows of one data set, or of some of them.

    Attributes:
        rows: All that were read.
        shortened: Those with proposals shortened.
        proposals_shortened: How many these were.
        tokens_removed: How many tokens they lost.
        thoughts_left_out: Rows that are trained on without the thought that they bring.
        left_out: By what it is about: how many rows were left out, the first one's number, and why.
    """

    rows: int = 0
    shortened: int = 0
    proposals_shortened: int = 0
    tokens_removed: int = 0
    thoughts_left_out: int = 0
    left_out: dict[str, tuple[int, int, str]] = field(default_factory=dict)

    def leave_out(self, about: str, number: int, why: str) -> None:
        """Count a row that is left out."""
        about = re.sub(r"\[\d+\]", "[]", about)
        self._add_left_out(about, 1, number, why)

    def add(self, other: Account) -> None:
        """Add what became of other rows of the data set."""
        self.rows += other.rows
        self.shortened += other.shortened
        self.proposals_shortened += other.proposals_shortened
        self.tokens_removed += other.tokens_removed
        self.thoughts_left_out += other.thoughts_left_out
        for about, (count, number, why) in other.left_out.items():
            self._add_left_out(about, count, number, why)

    def _add_left_out(self, about: str, count: int, number: int, why: str) -> None:
        before, *first = self.left_out.get(about, (0, number, why))
        self.left_out[about] = (before + count, *min(first, [number, why]))  # type: ignore[assignment]

    def describe(self, dataset: str, limit: int | None = None) -> list[str]:
        """Return what there is to tell, in lines.

        Args:
            dataset: Its name.
            limit: The training's `cutoff_len`.
        """
        lines = []
        if self.shortened:
            lines.append(
                f"aft-factory: shortened {self.proposals_shortened} proposals in {self.shortened} "
                f"of {self.rows} rows to fit cutoff_len {limit} ({self.tokens_removed} tokens of "
                f"data set {dataset!r}); no query, instruction or target was cut."
            )
        if self.thoughts_left_out:
            lines.append(
                f"aft-factory: {self.thoughts_left_out} of {self.rows} rows of data set "
                f"{dataset!r} bring a thought, and are trained on without it: the template does "
                "not think, or `enable_thinking` is false."
            )
        for about, (count, _, why) in self.left_out.items():
            reason = f"because of their {about}"
            if about == "cutoff_len":
                reason = (
                    f"that do not fit cutoff_len {limit} even with short proposals; raise "
                    "cutoff_len to keep them"
                )
            lines.append(
                f"aft-factory: left out {count} of {self.rows} rows {reason}. "
                f"The first: data set {dataset!r}, {why}"
            )
        return lines

    def check(self, dataset: str) -> None:
        """Refuse a data set of which nothing can be trained on.

        Raises:
            UsageError: With the reason of its first row.
        """
        if self.rows and self.rows == sum(count for count, *_ in self.left_out.values()):
            _, _, why = min(self.left_out.values(), key=lambda left: left[1])
            raise UsageError(
                f"data set {dataset!r}: none of its {self.rows} rows can be trained on. "
                f"The first: {why}"
            )


Accounts = dict[str, Account]  # by data set

_folder: Path | None = None  # where this process, and those it starts, note what they did


def begin() -> None:
    """Begin to count, unless that was begun; to be called before rows are made."""
    global _folder
    if _folder is None:
        _folder = Path(tempfile.mkdtemp(prefix="aft-factory-"))
        os.environ[FOLDER] = str(_folder)
        _at_exit(partial(shutil.rmtree, _folder, ignore_errors=True))


def note(accounts: Accounts) -> None:
    """Note what became of a batch, in whatever process."""
    if folder := os.environ.get(FOLDER):
        lines = [json.dumps([name, asdict(account)]) + "\n" for name, account in accounts.items()]
        with (
            contextlib.suppress(OSError),  # such as a full disk: a training must go on
            (Path(folder) / f"{os.getpid()}.jsonl").open("ab") as stream,
        ):
            stream.write("".join(lines).encode())


@contextlib.contextmanager
def told_once(tell: Callable[[str], object], limit: int, *, streaming: bool) -> Iterator[None]:
    """Tell at the end of the block what became of the rows that were made in it.

    Args:
        tell: Shows one line.
        limit: The training's `cutoff_len`.
        streaming: Whether rows are made later, as they are needed: then it is told at the end of
            the process, and a row counts as often as it was read.

    Raises:
        UsageError: If nothing of a data set can be trained on.
    """
    global _folder
    _folder = None

    def finish(folder: Path | None, more: str = "") -> Accounts:
        accounts = _take(folder)
        if folder is not None and not streaming:  # the process may be killed
            shutil.rmtree(folder, ignore_errors=True)
        for name, account in accounts.items():
            for line in account.describe(name, limit):
                tell(line + more)
        return accounts

    try:
        yield
    except Exception:
        _check(finish(_folder))  # the reason why, where LLaMA-Factory has no row left
        raise
    if not streaming:
        _check(finish(_folder))
    elif _folder is not None:
        _take(_folder)  # these rows are read again
        more = " (Streamed: counted as often as they were read.)"
        _at_exit(partial(finish, _folder, more))


def _take(folder: Path | None) -> Accounts:
    """Return what was noted in a folder since the last call."""
    accounts: Accounts = {}
    for path in sorted(folder.glob("*.jsonl")) if folder is not None else []:
        for line in read_text(path).splitlines():
            name, values = json.loads(line)
            accounts.setdefault(name, Account()).add(Account(**values))
        path.unlink()
    return accounts


def _check(accounts: Accounts) -> None:
    for name, account in accounts.items():
        account.check(name)


def _at_exit(function: Callable[[], object]) -> None:
    """Have a function called when this process ends, and not when one forked from it does."""
    own = os.getpid()
    atexit.register(lambda: function() if os.getpid() == own else None)

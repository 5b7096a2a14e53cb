"""The settings of every command that reads rows, and the reading itself."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

from aft_factory.errors import UsageError
from aft_factory.prompts.rendering import template_names
from aft_factory.records.columns import FIELDS, Columns
from aft_factory.records.replacing import check_place
from aft_factory.records.tables import Line, read_rows
from aft_factory.stage.declaring import setting
from aft_factory.stage.leaves import Leaves
from aft_factory.stage.progress import progress_bar

MOST_SAMPLES = 10_000  # of one query: what is larger is a slip, and fills the memory
FORMATS = ".jsonl, .json, .gz, .zst, .parquet"
AGGREGATOR = (  # help of `--template`
    f"aggregator prompt: {', '.join(template_names('aggregate'))} or the path of a .jinja file, "
    "whose one variable is `proposals`"
)
ROWS = "rows"  # heading of `--help`
INPUTS = f"{FORMATS}, `datasets` folder or hub name"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the settings of all commands have."""

    by_flag: tuple[str, ...] = ()  # which of them were given as flags, not in a file or a preset

    def refuse_wrong(self) -> None:
        """Refuse what cannot be meant, all at once.

        Raises:
            UsageError: With every problem found.
        """
        if problems := self.problems():
            raise UsageError(*dict.fromkeys(problems))

    def problems(self) -> list[str]:
        """Return what is wrong with the settings; a command's own add theirs."""
        return []

    def leaves(self) -> Leaves:
        """Tell what the command leaves; a command's own say it."""
        return Leaves()


@dataclass(frozen=True, slots=True)
class ReadSettings(Settings):
    """Which rows are read, and from which columns; see the help texts."""

    split: str = setting("train", "split of a hub data set or saved DatasetDict", group=ROWS)
    data_subset: str | None = setting(
        None,
        "subset (configuration) of a hub data set, such as main of openai/gsm8k",
        "NAME",
        group=ROWS,
    )
    data_revision: str | None = setting(
        None, "branch, tag or commit of a hub data set", "REVISION", group=ROWS
    )
    limit: int | None = setting(None, "only the first N rows", "N", group=ROWS)
    shard: str | None = setting(
        None,
        "only every N-th row, from row I on (I from 0): one of N parts, which `aft merge` joins",
        "I/N",
        group=ROWS,
    )
    column: dict[str, str] = setting(
        {}, "read a field from another column: query=ask, ignore=context", "FIELD=NAME", group=ROWS
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the settings; a command's own add theirs."""
        return at_least(self, ("limit", 1)) + refused(self.columns, self.taken)

    def taken(self) -> slice:
        """Return which of the rows are read: all, or a shard's.

        Raises:
            UsageError: If that is no shard.
        """
        return slice(None) if self.shard is None else read_shard(self.shard)

    def columns(self) -> Columns:
        """Return the columns to read rows from.

        Raises:
            UsageError: If a field is unknown.
        """
        for field, name in self.column.items():
            if field not in FIELDS and name in FIELDS:
                raise UsageError(f"column: the field comes first: {name}={field}")
            one, _, other = name.partition(",")
            if other.partition("=")[0].strip() in FIELDS and "=" in other:
                repeated = f"--column {field}={one} --column {other.strip()}"
                raise UsageError(f"column: repeat --column for each: {repeated}")
        return Columns.from_mapping(self.column)

    def lines(
        self, *sources: str, on_bytes: Callable[[int], object] = lambda _: None
    ) -> Iterator[Line]:
        """Open files, folders or hub names, and go through the rows of one after the other.

        Of a shard, through its own.
        """
        taken = self.taken()
        read = partial(
            read_rows,
            split=self.split,
            subset=self.data_subset,
            revision=self.data_revision,
            on_bytes=on_bytes,
        )
        tables = [read(name) for name in sources]
        lines = islice(chain.from_iterable(tables), self.limit)
        return islice(lines, taken.start, None, taken.step)

    @contextlib.contextmanager
    def shown(self, sources: Sequence[str], title: str, *, quiet: bool) -> Iterator[Iterator[Line]]:
        """Open what is to be read, under a progress bar over its bytes."""
        sizes = [path.stat().st_size for path in map(Path, sources) if path.is_file()]
        total = sum(sizes) if len(sizes) == len(sources) and self.limit is None else None
        shown = {"total": total, "unit": "B", "unit_scale": True, "desc": title}
        with progress_bar(quiet=quiet, **shown) as bar:
            yield self.lines(*sources, on_bytes=bar.update)


def at_least(settings: object, *limits: tuple[str, int], most: int = sys.maxsize) -> list[str]:
    """Return a problem for each number that is set and below its limit, or above what can be."""
    end = f" to {most}" if most < sys.maxsize else ""
    return [
        f"{name}: expected a number from {least}{end}, got {value}"
        for name, least in limits
        if (value := getattr(settings, name)) is not None and not least <= value <= most
    ]


def refused(*checks: Callable[[], object]) -> list[str]:
    """Return what is wrong, in the words in which each check refuses it."""
    problems = []
    for check in checks:
        try:
            check()
        except UsageError as error:
            problems.append(str(error))
    return problems


def read_shard(text: str) -> slice:
    """Read I/N, such as 0/4: which of the rows a shard has.

    Every N-th, and not a block of them: rows that stand together are often alike, and a shard of
    long ones would end last.

    Raises:
        UsageError: If it is none.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    index, of = map(int, found.groups()) if found else (0, 0)
    if index >= of:
        raise UsageError(f"shard: expected I/N, from 0/4 to 3/4 for four shards, got {text!r}")
    return slice(index, None, of)


def check_again(name: str) -> None:
    """Refuse what cannot be read again, where rows are read more than once: it would never end.

    Raises:
        UsageError: If it is a pipe or a device.
    """
    path = Path(name)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(
            f"{name}: expected a file, as rows are read more than once, and a pipe gives them "
            "once; save them first"
        )


def check_paths(reads: Sequence[str], writes: Sequence[tuple[str, Path | None]]) -> None:
    """Refuse to write two things into one file, or over an input, or where nothing can be written.

    Args:
        reads: What is read.
        writes: By flag, what is written.

    Raises:
        UsageError: With the first clash, or the first place that cannot be written to.
    """
    inputs = {os.path.realpath(name): name for name in reads}
    taken: dict[str, str] = {}
    for flag, path in writes:
        if path is None:
            continue
        place = os.path.realpath(path)
        if place in inputs:
            raise UsageError(f"{flag} would replace the input {inputs[place]}; name another file")
        if place in taken:
            raise UsageError(
                f"{flag} and {taken[place]} would write one file: {path}; name another"
            )
        taken[place] = flag
    for flag, path in writes:
        try:
            if path is not None:
                check_place(path)
        except UsageError as error:  # one will do: most others are beside it
            raise UsageError(f"{flag}: {error}") from None

"""Data sets on the Hugging Face hub, read by `datasets` as a stream.

A command may go through its input several times (count, ask, write). Within `fetched_once` a data
set comes over the network once, as far as it is read; who reads it again gets what was kept aside.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import pickle
import re
import tempfile
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from aft_factory.errors import AftError, UsageError, needing
from aft_factory.network import environment_problems

_log = logging.getLogger(__name__)
_NAME = re.compile(r"\w[\w.-]*/[\w.-]+", re.ASCII)
_END = object()
PATIENCE = 5.0  # seconds


class HubSet(NamedTuple):
    """What of the hub is read.

    Attributes:
        name: OWNER/NAME.
        split: Its part, such as `train`.
        subset: Its configuration; None where it has only one, or a default.
        revision: Branch, tag or commit; None is `main`.
    """

    name: str
    split: str = "train"
    subset: str | None = None
    revision: str | None = None

    def rows(self) -> Iterator[Any]:
        """Go through the rows.

        Raises:
            UsageError: If the hub has no such thing, or cannot be reached.
        """
        open_sets = _fetched.get()
        if open_sets is None:
            return self._fetch()
        if self not in open_sets:
            open_sets[self] = _Fetched(self._fetch())
        return iter(open_sets[self])

    def _fetch(self) -> Iterator[Any]:
        datasets = import_datasets()
        if silent := hub_silent(self.name, "dataset"):
            raise UsageError(f"{self.name}: no such file, and {silent}", *environment_problems())
        choices = "--data-subset, --split and --data-revision choose"
        with explained(f"{self.name}: no such file, and the hub does not give it ({choices})"):
            with waiting_for(f"the data set {self.name} of the hub"):
                sets = datasets.load_dataset(
                    self.name, self.subset, revision=self.revision, streaming=True
                )
            if self.split not in sets:
                raise ValueError(f"Bad split: {self.split}. Available splits: {list(sets)}")
            tell_of_splits(self.name, self.split, tuple(sets))
            yield from sets[self.split]


class _Fetched:
    """The rows of a data set, kept in a file without a name as they come."""

    def __init__(self, rows: Iterator[Any]) -> None:
        self._rows = rows
        self._kept = tempfile.TemporaryFile()  # noqa: SIM115 - closed with what holds it
        self._end = 0
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        self._kept.close()

    def __iter__(self) -> Iterator[Any]:
        at = 0
        while True:
            with self._lock:
                if at == self._end:
                    self._fetch_one()
                if at == self._end:
                    return
                self._kept.seek(at)
                row = pickle.load(self._kept)
                at = self._kept.tell()
            yield row

    def _fetch_one(self) -> None:
        """Keep the next row, if there is one."""
        if self._error is not None:  # what failed is over, and would look like its end
            raise self._error
        try:
            row = next(self._rows, _END)
            if row is not _END:
                self._keep(row)
        except BaseException as error:
            self._error = error
            raise

    def _keep(self, row: Any) -> None:
        try:
            self._kept.seek(self._end)
            pickle.dump(row, self._kept)
            self._kept.flush()
        except OSError as error:
            place = tempfile.gettempdir()
            raise UsageError(
                f"{place}: rows from the hub are kept there while a command needs them: "
                f"{error.strerror}; TMPDIR names another folder"
            ) from error
        self._end = self._kept.tell()


_fetched: ContextVar[dict[HubSet, _Fetched] | None] = ContextVar("fetched", default=None)


@contextlib.contextmanager
def fetched_once() -> Iterator[None]:
    """Keep what is fetched in this block, for whoever reads it again there."""
    if _fetched.get() is not None:
        yield
        return
    sets: dict[HubSet, _Fetched] = {}
    token = _fetched.set(sets)
    try:
        yield
    finally:
        _fetched.reset(token)
        for one in sets.values():
            one.close()


@functools.cache
def tell_of_splits(name: str, split: str, splits: tuple[str, ...]) -> None:
    """Tell once which splits are left out where none was named."""
    others = ", ".join(other for other in splits if other != split)
    if others and split == HubSet._field_defaults["split"]:
        _log.warning("%s: the split %s is read, and not %s; --split chooses", name, split, others)


def is_hub_name(name: str, suffixes: tuple[str, ...]) -> bool:
    """Tell whether this may be OWNER/NAME of a data set; with such a suffix it is a file's."""
    return _NAME.fullmatch(name) is not None and Path(name).suffix.lower() not in suffixes


def is_missing(name: str) -> bool:
    """Tell whether a name is that of a path which is not there, and can be none of a hub's."""
    path = Path(name).expanduser()
    if path.exists():
        return False
    return len(path.parts) > 2 or name.startswith((".", "~")) or name.endswith("/")


@functools.cache
def hub_silent(name: str, kind: str = "model") -> str | None:
    """Say why the hub cannot be reached for the files of a model or data set, if they are there.

    It is asked once: what reads them asks for each of them again and again, minutes long.
    """
    if Path(name).exists():
        return None
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        return None
    try:
        get_hf_file_metadata(hf_hub_url(name, "README.md", repo_type=kind), timeout=PATIENCE)
    except (HfHubHTTPError, HFValidationError):
        return None  # which is an answer, too
    except Exception as error:  # of whatever package carries the bytes
        return f"the hub cannot be reached ({error})"
    return None


@contextlib.contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Say what is waited for, where that takes longer than a few seconds."""
    timer = threading.Timer(PATIENCE, _log.warning, ["still waiting for %s", what])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def import_datasets() -> Any:
    """Return the package.

    Raises:
        MissingPackage: If it is not installed.
    """
    with needing("reading a `datasets` folder or hub data set", "datasets"):
        import datasets
    return datasets


@contextlib.contextmanager
def explained(problem: str, *, kind: bool = False) -> Iterator[None]:
    """Show whatever another package raises as one error, by its words or by its `kind` too."""
    try:
        yield
    except AftError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}" if kind else error
        raise UsageError(f"{problem}: {said}") from error

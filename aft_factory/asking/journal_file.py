"""The file of a journal: SQLite, with the tables that a journal has, closed to a second writer."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Self

import zstandard

from aft_factory.errors import UsageError
from aft_factory.records.files import locked

APPLICATION = 0x41465431  # tells our files from other SQLite files
VERSION = 2  # of the tables and of what is in them
TABLES = {
    "replies": """(
        key BLOB PRIMARY KEY, query TEXT, turn INTEGER, layer INTEGER, slot INTEGER,
        attempt INTEGER, model TEXT, n INTEGER, seed INTEGER, sampling TEXT, reply BLOB,
        run INTEGER) WITHOUT ROWID""",
    "queries": "(id TEXT PRIMARY KEY, turns BLOB) WITHOUT ROWID",
    "outcomes": "(key BLOB PRIMARY KEY, done INTEGER, content BLOB) WITHOUT ROWID",
    "runs": "(number INTEGER PRIMARY KEY, fingerprint TEXT)",
    # A reply belongs to the run that asked for it; here are those that another run took from it.
    "taken": "(key BLOB, run INTEGER, PRIMARY KEY (key, run)) WITHOUT ROWID",
    "endings": "(query TEXT, run INTEGER, key BLOB, PRIMARY KEY (query, run, key)) WITHOUT ROWID",
    "sessions": "(number INTEGER PRIMARY KEY, began REAL, last REAL, asked INTEGER)",
    "settings": "(number INTEGER PRIMARY KEY, content TEXT)",  # of a session's command
}
INDEX = "replies_of_query ON replies (query, turn, layer, slot, attempt)"


class JournalFile:
    """The file of a journal, open. One process writes it at a time; others may read it meanwhile.

    Args:
        path: The file; made if need be.
        read_only: Only look.

    Raises:
        UsageError: If the file is no journal, or another run is writing it.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._lock: int | None = None
        if read_only and not path.is_file():
            raise UsageError(f"{path}: no such journal")
        try:
            if not read_only:
                self._lock = _alone(path)
            mode = "ro" if read_only else "rwc"
            # As a URI, so that a path cannot be taken for options.
            self._db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None
            )
            self._prepare(read_only)
        except sqlite3.DatabaseError as error:
            self._unlock()
            raise UsageError(f"{path}: not a journal that can be read: {error}") from None
        except BaseException:
            self._unlock()
            raise
        self._squeeze = zstandard.ZstdCompressor(level=3).compress
        self._expand = zstandard.ZstdDecompressor().decompress

    def _prepare(self, read_only: bool) -> None:
        [application] = self._db.execute("PRAGMA application_id").fetchone()
        [version] = self._db.execute("PRAGMA user_version").fetchone()
        [tables] = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION and (tables or read_only):
            raise UsageError(f"{self.path}: a database, but no journal of aft-factory")
        if application == APPLICATION and version != VERSION:
            raise UsageError(
                f"{self.path}: another version of aft-factory wrote this journal; go on with that "
                "one, or name another --journal"
            )
        if read_only:
            return
        # Safe against kill -9 at any moment; a power cut may cost the last replies, no more.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        if not tables:
            with self._db:  # all of it or nothing
                self._db.execute("BEGIN")
                self._db.execute(f"PRAGMA application_id = {APPLICATION}")
                self._db.execute(f"PRAGMA user_version = {VERSION}")
                for name, columns in TABLES.items():
                    self._db.execute(f"CREATE TABLE {name} {columns}")
                self._db.execute(f"CREATE INDEX {INDEX}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()
        if isinstance(error, (sqlite3.Error, zstandard.ZstdError)):  # damaged, or the disk is full
            raise UsageError(
                f"{self.path}: this journal cannot be used: {error}; if it is damaged, put back a "
                "copy of it, or name another --journal"
            ) from error

    def close(self) -> None:
        """Close it; everything kept is on disk already."""
        self._db.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _alone(path: Path) -> int:
    """Take the file for this process; SQLite's own locks are of another kind and do not clash."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return locked(path)
    except BlockingIOError:
        raise UsageError(
            f"{path}: another run is using this journal; wait for it, or name another --journal"
        ) from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None

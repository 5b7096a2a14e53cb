"""The file of a journal: SQLite, with the tables that a journal has, closed to a second writer.

Where a file system has no shared memory, which SQLite's WAL needs, every reply is written more
slowly; where it cannot lock files, the journal is refused. What locks it is a file beside it: over
a network, locks of a whole file and SQLite's own, of parts of it, are of one kind and would clash.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from pathlib import Path
from typing import Self

import zstandard

from aft_factory.errors import UsageError
from aft_factory.records.replacing import locked

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
LONGEST_WAIT = 30.0  # seconds for who else has it open: without WAL, reading keeps writing out
LOCAL = "name a --journal on a local disk"
# Errors that a file system may be the reason of, so that another way of opening may do.
OF_PLACES = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL)
INDEX = "replies_of_query ON replies (query, turn, layer, slot, attempt)"

_log = logging.getLogger(__name__)


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
        sides = (Path(f"{path}-wal"), Path(f"{path}-shm"))  # SQLite makes them to read, too
        self._sides = [side for side in sides if read_only and not side.exists()]
        if read_only and not path.is_file():
            raise UsageError(f"{path}: no such journal")
        try:
            if not read_only:
                self._lock = _alone(path)
            try:
                self._open(read_only)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in OF_PLACES or (read_only and self._has_wal):
                    raise
                self._open(read_only, plainly=True)
        except sqlite3.OperationalError as error:
            self._unlock()
            problem = f"{path}: SQLite cannot use a journal here: {error}"
            raise UsageError(f"{problem}; if no other program has it open, {LOCAL}") from None
        except sqlite3.DatabaseError as error:
            self._unlock()
            raise UsageError(f"{path}: not a journal that can be read: {error}") from None
        except BaseException:
            self._unlock()
            raise
        self._squeeze = zstandard.ZstdCompressor(level=3).compress
        self._expand = zstandard.ZstdDecompressor().decompress

    @property
    def _has_wal(self) -> bool:
        """Whether there is more than stands in the file itself."""
        wal = Path(f"{os.path.realpath(self.path)}-wal")
        return wal.exists() and wal.stat().st_size > 0

    def _open(self, read_only: bool, *, plainly: bool = False) -> None:
        """Open the database.

        Args:
            read_only: Only look.
            plainly: Without shared memory: to write, without WAL; to read, as what nobody writes.
        """
        mode = "rwc" if not read_only else "ro&immutable=1" if plainly else "ro"
        # As a URI, so that a path cannot be taken for options.
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        self._db = sqlite3.connect(uri, LONGEST_WAIT, isolation_level=None, uri=True)
        try:
            if plainly and not read_only:
                self._db.execute("PRAGMA locking_mode = EXCLUSIVE")  # so it asks for no memory
            self._prepare(read_only, wal=not plainly)
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, read_only: bool, *, wal: bool) -> None:
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
        if wal:
            [[mode]] = self._db.execute("PRAGMA journal_mode = WAL")
            wal = mode == "wal"
        else:
            self._db.execute("PRAGMA journal_mode = DELETE")
            self._db.execute("PRAGMA locking_mode = NORMAL")
        # Safe against kill -9 at any moment; a power cut may cost the last replies, no more.
        if wal:
            self._db.execute("PRAGMA synchronous = NORMAL")
        if not tables:
            with self._db:  # all of it or nothing
                self._db.execute("BEGIN")
                self._db.execute(f"PRAGMA application_id = {APPLICATION}")
                self._db.execute(f"PRAGMA user_version = {VERSION}")
                for name, columns in TABLES.items():
                    self._db.execute(f"CREATE TABLE {name} {columns}")
                self._db.execute(f"CREATE INDEX {INDEX}")
        self._db.execute("SELECT 1 FROM replies").fetchone()  # which meets what the place lacks
        if not wal:
            lacks = "its file system has no shared memory: replies are written more slowly"
            _log.warning("%s: %s; on a local disk they are not", self.path, lacks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise UsageError(
                f"{self.path}: its disk is full; make room and give the same command again: what "
                "was answered until now is kept"
            ) from error
        if isinstance(error, (sqlite3.Error, zstandard.ZstdError)):  # damaged
            raise UsageError(
                f"{self.path}: this journal cannot be used: {error}; if it is damaged, put back a "
                "copy of it, or name another --journal"
            ) from error

    def close(self) -> None:
        """Close it; everything kept is on disk already. Who only read it leaves nothing behind."""
        self._db.close()
        if self._sides:
            with contextlib.suppress(OSError):  # one that another writes has them for good
                self._lock = locked(self.path)
                for side in self._sides:
                    side.unlink(missing_ok=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):  # an empty file that stays does no harm
                _beside(self.path).unlink()  # while it is held, so that it is ours
            os.close(self._lock)
            self._lock = None


def _beside(path: Path) -> Path:
    """Return the file that is locked for a journal, whatever link leads to it."""
    return Path(f"{os.path.realpath(path)}-lock")


def _alone(path: Path) -> int:
    """Take a journal for this process."""
    beside = _beside(path)
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        while True:
            lock = locked(beside)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), os.stat(beside)):
                    return lock
            os.close(lock)  # who held it before has removed it
    except BlockingIOError:
        raise UsageError(
            f"{path}: another run is using this journal; wait for it, or name another --journal"
        ) from None
    except OSError as error:
        if error.filename is None:  # it is the lock that cannot be had
            raise UsageError(
                f"{path}: its file system cannot lock files ({error.strerror}), so nothing would "
                f"keep a second run out; {LOCAL}"
            ) from None
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None

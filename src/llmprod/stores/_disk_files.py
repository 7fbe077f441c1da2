"""A disk store's folder: which database is the current one, who may read it, and setting a damaged one aside.

Databases stand in folders of their own, ``db-1``, ``db-2`` and so on; the highest is current. A damaged one is left
where it is and the next begun: SQLite must not have a file renamed or removed under an open connection, in whatever
process. The one before the current is kept for whoever wants to look; older ones are removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Generator
from pathlib import Path

from llmprod.stores._disk_cache import RAW, BytesCache, connect

_LOOK_EVERY = 0.25
_not_ours_to_close: list[object] = []
_opening = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: globals().update(_opening=threading.Lock()))
_NAME = re.compile(r"db-(\d{1,9})\Z")
_SELECT = (
    "SELECT mode, raw, length(value), CASE WHEN length(value) <= ? THEN value END FROM Cache WHERE key = ? AND raw = 1"
)


class Foreign(Exception):
    """The folder belongs to another user."""


class Large(Exception):
    """The value is larger than was to be read here."""


class Files:
    """The current database of a folder, open: one connection that writes, one that reads meanwhile and never waits.

    While nobody writes, the writing one reads too: SQLite lets go of all its pages when somebody else has written, and
    of none after a write of its own, so that what this process has just set need not be fetched anew.

    Args:
        folder: the store's folder.
        number: which database, as :func:`newest` says.
        timeout: seconds to wait for another process that writes.
        max_bytes: what the database's pages may take.
    """

    def __init__(self, folder: Path, number: int, timeout: float, max_bytes: int) -> None:
        self.process = os.getpid()
        self._timeout = timeout
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._look_at = time.monotonic() + _LOOK_EVERY
        # Whoever closes a file that SQLite has open in this process gives up SQLite's locks on it.
        with _opening:
            place = folder / f"db-{number}"
            _private_folder(place)
            self.path = str(place / "cache.db")
            _private_file(self.path)
            self._next = str(folder / f"db-{number + 1}")
            self._identity = _identity(self.path)
            self.cache = BytesCache(self.path, timeout=timeout, size_limit=max_bytes)
            try:
                self.cache.wait(0)
                self._reader = connect(self.path, timeout)
                try:
                    self._reader.execute("PRAGMA query_only = 1").fetchall()
                    self._reader.execute("PRAGMA busy_timeout = 0").fetchall()
                    self._reader.execute("PRAGMA cache_size = -4096").fetchall()  # the next commit empties it
                except BaseException:
                    self._reader.close()
                    raise
            except BaseException:
                self.cache.close()
                raise

    def current(self, *, look: bool) -> bool:
        """Whether this still is the folder's current database; by the files if ``look``, else four times a second."""
        if self.process != os.getpid():
            return False
        now = time.monotonic()
        if not look and now < self._look_at:
            return True
        self._look_at = now + _LOOK_EVERY
        return not os.path.lexists(self._next) and _identity(self.path) == self._identity

    def read(self, key: bytes, at_most: int) -> object:
        """Return the row's value, None if there is none; waits for nobody.

        Raises:
            Large: it is larger than ``at_most``.
            sqlite3.Error: as SQLite does; busy is possible.
        """
        if self._writing.acquire(blocking=False):
            try:
                rows = self.cache.look(_SELECT, (at_most, key))
            finally:
                self._writing.release()
        else:
            with self._reading:
                rows = self._reader.execute(_SELECT, (at_most, key)).fetchall()
        return _value(rows, at_most)

    @contextlib.contextmanager
    def writing(self) -> Generator[None]:
        """Have the connection that writes for oneself; with the time to wait for other processes."""
        with self._writing:
            self.cache.wait(self._timeout)
            try:
                yield
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self.cache.rollback()  # a COMMIT that failed leaves it open
                raise
            finally:
                self.cache.wait(0)

    def read_to_write(self, key: bytes) -> object:
        """Return the row's value as the writing connection sees it; in ``writing``."""
        return _value(self.cache.sql(_SELECT, (2**40, key)).fetchall(), 2**40)

    def remove(self, key: bytes) -> None:
        """Remove a row, whatever is in it; in a transaction."""
        self.cache.sql("DELETE FROM Cache WHERE key = ?", (key,))

    def remove_some(self, prefix: bytes, at_most: int) -> int:
        """Remove rows whose keys begin with ``prefix``; in a transaction."""
        # In UTF-8 no byte is 0xFF: this is above every key that begins so.
        where = "key >= ? AND key < ?" if prefix else "? = ?"
        done = self.cache.sql(
            f"DELETE FROM Cache WHERE rowid IN (SELECT rowid FROM Cache WHERE {where} LIMIT ?)",  # noqa: S608
            (prefix, prefix + b"\xff" if prefix else prefix, at_most),
        )
        return int(done.rowcount)

    def trim(self) -> None:
        """Drop entries, the oldest first, until the bound holds; outside a transaction, which frees at its end."""
        if self.cache.volume() > self.cache.size_limit:
            self.cache.cull()

    def close(self) -> None:
        """Close both connections, unless a fork or a new database in this one's place makes that a danger."""
        if self.process != os.getpid() or _identity(self.path) not in (self._identity, None):
            # The last connection to close a database removes its log by name, which would be another's by now.
            _not_ours_to_close.append((self.cache, self._reader))
            return
        with self._writing:
            self.cache.close()
        with self._reading:
            self._reader.close()


def newest(folder: Path) -> int:
    """Return the number of the current database; make the folder, for this user alone, where there is none."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return max((int(found[1]) for name in os.listdir(folder) if (found := _NAME.match(name))), default=1)


def set_aside(folder: Path, number: int) -> None:
    """Begin the database after ``number``, unless another process did; remove those before."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder / f"db-{number + 1}", 0o700)
    for name in os.listdir(folder):
        found = _NAME.match(name)
        if found and int(found[1]) < number:
            shutil.rmtree(folder / name, ignore_errors=True)


def _value(rows: list[tuple[object, object, int | None, object]], at_most: int) -> object:
    if not rows:
        return None
    ((mode, _, length, value),) = rows
    if length is not None and length > at_most:
        raise Large
    # Of another kind than is written here, such as a pickle: nothing that could pass for an entry.
    return value if mode == RAW and type(value) is bytes else b""


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _private_folder(place: Path) -> None:
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=0o700)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "geteuid") and found.st_uid != os.geteuid()):
        raise Foreign
    if found.st_mode & 0o077:
        place.chmod(0o700)


def _private_file(path: str) -> None:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        # By name: to open and close it would give up the locks of another store of this process.
        for each in (path, f"{path}-wal", f"{path}-shm"):
            with contextlib.suppress(FileNotFoundError):
                if os.lstat(each).st_mode & 0o077:
                    os.chmod(each, 0o600)


def sort_of(error: BaseException, folder: Path, number: int) -> str:
    """Return what an error of SQLite, diskcache or the files means: ``busy``, ``full``, ``away`` or ``broken``."""
    seen: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and len(seen) < 10:
        seen.append(step)
        step = step.__cause__ or step.__context__  # diskcache and a failed ROLLBACK hide the first one
    codes = {
        each.sqlite_errorcode & 0xFF
        for each in seen
        if isinstance(each, sqlite3.Error) and hasattr(each, "sqlite_errorcode")
    }
    numbers = {each.errno for each in seen if isinstance(each, OSError)}
    if sqlite3.SQLITE_FULL in codes or numbers & _FULL:
        return "full"
    if codes & {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return "broken"
    if codes & {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return "busy"
    if sqlite3.SQLITE_READONLY in codes:  # SQLite says so of a damaged header too
        place = folder / f"db-{number}"
        return "broken" if os.access(place, os.W_OK) and os.access(place / "cache.db", os.W_OK) else "away"
    if codes & _AWAY or numbers:
        return "away"
    return "broken"


_FULL = frozenset((28, 27, 122))  # ENOSPC, EFBIG, EDQUOT
_AWAY = frozenset(
    (
        sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOLFS,
    )
)  # fmt: skip

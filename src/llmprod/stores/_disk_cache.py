"""diskcache, held to bytes: nothing it finds in a database is unpickled, opened, run or removed as a file.

Of diskcache 5.6 (unmaintained; CVE-2025-69872) this takes the tables, the writing, and the eviction. What it would do
with a database that somebody else wrote to is closed off:

* ``Disk.fetch`` and ``Disk.get`` unpickle a row whose ``mode`` or ``raw`` says so (``JSONDisk`` too): refused.
* A row's ``filename`` is joined to the folder, opened by ``fetch``, and unlinked by ``set``, ``delete``, ``cull``,
  ``expire`` and ``clear``, ``..`` and absolute paths included: values stand in the database alone, and ``remove`` does
  nothing.
* Rows of ``Settings`` become pragmas, attributes of the cache and arguments of the disk: only ours count.
* The sum ``Settings.size`` decides on evictions: the pages of the database do instead.
"""

from __future__ import annotations

import importlib
import sqlite3
from functools import partial
from typing import Any

from llmprod.stores._sqlite import patiently

diskcache: Any = importlib.import_module("diskcache")

RAW = 1
"""``mode`` of a row whose value stands in the database as it is, and ``raw`` of a key that does."""

_LONGEST = 2**31 - 1  # milliseconds; beyond it SQLite would take 0
_METADATA = ("count", "size", "hits", "misses")
# Pages of 8 kB: an answer is on few of them, and after a write of anyone all are fetched anew. FULL hands pages back at
# each commit, which the bound goes by. No mmap: reading a file that somebody cut short would be a SIGBUS. NORMAL in WAL
# mode: a power failure may lose the last entries, and damages nothing.
_PRAGMAS = (
    "page_size = 8192",
    "auto_vacuum = 1",
    "cache_size = -32768",
    "journal_mode = wal",
    "journal_size_limit = 4194304",
    "mmap_size = 0",
    "synchronous = 1",
    "trusted_schema = 0",
    "wal_autocheckpoint = 500",
)
_SETTINGS: dict[str, Any] = {
    "statistics": 0,
    "tag_index": 0,
    "eviction_policy": "least-recently-stored",
    "cull_limit": 10,
    "sqlite_auto_vacuum": 1,
    "sqlite_cache_size": -32768,
    "sqlite_journal_mode": "wal",
    "sqlite_mmap_size": 0,
    "sqlite_synchronous": 1,
    "disk_min_file_size": 2**62,
    "disk_pickle_protocol": 0,
}


class Refused(Exception):
    """A row is not of the kind that is written here."""


class BytesDisk(diskcache.Disk):  # type: ignore[misc]
    """Bytes by bytes."""

    def __init__(self, directory: str, **_settings: Any) -> None:
        super().__init__(directory, min_file_size=2**62)  # pyright: ignore[reportUnknownMemberType]

    def put(self, key: Any) -> tuple[Any, bool]:
        """Return how ``key`` stands in the table."""
        if type(key) is not bytes:
            raise Refused
        return sqlite3.Binary(key), True

    def get(self, key: Any, raw: Any) -> bytes:
        """Return a key from the table."""
        if not raw or type(key) is not bytes:
            raise Refused
        return key

    def store(self, value: Any, read: Any, key: Any = None) -> tuple[int, int, None, Any]:
        """Return how ``value`` stands in the table."""
        if type(value) is not bytes or read:
            raise Refused
        return 0, RAW, None, sqlite3.Binary(value)

    def fetch(self, mode: Any, filename: Any, value: Any, read: Any) -> bytes:
        """Return a value from the table."""
        if mode != RAW or filename is not None or type(value) is not bytes or read:
            raise Refused
        return value

    def filename(self, key: Any = None, value: Any = None) -> tuple[str, str]:
        """Refuse: there are no files."""
        raise Refused

    def remove(self, file_path: Any) -> None:
        """Do nothing: a name of a file in a row is not ours."""


class BytesCache(diskcache.Cache):  # type: ignore[misc]
    """One connection to a database, for any thread, one at a time: the lock is the caller's."""

    def __init__(self, path: str, *, timeout: float, size_limit: int) -> None:
        self._path = path
        self._one: sqlite3.Connection | None = None
        self._wait = timeout
        self._known = {**_SETTINGS, "size_limit": size_limit}
        # The folder serves files alone, and would be expanded ("$HOME").
        try:
            super().__init__(  # pyright: ignore[reportUnknownMemberType]
                ".", timeout=timeout, disk=BytesDisk, **self._known
            )
        except BaseException:
            self.close()
            raise

    def sql(self, statement: str, values: tuple[object, ...]) -> sqlite3.Cursor:
        """Run a statement of ours."""
        return self._con.execute(statement, values)

    def look(self, statement: str, values: tuple[object, ...]) -> list[Any]:
        """Return the rows of a statement that reads what is committed.

        Raises:
            sqlite3.Error: as SQLite does; or the connection is closed, or a transaction that failed is still open.
        """
        if self._one is None or self._one.in_transaction:
            raise sqlite3.ProgrammingError
        return self._one.execute(statement, values).fetchall()

    def wait(self, seconds: float) -> None:
        """Wait so long, from now on, for another process that writes."""
        self._con.execute(f"PRAGMA busy_timeout = {min(int(seconds * 1000), _LONGEST)}").fetchall()

    def rollback(self) -> None:
        """Leave a transaction that failed."""
        if self._one is not None and self._one.in_transaction:
            self._one.rollback()

    @property
    def _con(self) -> sqlite3.Connection:
        if self._one is None:
            self._one = connect(self._path, self._wait)
        return self._one

    def reset(self, key: str, value: Any = None, update: bool = True) -> Any:
        """Set an attribute; of what the table says only the counters are read."""
        if key in self._known:
            value = self._known[key]
        elif key in _METADATA:
            value = 0
        else:
            return value
        setattr(self, key, value)
        return value

    def volume(self) -> int:
        """Return the bytes of the database's pages."""
        ((pages,),) = self._con.execute("PRAGMA page_count").fetchall()
        return int(self._page_size) * int(pages)

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        one, self._one = self._one, None
        if one is not None:
            one.close()


def _run(link: sqlite3.Connection, statement: str) -> None:
    link.execute(statement).fetchall()


def connect(path: str, timeout: float) -> sqlite3.Connection:
    """Return a connection with our pragmas, whatever the database says."""
    link = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        for pragma in _PRAGMAS:
            patiently(partial(_run, link, f"PRAGMA {pragma}"), timeout)
    except BaseException:
        link.close()
        raise
    return link

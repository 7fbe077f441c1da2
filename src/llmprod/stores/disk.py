"""Entries in a folder of this machine, shared by its processes: SQLite, by way of diskcache.

Nothing that stands there is ever unpickled or run, whoever wrote it: :mod:`llmprod.stores._disk_cache` says how. Each
value has a checksum over its key, its time and itself, so that damage is a miss.

A read of a small value runs on the event loop: SQLite answers it in some ten microseconds from the system's page cache
and, in WAL mode, waits for no writer, where a hop to a thread and back costs several times that. Everything else runs
in worker threads, one writer at a time.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from llmprod import _validate
from llmprod.errors import InvalidArgument, StoreUnavailable
from llmprod.store import check_entry, check_key
from llmprod.stores._sealed import Damaged, seal, unseal
from llmprod.stores._warn import Warner

if TYPE_CHECKING:
    from llmprod.stores._disk_files import Files

__all__ = ["DiskStore"]

T = TypeVar("T")
_THREADS = 4
_ROOM = 128 * 1024  # the tables, an index page or two, and what a checksum takes
_AT_ONCE = 1000
_limiter: RunVar[anyio.CapacityLimiter] = RunVar("llmprod_disk_threads")
_WHY = {
    "full": "the disk is full",
    "busy": "another process holds the database",
    "away": "the files can't be read or written",
    "broken": "the database is damaged",
    "foreign": "the folder belongs to another user",
}


class DiskStore:
    """A :class:`~llmprod.store.Store` in a folder, for any number of processes of one machine.

    The folder is made for this user alone (0700, files 0600). The database is bounded by ``max_bytes``; beyond that the
    entries that were stored longest ago go, and those whose time is over before them. SQLite's log stands beside it, of
    4 MB as a rule. A network's file system will not do.

    A damaged entry is a miss. A damaged database is set aside, and a new one begun. Both warn.

    Args:
        path: the folder.
        max_bytes: what the database may take on the disk (default 1 GiB).
        timeout: seconds to wait for another process that writes (default 5).
        inline: values of at most so many bytes are read on the event loop (default 65,536; 0: none, for disks that
            may be slow).

    Raises:
        InvalidArgument: naming the option that is out of range.
        ImportError: diskcache is not installed (``pip install 'llmprod[disk]'``).
    """

    _keeps_time: ClassVar[bool] = True  # no method of it waits for long; a cache sets it no limit

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_bytes: int = 2**30,
        timeout: float = 5.0,
        inline: int = 65_536,
    ) -> None:
        if not isinstance(path, (str, os.PathLike)) or not str(path):
            raise InvalidArgument("path", type(path).__name__, "a folder's path")
        _validate.whole("max_bytes", max_bytes, 2**20)
        _validate.seconds("timeout", timeout)
        _validate.whole("inline", inline, 0)
        try:
            importlib.import_module("llmprod.stores._disk_cache")
        except ModuleNotFoundError:
            raise ImportError("DiskStore needs diskcache: pip install 'llmprod[disk]'") from None
        self.path: Path = Path(os.path.abspath(path))
        self.max_bytes = max_bytes
        self.timeout = timeout
        self.inline = inline
        self._process = os.getpid()
        self._opening = threading.Lock()
        self._open: list[Files] = []  # one, if it is open; a list, for the finaliser
        self._number = 0
        self._healed = -60.0
        self._warn = Warner()
        self._finalizer = weakref.finalize(self, _close, self._open)

    async def get(self, key: str) -> bytes | None:
        """Return what is kept under ``key``, or None.

        Raises:
            StoreUnavailable: the files can't be read.
        """
        check_key(key)
        told = key.encode()
        if self._open and self.inline:
            files = self._open[0]
            try:
                if files.current(look=False):
                    sealed = files.read(told, self.inline)
                    return None if sealed is None else unseal(told, sealed, time.time())
            except Exception:  # noqa: BLE001, S110 - large, busy, damaged: a thread finds out, and has the time
                pass
        return await self._in_thread(lambda files: self._get(files, told))

    async def set(self, key: str, value: bytes, *, ttl: float | None = None) -> None:
        """Keep ``value``; one that is larger than the whole store is dropped, with what was there before.

        Raises:
            StoreUnavailable: the disk is full, another process holds the database, the files can't be written.
        """
        check_entry(key, value, ttl)
        told = key.encode()
        if len(value) + _ROOM > self.max_bytes:
            await self._in_thread(lambda files: self._delete(files, told, None))
            return
        await self._in_thread(lambda files: self._set(files, told, value, ttl))

    async def add(self, key: str, value: bytes, *, ttl: float | None = None) -> bool:
        """Keep ``value`` where there is none; return whether it was kept.

        Raises:
            StoreUnavailable: as for ``set``; or the value is larger than the store.
        """
        check_entry(key, value, ttl)
        told = key.encode()
        if len(value) + _ROOM > self.max_bytes:
            raise StoreUnavailable("DiskStore", "the value is larger than max_bytes")
        return await self._in_thread(lambda files: self._add(files, told, value, ttl))

    async def delete(self, key: str, *, only: bytes | None = None) -> bool:
        """Remove ``key``, or only where its value is ``only``; return whether it was removed.

        Raises:
            StoreUnavailable: as for ``set``.
        """
        check_key(key)
        told = key.encode()
        return await self._in_thread(lambda files: self._delete(files, told, only))

    async def clear(self, prefix: str = "") -> int:
        """Remove all keys that begin with ``prefix``; return how many they were.

        Raises:
            StoreUnavailable: as for ``set``.
        """
        check_key(prefix, "prefix")
        told = prefix.encode()
        gone = 0
        while True:  # other writers have their turns in between
            some = await self._in_thread(lambda files: self._clear(files, told))
            gone += some
            if some < _AT_ONCE:
                return gone

    async def aclose(self) -> None:
        """Close the files; used again it opens them again."""
        await anyio.to_thread.run_sync(_close, self._open)

    # ---- in a thread ------------------------------------------------------------------------------------------------

    async def _in_thread(self, work: Callable[[Files], T]) -> T:
        try:
            limiter = _limiter.get()
        except LookupError:
            limiter = anyio.CapacityLimiter(_THREADS)
            _limiter.set(limiter)
        return await anyio.to_thread.run_sync(self._do, work, limiter=limiter)

    def _do(self, work: Callable[[Files], T]) -> T:
        from llmprod.stores._disk_files import Foreign, sort_of

        for last in (False, True):
            try:
                files = self._files()
                with files.writing():
                    result = work(files)
            except Exception as error:
                sort = "foreign" if isinstance(error, Foreign) else sort_of(error, self.path, self._number)
                if sort == "broken" and not last and self._heal():
                    continue
                self._warn(sort, "DiskStore: %s (%s)", _WHY[sort], type(error).__name__)
                raise StoreUnavailable("DiskStore", _WHY[sort]) from error
            return result
        raise AssertionError("the second round returns or raises")

    def _files(self) -> Files:
        from llmprod.stores._disk_files import Files, newest

        if self._process != os.getpid():  # a fork: another thread may have held the lock
            self._process, self._opening = os.getpid(), threading.Lock()
        with self._opening:
            if self._open and not self._open[0].current(look=True):
                _close(self._open)
            if not self._open:
                self._number = newest(self.path)
                self._open.append(Files(self.path, self._number, self.timeout, self.max_bytes))
            return self._open[0]

    def _heal(self) -> bool:
        from llmprod.stores._disk_files import set_aside

        with self._opening:
            if time.monotonic() - self._healed < 1.0:
                return False  # the next one too: it is not the database
            try:
                set_aside(self.path, self._number)
            except OSError:
                return False
            self._healed = time.monotonic()
            _close(self._open)
        self._warn(
            "set aside", "DiskStore: the database db-%d is damaged; it is left there and a new one begun", self._number
        )
        return True

    # ---- with the lock held -----------------------------------------------------------------------------------------

    def _get(self, files: Files, key: bytes) -> bytes | None:
        sealed = files.read_to_write(key)
        if sealed is None:
            return None
        try:
            return unseal(key, sealed, time.time())
        except Damaged:
            self._warn("entry", "DiskStore: an entry is damaged and counts as a miss")
            with files.cache.transact():
                if files.read_to_write(key) == sealed:
                    files.remove(key)
            return None

    def _set(self, files: Files, key: bytes, value: bytes, ttl: float | None) -> None:
        sealed = seal(key, value, None if ttl is None else time.time() + ttl)
        files.cache.set(key, sealed, expire=ttl)
        files.trim()

    def _add(self, files: Files, key: bytes, value: bytes, ttl: float | None) -> bool:
        with files.cache.transact():
            if self._live(files, key) is not None:
                return False
            files.cache.set(key, seal(key, value, None if ttl is None else time.time() + ttl), expire=ttl)
        files.trim()
        return True

    def _delete(self, files: Files, key: bytes, only: bytes | None) -> bool:
        with files.cache.transact():
            there = self._live(files, key)
            if there is None or (only is not None and there != only):
                return False
            files.remove(key)
        return True

    def _clear(self, files: Files, prefix: bytes) -> int:
        with files.cache.transact():
            return files.remove_some(prefix, _AT_ONCE)

    def _live(self, files: Files, key: bytes) -> bytes | None:
        sealed = files.read_to_write(key)
        try:
            return None if sealed is None else unseal(key, sealed, time.time())
        except Damaged:
            self._warn("entry", "DiskStore: an entry is damaged and counts as a miss")
            return None

    def __repr__(self) -> str:
        return f"<DiskStore {str(self.path)!r}>"


def _close(held: list[Files]) -> None:
    while held:
        with contextlib.suppress(sqlite3.Error):
            held.pop().close()

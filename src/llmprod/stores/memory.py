"""Entries in this process's memory, the least recently used dropped first."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.errors import StoreUnavailable
from llmprod.store import check_entry, check_key

__all__ = ["MemoryStats", "MemoryStore"]

_stores: weakref.WeakSet[MemoryStore] = weakref.WeakSet()

# What CPython 3.11 to 3.13 uses for an entry beside the characters and the bytes: the headers of both, the tuple, the
# time, and its places in the dict and in the order. Measured; a test holds it.
_OVERHEAD = 350


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """What a :class:`MemoryStore` holds, and how it was used.

    Attributes:
        items: entries, those included whose time is over but which nobody asked for since.
        bytes: what they take, with keys and overhead.
        hits: how often ``get`` found something.
        misses: how often it did not.
        evictions: entries dropped for want of room.
    """

    items: int
    bytes: int
    hits: int
    misses: int
    evictions: int


class MemoryStore:
    """A :class:`~llmprod.store.Store` in this process: LRU, bounded by bytes, for any number of threads and loops.

    An entry whose time is over goes when it is asked for, or as the least recently used.

    Args:
        max_bytes: what entries may take together, with keys and overhead (default 64 MiB).
        max_items: how many there may be (default None: only ``max_bytes`` counts).
        ttl: seconds that entries are kept which were set without a ``ttl`` (default None: without end).
        clock: the time that entries age by.

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    _keeps_time: ClassVar[bool] = True  # no method of it waits for long; a cache sets it no limit

    def __init__(
        self,
        *,
        max_bytes: int = 64 * 2**20,
        max_items: int | None = None,
        ttl: float | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        _validate.whole("max_bytes", max_bytes, 1)
        _validate.whole("max_items", max_items, 1, optional=True)
        _validate.seconds("ttl", ttl, optional=True)
        self.max_bytes = max_bytes
        self.max_items = max_items
        self.ttl = ttl
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[bytes, float | None, int]] = OrderedDict()
        self._bytes = self._hits = self._misses = self._evictions = 0
        _stores.add(self)

    async def get(self, key: str) -> bytes | None:
        """Return what is kept under ``key``, or None."""
        check_key(key)
        with self._lock:
            entry = self._live(key)
            if entry is None:
                self._misses += 1
                return None
            self._hits += 1
            self._entries.move_to_end(key)
            return entry[0]

    async def set(self, key: str, value: bytes, *, ttl: float | None = None) -> None:
        """Keep ``value``; one that is larger than the whole store is dropped, with what was there before."""
        check_entry(key, value, ttl)
        with self._lock:
            self._put(key, value, ttl)

    async def add(self, key: str, value: bytes, *, ttl: float | None = None) -> bool:
        """Keep ``value`` where there is none; return whether it was kept."""
        check_entry(key, value, ttl)
        with self._lock:
            if self._live(key) is not None:
                return False
            if not self._put(key, value, ttl):
                raise StoreUnavailable("MemoryStore", "the value is larger than max_bytes")
            return True

    async def delete(self, key: str, *, only: bytes | None = None) -> bool:
        """Remove ``key``, or only where its value is ``only``; return whether it was removed."""
        check_key(key)
        with self._lock:
            entry = self._live(key)
            if entry is None or (only is not None and entry[0] != only):
                return False
            self._drop(key)
            return True

    async def clear(self, prefix: str = "") -> int:
        """Remove all keys that begin with ``prefix``; return how many."""
        check_key(prefix, "prefix")
        with self._lock:
            found = [key for key in self._entries if key.startswith(prefix)]
            for key in found:
                self._drop(key)
            return len(found)

    async def aclose(self) -> None:
        """Do nothing: entries go with the object."""

    def stats(self) -> MemoryStats:
        """Return what it holds now, and how it was used since it was made."""
        with self._lock:
            return MemoryStats(len(self._entries), self._bytes, self._hits, self._misses, self._evictions)

    # ---- with the lock held -----------------------------------------------------------------------------------------

    def _live(self, key: str) -> tuple[bytes, float | None, int] | None:
        entry = self._entries.get(key)
        if entry is not None and entry[1] is not None and self._clock.now() >= entry[1]:
            self._drop(key)
            return None
        return entry

    def _put(self, key: str, value: bytes, ttl: float | None) -> bool:
        if key in self._entries:
            self._drop(key)
        size = _OVERHEAD + len(value) + (len(key) if key.isascii() else 4 * len(key))
        if size > self.max_bytes:
            self._evictions += 1
            return False
        ttl = self.ttl if ttl is None else ttl
        self._entries[key] = value, None if ttl is None else self._clock.now() + ttl, size
        self._bytes += size
        while self._bytes > self.max_bytes or (self.max_items is not None and len(self._entries) > self.max_items):
            _, (_, _, freed) = self._entries.popitem(last=False)
            self._bytes -= freed
            self._evictions += 1
        return True

    def _drop(self, key: str) -> None:
        self._bytes -= self._entries.pop(key)[2]

    def __repr__(self) -> str:
        return f"<MemoryStore {len(self._entries)} entries, {self._bytes} of {self.max_bytes} bytes>"


def _after_fork() -> None:
    """Another thread may have held a lock, and been changing what it guards; in this process it does not go on."""
    for store in list(_stores):
        if store._lock.locked():
            store._lock = threading.Lock()
            store._entries = OrderedDict()
            store._bytes = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

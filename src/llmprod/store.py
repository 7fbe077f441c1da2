"""Where bytes are kept by key: one small protocol for memory, a disk or a server, and for stores of your own.

The stores of this library are in :mod:`llmprod.stores`; ``llmprod.testing.StoreConformance`` checks one of yours.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

from llmprod.errors import InvalidArgument

__all__ = ["KEY_AT_MOST", "Store"]

KEY_AT_MOST = 512
"""The characters that a key may have."""


@runtime_checkable
class Store(Protocol):
    """Bytes by key, for a time; what a cache needs of memory, a disk or a server.

    A key is a str of at most 512 characters (any but lone surrogates). Stores keep keys readable, since ``clear`` goes
    by their beginning: put a hash of it into a key, not a user's name.

    A store forgets: when the time is over, when it is full, when what it kept was damaged. It never returns other bytes
    than were set under that key. What it can't do raises :class:`~llmprod.errors.StoreUnavailable`, and a cache takes
    that for a miss. Every method may be called from several tasks at once, and be cancelled at any await: what was
    asked has then happened or not.
    """

    async def get(self, key: str) -> bytes | None:
        """Return what was last set under ``key``, or None.

        Raises:
            StoreUnavailable: it can't be read now.
        """
        ...

    async def set(self, key: str, value: bytes, *, ttl: float | None = None) -> None:
        """Keep ``value`` under ``key``, in place of what is there, for ``ttl`` seconds (None: without end).

        A store with bounds may drop other entries for it, or ``value`` itself if it alone is too large; then the value
        before is gone as well.

        Raises:
            StoreUnavailable: it can't be written now; the value before may remain.
        """
        ...

    async def add(self, key: str, value: bytes, *, ttl: float | None = None) -> bool:
        """Set ``value`` only where there is none; return whether it was set.

        Atomic over everything that shares the store, so that it serves for leases.

        Raises:
            StoreUnavailable: it can't be written now, or the value is too large.
        """
        ...

    async def delete(self, key: str, *, only: bytes | None = None) -> bool:
        """Remove ``key``, or only where its value is ``only``; return whether it was removed. Atomic as ``add``.

        Raises:
            StoreUnavailable: it can't be written now.
        """
        ...

    async def clear(self, prefix: str = "") -> int:
        """Remove all keys that begin with ``prefix``; return how many they were.

        What is set meanwhile may remain.

        Raises:
            StoreUnavailable: it can't be written now; some may be removed already.
        """
        ...

    async def aclose(self) -> None:
        """Let go of files and connections; entries remain where the store outlives the process. May be repeated."""
        ...


def check_key(key: Any, field: str = "key") -> None:
    """Require a key, or a prefix of one."""
    if type(key) is not str or len(key) > KEY_AT_MOST:
        given = f"{len(key)} characters" if isinstance(key, str) else type(key).__name__
        raise InvalidArgument(field, given, f"a str of at most {KEY_AT_MOST} characters")
    if not key.isascii():
        try:
            key.encode()
        except UnicodeEncodeError:
            raise InvalidArgument(field, "a lone surrogate", "characters that UTF-8 can write") from None


def check_entry(key: Any, value: Any, ttl: Any) -> None:
    """Require a key, bytes, and a time to live."""
    check_key(key)
    if type(value) is not bytes:
        raise InvalidArgument("value", type(value).__name__, "bytes")
    if ttl is not None and not (type(ttl) in (int, float) and 0 < ttl < math.inf):
        raise InvalidArgument("ttl", repr(ttl)[:40], "more than 0 seconds, or None for no end")

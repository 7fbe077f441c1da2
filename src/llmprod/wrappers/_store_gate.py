"""A store that may go away: what it can't do, or not in time, is a miss, told once; it is left alone for a while.

The stores of this library keep to a time limit of their own. One that is not known to is given up after some seconds,
since a call whose answer is there must not wait for ever until that is stored.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio

from llmprod.context import Context
from llmprod.decisions import CacheStoreChanged
from llmprod.errors import InvalidArgument
from llmprod.store import Store

__all__ = ["StoreGate"]

T = TypeVar("T")
_log = logging.getLogger("llmprod")
_PAUSE = 0.5  # seconds; doubled with each failure in a row
_PAUSE_AT_MOST = 10.0
_PATIENCE = 5.0  # seconds that a store may take for one entry


class StoreGate:
    """Asks ``store``; None or False where it is away. A wrong argument or option still raises."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # In the class itself: what derives from one of ours may wait for something else.
        self._prompt = bool(vars(type(store)).get("_keeps_time"))
        self._failures = 0
        self._again = 0.0  # when it may be asked again, on the calls' clock

    async def get(self, key: str, context: Context, target: str) -> bytes | None:
        """Return what is stored, or None."""
        if self._failures and context.clock.now() < self._again:
            return None
        try:
            value = await self._in_time(self._store.get(key))
        except InvalidArgument:
            raise
        except Exception as error:  # noqa: BLE001 - a cache that can't be read costs a call, it does not break one
            self._lost(error, context, target)
            return None
        if self._failures:
            self._back(context, target)
        return value

    async def set(self, key: str, value: bytes, ttl: float, context: Context, target: str) -> bool:
        """Store ``value``; return whether it was."""
        if self._failures and context.clock.now() < self._again:
            return False
        try:
            await self._in_time(self._store.set(key, value, ttl=ttl))
        except InvalidArgument:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            self._lost(error, context, target)
            return False
        if self._failures:
            self._back(context, target)
        return True

    async def add(self, key: str, value: bytes, ttl: float, context: Context, target: str) -> bool | None:
        """Store ``value`` where there is none; return whether it was, or None where that can't be told."""
        if self._failures and context.clock.now() < self._again:
            return None
        try:
            added = await self._in_time(self._store.add(key, value, ttl=ttl))
        except InvalidArgument:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            self._lost(error, context, target)
            return None
        if self._failures:
            self._back(context, target)
        return added

    async def release(self, key: str, value: bytes, context: Context, target: str) -> None:
        """Remove ``key`` if it is ``value``; what can't be removed ends by itself."""
        try:
            await self._in_time(self._store.delete(key, only=value))
        except InvalidArgument:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            self._lost(error, context, target)

    def _in_time(self, asked: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        return asked if self._prompt else _limited(asked)

    def _lost(self, error: Exception, context: Context, target: str) -> None:
        first = not self._failures
        self._failures += 1
        pause = getattr(error, "retry_after", None) or min(_PAUSE * 2 ** min(self._failures - 1, 10), _PAUSE_AT_MOST)
        self._again = context.clock.now() + pause
        if first:
            _log.warning("the cache's store is away (%s); calls go on without it", type(error).__name__)
            context.decided(CacheStoreChanged, target, state="lost", error=type(error).__name__)

    def _back(self, context: Context, target: str) -> None:
        self._failures = 0
        _log.warning("the cache's store is back")
        context.decided(CacheStoreChanged, target, state="back")


async def _limited(asked: Coroutine[Any, Any, T]) -> T:
    with anyio.fail_after(_PATIENCE):
        return await asked

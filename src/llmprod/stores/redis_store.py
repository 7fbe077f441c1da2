"""Entries on a Redis or Valkey server, or a cluster of either, shared by all that reach it.

A key's name there is a hash. The key itself stands before the value: ``clear`` goes by it, and no answer that belongs
to another key is ever taken for this one's, whatever happened to the connection. Eviction is the server's
(``maxmemory-policy``).

redis-py has asyncio alone, and so has this.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, SYSTEM_RANDOM, Clock, Random
from llmprod.errors import StoreUnavailable, machine_token
from llmprod.store import check_entry, check_key
from llmprod.stores._redis_link import RedisLink, check_prefix
from llmprod.stores._warn import Warner

__all__ = ["RedisStore"]

_log = logging.getLogger("llmprod")
_VERSION = b"\x01"
_AT_ONCE = 500

_DELETE_ONLY = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('UNLINK', KEYS[1]) end
return 0
"""
# What stands before a value: the version, the length of the key in two bytes, the key.
_CLEAR = """
local prefix, gone = ARGV[1], 0
for _, name in ipairs(KEYS) do
  local head = redis.pcall('GETRANGE', name, 0, 2 + #prefix)
  if type(head) == 'string' and #head == 3 + #prefix and string.byte(head, 1) == 1
      and 256 * string.byte(head, 2) + string.byte(head, 3) >= #prefix and string.sub(head, 4) == prefix then
    gone = gone + redis.call('UNLINK', name)
  end
end
return gone
"""
_SHA = {script: hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest() for script in (_DELETE_ONLY, _CLEAR)}


class RedisStore:
    """A :class:`~llmprod.store.Store` on Redis or Valkey.

    While the server can't be reached every method raises :class:`~llmprod.errors.StoreUnavailable` at once, and one
    probe at a time looks whether it is back. Use one object for each event loop.

    Args:
        server: the server's URL (``redis://``, ``rediss://``, ``valkey://``, ``unix://``), or a client of
            ``redis.asyncio`` (or ``RedisCluster``), which stays yours to close.
        prefix: what all names begin with (default ``llmprod``).
        timeout: seconds that Redis may take to answer (default 0.5).
        at_once: commands under way at once, each on a connection of its own; others wait (default 32).
        clock: time between probes.
        random: spreads the probes.

    Raises:
        InvalidArgument: naming the option that is out of range.
        ImportError: redis is not installed (``pip install 'llmprod[redis]'``).
    """

    _keeps_time: ClassVar[bool] = True  # no method of it waits for long; a cache sets it no limit

    def __init__(
        self,
        server: Any,
        *,
        prefix: str = "llmprod",
        timeout: float = 0.5,
        at_once: int = 32,
        clock: Clock = SYSTEM_CLOCK,
        random: Random = SYSTEM_RANDOM,
    ) -> None:
        check_prefix(prefix)
        _validate.whole("at_once", at_once, 1)
        self._link = RedisLink(
            "RedisStore", server, timeout=timeout, clock=clock, random=random, on_lost=_lost, on_back=_back
        )
        self.prefix = prefix
        self.timeout = timeout
        self.at_once = at_once
        self._places = asyncio.Semaphore(at_once)
        self._warn = Warner()
        # A server that answers with a refusal is there; only these mean that it is not.
        from redis.exceptions import ConnectionError as Broken
        from redis.exceptions import TimeoutError as Late

        self._gone = (Broken, Late, OSError, TimeoutError)

    @property
    def lost(self) -> bool:
        """Redis can't be reached now."""
        return self._link.lost

    async def get(self, key: str) -> bytes | None:
        """Return what is kept under ``key``, or None.

        Raises:
            StoreUnavailable: Redis can't be reached.
            InvalidArgument: used on trio, or on two event loops at once.
        """
        check_key(key)
        name, head = self._name(key)
        # Undecoded whatever the client was made with.
        kept = await self._ask(lambda: self._link.client().execute_command("GET", name, NEVER_DECODE=True))
        if kept is None:
            return None
        if not kept.startswith(head):
            self._warn("foreign", "RedisStore: an entry is not one of this key's and counts as a miss")
            return None
        return bytes(kept[len(head) :])

    async def set(self, key: str, value: bytes, *, ttl: float | None = None) -> None:
        """Keep ``value``.

        Raises:
            StoreUnavailable: Redis can't be reached, or refuses it (``maxmemory``, a read-only replica).
        """
        check_entry(key, value, ttl)
        name, head = self._name(key)
        await self._ask(lambda: self._link.client().set(name, head + value, px=_milliseconds(ttl)))

    async def add(self, key: str, value: bytes, *, ttl: float | None = None) -> bool:
        """Keep ``value`` where there is none; return whether it was kept.

        Where the connection broke under the command it is sent once more, and can then find its own value there and
        return False; what was added so goes with its ``ttl``.

        Raises:
            StoreUnavailable: as for ``set``.
        """
        check_entry(key, value, ttl)
        name, head = self._name(key)
        return bool(
            await self._ask(lambda: self._link.client().set(name, head + value, px=_milliseconds(ttl), nx=True))
        )

    async def delete(self, key: str, *, only: bytes | None = None) -> bool:
        """Remove ``key``, or only where its value is ``only``; return whether it was removed.

        Raises:
            StoreUnavailable: as for ``set``.
        """
        check_key(key)
        name, head = self._name(key)
        if only is None:
            return bool(await self._ask(lambda: self._link.client().unlink(name)))
        return bool(await self._ask(lambda: self._run(_DELETE_ONLY, [name], [head + only])))

    async def clear(self, prefix: str = "") -> int:
        """Remove all keys that begin with ``prefix``, by SCAN; return how many they were.

        It reads the names of all entries below the store's prefix, a few hundred at a time.

        Raises:
            StoreUnavailable: Redis can't be reached any more; some keys may be removed already.
        """
        check_key(prefix, "prefix")
        told = prefix.encode()
        escaped = "".join(f"\\{letter}" if letter in "*?[]\\^" else letter for letter in self.prefix)
        names: list[Any] = []
        gone = 0
        self._link.here()
        scan = self._link.client().scan_iter(match=f"{escaped}:store:*", count=_AT_ONCE)
        while (name := await self._ask(lambda: anext(scan, None))) is not None:
            names.append(name)
            if len(names) >= _AT_ONCE:
                gone += await self._clear(names, told)
                names = []
        return gone + await self._clear(names, told)

    async def aclose(self) -> None:
        """Close the connections, if they are ours."""
        await self._link.aclose()

    # ---- Redis ------------------------------------------------------------------------------------------------------

    async def _clear(self, names: list[Any], told: bytes) -> int:
        if not names:
            return 0
        if hasattr(self._link.client(), "keyslot"):  # a cluster: a script's keys have to be on one node
            gone = 0
            for name in names:
                gone += await self._clear_of([name], told)
            return gone
        return await self._clear_of(names, told)

    async def _clear_of(self, names: list[Any], told: bytes) -> int:
        return int(await self._ask(lambda: self._run(_CLEAR, names, [told])))

    def _run(self, script: str, names: list[Any], arguments: list[Any]) -> Awaitable[Any]:
        return self._link.run(_SHA[script], script, names, arguments)

    async def _ask(self, command: Callable[[], Awaitable[Any]]) -> Any:
        link = self._link
        if link.here():
            self._places = asyncio.Semaphore(self.at_once)
        self._present()
        async with self._places:
            self._present()  # it may have been lost while this waited
            try:
                async with asyncio.timeout(self.timeout):
                    return await command()
            except self._gone as error:
                link.lose(error)
                raise self._unavailable("no connection", link.retry_after) from error
            except link.errors as error:
                # "OOM command not allowed …", "READONLY You can't write …": a code, then words.
                code = machine_token(str(error).partition(" ")[0]) or type(error).__name__
                why = "full" if "OOM" in code or "OutOfMemory" in type(error).__name__ else f"it answered {code}"
                self._warn("refused", "RedisStore: the server refuses a command (%s)", why)
                raise self._unavailable(why) from None

    def _present(self) -> None:
        if self._link.lost:
            self._link.look()
            raise self._unavailable("no connection", self._link.retry_after)

    @staticmethod
    def _unavailable(why: str, after: float | None = None) -> StoreUnavailable:
        return StoreUnavailable("RedisStore", why, retry_after=after)

    def _name(self, key: str) -> tuple[str, bytes]:
        told = key.encode()
        name = hashlib.blake2b(told, digest_size=16).hexdigest()
        return f"{self.prefix}:store:{name}", _VERSION + len(told).to_bytes(2, "big") + told

    def __repr__(self) -> str:
        return f"<RedisStore {self.prefix!r}, {'lost' if self.lost else 'connected'}>"


def _milliseconds(ttl: float | None) -> int | None:
    return None if ttl is None else math.ceil(min(ttl, 1e10) * 1000)


def _lost(error: BaseException) -> None:
    _log.warning("the store on Redis is lost (%s)", type(error).__name__)


def _back() -> None:
    _log.warning("the store on Redis is back")

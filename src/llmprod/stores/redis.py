"""Rate limits that several processes or machines share, on Redis, Valkey, or a cluster of either.

One script decides, on the server's clock, over all limits of a call at once (:mod:`llmprod.stores._limits_script`).
What a call really used is told afterwards, in the background. A call under way has a lease, so that a process that dies
gives back its places.

redis-py has asyncio alone, and so has this: on trio keep limits in the process.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, SYSTEM_RANDOM, Clock, Random
from llmprod.errors import InvalidArgument, RateLimitExceeded
from llmprod.mechanisms.limit_headers import LimitReading
from llmprod.mechanisms.limit_store import DAY, Calibrated, Leave, Limits, Shortage
from llmprod.mechanisms.rate_limit import RateLimiter, matches
from llmprod.stores._limits_script import SCRIPT
from llmprod.stores._redis_link import RedisLink, check_prefix
from llmprod.stores._redis_outbox import Errand, Outbox

__all__ = ["RedisLimits"]

_SHA = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
_LOCAL_AT_MOST = 10_000
_log = logging.getLogger("llmprod")


class RedisLimits:
    """Where the processes that share a rate limit keep it: ``RateLimit(…, store=RedisLimits("redis://host"))``.

    While Redis can't be reached, calls go on with this process's share of the limits (``local_share``) or are refused
    (``refuse``); one probe at a time looks whether it is back. Use one object for each event loop.

    Args:
        server: the server's URL (``redis://``, ``rediss://``, ``valkey://``, ``unix://``), or a client of
            ``redis.asyncio`` (or ``RedisCluster``), which stays yours to close.
        prefix: what all keys begin with (default ``llmprod``). Names and tags are stored as hashes only.
        when_lost: what to do while Redis can't be reached (default ``local_share``).
        processes: how many processes share the limits, for the local share (default None: as many as were seen in
            the last minute before Redis was lost).
        timeout: seconds that Redis may take to answer (default 0.5).
        lease: seconds after which a call that was never settled gives back its place among the concurrent ones; longer
            than your longest call (default 900).
        clock: time between probes.
        random: spreads the probes.

    Raises:
        InvalidArgument: naming the option that is out of range.
        ImportError: redis is not installed (``pip install 'llmprod[redis]'``).
    """

    def __init__(
        self,
        server: Any,
        *,
        prefix: str = "llmprod",
        when_lost: Literal["local_share", "refuse"] = "local_share",
        processes: int | None = None,
        timeout: float = 0.5,
        lease: float = 900.0,
        clock: Clock = SYSTEM_CLOCK,
        random: Random = SYSTEM_RANDOM,
    ) -> None:
        if when_lost not in ("local_share", "refuse"):
            raise InvalidArgument("when_lost", repr(when_lost)[:40], "local_share, refuse")
        check_prefix(prefix)
        _validate.whole("processes", processes, 1, optional=True)
        _validate.seconds("lease", lease)
        self._link = RedisLink(
            "RedisLimits", server, timeout=timeout, clock=clock, random=random,
            on_lost=self._is_lost, on_probe=self._drain, on_back=self._is_back,
        )  # fmt: skip
        self.prefix = prefix
        self.when_lost: Literal["local_share", "refuse"] = when_lost
        self.processes = processes
        self.timeout = timeout
        self.lease = lease
        self._clock = clock
        self._process = uuid.uuid4().hex[:12]
        self._ids = itertools.count()
        self._seen = 1
        self._outbox = Outbox(self._link, _SHA, SCRIPT)
        self._local: OrderedDict[str, tuple[RateLimiter, Limits]] = OrderedDict()

    @property
    def lost(self) -> bool:
        """Redis can't be reached now."""
        return self._link.lost

    @property
    def mode(self) -> str:
        """What happens while it is lost: ``local_share`` or ``refuse``."""
        return self.when_lost

    # ---- leave ------------------------------------------------------------------------------------------------------

    async def reserve(
        self, key: str, limits: Limits, costs: Mapping[str, float], on_room: Callable[[], None]
    ) -> Leave | Shortage:
        """Take ``costs`` from the limits that go by ``key``, all or nothing.

        Raises:
            RateLimitExceeded: Redis is lost and ``when_lost`` is ``refuse``.
            InvalidArgument: used on trio, or on two event loops at once.
        """
        self._here()
        if self._link.lost:
            self._link.look()
            return self._without(key, limits, costs, on_room)
        keys = self._keys(key)
        leave = _Lease(self, keys, limits, costs, f"{self._process}:{next(self._ids)}", on_room)
        arguments = [*_head("reserve", limits), leave.id, repr(self.lease), self._process, str(limits.concurrent or 0)]
        arguments += [repr(float(costs.get(limit.dimension, 0.0))) for limit in limits.rates]
        try:
            answer: list[Any] = await self._run(keys, arguments)
        except self._link.errors as error:
            leave.cancel()  # it may have arrived all the same
            self._link.lose(error)
            return self._without(key, limits, costs, on_room)
        except BaseException:
            leave.cancel()
            raise
        self._seen = max(1, int(answer[1]))
        if not int(answer[0]):
            seconds = float(answer[3])
            return Shortage(_text(answer[2]), None if seconds < 0 else seconds)
        numbers = [float(value) for value in answer[2:]]
        leave.levels = list(zip(numbers[::2], numbers[1::2], strict=True))
        return leave

    def throttled(self, key: str, limits: Limits, seconds: float) -> None:
        """The provider refused a call: give nobody leave for ``seconds``, and less for a while."""
        local = self._local.get(key)
        if local is not None:
            local[0].throttled(seconds)
        if not self._link.lost:
            self.later(self._keys(key), [*_head("throttled", limits), repr(float(seconds))])

    def _without(
        self, key: str, limits: Limits, costs: Mapping[str, float], on_room: Callable[[], None]
    ) -> Leave | Shortage:
        if self.when_lost == "refuse":
            after = self._link.retry_after
            raise RateLimitExceeded(dimension="store", retry_after=after, detail="the shared store is lost")
        known = self._local.get(key)
        if known is None:
            local = RateLimiter(limits.share(self.processes or self._seen), clock=self._clock)
            local.drain()  # what may be taken at once was taken a moment ago, for all we know
            self._local[key] = local, limits
            if len(self._local) > _LOCAL_AT_MOST:
                self._local.popitem(last=False)
        else:
            local = known[0]
            self._local.move_to_end(key)
        local.on_room = on_room
        return local.reserve(costs)

    # ---- lost, and back ---------------------------------------------------------------------------------------------

    def _is_lost(self, error: BaseException) -> None:
        _log.warning("the shared store of rate limits is lost (%s); %s", type(error).__name__, self.when_lost)

    async def _drain(self) -> None:
        for key, (_, limits) in list(self._local.items()):
            if any(limit.paced for limit in limits.rates):
                await self._run(self._keys(key), _head("drain", limits))

    def _is_back(self) -> None:
        # What the provider said before is of no use now; leases may still be there.
        self._outbox.keep(lambda errand: errand.arguments[0] == "end")
        self._local.clear()  # what is under way holds on to its own limiter
        _log.warning("the shared store of rate limits is back")
        self._outbox.start()

    # ---- telling what was used --------------------------------------------------------------------------------------

    def later(self, keys: list[str], arguments: list[str], then: Callable[[], None] | None = None) -> None:
        """Run the script in the background; called by leases, also where nothing may be awaited."""
        self._outbox.add(Errand(keys, arguments, then))

    async def flush(self) -> None:
        """Return when what was settled has been told, or Redis is lost."""
        await self._outbox.flush(self._here)

    async def aclose(self) -> None:
        """Tell what is untold; close the connections, if they are ours."""
        await self.flush()
        await self._outbox.aclose()
        await self._link.aclose()

    # ---- Redis ------------------------------------------------------------------------------------------------------

    def _here(self) -> None:
        if self._link.here():
            self._outbox.moved()

    async def _run(self, keys: list[str], arguments: list[str]) -> Any:
        return await self._link.run(_SHA, SCRIPT, keys, arguments)

    def _keys(self, key: str) -> list[str]:
        # Hashed, since a key may hold a user's name or an API key; in braces, so that a cluster keeps them together.
        tag = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        return [f"{self.prefix}:{{{tag}}}:{part}" for part in ("limits", "leases", "processes")]

    def __repr__(self) -> str:
        return f"<RedisLimits {self.prefix!r}, {'lost: ' + self.when_lost if self._link.lost else 'connected'}>"


class _Lease:
    """Leave that Redis gave."""

    __slots__ = ("_costs", "_ended", "_keys", "_limits", "_on_room", "_store", "id", "levels")

    def __init__(
        self,
        store: RedisLimits,
        keys: list[str],
        limits: Limits,
        costs: Mapping[str, float],
        name: str,
        on_room: Callable[[], None],
    ) -> None:
        self._store = store
        self._keys = keys
        self._limits = limits
        self._costs = costs
        self._on_room = on_room
        self._ended = False
        self.id = name
        self.levels: list[tuple[float, float]] = []

    def settle(self, actual: Mapping[str, float], *, final: bool = True) -> None:
        more = {name: used - self._costs.get(name, 0.0) for name, used in actual.items()}
        self._end(more if final else {name: max(0.0, value) for name, value in more.items()})

    def keep(self) -> None:
        self._end({})

    def cancel(self) -> None:
        self._end({name: -cost for name, cost in self._costs.items()})

    def _end(self, more: Mapping[str, float]) -> None:
        if not self._ended:
            self._ended = True
            changes = [repr(float(more.get(limit.dimension, 0.0))) for limit in self._limits.rates]
            self._store.later(self._keys, [*_head("end", self._limits), self.id, *changes], self._on_room)

    def calibrate(self, readings: tuple[LimitReading, ...]) -> list[Calibrated]:
        changed: list[Calibrated] = []
        told: list[str] = []
        for limit, (believed, corrected) in zip(self._limits.rates, self.levels, strict=False):
            left = [reading.remaining for reading in readings if matches(reading, limit.dimension, limit.period)]
            least = min(left, default=-1.0)
            told += [repr(believed), repr(corrected), repr(least)]
            if 0 <= least < believed:
                changed.append(Calibrated(limit.name, believed, least))
        if changed:
            self._store.later(self._keys, [*_head("calibrate", self._limits), *told])
        return changed


def _head(operation: str, limits: Limits) -> list[str]:
    head = [operation, str(len(limits.rates))]
    for limit in limits.rates:
        kind = "0" if limit.period >= DAY else "2" if limit.paced else "1"
        head += [limit.name, repr(limit.rate), repr(float(limit.depth)), kind]
    return head


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)

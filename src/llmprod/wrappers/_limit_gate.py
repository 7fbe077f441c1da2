"""Who waits for a rate limit, and for how long: one line a limiter, whoever stands first asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from llmprod.context import Context
from llmprod.mechanisms.limit_store import Leave, Limits, LimitStore, Shortage
from llmprod.mechanisms.rate_limit import RateLimiter
from llmprod.wrappers._line import Line

_POLL = 0.2
"""Seconds after which to ask a store again that can't say when there will be room: nobody wakes us from elsewhere."""


class NoLeave(Exception):
    """There is no room, or not in time.

    Attributes:
        shortage: what is short.
        waited: seconds waited in vain.
    """

    def __init__(self, shortage: Shortage, waited: float = 0.0) -> None:
        super().__init__(shortage)
        self.shortage = shortage
        self.waited = waited


class Gate:
    """One limiter, or one key of a store, and the calls that wait for it."""

    def __init__(
        self,
        limits: Limits,
        *,
        limiter: RateLimiter | None,
        store: LimitStore | None,
        key: str,
        line: Line,
    ) -> None:
        self.limits = limits
        self.limiter = limiter
        self.store = store
        self.key = key
        self.line = line
        # Over a store calls also stand in line to ask, one after the other: that is no waiting, until one got a no.
        self._short = store is None
        self._last: Shortage | None = None
        self._waiting: dict[int, dict[str, float]] = {}  # what stands in line, by priority and dimension
        if limiter is not None:
            limiter.on_room = line.wake

    @property
    def idle(self) -> bool:
        """Forgetting it would change nothing."""
        return not self.line.places and (self.limiter is None or self.limiter.idle)

    @property
    def busy(self) -> bool:
        """Calls stand in line or are under way, so it must not be forgotten."""
        return bool(self.line.places) or (self.limiter is not None and self.limiter.in_flight > 0)

    def throttled(self, seconds: float) -> None:
        """The provider refused a call: give nobody leave for ``seconds``, and less for a while."""
        if self.limiter is not None:
            self.limiter.throttled(seconds)
        elif self.store is not None:
            self.store.throttled(self.key, self.limits, seconds)

    def at_once(self, costs: Mapping[str, float]) -> Leave | None:
        """Return leave if there is some and nobody waits for it; None otherwise, and where a store must be asked."""
        if self.limiter is None or self.line.places:
            return None
        got = self.limiter.reserve(costs)
        return None if isinstance(got, Shortage) else got

    async def enter(self, costs: Mapping[str, float], context: Context, wait_at_most: float | None) -> Entry:
        """Return leave, having waited for it in line.

        Raises:
            NoLeave: not in time, or too many wait.
        """
        ask = self._ask_store if self.limiter is None else None
        return await self._in_line(costs, context, wait_at_most, ask)

    async def _ask_store(self, costs: Mapping[str, float]) -> Leave | Shortage:
        assert self.store is not None
        return await self.store.reserve(self.key, self.limits, costs, self.line.wake)

    async def _in_line(
        self,
        costs: Mapping[str, float],
        context: Context,
        wait_at_most: float | None,
        ask: Callable[[Mapping[str, float]], Awaitable[Leave | Shortage]] | None,
    ) -> Entry:
        clock, line, limiter = context.clock, self.line, self.limiter
        started = clock.now()
        end = _earliest(context.deadline, None if wait_at_most is None else started + wait_at_most)
        expected = self._expected(costs, self._ahead(context.priority))
        if (line.full and self._short) or (
            expected is not None
            and expected.seconds is not None
            and end is not None
            and started + expected.seconds > end
        ):
            raise NoLeave(expected or self._last or Shortage("line", None))
        place = line.join(context.priority)
        queued = self._waiting.setdefault(context.priority, {})
        for name, cost in costs.items():
            queued[name] = queued.get(name, 0.0) + cost
        short: Shortage | None = None
        try:
            while True:
                if place.first:
                    if ask is not None:
                        got = await ask(costs)
                    else:
                        assert limiter is not None
                        got = limiter.reserve(costs)
                    if not isinstance(got, Shortage):
                        self._short = self.store is None
                        return Entry(got, short, clock.now() - started if short else 0.0)
                    self._last = got
                    if not self._short:
                        self._short = True
                        for other in line.places:  # now they do wait, each as long as it may
                            other.wake()
                    short, wait = got, got.seconds
                    if wait is None and ask is not None:
                        wait = _POLL
                    elif wait is not None and ask is not None:
                        wait += 0.01 + wait * 0.05 * context.random.random()  # processes that wait for one moment
                elif not self._short:
                    await place.wait(None)
                    continue
                else:
                    short, wait = short or expected or self._last or Shortage("line", None), None
                now = clock.now()
                if end is not None and (now >= end or (wait is not None and now + wait > end)):
                    raise NoLeave(short, now - started)
                if end is not None:
                    wait = end - now if wait is None else min(wait, end - now)
                await place.wait(wait)
        finally:
            place.leave()
            for name, cost in costs.items():
                queued[name] -= cost
            if not line.places:
                self._short = self.store is None
                self._waiting.clear()  # rounding errors don't add up

    def _expected(self, costs: Mapping[str, float], ahead: Mapping[str, float]) -> Shortage | None:
        """What a newcomer has to wait for; of a store only what those before it need at the full rate is known."""
        if self.limiter is not None:
            return self.limiter.delay(costs, ahead)
        longest = Shortage("line", 0.0)
        for limit in self.limits.rates:
            if costs.get(limit.dimension):
                before = ahead.get(limit.dimension, 0.0)
                seconds = (before + min(costs[limit.dimension], limit.depth) - limit.depth) / limit.rate
                if before and seconds > (longest.seconds or 0.0):
                    longest = Shortage(limit.name, seconds)
        return longest if longest.seconds else None

    def _ahead(self, priority: int) -> dict[str, float]:
        ahead: dict[str, float] = {}
        for theirs, queued in self._waiting.items():
            if theirs >= priority:
                for name, cost in queued.items():
                    ahead[name] = ahead.get(name, 0.0) + cost
        return ahead


class Entry:
    """Leave that was got, and what it was waited for."""

    __slots__ = ("leave", "short", "waited")

    def __init__(self, leave: Leave, short: Shortage | None = None, waited: float = 0.0) -> None:
        self.leave = leave
        self.short = short
        self.waited = waited


def _earliest(first: float | None, second: float | None) -> float | None:
    return first if second is None else second if first is None else min(first, second)


def shared_gate(limiter: RateLimiter, at_most_waiting: int | None) -> Gate:
    """Return the one gate, and line, of a limiter that several stacks may share."""
    if not isinstance(limiter.gate, Gate):
        limiter.gate = Gate(limiter.limits, limiter=limiter, store=None, key="", line=Line(at_most_waiting))
    assert isinstance(limiter.gate, Gate)
    return limiter.gate

"""Rate limits in several dimensions, all or nothing: one token bucket each.

A bucket refills evenly up to its burst. What a call will use is not known when it is sent, so it reserves an estimate
and settles the difference when it has ended, into debt if need be: later calls wait until the debt is paid back. (The
rule that an error never refunds is TensorZero's.) A call that costs more than the burst is let through when the bucket
is full, into debt, since it could never be otherwise.

Calibration compares what the provider says is left with what was believed *when that call was given leave*: a header
is as old as its call, and taking it for the present would count everything since then twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.mechanisms.limit_headers import LimitReading
from llmprod.mechanisms.limit_store import DAY, Calibrated, Limit, Limits, Shortage

__all__ = ["RateLimiter", "Reservation"]

_SLOWER, _SLOWER_AGAIN, _AGAIN = 0.95, 0.9, 10.0
_RECOVERY = 0.05 / 60.0  # of the whole, a second
_SLOWEST = 0.1
_TOLERANCE = 1e-9  # of what is asked for: rounding must not make a call wait twice


class _Bucket:
    __slots__ = ("burst", "corrected", "dimension", "level", "name", "period", "rate", "seen")

    def __init__(self, limit: Limit) -> None:
        self.dimension: str = limit.dimension
        self.name = limit.name
        self.rate = limit.rate
        self.period = limit.period
        self.burst = limit.depth
        self.level = self.burst
        self.seen = -math.inf
        self.corrected = 0.0

    def refill(self, now: float, pace: float) -> None:
        if now > self.seen:
            self.level = min(self.burst, self.level + (now - self.seen) * self.rate * pace)
            self.seen = now

    def wait(self, cost: float, pace: float, ahead: float = 0.0) -> float:
        """Seconds of refilling until ``cost`` may be taken, after ``ahead`` was."""
        short = ahead + min(cost, self.burst) - self.level
        return short / (self.rate * pace) if short > _TOLERANCE * max(1.0, ahead + cost) else 0.0


class Reservation:
    """What one call has taken. Settle, keep or cancel it; only the first of these counts."""

    __slots__ = ("_costs", "_levels", "_limiter")

    def __init__(self, limiter: RateLimiter, costs: Mapping[str, float], levels: list[tuple[float, float]]) -> None:
        self._limiter: RateLimiter | None = limiter
        self._costs = costs
        self._levels = levels

    def settle(self, actual: Mapping[str, float], *, final: bool = True) -> None:
        """The call used ``actual``, by dimension; what is not named keeps its estimate.

        With ``final=False`` the numbers are not the last word (the answer broke off): they can only add.
        """
        if self._limiter is not None:
            costs = self._costs
            more = {name: used - costs.get(name, 0.0) for name, used in actual.items()}
            self._end(more if final else {name: max(0.0, value) for name, value in more.items()})

    def keep(self) -> None:
        """The call was sent and nobody knows what it used: the estimate stands."""
        self._end({})

    def cancel(self) -> None:
        """The call was never sent: all is given back."""
        self._end({name: -cost for name, cost in self._costs.items()})

    def _end(self, more: Mapping[str, float]) -> None:
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter.end(more)

    def calibrate(self, readings: tuple[LimitReading, ...]) -> list[Calibrated]:
        """Believe the provider where it told less than was believed when this leave was given."""
        return self._limiter.calibrate(readings, since=self._levels) if self._limiter is not None else []


class RateLimiter:
    """Gives calls leave within several limits. Share one between stacks by passing the same object.

    Args:
        limits: the limits.
        clock: time.

    Attributes:
        on_room: is called whenever something is given back, so that whoever waits can ask again.
        gate: what the wrappers that share this limiter keep with it: the one line of those who wait.
        in_flight: reservations that are not settled.
    """

    def __init__(self, limits: Limits, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.limits = limits
        self.in_flight: int = 0
        self.on_room: Callable[[], None] | None = None
        self.gate: object = None
        self._clock = clock
        self._concurrent = limits.concurrent
        self._buckets = [_Bucket(limit) for limit in limits.rates]
        self._paused_until = -math.inf
        self._slowed_to = 1.0
        self._slowed_at = -math.inf

    @property
    def pace(self) -> float:
        """The share of the limits that is used now: 1, or less for a while after the provider refused calls."""
        return self._pace(self._clock.now())

    def _pace(self, now: float) -> float:
        if self._slowed_to == 1.0:
            return 1.0
        pace = self._slowed_to + (now - self._slowed_at) * _RECOVERY
        if pace >= 1.0:
            self._slowed_to = pace = 1.0
        return max(pace, _SLOWEST)

    def reserve(self, costs: Mapping[str, float]) -> Reservation | Shortage:
        """Take ``costs``, by dimension, from every limit, or nothing and say what is short and for how long.

        To wait as long as it says is enough, unless others take something meanwhile.
        """
        now = self._clock.now()
        if now < self._paused_until:
            return Shortage("paused", self._paused_until - now)
        if self._concurrent is not None and self.in_flight >= self._concurrent:
            return Shortage("concurrent", None)
        longest, short, pace = 0.0, "", self._pace(now)
        for bucket in self._buckets:
            bucket.refill(now, pace)
            cost = costs.get(bucket.dimension)
            if cost and (wait := bucket.wait(cost, pace)) > longest:
                longest, short = wait, bucket.name
        if short:
            return Shortage(short, longest)
        levels: list[tuple[float, float]] = []
        for bucket in self._buckets:
            bucket.level -= costs.get(bucket.dimension, 0.0)
            levels.append((bucket.level, bucket.corrected))
        self.in_flight += 1
        return Reservation(self, costs, levels)

    def delay(self, costs: Mapping[str, float], ahead: Mapping[str, float] | None = None) -> Shortage | None:
        """Return the wait for ``costs`` after ``ahead`` had its turn, as far as time decides; None for no wait."""
        now = self._clock.now()
        paused, pace = max(0.0, self._paused_until - now), self._pace(now)
        longest, short = paused, "paused"
        for bucket in self._buckets:
            cost = costs.get(bucket.dimension)
            if cost:
                bucket.refill(now, pace)
                wait = paused + bucket.wait(cost, pace, ahead.get(bucket.dimension, 0.0) if ahead else 0.0)
                if wait > longest:
                    longest, short = wait, "paused" if paused else bucket.name
        if longest <= 0 and self._concurrent is not None and self.in_flight >= self._concurrent:
            return Shortage("concurrent", None)
        return Shortage(short, longest) if longest > 0 else None

    def end(self, more: Mapping[str, float]) -> None:
        """A reservation has ended and used ``more`` than it took, by dimension; called by the reservation."""
        self.in_flight -= 1
        now = self._clock.now()
        pace = self._pace(now)
        for bucket in self._buckets:
            change = more.get(bucket.dimension)
            if change:
                bucket.refill(now, pace)
                bucket.level = min(bucket.burst, bucket.level - change)
        if self.on_room is not None:
            self.on_room()

    def pause(self, seconds: float) -> None:
        """Give nobody leave for ``seconds``, and begin with empty buckets after it; never shortens a pause under way.

        The provider had nothing left and has not much more when the pause ends: a full bucket then would be let loose
        on it at once.
        """
        now = self._clock.now()
        pace = self._pace(now)
        self._paused_until = until = max(self._paused_until, now + seconds)
        for bucket in self._buckets:
            if bucket.period < DAY:
                bucket.refill(now, pace)
                bucket.level = min(bucket.level, 0.0)
                bucket.seen = until

    def drain(self) -> None:
        """Begin with empty buckets where the burst is less than the allowance: it may have been used elsewhere."""
        now = self._clock.now()
        pace = self._pace(now)
        for bucket, limit in zip(self._buckets, self.limits.rates, strict=True):
            if limit.paced:
                bucket.refill(now, pace)
                bucket.level = min(bucket.level, 0.0)

    def throttled(self, seconds: float) -> None:
        """The provider refused a call that these limits allowed: pause, and go slower for some time.

        Additive increase, multiplicative decrease, as TCP: 5% slower after a refusal, 10% after another within ten
        seconds, back within a minute or so.
        """
        now = self._clock.now()
        if now >= self._paused_until:  # later refusals of the same moment tell nothing new
            since = now - self._slowed_at
            self._slowed_to = max(_SLOWEST, self._pace(now) * (_SLOWER_AGAIN if since < _AGAIN else _SLOWER))
            self._slowed_at = now
        self.pause(seconds)

    def calibrate(
        self, readings: tuple[LimitReading, ...], *, since: list[tuple[float, float]] | None = None
    ) -> list[Calibrated]:
        """Believe the provider where it says that less is left.

        Args:
            readings: what it said.
            since: what was believed when the call that brought them was given leave; without it, what is believed now.
        """
        changed: list[Calibrated] = []
        now = self._clock.now()
        pace = self._pace(now)
        for reading in readings:
            for place, bucket in enumerate(self._buckets):
                if not matches(reading, bucket.dimension, bucket.period):
                    continue
                bucket.refill(now, pace)
                if since is None:
                    excess = bucket.level - reading.remaining
                else:
                    believed, corrected = since[place]
                    excess = believed - (bucket.corrected - corrected) - reading.remaining
                if excess > 0:
                    before = bucket.level
                    bucket.level -= excess
                    bucket.corrected += excess
                    changed.append(Calibrated(bucket.name, before, bucket.level))
        return changed

    def left(self) -> dict[str, float]:
        """What may be taken now, by name of the limit; negative for a debt."""
        now = self._clock.now()
        pace = self._pace(now)
        for bucket in self._buckets:
            bucket.refill(now, pace)
        return {bucket.name: bucket.level for bucket in self._buckets}

    @property
    def idle(self) -> bool:
        """Nothing is under way or owed: forgetting this limiter would change nothing."""
        now = self._clock.now()
        if self.in_flight or self._paused_until > now:
            return False
        pace = self._pace(now)
        for bucket in self._buckets:
            bucket.refill(now, pace)
            if bucket.level < bucket.burst:
                return False
        return True

    def __repr__(self) -> str:
        left = ", ".join(f"{name} {level:.4g}" for name, level in self.left().items())
        return f"<RateLimiter, left: {left}; {self.in_flight} under way>"


def matches(reading: LimitReading, dimension: str, period: float) -> bool:
    """A reading tells of this limit, or of one over a longer time, which binds this one too."""
    return reading.dimension == dimension and (reading.period is None or reading.period >= period)

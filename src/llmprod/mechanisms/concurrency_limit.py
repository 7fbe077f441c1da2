"""How many calls may be under way at once: a fixed number, or one that follows what the target can take.

A limit gives permits and learns from what the calls report. Every permit is given back once, whatever became of its
call. Loss-based limits here (additive increase, multiplicative decrease: Netflix concurrency-limits' ``AIMDLimit``);
the one that reads first-token times is in :mod:`llmprod.mechanisms.gradient2`.

A burst of refusals is one piece of news: a limit cuts once for it, not once a refused call (TCP NewReno cuts once a
window of data; Netflix cuts each time, so that forty calls refused together take a limit from 200 to its minimum).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.errors import InvalidArgument
from llmprod.mechanisms.latency_window import LatencyWindow

__all__ = ["AIMDLimit", "ConcurrencyLimit", "ConcurrencyPermit", "FixedLimit", "QueueLimit"]

_USUAL, _USUAL_WINDOW, _LATE = 0.25, 600.0, 4.0


class ConcurrencyPermit:
    """Leave for one call to be under way.

    Attributes:
        in_flight: calls under way when it was given, its own among them.
    """

    __slots__ = ("_limit", "cuts", "in_flight")

    def __init__(self, limit: ConcurrencyLimit, in_flight: int, cuts: int) -> None:
        self._limit: ConcurrencyLimit | None = limit
        self.in_flight: int = in_flight
        self.cuts: int = cuts

    def answered(self, seconds: float | None = None, *, whole: bool = False) -> None:
        """The target took the call: ``seconds`` to its first token, or to the end of an answer that comes ``whole``."""
        if self._limit is not None:
            self._limit.answered(self, seconds, whole=whole)

    def expired(self, seconds: float, *, whole: bool = False) -> None:
        """The call's own deadline passed ``seconds`` after it was sent, and nothing had come."""
        if self._limit is not None:
            self._limit.expired(self, seconds, whole=whole)

    def dropped(self) -> None:
        """The target refused the call for want of capacity, or let it time out."""
        if self._limit is not None:
            self._limit.dropped(self)

    def release(self) -> None:
        """The call is over. Again: nothing."""
        limit, self._limit = self._limit, None
        if limit is not None:
            limit.released()


class ConcurrencyLimit(ABC):
    """Calls under way, and how many of them there may be. Share one between stacks by passing the same object.

    Subclass it for a limit of your own: implement ``limit``, and ``_answered`` and ``_dropped`` if it learns.

    Attributes:
        in_flight: permits that are out.
        ask_again: seconds after which a waiting call should ask again; None where only a permit that comes back can
            make room.
    """

    ask_again: float | None = None

    def __init__(self) -> None:
        self.in_flight: int = 0
        self._cuts = 0

    @property
    @abstractmethod
    def limit(self) -> int:
        """Calls that may be under way now; at least 1."""

    def acquire(self) -> ConcurrencyPermit | None:
        """Return a permit, or None if as many are out as may be."""
        if self.in_flight >= self.limit:
            return None
        self.in_flight += 1
        return ConcurrencyPermit(self, self.in_flight, self._cuts)

    def answered(self, permit: ConcurrencyPermit, seconds: float | None, *, whole: bool = False) -> None:
        """Learn from a call that was taken; called by the permit."""
        if seconds is None or not self._timed(seconds, whole=whole):
            self._answered(None if whole else seconds, permit.in_flight)

    def expired(self, permit: ConcurrencyPermit, seconds: float, *, whole: bool = False) -> None:
        """Learn from a call whose deadline passed; called by the permit."""
        if self._late(seconds, whole=whole):
            self.dropped(permit)

    def dropped(self, permit: ConcurrencyPermit) -> None:
        """Learn from a call that was not; called by the permit."""
        if permit.cuts == self._cuts:  # else it was begun before the last cut, which answered for it
            self._cuts += 1
            self._dropped()

    def released(self) -> None:
        """Take a permit back; called by the permit."""
        self.in_flight -= 1

    def _answered(self, seconds: float | None, in_flight: int) -> None:  # noqa: B027 - a limit need not learn
        """Learn that a call was taken, ``seconds`` to its first token; ``in_flight`` as it began."""

    def _timed(self, seconds: float, *, whole: bool) -> bool:
        """Take note of how long an answer took; True if it came so late that it is no reason to grow."""
        return False

    def _late(self, seconds: float, *, whole: bool) -> bool:
        """Tell whether ``seconds`` without an answer say something of the target, and not of a hasty caller."""
        return False

    def _dropped(self) -> None:  # noqa: B027
        """Learn that the target is asked too much; once for all calls that were under way together."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.limit} at once)"


class FixedLimit(ConcurrencyLimit):
    """Always the same number of calls at once.

    Raises:
        InvalidArgument: ``limit`` is not a positive integer.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        _validate.whole("limit", limit, 1)
        self._limit = limit

    @property
    def limit(self) -> int:
        """The number."""
        return self._limit


def check_bounds(initial: int, minimum: int, maximum: int, backoff: float) -> None:
    """Require ``1 <= minimum <= initial <= maximum`` and a backoff as Netflix allows it."""
    _validate.whole("minimum", minimum, 1)
    _validate.whole("initial", initial, 1)
    _validate.whole("maximum", maximum, 1)
    if not minimum <= initial <= maximum:
        raise InvalidArgument("initial", repr(initial), f"from minimum ({minimum}) to maximum ({maximum})")
    _validate.between("backoff", backoff, 0.5, 0.99)


class AIMDLimit(ConcurrencyLimit):
    """One more for each call that was taken, a tenth less for a refusal: for hosted APIs that answer 429.

    It does not grow while less than half of it is used (Netflix's ``AIMDLimit``), nor by an answer that came late: a
    target that queues what it can't serve refuses nobody until its queue is full, and by then every call waits longer
    than its deadline (TCP's slow start ends likewise when round trips get longer: HyStart, RFC 9406). Late is four
    times what a quarter of the answers of ten minutes stay within, first tokens and whole answers apart. So, whatever
    the lengths of answers, the quickest quarter always lets it grow. A deadline that passes that late is a refusal.

    Args:
        initial: calls at once at first (default 20).
        minimum: never fewer (default 1; Netflix 20, too many for a small account).
        maximum: never more (default 200).
        backoff: what is left of the limit after a refusal (default 0.9).
        clock: time of the answers that lateness is judged by.

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    def __init__(
        self,
        *,
        initial: int = 20,
        minimum: int = 1,
        maximum: int = 200,
        backoff: float = 0.9,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__()
        check_bounds(initial, minimum, maximum, backoff)
        self.minimum: int = minimum
        self.maximum: int = maximum
        self.backoff: float = backoff
        self._limit = initial
        self._firsts = LatencyWindow(_USUAL_WINDOW, clock=clock)
        self._wholes = LatencyWindow(_USUAL_WINDOW, clock=clock)

    @property
    def limit(self) -> int:
        """Calls that may be under way now."""
        return self._limit

    def _late(self, seconds: float, *, whole: bool) -> bool:
        usual = (self._wholes if whole else self._firsts).quantile(_USUAL)
        return usual is not None and seconds > _LATE * usual

    def _timed(self, seconds: float, *, whole: bool) -> bool:
        (self._wholes if whole else self._firsts).record(seconds)
        return self._late(seconds, whole=whole)

    def _answered(self, seconds: float | None, in_flight: int) -> None:
        if in_flight * 2 >= self._limit:
            self._limit = min(self.maximum, self._limit + 1)

    def _dropped(self) -> None:
        self._limit = max(self.minimum, int(self._limit * self.backoff))


class QueueLimit(AIMDLimit):
    """Follows the engine's own queue: for an engine that tells how many requests wait in it, as vLLM does.

    An engine batches, so its latency says little until it is overloaded, while its waiting queue says it at once.
    Every ``interval`` it is read: longer than ``target``, or the KV cache fuller than ``cache_at_most``, cuts the
    limit to ``backoff`` of it, but not again before the calls under way have come down to it; else the limit grows by
    one if half of it is in use. An unknown reading (None, or an exception) changes nothing.

    Args:
        waiting: returns the requests that wait in the engine (vLLM: ``vllm:num_requests_waiting``), None if unknown.
            It must return at once: hand it a number that something else keeps up to date.
        target: waiting requests that are no overload (default 0: none).
        cache_use: returns the share of the KV cache in use, from 0 to 1 (vLLM: ``vllm:kv_cache_usage_perc``).
        cache_at_most: beyond this share the engine preempts, so fewer calls are let in (default 0.95).
        interval: seconds between two readings (default 0.25).
        initial: calls at once at first (default 20).
        minimum: never fewer (default 1).
        maximum: never more (default 200).
        backoff: what is left of the limit after a cut (default 0.9).
        clock: time.

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    def __init__(
        self,
        waiting: Callable[[], float | None],
        *,
        target: int = 0,
        cache_use: Callable[[], float | None] | None = None,
        cache_at_most: float = 0.95,
        interval: float = 0.25,
        initial: int = 20,
        minimum: int = 1,
        maximum: int = 200,
        backoff: float = 0.9,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(initial=initial, minimum=minimum, maximum=maximum, backoff=backoff, clock=clock)
        for name, reading in (("waiting", waiting), ("cache_use", cache_use)):
            if not callable(reading) and not (name == "cache_use" and reading is None):
                raise InvalidArgument(name, type(reading).__name__, "a function that returns a number or None")
        _validate.whole("target", target, 0)
        _validate.between("cache_at_most", cache_at_most, 0.01, 1)
        _validate.seconds("interval", interval)
        self.waiting = waiting
        self.target: int = target
        self.cache_use = cache_use
        self.cache_at_most: float = cache_at_most
        self.ask_again: float | None = interval
        self._interval = interval
        self._clock = clock
        self._read_next = -math.inf

    @property
    def limit(self) -> int:
        """Calls that may be under way now, after a look at the engine if it is time for one."""
        now = self._clock.now()
        if now >= self._read_next:
            self._read_next = now + self._interval
            self._look()
        return self._limit

    def _look(self) -> None:
        waiting = _reading(self.waiting)
        cache = None if self.cache_use is None else _reading(self.cache_use)
        if (waiting is not None and waiting > self.target) or (cache is not None and cache > self.cache_at_most):
            if self.in_flight <= self._limit:
                self._dropped()
        elif waiting is not None and self.in_flight * 2 >= self._limit:
            self._limit = min(self.maximum, self._limit + 1)

    def _answered(self, seconds: float | None, in_flight: int) -> None:
        """Nothing: the engine's queue says it all."""


def _reading(read: Callable[[], float | None]) -> float | None:
    try:
        value = read()
    except Exception:  # noqa: BLE001 - a metric that can't be read must not fail the calls
        return None
    return None if value is None or math.isnan(value) else value

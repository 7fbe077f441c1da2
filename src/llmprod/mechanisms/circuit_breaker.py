"""The circuit breaker's state machine.

Trips on a failure ratio over a time window (resilience4j, Polly) or on consecutive failures (Finagle's failure
accrual): at the call rates of language models a ratio alone never gathers enough calls. Stays open for a time that
doubles with each failed trial, half of it random (Finagle's ``Backoff.equalJittered``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, SYSTEM_RANDOM, Clock, Random

__all__ = ["Breaker", "BreakerState", "Permit"]

_BUCKETS = 10


class BreakerState(Enum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerOptions:
    """When a breaker opens and closes.

    Attributes:
        failure_ratio: opens at this share of failures in the window (default 0.5).
        minimum_calls: … once the window holds as many calls (default 10).
        consecutive_failures: opens after as many failures in a row, whatever the ratio (default 5).
        window: seconds that a result counts (default 60).
        open_for: seconds open at first (default 5); doubles with each failed trial, half of it random.
        open_for_at_most: bound of that (default 10: at the pace of model calls a longer one hides a recovery).
        trials: calls let through at once while half-open (default 3).
        successes_to_close: successes among them that close the breaker (default 2).
        trial_for_at_most: seconds after which a trial that reported nothing is no longer waited for (default 60).
    """

    failure_ratio: float = 0.5
    minimum_calls: int = 10
    consecutive_failures: int = 5
    window: float = 60.0
    open_for: float = 5.0
    open_for_at_most: float = 10.0
    trials: int = 3
    successes_to_close: int = 2
    trial_for_at_most: float = 60.0

    def __post_init__(self) -> None:
        _validate.between("failure_ratio", self.failure_ratio, 0.01, 1)
        for field in ("minimum_calls", "consecutive_failures", "trials", "successes_to_close"):
            _validate.whole(field, getattr(self, field), 1)
        for field in ("window", "open_for", "open_for_at_most", "trial_for_at_most"):
            _validate.seconds(field, getattr(self, field))


class Permit:
    """Leave to make one call. Report it once: success, failure, or release (nothing was learned)."""

    __slots__ = ("_breaker", "epoch", "expires", "trial")

    def __init__(self, breaker: Breaker, epoch: int, expires: float, *, trial: bool) -> None:
        self._breaker: Breaker | None = breaker
        self.epoch: int = epoch
        self.expires: float = expires
        self.trial: bool = trial

    def success(self) -> None:
        """The target answered."""
        self._report(True)

    def failure(self) -> None:
        """The target failed."""
        self._report(False)

    def release(self) -> None:
        """The call was cancelled or refused locally: it says nothing about the target."""
        self._report(None)

    def _report(self, good: bool | None) -> None:
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker.report(self, good)


class Breaker:
    """Decides whether a target may be asked. Synchronous; share one between stacks by passing the same object."""

    def __init__(
        self, options: BreakerOptions | None = None, *, clock: Clock = SYSTEM_CLOCK, random: Random = SYSTEM_RANDOM
    ) -> None:
        self.options: BreakerOptions = options or BreakerOptions()
        self._clock = clock
        self._random = random
        self._state = BreakerState.CLOSED
        self._epoch = 0
        self._open_until = 0.0
        self._trips = 0
        self._consecutive = 0
        self._trials: list[Permit] = []
        self._trial_successes = 0
        self._good = [0] * _BUCKETS
        self._bad = [0] * _BUCKETS
        self._bucket = 0

    @property
    def state(self) -> BreakerState:
        """The state now; an open breaker whose time is over shows as half-open."""
        self._roll()
        return self._state

    @property
    def retry_after(self) -> float:
        """Seconds until the breaker lets a trial through; 0 if it does now."""
        return max(0.0, self._open_until - self._clock.now()) if self._state is BreakerState.OPEN else 0.0

    def acquire(self) -> Permit | None:
        """Return a permit, or None if the target is not to be asked now."""
        if self._state is BreakerState.CLOSED:
            return Permit(self, self._epoch, 0.0, trial=False)
        self._roll()
        if self._state is BreakerState.OPEN:
            return None
        now = self._clock.now()
        self._trials = [permit for permit in self._trials if permit.expires > now]
        if len(self._trials) >= self.options.trials:
            return None
        permit = Permit(self, self._epoch, now + self.options.trial_for_at_most, trial=True)
        self._trials.append(permit)
        return permit

    def report(self, permit: Permit, good: bool | None) -> None:
        """Take a permit back; called by the permit."""
        if permit in self._trials:
            self._trials.remove(permit)
        if good is None:
            return
        self._count(good)
        if permit.epoch != self._epoch:
            return  # begun before the last change of state: counted, but decides nothing and prolongs nothing
        if permit.trial:
            self._after_trial(good)
        elif self._state is BreakerState.CLOSED:
            self._consecutive = 0 if good else self._consecutive + 1
            if not good and self._should_open():
                self._open()

    def _after_trial(self, good: bool) -> None:
        if not good:
            self._open()
            return
        self._trial_successes += 1
        if self._trial_successes >= self.options.successes_to_close:
            self._state = BreakerState.CLOSED
            self._epoch += 1
            self._trips = self._consecutive = 0
            self._good, self._bad = [0] * _BUCKETS, [0] * _BUCKETS

    def _open(self) -> None:
        options = self.options
        bound = min(options.open_for_at_most, options.open_for * 2.0 ** min(self._trips, 30))
        self._trips += 1
        self._state = BreakerState.OPEN
        self._epoch += 1
        self._open_until = self._clock.now() + bound / 2 + self._random.random() * bound / 2
        self._trials.clear()

    def _roll(self) -> None:
        if self._state is BreakerState.OPEN and self._clock.now() >= self._open_until:
            self._state = BreakerState.HALF_OPEN
            self._epoch += 1
            self._trial_successes = 0

    def _count(self, good: bool) -> None:
        bucket = int(self._clock.now() / self.options.window * _BUCKETS)
        for stale in range(max(self._bucket + 1, bucket - _BUCKETS + 1), bucket + 1):
            self._good[stale % _BUCKETS] = self._bad[stale % _BUCKETS] = 0
        self._bucket = max(self._bucket, bucket)
        counts = self._good if good else self._bad
        counts[bucket % _BUCKETS] += 1

    def _should_open(self) -> bool:
        if self._consecutive >= self.options.consecutive_failures:
            return True
        bad = sum(self._bad)
        calls = bad + sum(self._good)
        return calls >= self.options.minimum_calls and bad >= self.options.failure_ratio * calls

    def __repr__(self) -> str:
        return f"<Breaker {self.state.value}>"

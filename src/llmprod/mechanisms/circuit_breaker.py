"""The circuit breaker's state machine.

Trips on a failure ratio over a time window (resilience4j, Polly), on consecutive failures (Finagle's failure accrual:
at the call rates of language models a ratio alone never gathers enough calls), or on a ratio of slow first tokens
(resilience4j's slow calls). Stays open for a time that doubles with each failed trial, half of it random (Finagle's
``Backoff.equalJittered``), and is bounded by a share of the outage so far, so that the time in which a recovery goes
unnoticed stays in proportion to the outage.

A refusal for want of capacity (503, 529) is a failure only of a target that serves nobody: one that serves a third of
the calls would serve none while its breaker is open.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, SYSTEM_RANDOM, Clock, Random
from llmprod.mechanisms._buckets import Buckets

__all__ = ["Breaker", "BreakerOptions", "BreakerState", "Permit"]

_OUTAGE_FLOOR = 2.0
"""The share of the outage bounds the time open from this multiple of ``open_for`` on."""


class BreakerState(Enum):
    """Where a breaker stands."""

    CLOSED = "closed"
    """Calls go through."""
    OPEN = "open"
    """Calls are refused for a time."""
    HALF_OPEN = "half_open"
    """A few calls go through as trials."""
    ISOLATED = "isolated"
    """Calls are refused until somebody closes it by hand."""
    DISABLED = "disabled"
    """Calls go through and are counted, whatever the counts say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerOptions:
    """When a breaker opens and closes.

    Attributes:
        failure_ratio: opens at this share of failures in the window (default 0.5).
        minimum_calls: … once the window holds as many calls (default 10).
        consecutive_failures: opens after as many failures in a row, whatever the ratio (default 5).
        slow_first_token: a first token that took longer than these seconds was slow (default None: none is).
        slow_ratio: opens at this share of slow first tokens in the window, of ``minimum_calls`` or more (default 0.8).
        window: seconds that a result counts (default 60).
        open_for: seconds open at first (default 5); doubles with each failed trial, half of it random.
        open_for_at_most: bound of that in seconds (default 300).
        outage_share: another bound, as a share of the outage so far, from twice ``open_for`` on (default 0.25; None
            for no such bound).
        trials: calls let through at once while half-open (default 3).
        successes_to_close: successes among them that close the breaker (default 2).
        trial_for_at_most: seconds after which a trial that reported nothing is no longer waited for (default 60).
    """

    failure_ratio: float = 0.5
    minimum_calls: int = 10
    consecutive_failures: int = 5
    slow_first_token: float | None = None
    slow_ratio: float = 0.8
    window: float = 60.0
    open_for: float = 5.0
    open_for_at_most: float = 300.0
    outage_share: float | None = 0.25
    trials: int = 3
    successes_to_close: int = 2
    trial_for_at_most: float = 60.0

    def __post_init__(self) -> None:
        _validate.between("failure_ratio", self.failure_ratio, 0.01, 1)
        _validate.between("slow_ratio", self.slow_ratio, 0.01, 1)
        _validate.between("outage_share", self.outage_share, 0.01, 10, optional=True)
        for field in ("minimum_calls", "consecutive_failures", "trials", "successes_to_close"):
            _validate.whole(field, getattr(self, field), 1)
        for field in ("window", "open_for", "open_for_at_most", "trial_for_at_most"):
            _validate.seconds(field, getattr(self, field))
        _validate.seconds("slow_first_token", self.slow_first_token, optional=True)


class Permit:
    """Leave to make one call. Report it once: success, failure, refused, or release (nothing was learned)."""

    __slots__ = ("_breaker", "epoch", "expires", "insisted", "trial")

    def __init__(
        self, breaker: Breaker, epoch: int, expires: float = 0.0, *, trial: bool = False, insisted: bool = False
    ) -> None:
        self._breaker: Breaker | None = breaker
        self.epoch: int = epoch
        self.expires: float = expires
        self.trial: bool = trial
        self.insisted: bool = insisted

    def first_token(self, seconds: float) -> None:
        """The answer began after ``seconds``. Report the permit all the same."""
        if self._breaker is not None and self._breaker.options.slow_first_token is not None:
            self._breaker.timed(self, seconds)

    def success(self) -> None:
        """The target answered."""
        self._report(True)

    def failure(self) -> None:
        """The target failed."""
        self._report(False)

    def refused(self) -> None:
        """The target had no capacity for the call: a failure, unless it has served another one of late."""
        self._report(None if self._breaker is not None and self._breaker.serving else False)

    def release(self) -> None:
        """The call was cancelled or refused locally: it says nothing about the target."""
        self._report(None)

    def _report(self, good: bool | None) -> None:
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker.report(self, good)


class Breaker:
    """Decides whether a target may be asked. Synchronous; share one between stacks by passing the same object.

    Attributes:
        changes: ``(before, after, reason)`` of each change of state that nobody has taken yet, the last 16 at most.
    """

    def __init__(
        self, options: BreakerOptions | None = None, *, clock: Clock = SYSTEM_CLOCK, random: Random = SYSTEM_RANDOM
    ) -> None:
        self.options: BreakerOptions = options or BreakerOptions()
        self.changes: deque[tuple[BreakerState, BreakerState, str]] = deque(maxlen=16)
        self._clock = clock
        self._random = random
        self._state = BreakerState.CLOSED
        self._epoch = 0
        self._open_until = 0.0
        self._outage_since = 0.0
        self._served = -math.inf
        self._trips = 0
        self._consecutive = 0
        self._trials: list[Permit] = []
        self._insisted: list[Permit] = []
        self._trial_successes = 0
        self._good, self._bad, self._timed, self._slow = (Buckets(self.options.window) for _ in range(4))

    @property
    def state(self) -> BreakerState:
        """The state now; an open breaker whose time is over shows as half-open."""
        self._roll()
        return self._state

    @property
    def ready(self) -> bool:
        """A call would be let through now."""
        self._roll()
        if self._state is BreakerState.HALF_OPEN:
            return len(self._live(self._trials)) < self.options.trials
        return self._state in (BreakerState.CLOSED, BreakerState.DISABLED)

    @property
    def serving(self) -> bool:
        """The target has answered a call in the last ``open_for`` seconds, which it could not have done while open."""
        return self._clock.now() - self._served < self.options.open_for

    @property
    def retry_after(self) -> float:
        """Seconds until the breaker lets a trial through; 0 if it does now, or if it is not a matter of time."""
        return max(0.0, self._open_until - self._clock.now()) if self._state is BreakerState.OPEN else 0.0

    # ---- by hand ----------------------------------------------------------------------------------------------------

    def isolate(self) -> None:
        """Refuse all calls until :meth:`close` or :meth:`disable`, for maintenance or in an emergency."""
        self._become(BreakerState.ISOLATED, "by hand")

    def disable(self) -> None:
        """Let all calls through, and only count, until :meth:`close` or :meth:`isolate`."""
        self._become(BreakerState.DISABLED, "by hand")

    def close(self) -> None:
        """Close it and forget what was counted."""
        self._close("by hand")

    # ---- calls ------------------------------------------------------------------------------------------------------

    def acquire(self, *, insist: bool = False) -> Permit | None:
        """Return a permit, or None if the target is not to be asked now.

        Args:
            insist: every other target is refused too, so let a few calls through although it is open (as many at once
                as trials). A success among them counts as a trial's; a failure prolongs nothing.
        """
        if self._state is BreakerState.CLOSED:
            return Permit(self, self._epoch)
        self._roll()
        state = self._state
        if state is BreakerState.DISABLED:
            return Permit(self, self._epoch)
        if state is BreakerState.ISOLATED:
            return None
        expires = self._clock.now() + self.options.trial_for_at_most
        if state is BreakerState.HALF_OPEN:
            self._trials = self._live(self._trials)
            if len(self._trials) < self.options.trials:
                permit = Permit(self, self._epoch, expires, trial=True)
                self._trials.append(permit)
                return permit
        if not insist:
            return None
        self._insisted = self._live(self._insisted)
        if len(self._insisted) >= self.options.trials:
            return None
        permit = Permit(self, self._epoch, expires, insisted=True)
        self._insisted.append(permit)
        return permit

    def timed(self, permit: Permit, seconds: float) -> None:
        """Take note of a first token's time; called by the permit."""
        slow = seconds > (self.options.slow_first_token or 0.0)
        now = self._clock.now()
        self._timed.add(now)
        if not slow:
            return
        self._slow.add(now)
        if permit.epoch != self._epoch:
            return
        if permit.trial:
            self._open("slow trial")
        elif self._state is BreakerState.CLOSED:
            timed = self._timed.total(now)
            if timed >= self.options.minimum_calls and self._slow.total(now) >= self.options.slow_ratio * timed:
                self._open("slow first tokens")

    def report(self, permit: Permit, good: bool | None) -> None:
        """Take a permit back; called by the permit."""
        out = self._trials if permit.trial else self._insisted
        if (permit.trial or permit.insisted) and permit in out:
            out.remove(permit)
        if good is None:
            return
        now = self._clock.now()
        (self._good if good else self._bad).add(now)
        if good:
            self._served = now
        if permit.epoch != self._epoch:
            return  # begun before the last change of state: counted, but decides nothing and prolongs nothing
        if permit.trial:
            self._after_trial(good)
        elif permit.insisted:
            self._after_insisted(good)
        elif self._state is BreakerState.CLOSED:
            self._consecutive = 0 if good else self._consecutive + 1
            if not good and (reason := self._should_open()) is not None:
                self._open(reason)

    def _after_trial(self, good: bool) -> None:
        if not good:
            self._open("failed trial")
            return
        self._trial_successes += 1
        if self._trial_successes >= self.options.successes_to_close:
            self._close("successful trials")

    def _after_insisted(self, good: bool) -> None:
        if not good:
            return
        if self._state is BreakerState.OPEN:
            self._half_open("answered while open")
        self._after_trial(True)

    def _should_open(self) -> str | None:
        if self._consecutive >= self.options.consecutive_failures:
            return "failures in a row"
        now = self._clock.now()
        bad = self._bad.total(now)
        calls = bad + self._good.total(now)
        return (
            "failure ratio"
            if calls >= self.options.minimum_calls and bad >= self.options.failure_ratio * calls
            else None
        )

    # ---- states -----------------------------------------------------------------------------------------------------

    def _open(self, reason: str) -> None:
        options = self.options
        now = self._clock.now()
        if not self._trips:
            self._outage_since = now
        bound = min(options.open_for_at_most, options.open_for * 2.0 ** min(self._trips, 30))
        if options.outage_share is not None:
            in_proportion = max(_OUTAGE_FLOOR * options.open_for, options.outage_share * (now - self._outage_since))
            bound = min(bound, in_proportion)
        self._trips += 1
        self._open_until = now + bound / 2 + self._random.random() * bound / 2
        self._trials.clear()
        self._become(BreakerState.OPEN, reason)

    def _half_open(self, reason: str) -> None:
        self._trial_successes = 0
        self._become(BreakerState.HALF_OPEN, reason)

    def _close(self, reason: str) -> None:
        self._trips = self._consecutive = 0
        self._served = -math.inf
        for buckets in (self._good, self._bad, self._timed, self._slow):
            buckets.clear()
        self._become(BreakerState.CLOSED, reason)

    def _become(self, state: BreakerState, reason: str) -> None:
        self.changes.append((self._state, state, reason))
        self._state = state
        self._epoch += 1

    def _roll(self) -> None:
        if self._state is BreakerState.OPEN and self._clock.now() >= self._open_until:
            self._half_open("open time over")

    def _live(self, permits: list[Permit]) -> list[Permit]:
        now = self._clock.now()
        return [permit for permit in permits if permit.expires > now]

    def __repr__(self) -> str:
        return f"<Breaker {self.state.value}>"

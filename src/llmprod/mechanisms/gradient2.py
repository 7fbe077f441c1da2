"""A limit of calls at once that follows the first-token time: Netflix concurrency-limits' Gradient2.

The gradient is the long-term average over the last sample. Where calls begin to queue, samples rise above the average,
the gradient falls below 1, and the limit with it; where they don't, the limit grows by a small queue:

    gradient = clamp(tolerance * long / sample, 0.5, 1)
    limit    = limit * (1 - smoothing) + (limit * gradient + queue) * smoothing

The formula, its order of steps and its numbers are those of ``Gradient2Limit.java`` (78a74b9, 2026-01), fed by a
sampling window as in its README (``WindowedLimit``): a sample is the mean over at least a second and ten calls, or the
long term would be over in seconds, and the average would follow an overload instead of telling it. Three things differ,
because model APIs do:

* What is timed is the way to the *first token*. The whole time of a call is dominated by the length of its answer,
  which says nothing about load, so an answer that comes whole is no sample.
* A refusal cuts the limit by ``backoff``, as in Netflix's ``AIMDLimit``; there the gradient limit ignores drops, and
  would take the short time of a 429 for a fast answer. A hosted API refuses long before it slows down.
* A sampling window goes on until it has ten calls. Netflix drops one that has fewer after a second, so that below ten
  calls a second nothing is ever learnt.
"""

from __future__ import annotations

from collections.abc import Callable

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.mechanisms.concurrency_limit import ConcurrencyLimit, check_bounds

__all__ = ["Gradient2"]

_CALLS = 10
_WARM_UP = 10
_DRIFTED = 2.0
_DRIFT = 0.95


class Gradient2(ConcurrencyLimit):
    """A limit that shrinks when first tokens take longer than they used to, and grows while they don't.

    It learns from streams and from embeddings; give an application of whole answers an :class:`AIMDLimit` instead.

    Args:
        initial: calls at once at first (default 20).
        minimum: never fewer (default 20).
        maximum: never more (default 200).
        queue: calls that may queue at the target, which the limit grows by: a number, or a function of the limit
            (default 4).
        smoothing: weight of a new limit, from 0 to 1 (default 0.2).
        sample_window: seconds that a sample spans at least (default 1); it also spans 10 calls at least.
        long_window: samples that the long-term average spans (default 600); a plain mean of the first 10.
        tolerance: a sample may be this many times the average before the limit shrinks (default 1.5).
        backoff: what is left of the limit after a refusal (default 0.9).
        clock: time.

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    def __init__(
        self,
        *,
        initial: int = 20,
        minimum: int = 20,
        maximum: int = 200,
        queue: int | Callable[[int], int] = 4,
        smoothing: float = 0.2,
        sample_window: float = 1.0,
        long_window: int = 600,
        tolerance: float = 1.5,
        backoff: float = 0.9,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__()
        check_bounds(initial, minimum, maximum, backoff)
        if not callable(queue):
            _validate.whole("queue", queue, 1)
        _validate.between("smoothing", smoothing, 0.01, 1)
        _validate.seconds("sample_window", sample_window)
        _validate.whole("long_window", long_window, _WARM_UP)
        _validate.between("tolerance", tolerance, 1, 100)
        self.minimum: int = minimum
        self.maximum: int = maximum
        self.queue = queue
        self.smoothing: float = smoothing
        self.sample_window: float = sample_window
        self.long_window: int = long_window
        self.tolerance: float = tolerance
        self.backoff: float = backoff
        self._clock = clock
        self._estimate = float(initial)
        self._long = 0.0
        self._samples = 0
        self._sum = 0.0
        self._sample_until = clock.now() + sample_window
        self._calls = 0
        self._seconds = 0.0
        self._in_flight = 0

    @property
    def limit(self) -> int:
        """Calls that may be under way now."""
        return int(self._estimate)

    @property
    def usual(self) -> float | None:
        """The long-term average of the first-token time, in seconds; None before the first sample."""
        return self._long if self._samples else None

    def _answered(self, seconds: float | None, in_flight: int) -> None:
        if seconds is None or seconds <= 0:
            return
        self._calls += 1
        self._seconds += seconds
        self._in_flight = max(self._in_flight, in_flight)
        now = self._clock.now()
        if now < self._sample_until or self._calls < _CALLS:
            return
        sample, most = self._seconds / self._calls, self._in_flight
        self._sample_until = now + self.sample_window
        self._calls, self._seconds, self._in_flight = 0, 0.0, 0
        self._update(sample, most)

    def _update(self, seconds: float, in_flight: int) -> None:
        long = self._averaged(seconds)
        if long / seconds > _DRIFTED:  # back to normal after a long overload: don't wait for the average
            self._long = long * _DRIFT
        if in_flight < self._estimate / 2:  # the application asks for less: nothing was tried, nothing is learnt
            return
        gradient = max(0.5, min(1.0, self.tolerance * long / seconds))
        wanted = self._estimate * gradient + self._queue()
        smoothed = self._estimate * (1 - self.smoothing) + wanted * self.smoothing
        self._estimate = max(self.minimum, min(self.maximum, smoothed))

    def _averaged(self, seconds: float) -> float:
        if self._samples < _WARM_UP:
            self._samples += 1
            self._sum += seconds
            self._long = self._sum / self._samples
        else:
            factor = 2.0 / (self.long_window + 1)
            self._long = self._long * (1 - factor) + seconds * factor
        return self._long

    def _queue(self) -> int:
        return max(0, self.queue(self.limit)) if callable(self.queue) else self.queue

    def _dropped(self) -> None:
        self._estimate = max(float(self.minimum), self._estimate * self.backoff)

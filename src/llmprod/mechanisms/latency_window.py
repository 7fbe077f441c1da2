"""Quantiles of recent durations, from a histogram that forgets.

A histogram with buckets 5% apart, in slots that rotate (Finagle's windowed histogram, Tower's rotating one). An exact
quantile would have to keep every sample; this one is off by half a bucket, 2.5%, at most.
"""

from __future__ import annotations

import math

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, Clock

__all__ = ["LatencyWindow"]

_SLOTS = 6
_STEP = math.log(1.05)
_LEAST = 1e-4
_REFRESH = 1.0


class LatencyWindow:
    """Durations of the last ``window`` seconds.

    Args:
        window: seconds that a sample counts (default 60).
        minimum: samples below which there is no quantile (default 20).
        clock: time.

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    def __init__(self, window: float = 60.0, *, minimum: int = 20, clock: Clock = SYSTEM_CLOCK) -> None:
        _validate.seconds("window", window)
        _validate.whole("minimum", minimum, 1)
        self.window = window
        self.minimum = minimum
        self._clock = clock
        self._slots: list[dict[int, int]] = [{} for _ in range(_SLOTS)]
        self._slot = 0
        self._count = 0
        self._known: dict[float, float] = {}
        self._known_until = -math.inf

    def record(self, seconds: float) -> None:
        """Note one duration."""
        self._roll()
        bucket = max(0, math.floor(math.log(max(seconds, _LEAST) / _LEAST) / _STEP))
        slot = self._slots[self._slot % _SLOTS]
        slot[bucket] = slot.get(bucket, 0) + 1
        self._count += 1

    @property
    def count(self) -> int:
        """Samples in the window."""
        self._roll()
        return self._count

    def quantile(self, share: float) -> float | None:
        """Return the seconds that ``share`` of the samples stay within; None while there are too few samples.

        Computed once a second at most (Finagle refreshes its hedging delay every three).

        Raises:
            InvalidArgument: ``share`` is not between 0 and 1.
        """
        _validate.between("share", share, 0, 1)
        if self.count < self.minimum:
            return None
        now = self._clock.now()
        if now >= self._known_until:
            self._known.clear()
            self._known_until = now + _REFRESH
        known = self._known.get(share)
        if known is None:
            known = self._known[share] = self._compute(share)
        return known

    def _compute(self, share: float) -> float:
        merged: dict[int, int] = {}
        for slot in self._slots:
            for bucket, count in slot.items():
                merged[bucket] = merged.get(bucket, 0) + count
        rank = max(1, math.ceil(share * self._count))
        seen = 0
        bucket = 0
        for bucket in sorted(merged):
            seen += merged[bucket]
            if seen >= rank:
                break
        return _LEAST * math.exp((bucket + 0.5) * _STEP)

    def _roll(self) -> None:
        now = int(self._clock.now() / self.window * _SLOTS)
        if now == self._slot:
            return
        for stale in range(max(self._slot + 1, now - _SLOTS + 1), now + 1):
            slot = self._slots[stale % _SLOTS]
            self._count -= sum(slot.values())
            slot.clear()
        self._slot = max(self._slot, now)

    def __repr__(self) -> str:
        return f"<LatencyWindow of {self.count} samples in {self.window:g} s>"

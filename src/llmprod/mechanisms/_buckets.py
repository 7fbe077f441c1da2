"""Counts over a time that slides, in ten buckets, as Polly's and resilience4j's windows are."""

from __future__ import annotations

_BUCKETS = 10


class Buckets:
    """How often something happened in the last ``window`` seconds, to a tenth of it.

    The caller tells the time, so that several counts of one decision see the same.
    """

    __slots__ = ("_bucket", "_counts", "_total", "_width")

    def __init__(self, window: float) -> None:
        self._width = window / _BUCKETS
        self._counts = [0] * _BUCKETS
        self._total = 0
        self._bucket = 0

    def add(self, now: float, count: int = 1) -> None:
        """Count one more."""
        self._roll(now)
        self._counts[self._bucket % _BUCKETS] += count
        self._total += count

    def total(self, now: float) -> int:
        """Return the count in the window."""
        self._roll(now)
        return self._total

    def take(self, now: float) -> bool:
        """Take the latest one back; False if there is none."""
        self._roll(now)
        for back in range(_BUCKETS):
            place = (self._bucket - back) % _BUCKETS
            if self._counts[place] > 0:
                self._counts[place] -= 1
                self._total -= 1
                return True
        return False

    def clear(self) -> None:
        """Forget all."""
        self._counts = [0] * _BUCKETS
        self._total = 0

    def _roll(self, now: float) -> None:
        bucket = int(now / self._width)
        if bucket <= self._bucket:
            return
        for stale in range(max(self._bucket + 1, bucket - _BUCKETS + 1), bucket + 1):
            self._total -= self._counts[stale % _BUCKETS]
            self._counts[stale % _BUCKETS] = 0
        self._bucket = bucket

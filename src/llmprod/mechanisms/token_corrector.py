"""Learns from counted prompts how far an estimate is off, and how well it does after that.

The correction is the weighted median of real count by estimate over the last 64 prompts: a median, so that one prompt
with a large hidden part moves nothing; weighted by size, since a short prompt's ratio is mostly the marks around it,
and by age, so that a change of the model's tokenizer is followed within some 30 calls. It begins at 1 and stays between
a half and double. The error is that of the corrected estimate before the count was known, so it is an honest one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import ceil

__all__ = ["TokenCorrector", "TokenError"]

_WINDOW = 64
_FORGET = 0.97  # the weight of a prompt, with each that follows
_PRIOR = 2.0  # prompts' worth of belief that the estimate is right
_LEAST, _MOST = 0.5, 2.0
_ERRORS = 256


@dataclass(frozen=True, slots=True)
class TokenError:
    """How far estimates were off, as shares of the real counts.

    Attributes:
        mean: of the relative errors; None before anything was counted.
        p90: nine in ten were smaller.
        count: prompts it was learned from; errors are of the last 256.
    """

    mean: float | None
    p90: float | None
    count: int


class TokenCorrector:
    """The correction for one model.

    Attributes:
        factor: what to multiply an estimate by.
        count: prompts learned from.
    """

    __slots__ = ("_ratios", "_results", "count", "factor")

    def __init__(self) -> None:
        self.factor: float = 1.0
        self.count: int = 0
        self._ratios: deque[tuple[float, float]] = deque(maxlen=_WINDOW)
        self._results: deque[float] = deque(maxlen=_ERRORS)  # real count by corrected estimate

    def learn(self, estimate: float, real: float) -> None:
        """Note that an uncorrected ``estimate`` was really so much; what is not above 0 tells nothing."""
        if not (estimate > 0 and real > 0):
            return
        self._results.append(real / (estimate * self.factor))
        self._ratios.append((real / estimate, estimate))
        self.count += 1
        self.factor = self._median()

    def error(self) -> TokenError:
        """Return how far corrected estimates were off."""
        if not self._results:
            return TokenError(None, None, self.count)
        off = sorted(abs(1.0 / ratio - 1.0) for ratio in self._results)
        return TokenError(sum(off) / len(off), off[ceil(0.9 * len(off)) - 1], self.count)

    def quantile(self, share: float) -> float:
        """Return the real count by corrected estimate below which ``share`` of the prompts lay; 1 before any."""
        if not self._results:
            return 1.0
        results = sorted(self._results)
        return results[max(1, ceil(share * len(results))) - 1]

    def _median(self) -> float:
        weighed: list[tuple[float, float]] = []
        age = 1.0
        sizes = 0.0
        for ratio, size in reversed(self._ratios):
            weighed.append((ratio, size * age))
            sizes += size
            age *= _FORGET
        weighed.append((1.0, _PRIOR * sizes / len(self._ratios)))
        weighed.sort()
        half = sum(weight for _, weight in weighed) / 2
        for ratio, weight in weighed:
            half -= weight
            if half <= 0:
                return min(max(ratio, _LEAST), _MOST)
        return 1.0  # pragma: no cover - rounding

"""Tells whether a stream crawls: less than a least rate of characters over a sliding window.

Time is what was spent waiting for the target: the caller adds it up, so a reader that is slow itself counts for
nothing. Each step is constant time on average: characters whose leaving the window can't make it fail are forgotten.
The window and its default are those of Bifrost's throughput guard (1 to 60 seconds, 5).
"""

from __future__ import annotations

from collections import deque

from llmprod import _validate

__all__ = ["Throughput"]


class Throughput:
    """One stream.

    Args:
        characters_per_second: the least rate.
        over: seconds of waiting that it is measured over.

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    __slots__ = ("_arrivals", "_fails_at", "_least", "_over", "_sum", "_waited")

    def __init__(self, *, characters_per_second: float, over: float) -> None:
        _validate.seconds("characters_per_second", characters_per_second)
        _validate.seconds("over", over)
        self._over = over
        self._least = characters_per_second * over
        self._waited = 0.0
        self._arrivals: deque[tuple[float, int]] = deque()
        self._sum = 0
        self._fails_at: float = over

    @property
    def left(self) -> float:
        """Seconds of further waiting without a character after which the stream crawls; 0 or less: it does."""
        return self._fails_at - self._waited

    @property
    def enough(self) -> bool:
        """A whole window's characters have arrived, so the first window can't fail any more."""
        return self._sum >= self._least

    @property
    def recent(self) -> int:
        """Characters of the last window; exact where they are too few."""
        since = self._waited - self._over
        return sum(count for at, count in self._arrivals if at > since)

    def arrived(self, characters: int, seconds: float) -> None:
        """Note that ``characters`` came after ``seconds`` of waiting for them."""
        self._waited += seconds
        if not characters:
            return
        arrivals = self._arrivals
        if arrivals and arrivals[-1][0] == self._waited:
            earlier = arrivals.pop()[1]
            self._sum -= earlier
            characters += earlier
        arrivals.append((self._waited, characters))
        self._sum += characters
        # The oldest arrival without which too little would be left decides when the window fails.
        while self._sum - arrivals[0][1] >= self._least:
            self._sum -= arrivals.popleft()[1]
        if self._sum >= self._least:
            self._fails_at = arrivals[0][0] + self._over

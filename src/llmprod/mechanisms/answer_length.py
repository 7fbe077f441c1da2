"""How long the answers of a kind of call are, and so how long one may need to be.

A high quantile of the complete answers' tokens, with room to spare. An answer that its limit cut would have been
longer, nobody knows how much: it counts as twice its length, so that a limit that was learned too low grows until it
no longer cuts (without that, cut answers would teach ever lower limits).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from math import ceil

from llmprod import _validate

__all__ = ["AnswerLengths"]

_SAMPLES = 512
_ROUTES = 1024


class _Lengths:
    __slots__ = ("ordered", "recent")

    def __init__(self) -> None:
        self.recent: deque[int] = deque()
        self.ordered: list[int] = []

    def add(self, tokens: int) -> None:
        self.recent.append(tokens)
        insort(self.ordered, tokens)
        if len(self.recent) > _SAMPLES:
            del self.ordered[bisect_left(self.ordered, self.recent.popleft())]


class AnswerLengths:
    """Learns a limit for each kind of call, from its last 512 answers.

    Args:
        quantile: share of the answers that must fit (default 0.99).
        room: factor on it (default 1.5).
        minimum: answers before anything is said (default 50).
        least: no limit below this many tokens (default 256).

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    def __init__(self, *, quantile: float = 0.99, room: float = 1.5, minimum: int = 50, least: int = 256) -> None:
        _validate.between("quantile", quantile, 0.5, 1)
        _validate.between("room", room, 1, 100)
        _validate.whole("minimum", minimum, 1)
        _validate.whole("least", least, 1)
        self.quantile = quantile
        self.room = room
        self.minimum = minimum
        self.least = least
        self._routes: OrderedDict[str, _Lengths] = OrderedDict()

    def learn(self, route: str, tokens: int, *, cut: bool = False) -> None:
        """Note how long an answer was; ``cut``: its limit of tokens ended it."""
        lengths = self._routes.get(route)
        if lengths is None:
            lengths = self._routes[route] = _Lengths()
            if len(self._routes) > _ROUTES:
                self._routes.popitem(last=False)
        else:
            self._routes.move_to_end(route)
        lengths.add(2 * tokens if cut else tokens)

    def limit(self, route: str) -> int | None:
        """Return how many tokens an answer may need; None before enough were seen."""
        lengths = self._routes.get(route)
        if lengths is None or len(lengths.recent) < self.minimum:
            return None
        ordered = lengths.ordered
        place = min(len(ordered) - 1, ceil(self.quantile * len(ordered)) - 1)
        return max(self.least, ceil(ordered[place] * self.room))

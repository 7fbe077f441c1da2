"""Notices an answer that says the same over and over, as models do that have lost their way.

A text has run away when its end is one short cycle repeated exactly: at least ``repeats`` times, over at least
``characters``. Both thresholds lie far beyond what people write (rules of dashes, rows of an empty table, columns of
zeros, indentation), and the cost of waiting for them is some hundred tokens, where a runaway takes all of
``max_tokens``. A list whose numbers count up repeats nothing exactly and is not noticed here; a bound of its length is
what ends it.

A cycle of ``p`` characters is found by where the last characters stood before: they stand ``p`` earlier too. Looking
for that is a search in a few hundred characters once in 128, so a stream pays next to nothing.
"""

from __future__ import annotations

from llmprod import _validate
from llmprod.errors import InvalidArgument

__all__ = ["Repetition"]

_PROBE = 48  # characters of the end that are looked for
_EVERY = 128  # characters between two looks


class Repetition:
    """Reads a text piece by piece and tells whether its end is a cycle.

    Args:
        cycle: characters of the longest cycle that is looked for (default 400, a long paragraph).
        repeats: of a cycle, at least (default 12).
        characters: that the repetition takes, at least (default 3000, some 750 tokens).

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    __slots__ = ("_cycle", "_least", "_looked", "_read", "_repeats", "_tail")

    def __init__(self, *, cycle: int = 400, repeats: int = 12, characters: int = 3000) -> None:
        _validate.whole("cycle", cycle, 1)
        _validate.whole("repeats", repeats, 2)
        _validate.whole("characters", characters, 2 * _PROBE)
        if cycle > 10_000:
            raise InvalidArgument("cycle", str(cycle), "at most 10000")
        self._cycle = cycle
        self._repeats = repeats
        self._least = characters
        self._tail = ""
        self._read = 0
        self._looked = 0

    def feed(self, text: str) -> bool:
        """Read on; return True once the text has run away."""
        self._tail += text
        self._read += len(text)
        if self._read - self._looked < _EVERY:
            return False
        self._looked = self._read
        longest = max(self._least, self._cycle * self._repeats) + _EVERY
        if len(self._tail) > 2 * longest:
            self._tail = self._tail[-longest:]
        return len(self._tail) >= self._least and self._in_a_cycle()

    def _in_a_cycle(self) -> bool:
        tail = self._tail
        size = len(tail)
        probe = tail[-_PROBE:]
        at = size - _PROBE
        first = max(0, at - self._cycle)
        while True:
            at = tail.rfind(probe, first, at + _PROBE - 1)
            if at < 0:
                return False
            period = size - _PROBE - at
            length = max(self._least, period * self._repeats)
            if length <= size and tail[size - length : size - period] == tail[size - length + period :]:
                return True

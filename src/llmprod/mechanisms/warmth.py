"""Which prompts' beginnings are in which target's prompt cache, as far as one can tell from what was sent."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.mechanisms.prefix_chain import Cut

__all__ = ["Warmth"]


class Warmth:
    """Remembers the cuts of the prompts that targets have served, until their caches will have forgotten them.

    A belief, not knowledge: a provider may forget sooner, spread calls over machines, and keep for longer. What it
    reports of a call (nothing read where something was warm) corrects it. Share one object between stacks by handing it
    to both; on one event loop.

    Args:
        at_most: cuts that are remembered; the longest unused is forgotten (default 50,000, some 10 MB).
        clock: time.

    Raises:
        InvalidArgument: ``at_most`` is no positive integer.
    """

    def __init__(self, *, at_most: int = 50_000, clock: Clock = SYSTEM_CLOCK) -> None:
        _validate.whole("at_most", at_most, 1)
        self._at_most = at_most
        self._clock = clock
        self._until: OrderedDict[tuple[str, str], float] = OrderedDict()

    def served(self, target: str, cuts: Sequence[Cut], seconds: float) -> None:
        """Note that ``target`` has these cuts in its cache, for so many seconds from now."""
        until = self._clock.now() + seconds
        for cut in cuts:
            key = target, cut.digest
            self._until[key] = max(until, self._until.get(key, until))
            self._until.move_to_end(key)
        while len(self._until) > self._at_most:
            self._until.popitem(last=False)

    def missed(self, target: str, cuts: Sequence[Cut]) -> None:
        """Note that ``target`` has none of these in its cache, whatever was believed."""
        for cut in cuts:
            self._until.pop((target, cut.digest), None)

    def warm(self, target: str, cuts: Sequence[Cut]) -> float:
        """Return how many of the prompt's tokens are warm at ``target``: up to the last cut that it has."""
        now = self._clock.now()
        for cut in reversed(cuts):
            until = self._until.get((target, cut.digest))
            if until is not None and until > now:
                return cut.tokens
        return 0.0

    def __len__(self) -> int:
        return len(self._until)

"""Which of several targets comes first: power of two choices, smooth weights, and levels of priority.

A policy puts places (0 for the first target) in order; the first is asked, the others are the way of a failover. It is
given the places that can be asked now, never one that is paused or whose breaker is open.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from llmprod import _validate
from llmprod.clock import Random
from llmprod.errors import InvalidArgument
from llmprod.mechanisms.peak_ewma import PeakEwma

__all__ = ["BalancePolicy", "PowerOfTwo", "Priority", "Weighted"]


class BalancePolicy(ABC):
    """Decides who comes first. Subclass it for a policy of your own.

    Attributes:
        name: what decisions call it.
        compares: it goes by the targets' cost.
    """

    name: ClassVar[str]
    compares: ClassVar[bool] = False

    @abstractmethod
    def order(
        self, ready: Sequence[int], loads: Sequence[PeakEwma], random: Random, key: str | None = None
    ) -> list[int]:
        """Return the places of ``ready`` in the order in which they are to be asked.

        Args:
            ready: places that can be asked; at least one.
            loads: what calls cost at each target, by place.
            random: chance.
            key: what calls that belong together share, for policies that keep them at one target.
        """

    def check(self, targets: int) -> None:  # noqa: B027 - most policies fit any number
        """Raise InvalidArgument if the policy was not made for this number of targets."""


class PowerOfTwo(BalancePolicy):
    """Power of two choices (Mitzenmacher 1996; Finagle, Tower): two at random, the cheaper of them first.

    The fullest of n targets is within ln ln n of the mean, and balancers that know nothing of one another don't all
    send their calls to the one that looked best. The others follow, cheapest first.
    """

    name: ClassVar[str] = "p2c"
    compares: ClassVar[bool] = True

    def order(
        self, ready: Sequence[int], loads: Sequence[PeakEwma], random: Random, key: str | None = None
    ) -> list[int]:
        """Draw two and compare."""
        count = len(ready)
        if count == 1:
            return list(ready)
        one = int(random.random() * count)
        other = int(random.random() * (count - 1))
        if other >= one:
            other += 1
        first, second = ready[one], ready[other]
        if loads[second].cost < loads[first].cost:  # of equals, the first drawn
            first = second
        rest = [place for place in ready if place != first]
        if len(rest) > 1:
            rest.sort(key=lambda place: loads[place].cost)
        return [first, *rest]


class Weighted(BalancePolicy):
    """Smooth weighted round robin, as in nginx: exact shares, evenly mixed.

    Not weighted random: of 20 calls, one in eight such rounds would send none to a target with a tenth of the weight.

    Args:
        weights: a share for each target, in order; 0 for one that is only asked when others fail.

    Raises:
        InvalidArgument: a weight is negative, or none is above 0.
    """

    name: ClassVar[str] = "weighted"

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights: tuple[float, ...] = tuple(weights)
        for place, weight in enumerate(self.weights):
            _validate.between(f"weights[{place}]", weight, 0, 1e9)
        if not any(self.weights):
            raise InvalidArgument("weights", repr(self.weights)[:40], "a number for each target, at least one above 0")
        self._current = [0.0] * len(self.weights)

    def order(
        self, ready: Sequence[int], loads: Sequence[PeakEwma], random: Random, key: str | None = None
    ) -> list[int]:
        """The one whose turn it is, then by weight."""
        weights, current = self.weights, self._current
        first, total = -1, 0.0
        for place in ready:
            if not weights[place]:
                continue
            total += weights[place]
            current[place] += weights[place]
            if first < 0 or current[place] > current[first]:
                first = place
        if first < 0:
            return list(ready)  # none has a share; better those than nobody
        current[first] -= total
        return [first, *sorted((place for place in ready if place != first), key=lambda place: -weights[place])]

    def check(self, targets: int) -> None:
        """A weight for each target."""
        if targets != len(self.weights):
            raise InvalidArgument("weights", f"{len(self.weights)} weights", f"one for each of {targets} targets")


class Priority(BalancePolicy):
    """Levels, as in Envoy: a lower one is asked only when no target of those above it can be, or they have failed.

    Args:
        priorities: a level for each target, in order; 0 is asked first.
        within: who comes first in a level (default power of two choices).

    Raises:
        InvalidArgument: a level is no whole number of at least 0.
    """

    name: ClassVar[str] = "priority"

    def __init__(self, priorities: Sequence[int], within: BalancePolicy | None = None) -> None:
        self.priorities: tuple[int, ...] = tuple(priorities)
        for place, level in enumerate(self.priorities):
            _validate.whole(f"priorities[{place}]", level, 0)
        self.within: BalancePolicy = within or PowerOfTwo()

    def order(
        self, ready: Sequence[int], loads: Sequence[PeakEwma], random: Random, key: str | None = None
    ) -> list[int]:
        """Level by level."""
        levels: dict[int, list[int]] = {}
        for place in ready:
            levels.setdefault(self.priorities[place], []).append(place)
        ordered: list[int] = []
        for level in sorted(levels):
            places = levels[level]
            # Only the first level takes a turn; those below are asked after failures, the cheapest of them first.
            below = len(places) == 1 or ordered
            ordered += (
                sorted(places, key=lambda place: loads[place].cost)
                if below
                else self.within.order(places, loads, random, key)
            )
        return ordered

    def check(self, targets: int) -> None:
        """A level for each target."""
        if targets != len(self.priorities):
            raise InvalidArgument("priorities", f"{len(self.priorities)} levels", f"one for each of {targets} targets")
        self.within.check(targets)

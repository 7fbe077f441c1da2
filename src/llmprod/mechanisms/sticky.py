"""Keeps calls that belong together at one target, so that its prompt cache keeps hitting.

Rendezvous hashing (Thaler and Ravishankar, 1998): each target's name is hashed with the key, the highest comes first.
It needs no table of sessions; every process finds the same target; and when a target is out, only its own keys move,
and move back when it is there again. With bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2016; HAProxy's
``hash-balance-factor``), so that one key with much traffic can't overload its target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import ClassVar

from llmprod import _validate
from llmprod.clock import Random
from llmprod.mechanisms.balancing import BalancePolicy, PowerOfTwo
from llmprod.mechanisms.peak_ewma import PeakEwma

__all__ = ["Sticky"]

_SPAN = 2.0**64


class Sticky(BalancePolicy):
    """A key's target first, then the key's second choice, and so on.

    Args:
        names: what tells the targets apart, the same in every process.
        otherwise: who comes first for calls without a key (default power of two choices).
        weights: a share of the keys for each target (default equal shares).
        factor: a target with more than this many times the mean of the calls under way is passed over (default 1.25:
            Mirrokni et al. and HAProxy's advice of 125 to 200%).
        slack: as many calls may always be under way at a target (default 8: an engine batches them, and a bound on the
            mean alone would part the second of two calls from the first).

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    name: ClassVar[str] = "sticky"

    def __init__(
        self,
        names: Sequence[str],
        *,
        otherwise: BalancePolicy | None = None,
        weights: Sequence[float] | None = None,
        factor: float = 1.25,
        slack: int = 8,
    ) -> None:
        _validate.between("factor", factor, 1, 100)
        _validate.whole("slack", slack, 1)
        self.otherwise: BalancePolicy = otherwise or PowerOfTwo()
        self.factor = factor
        self.slack = slack
        # Targets of one name (replicas behind one address) are told apart by how many came before.
        self._salts = [
            blake2b(f"{name}\0{list(names[:place]).count(name)}".encode(), digest_size=16).digest()
            for place, name in enumerate(names)
        ]
        self._weights: tuple[float, ...] = tuple(weights) if weights is not None else (1.0,) * len(self._salts)

    def order(
        self, ready: Sequence[int], loads: Sequence[PeakEwma], random: Random, key: str | None = None
    ) -> list[int]:
        """By the key's hash; targets that are too full last."""
        if key is None:
            return self.otherwise.order(ready, loads, random)
        said = key.encode("utf-8", "surrogatepass")
        ordered = sorted(ready, key=lambda place: self._score(place, said))
        most = max(self.slack, math.ceil(self.factor * (sum(loads[place].calls for place in ready) + 1) / len(ready)))
        if loads[ordered[0]].calls < most:
            return ordered
        return sorted(ordered, key=lambda place: loads[place].calls >= most)

    def _score(self, place: int, key: bytes) -> float:
        """The target with the lowest comes first; a share of the keys goes to each by its weight."""
        weight = self._weights[place]
        if not weight:
            return math.inf
        number = int.from_bytes(blake2b(key, digest_size=8, key=self._salts[place]).digest(), "big")
        return -math.log((number + 1) / _SPAN) / weight

    def check(self, targets: int) -> None:
        """Made by Balance for its own targets."""
        self.otherwise.check(targets)

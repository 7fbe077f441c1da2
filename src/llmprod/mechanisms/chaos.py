"""Which faults a call is dealt. Each kind has a source of chance of its own.

So the n-th call is dealt the same whatever the other kinds' rates are, and however calls run side by side. The kinds
and the rate are those of Polly's chaos strategies (once Simmy).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llmprod import _validate
from llmprod.clock import Random
from llmprod.errors import InvalidArgument

__all__ = ["KINDS", "NOTHING", "Deal", "Dice"]

KINDS = ("fault", "outcome", "latency", "cut", "drip")
"""What may be injected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal:
    """What one call is dealt.

    Attributes:
        fault: number of the error to raise, counted from 0; None for none.
        outcome: the answer is replaced.
        latency: seconds to wait before asking.
        cut: content events after which the stream breaks; None for no cut.
        drip: the stream is slowed down.
    """

    fault: int | None = None
    outcome: bool = False
    latency: float = 0.0
    cut: int | None = None
    drip: bool = False


NOTHING = Deal()
"""The usual deal."""


class Dice:
    """Deals faults to calls.

    Args:
        rates: share of the calls that are dealt each kind, from 0 to 1; kinds left out are never dealt.
        random: gives each kind's source of chance by the kind's name; asked once a kind.
        faults: number of errors to choose from, all equally likely.
        latency: median in seconds and sigma of a lognormal distribution.
        cut: least and greatest number of events before a cut, all equally likely.

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    def __init__(
        self,
        rates: Mapping[str, float],
        *,
        random: Callable[[str], Random],
        faults: int = 1,
        latency: tuple[float, float] = (5.0, 0.5),
        cut: tuple[int, int] = (1, 20),
    ) -> None:
        for kind, rate in rates.items():
            if kind not in KINDS:
                raise InvalidArgument("rates", repr(kind)[:40], ", ".join(KINDS))
            _validate.between(f"{kind}_rate", rate, 0, 1)
        _validate.whole("faults", faults, 1)
        _validate.seconds("latency", latency[0], zero=True)
        _validate.between("latency's sigma", latency[1], 0, 10)
        _validate.whole("cut", cut[0], 1)
        _validate.whole("cut's greatest", cut[1], cut[0])
        self._faults = faults
        self._latency = latency
        self._cut = cut
        self._kinds = [(kind, rates[kind], random(kind)) for kind in KINDS if rates.get(kind, 0) > 0]

    def deal(self) -> Deal:
        """Deal to the next call."""
        hit = [(kind, source) for kind, rate, source in self._kinds if source.random() < rate]
        if not hit:
            return NOTHING
        by_kind = dict(hit)
        return Deal(
            fault=_place(by_kind["fault"], self._faults) if "fault" in by_kind else None,
            outcome="outcome" in by_kind,
            latency=self._seconds(by_kind["latency"]) if "latency" in by_kind else 0.0,
            cut=self._cut[0] + _place(by_kind["cut"], self._cut[1] - self._cut[0] + 1) if "cut" in by_kind else None,
            drip="drip" in by_kind,
        )

    def _seconds(self, source: Random) -> float:
        median, sigma = self._latency
        if not sigma:
            return median
        # Box and Muller; 1 - u is never 0.
        normal = math.sqrt(-2.0 * math.log(1.0 - source.random())) * math.cos(2.0 * math.pi * source.random())
        return median * math.exp(sigma * normal)


def _place(source: Random, places: int) -> int:
    return int(source.random() * places)

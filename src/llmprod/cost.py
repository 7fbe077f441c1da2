"""What a use of a model costs, or why that is not known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, TypeAlias

__all__ = ["Cost", "CostSource"]

CostSource: TypeAlias = Literal[
    "override", "provider", "genai-prices", "snapshot", "gpu-hour", "free", "unbilled", "several"
]
"""Where a cost comes from: the user's prices, the provider's own word, the price data (installed or in this package),
the time on an engine of one's own, a target that costs nothing, a call that no provider began to answer, or a sum of
several of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A sum of money, or the reason why there is none. An unknown cost is never 0.

    Attributes:
        amount: the money; None where a price or the usage is not known.
        reason: why ``amount`` is None.
        source: where the prices come from.
        currency: ISO code; all price data is in US dollars.
        price_version: the prices' date or release.
        tier: the service tier that it is priced at (``flex``, ``priority``, ``batch`` …); None for the standard one.
        estimated: True where the usage was estimated.
        buckets: the money by bucket: the names of :class:`llmprod.Usage`, of the provider's own tools, ``requests``
            for a fee by request, and ``total`` where only the sum was told. They sum to ``amount``; where that is None,
            they hold what could be priced, which is the least that it costs.
    """

    amount: Decimal | None
    reason: str | None = None
    source: CostSource | None = None
    currency: str = "USD"
    price_version: str | None = None
    tier: str | None = None
    estimated: bool = False
    buckets: Mapping[str, Decimal] = field(default_factory=dict[str, Decimal])

    @property
    def known(self) -> bool:
        """True where there is an amount."""
        return self.amount is not None

    @property
    def at_least(self) -> Decimal:
        """The amount, or the part of it that is known."""
        return sum(self.buckets.values(), Decimal(0)) if self.amount is None else self.amount

    def __add__(self, other: Cost) -> Cost:
        """Add two costs; the sum is unknown where either is."""
        buckets = dict(self.buckets)
        for name, money in other.buckets.items():
            buckets[name] = buckets.get(name, Decimal(0)) + money
        amount = None if self.amount is None or other.amount is None else self.amount + other.amount
        return Cost(
            amount=amount,
            reason=self.reason if self.amount is None else other.reason,
            source=self.source if self.source == other.source else "several",
            price_version=self.price_version if self.price_version == other.price_version else None,
            tier=self.tier if self.tier == other.tier else None,
            estimated=self.estimated or other.estimated,
            buckets=buckets,
        )

    def __str__(self) -> str:
        if self.amount is None:
            return f"unknown ({self.reason})"
        return f"{'~' if self.estimated else ''}${self.amount.normalize():f}"


def total(money: Decimal, source: CostSource, *, estimated: bool = False) -> Cost:
    """A cost of which only the sum is told."""
    return Cost(amount=money, source=source, estimated=estimated, buckets={"total": money} if money else {})


def unknown(reason: str, *, estimated: bool = False) -> Cost:
    """No cost, and why."""
    return Cost(amount=None, reason=reason, estimated=estimated)

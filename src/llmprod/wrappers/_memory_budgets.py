"""Budgets of one process: forgotten when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from llmprod.mechanisms.budget_ledger import BudgetLedger
from llmprod.mechanisms.budget_store import Bound, Level, Reserved, Short

__all__ = ["MemoryBudgets"]


class MemoryBudgets:
    """Keeps budgets in this process, which is what :class:`llmprod.Budget` does without a store.

    Share one between stacks by passing the same object, on one event loop.

    Args:
        now: seconds since the epoch (default ``time.time``).
    """

    lost: bool = False
    mode: str = "refuse"

    def __init__(self, *, now: Callable[[], float] = time.time) -> None:
        self.ledger: BudgetLedger = BudgetLedger(now=now)

    async def reserve(self, bounds: Sequence[Bound], amount: int) -> Reserved | Short:
        """Set ``amount`` nano-dollars aside in every account, or in none."""
        return self.ledger.reserve(bounds, amount)

    def settle(self, reserved: Reserved, actual: int) -> None:
        """The attempt cost ``actual`` nano-dollars."""
        self.ledger.settle(reserved, actual)

    def cancel(self, reserved: Reserved) -> None:
        """The attempt was not made."""
        self.ledger.cancel(reserved)

    async def spent(self, bounds: Sequence[Bound]) -> list[Level]:
        """Return how the accounts stand now."""
        return self.ledger.levels(bounds)

    async def flush(self) -> None:
        """Nothing is ever told later."""

    async def aclose(self) -> None:
        """Nothing is held."""

    def __repr__(self) -> str:
        return f"<MemoryBudgets, {self.ledger.open} reservations open>"

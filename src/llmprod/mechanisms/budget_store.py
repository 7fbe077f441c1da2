"""What a budget asks of the place that it is kept in: this process, a file, or a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llmprod.mechanisms.budget import BudgetLimit

__all__ = ["Bound", "BudgetStore", "Level", "Reserved", "Short"]


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit, and whose.

    Attributes:
        limit: the limit; not one of a call.
        key: what the account goes by, all windows of it: :meth:`BudgetLimit.key`.
    """

    limit: BudgetLimit
    key: str

    def account(self, now: float) -> tuple[str, float]:
        """Return the name of the account of the window that ``now`` is in, and when that window ends."""
        window = self.limit.window(now)
        return f"{self.key}@{window.begins:.3f}-{window.ends:.3f}", window.ends


@dataclass(frozen=True, slots=True)
class Level:
    """How an account stands.

    Attributes:
        spent, reserved: nano-dollars in the window.
        ends: when the window ends, in seconds since the epoch.
    """

    spent: int
    reserved: int
    ends: float


@dataclass(slots=True, eq=False)
class Reserved:
    """Money set aside for one attempt, in the windows in which that was done.

    Attributes:
        id: what the store calls it.
        amount: nano-dollars.
        levels: how each account stood afterwards, in the order of the bounds; empty where the store is lost and calls
            are allowed without.
        now: the store's time when it was made, in seconds since the epoch.
        accounts: the store's own: which windows it was made in.
        ended: it was settled or cancelled; a second time counts nothing.
    """

    id: str
    amount: int
    levels: tuple[Level, ...]
    now: float
    accounts: tuple[str, ...] = field(default=(), repr=False)
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Short:
    """There is not enough left.

    Attributes:
        bound: place of the limit among the bounds: of those that are short, the one that begins anew the latest.
        level: how it stands.
        now: the store's time, in seconds since the epoch.
    """

    bound: int
    level: Level
    now: float


class BudgetStore(Protocol):
    """Where what is spent and reserved is kept, for all that share it.

    A store never lets ``spent + reserved`` of an account exceed its limit by a reservation; what is settled beyond a
    reservation counts in full.
    """

    @property
    def lost(self) -> bool:
        """It can't be reached now."""
        ...

    @property
    def mode(self) -> str:
        """What happens while it is lost: ``refuse`` or ``allow``."""
        ...

    async def reserve(self, bounds: Sequence[Bound], amount: int) -> Reserved | Short:
        """Set ``amount`` nano-dollars aside in every account, or in none.

        Raises:
            BudgetUnavailable: the store is lost, and calls are not allowed without it.
        """
        ...

    def settle(self, reserved: Reserved, actual: int) -> None:
        """The attempt cost ``actual`` nano-dollars. Does not await; the store may be told a little later."""
        ...

    def cancel(self, reserved: Reserved) -> None:
        """The attempt was not made: all is given back. Does not await."""
        ...

    async def spent(self, bounds: Sequence[Bound]) -> list[Level]:
        """Return how the accounts stand now."""
        ...

    async def flush(self) -> None:
        """Return when everything that was settled has been told."""
        ...

    async def aclose(self) -> None:
        """Flush, and release what is held."""
        ...

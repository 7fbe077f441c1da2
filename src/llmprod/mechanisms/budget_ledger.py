"""Accounts of money: reserve before, settle after, and never more reserved than is left.

The two steps are those of a card payment. ``spent + reserved`` stays within the limit at every reservation, so calls at
once can't spend the same money twice. Each reservation is for the windows in which it was made: a call that begins
before midnight is charged to the day in which it began.

A reservation that nobody ends (its process died) lapses after its lease. The request was probably sent, and providers
bill what they have computed whether or not somebody still listens, so it is then taken for spent; a settlement that
comes all the same corrects it.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from llmprod.mechanisms.budget_store import Bound, Level, Reserved, Short

__all__ = ["BudgetLedger"]

_SWEEP = 256


class _Account:
    __slots__ = ("ends", "reserved", "spent")

    def __init__(self, ends: float) -> None:
        self.spent = 0
        self.reserved = 0
        self.ends = ends


class _Held:
    __slots__ = ("accounts", "amount", "lapsed", "until")

    def __init__(self, amount: int, accounts: tuple[str, ...], until: float) -> None:
        self.amount = amount
        self.accounts = accounts
        self.until = until
        self.lapsed = False


class BudgetLedger:
    """The accounts of one process.

    Args:
        now: seconds since the epoch.
        lease: seconds after which a reservation lapses that nobody ended; None: never.
        lapsed_is_spent: a lapsed reservation counts as spent (default); otherwise it is given back.
    """

    def __init__(self, *, now: Callable[[], float], lease: float | None = None, lapsed_is_spent: bool = True) -> None:
        self._now = now
        self._lease = lease
        self._lapsed_is_spent = lapsed_is_spent
        self._ids = itertools.count()
        self._accounts: dict[str, _Account] = {}
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._leases: deque[str] = deque()
        self._until_sweep = _SWEEP

    def reserve(self, bounds: Sequence[Bound], amount: int) -> Reserved | Short:
        """Set ``amount`` aside in every account, or in none and tell which is short."""
        now = self._now()
        self._lapse(now)
        names: list[str] = []
        short: Short | None = None
        for place, bound in enumerate(bounds):
            name, account = self._account(bound, now)
            names.append(name)
            lacks = amount and account.spent + account.reserved + amount > bound.limit.nano
            if lacks and (short is None or account.ends > short.level.ends):
                short = Short(place, Level(account.spent, account.reserved, account.ends), now)
        if short is not None:
            return short
        levels: list[Level] = []
        for name in names:
            account = self._accounts[name]
            account.reserved += amount
            levels.append(Level(account.spent, account.reserved, account.ends))
        known = f"{next(self._ids)}"
        self._held[known] = _Held(amount, tuple(names), now + self._lease if self._lease is not None else now)
        if self._lease is not None:
            self._leases.append(known)
        return Reserved(known, amount, tuple(levels), now, tuple(names))

    def settle(self, reserved: Reserved, actual: int) -> None:
        """The attempt cost ``actual``; only the first end of a reservation counts."""
        reserved.ended = True
        held = self._held.pop(reserved.id, None)
        if held is None:
            return
        for name in held.accounts:
            account = self._accounts.get(name)
            if account is None:
                continue  # its window has long ended
            if not held.lapsed:
                account.reserved -= held.amount
                account.spent += actual
            else:
                account.spent += actual - (held.amount if self._lapsed_is_spent else 0)

    def cancel(self, reserved: Reserved) -> None:
        """The attempt was not made."""
        self.settle(reserved, 0)

    def levels(self, bounds: Sequence[Bound]) -> list[Level]:
        """Return how the accounts stand now."""
        now = self._now()
        self._lapse(now)
        accounts = [self._account(bound, now)[1] for bound in bounds]
        return [Level(account.spent, account.reserved, account.ends) for account in accounts]

    @property
    def open(self) -> int:
        """Reservations that nobody has ended and that have not lapsed."""
        return sum(not held.lapsed for held in self._held.values())

    def _account(self, bound: Bound, now: float) -> tuple[str, _Account]:
        name, ends = bound.account(now)
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = _Account(ends)
            self._until_sweep -= 1
            if not self._until_sweep:
                self._until_sweep = max(_SWEEP, len(self._accounts) // 2)
                self._sweep(now)
        return name, account

    def _lapse(self, now: float) -> None:
        while self._leases:
            held = self._held.get(self._leases[0])
            if held is not None:
                if held.until > now:
                    return
                held.lapsed = True
                for name in held.accounts:
                    account = self._accounts.get(name)
                    if account is None:
                        continue  # it was for nothing, in a window that has ended
                    account.reserved -= held.amount
                    account.spent += held.amount if self._lapsed_is_spent else 0
            self._leases.popleft()

    def _sweep(self, now: float) -> None:
        """Forget windows that have ended, and lapsed reservations in none but such."""
        for name in [name for name, account in self._accounts.items() if account.ends <= now and not account.reserved]:
            del self._accounts[name]
        for known in [known for known, held in self._held.items() if held.lapsed]:
            if not any(name in self._accounts for name in self._held[known].accounts):
                del self._held[known]

    def __repr__(self) -> str:
        return f"<BudgetLedger of {len(self._accounts)} accounts, {self.open} reservations open>"

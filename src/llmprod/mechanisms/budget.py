"""A limit of money a period, and the calendar that its periods follow.

Inside, money is a whole number of nano-dollars (a thousandth of a token at a dollar a million), so that sums are exact
and every store counts the same; outside it is ``Decimal``. A cost is rounded up, a limit down.

Days and months are those of a time zone, from local midnight to local midnight, whatever the clocks do in between; a
minute, an hour or a number of seconds is counted from the epoch, which is the same for all machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from hashlib import blake2b
from typing import Any, Literal, TypeAlias, cast
from zoneinfo import ZoneInfo

from llmprod import _validate
from llmprod.errors import InvalidArgument

__all__ = ["BudgetLimit", "Period", "Window", "dollars", "nano"]

Period: TypeAlias = Literal["call", "minute", "hour", "day", "month"]
PERIODS: tuple[str, ...] = ("call", "minute", "hour", "day", "month")

_NANO = Decimal(10) ** 9
_MOST = 2**53 - 1
"""Nano-dollars of a limit at most, some nine million dollars: what a double holds exactly, which is all Lua has."""


def nano(money: Decimal) -> int:
    """Return a cost in nano-dollars, rounded up; no more than a limit can be, so that no store's numbers overflow."""
    return int(min(money * _NANO, Decimal(_MOST)).to_integral_value(ROUND_CEILING))


def dollars(amount: int) -> Decimal:
    """Return nano-dollars as dollars, exactly."""
    return (Decimal(amount) / _NANO).normalize() + Decimal(0)


@dataclass(frozen=True, slots=True)
class Window:
    """One period of a limit.

    Attributes:
        begins, ends: in seconds since the epoch; the end belongs to the next window.
    """

    begins: float
    ends: float


@dataclass(frozen=True, slots=True)
class BudgetLimit:
    """So many US dollars a period, for everybody together or for each user, tenant or endpoint.

    Attributes:
        amount: US dollars, at most 9 million; exact as a ``Decimal``, a string or an integer.
        per: ``call``, ``minute``, ``hour``, ``day``, ``month`` (default ``day``), or a number of seconds. Windows are
            aligned and begin anew all at once.
        by: names of tags; each combination of their values has a budget of its own, and calls without the tag share
            one. ``()`` (the default): one for all calls.
        soft: share of the amount from which calls are warned of, or go to a cheaper target (default 0.8); None for no
            such thing.
        timezone: where days and months begin, as an IANA name (default ``UTC``).
        name: what errors and stores call it (default made of ``by`` and ``per``: ``user/day``). Limits of one name,
            ``by``, period and time zone share what is spent, wherever they are.

    Raises:
        InvalidArgument: naming the field.
    """

    amount: Decimal | str | int
    per: Period | float = field(default="day", kw_only=True)
    by: str | tuple[str, ...] = field(default=(), kw_only=True)
    soft: float | None = field(default=0.8, kw_only=True)
    timezone: str = field(default="UTC", kw_only=True)
    name: str = field(default="", kw_only=True)
    nano: int = field(default=0, init=False, repr=False, compare=False)
    _zone: ZoneInfo = field(default=cast("ZoneInfo", None), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        amount = _money("amount", self.amount)
        whole = int((amount * _NANO).to_integral_value(ROUND_FLOOR))
        if not 0 < whole <= _MOST:
            raise InvalidArgument("amount", str(self.amount)[:40], "more than 0 and at most 9 million US dollars")
        if isinstance(self.per, str):
            if self.per not in PERIODS:
                allowed = f"{', '.join(PERIODS)}, or a number of seconds; tags such as 'user' stand in by="
                raise InvalidArgument("per", repr(self.per)[:40], allowed)
        else:
            _validate.seconds("per", self.per)
        by: Any = (self.by,) if isinstance(self.by, str) else self.by
        if type(by) is not tuple or not all(isinstance(tag, str) and tag for tag in cast("tuple[object, ...]", by)):
            raise InvalidArgument("by", repr(self.by)[:40], "a tag's name, a tuple of names, or ()")
        _validate.between("soft", self.soft, 0, 1, optional=True)
        if not isinstance(self.name, str):
            raise InvalidArgument("name", type(self.name).__name__, "a string")
        put = object.__setattr__
        put(self, "amount", amount)
        put(self, "by", by)
        put(self, "nano", whole)
        put(self, "_zone", _zone(self.timezone))
        if not self.name:
            per = self.per if isinstance(self.per, str) else f"{self.per:g} s"
            put(self, "name", f"{'+'.join(self.by) or 'all'}/{per}")

    @property
    def tags(self) -> tuple[str, ...]:
        """Names of the tags that it is kept by."""
        return cast("tuple[str, ...]", self.by)

    @property
    def of_a_call(self) -> bool:
        """It bounds each call by itself, and nothing has to be remembered."""
        return self.per == "call"

    def key(self, tags: Mapping[str, str]) -> str:
        """Return what the account of a call with ``tags`` goes by in a store: a hash, since tags may be personal."""
        values = [tags.get(tag, "") for tag in self.tags]
        # Each with its length, so that no value can be made to read as two.
        told = [f"{len(one)}:{one}" for one in (self.name, str(self.per), self.timezone, *self.tags, "", *values)]
        return blake2b("".join(told).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()

    def window(self, now: float) -> Window:
        """Return the window that ``now`` is in, in seconds since the epoch."""
        per = self.per
        if per == "day" or per == "month":
            today = datetime.fromtimestamp(now, self._zone).date()
            first = today.replace(day=1) if per == "month" else today
            after = (first + timedelta(days=32)).replace(day=1) if per == "month" else first + timedelta(days=1)
            return Window(self._midnight(first), self._midnight(after))
        length = _LENGTHS.get(per, 0.0) if isinstance(per, str) else float(per)
        if not length:
            raise ValueError("a call has no window")
        begins = now // length * length
        return Window(begins, begins + length)

    def moment(self, seconds: float) -> datetime:
        """Return seconds since the epoch as a time in the limit's zone."""
        return datetime.fromtimestamp(seconds, self._zone)

    def _midnight(self, day: date) -> float:
        # Where clocks skip midnight this is the moment of the skip, and where they pass it twice the first.
        return datetime(day.year, day.month, day.day, tzinfo=self._zone).timestamp()

    def __repr__(self) -> str:
        per = self.per if isinstance(self.per, str) else f"{self.per:g} s"
        by = f", by {'+'.join(self.tags)}" if self.tags else ""
        return f"BudgetLimit(${self.amount}/{per}{by})"


_LENGTHS: dict[str, float] = {"minute": 60.0, "hour": 3600.0}


def _money(field: str, value: object) -> Decimal:
    allowed = "US dollars as a Decimal, a string or an integer"
    if isinstance(value, bool) or not isinstance(value, (Decimal, str, int)):
        raise InvalidArgument(field, type(value).__name__, allowed)
    try:
        money = Decimal(value)
    except ArithmeticError:
        raise InvalidArgument(field, repr(value)[:40], allowed) from None
    if not money.is_finite():
        raise InvalidArgument(field, repr(value)[:40], allowed)
    return money


def _zone(name: object) -> ZoneInfo:
    try:
        return ZoneInfo(cast("str", name))
    except (KeyError, ValueError, TypeError, AttributeError, OSError):
        raise InvalidArgument(
            "timezone", repr(name)[:40], "an IANA name such as Europe/Berlin (on Windows: pip install tzdata)"
        ) from None

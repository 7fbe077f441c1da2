"""What a rate limit is made of, and what must hold where several processes share one.

Wrappers and stores meet here: a wrapper asks for leave, in this process (:class:`llmprod.RateLimiter`) or of a
:class:`LimitStore`, and gets a :class:`Leave` or a :class:`Shortage`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias

from llmprod import _validate
from llmprod.errors import InvalidArgument
from llmprod.mechanisms.limit_headers import LimitReading

__all__ = ["Calibrated", "Dimension", "Leave", "Limit", "LimitStore", "Limits", "Shortage"]

Dimension: TypeAlias = Literal["requests", "input_tokens", "output_tokens", "tokens", "cost"]
DIMENSIONS: tuple[str, ...] = ("requests", "input_tokens", "output_tokens", "tokens", "cost")

MINUTE = 60.0
DAY = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """An allowance of one dimension, refilled evenly.

    Attributes:
        dimension: what is counted: ``requests``, ``input_tokens``, ``output_tokens``, ``tokens`` (both together) or
            ``cost`` (money, in the unit of your prices).
        amount: allowance a period.
        period: seconds (default 60).
        burst: what may be taken at once after a rest (default: the whole ``amount``).
    """

    dimension: Dimension
    amount: float
    period: float = MINUTE
    burst: float | None = None

    def __post_init__(self) -> None:
        if self.dimension not in DIMENSIONS:
            raise InvalidArgument("dimension", repr(self.dimension)[:40], ", ".join(DIMENSIONS))
        for name in ("amount", "period", "burst"):
            value: Any = getattr(self, name)
            _validate.between(name, value, 0, float("inf"), optional=name == "burst")
            if value is not None and value <= 0:
                raise InvalidArgument(name, repr(value)[:40], "a number above 0")

    @property
    def rate(self) -> float:
        """What comes back each second."""
        return self.amount / self.period

    @property
    def depth(self) -> float:
        """What may be taken at once."""
        return self.amount if self.burst is None else self.burst

    @property
    def paced(self) -> bool:
        """The allowance can't be taken at once."""
        return self.depth < self.amount

    @property
    def name(self) -> str:
        """The dimension, with the period where it is no minute."""
        return self.dimension if self.period == MINUTE else f"{self.dimension}/{self.period:g}s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Several limits that a call must all find room in.

    Attributes:
        rates: allowances by time.
        concurrent: calls under way at once; None for any number.
    """

    rates: tuple[Limit, ...] = field(default=())
    concurrent: int | None = None

    def __post_init__(self) -> None:
        _validate.whole("concurrent", self.concurrent, 1, optional=True)
        names = [limit.name for limit in self.rates]
        if len(set(names)) != len(names):
            raise InvalidArgument("rates", "two limits of one dimension and period", "one")

    def share(self, of: int) -> Limits:
        """Return one of ``of`` equal shares; at least one call at a time."""
        if of <= 1:
            return self
        return Limits(
            rates=tuple(replace(limit, amount=limit.amount / of, burst=limit.depth / of) for limit in self.rates),
            concurrent=None if self.concurrent is None else max(1, self.concurrent // of),
        )


@dataclass(frozen=True, slots=True)
class Shortage:
    """There is no room for a call.

    Attributes:
        dimension: what is short: a limit's name, ``concurrent``, or ``paused`` (the provider asked for a rest).
        seconds: after which to ask again; None where nobody knows (``concurrent``: when a call ends).
    """

    dimension: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The provider told less than was believed.

    Attributes:
        dimension: the limit's name.
        before, after: what is left of it.
    """

    dimension: str
    before: float
    after: float


class Leave(Protocol):
    """Leave for one call. Settle, keep or cancel it; only the first of these counts. None of them awaits."""

    def settle(self, actual: Mapping[str, float], *, final: bool = True) -> None:
        """The call used ``actual``, by dimension; what is not named keeps its estimate.

        With ``final=False`` the numbers are not the last word (the answer broke off): they can only add.
        """
        ...

    def keep(self) -> None:
        """The call was sent and nobody knows what it used: the estimate stands."""
        ...

    def cancel(self) -> None:
        """The call was never sent: all is given back."""
        ...

    def calibrate(self, readings: tuple[LimitReading, ...]) -> list[Calibrated]:
        """Believe the provider where it told less than was believed when this leave was given."""
        ...


class LimitStore(Protocol):
    """Limits that several processes share. :class:`llmprod.stores.redis.RedisLimits` is one.

    Attributes:
        lost: the store can't be reached now.
        mode: what happens then: ``local_share`` or ``refuse``.
    """

    @property
    def lost(self) -> bool:
        """The store can't be reached now."""
        ...

    @property
    def mode(self) -> str:
        """What happens while it is lost."""
        ...

    async def reserve(
        self, key: str, limits: Limits, costs: Mapping[str, float], on_room: Callable[[], None]
    ) -> Leave | Shortage:
        """Take ``costs`` from the limits that go by ``key``, all or nothing.

        ``on_room`` is called when what this leave gave back has reached the store.
        """
        ...

    def throttled(self, key: str, limits: Limits, seconds: float) -> None:
        """The provider refused a call: give nobody leave for ``seconds``, and less for a while. Does not await."""
        ...

    async def flush(self) -> None:
        """Bring to the store what was settled and not told yet."""
        ...

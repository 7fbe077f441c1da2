"""How many further attempts the calls of a while may make together.

Finagle's and Tower's retry budget: every call deposits, every further attempt withdraws, deposits expire. Without it a
provider in trouble gets three times its load just then. At the rates of model calls the reserve is per window, where
Finagle's is per second: ten a second would never refuse anybody.

Failover has a wider share of the same account: the deployment it goes to is not the one in trouble.
"""

from __future__ import annotations

from typing import Literal

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.mechanisms._buckets import Buckets

__all__ = ["RetryBudget"]


class RetryBudget:
    """Leave for further attempts, shared by Retry, Hedge, Failover and Resume. Share it by passing the same object.

    A retry, a hedge or a resumption is allowed while the further attempts of the window stay within ``reserve`` and
    ``ratio`` of its calls; a failover while they stay within ``reserve`` and ``failover_ratio``. All of them count.

    Args:
        ratio: further attempts for each call (default 0.2: Finagle, Linkerd, Envoy).
        reserve: further attempts in a window whatever the number of calls (default 10: Finagle and Linkerd, theirs
            for each second).
        failover_ratio: the same as ``ratio`` for attempts at another deployment (default 1: one a call on average).
        window: seconds that a call and an attempt count (default 60; Finagle 10, at many times the rate).
        clock: time.

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    def __init__(
        self,
        ratio: float = 0.2,
        *,
        reserve: int = 10,
        failover_ratio: float = 1.0,
        window: float = 60.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        _validate.between("ratio", ratio, 0, 10)
        _validate.whole("reserve", reserve, 0)
        _validate.between("failover_ratio", failover_ratio, 0, 10)
        _validate.seconds("window", window)
        self.ratio = ratio
        self.reserve = reserve
        self.failover_ratio = failover_ratio
        self.window = window
        self._clock = clock
        self._calls = Buckets(window)
        self._extra = Buckets(window)

    def deposit(self) -> None:
        """Note that a call begins."""
        self._calls.add(self._clock.now())

    def balance(self, kind: Literal["retry", "failover", "hedge", "resume"] = "retry") -> float:
        """Further attempts of this kind that may be made now, never below 0."""
        now = self._clock.now()
        ratio = self.failover_ratio if kind == "failover" else self.ratio
        return max(0.0, self.reserve + ratio * self._calls.total(now) - self._extra.total(now))

    def withdraw(self, kind: Literal["retry", "failover", "hedge", "resume"] = "retry") -> bool:
        """Take leave for one further attempt; False if there is none."""
        if self.balance(kind) < 1 - 1e-9:
            return False
        self._extra.add(self._clock.now())
        return True

    def refund(self) -> None:
        """Give leave back for an attempt that did not reach a provider."""
        self._extra.take(self._clock.now())

    def __repr__(self) -> str:
        return f"<RetryBudget of {self.balance():.3g}>"

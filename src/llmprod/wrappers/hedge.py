"""Asks a second deployment when the first is slower than usual, and takes the answer that is committed first.

Finagle's BackupRequestFilter on the first token: the delay is a percentile of the observed time to commit
(:mod:`llmprod.mechanisms.hedge_delay`), there is no hedge before there is data, and each one draws on a budget of its
own and on the call's. As in Polly, the loser has ended before the call returns. As in gRPC (A6) a fatal failure of
either ends both; unlike there, a primary that fails before the delay does not start the hedge, since Retry and the
router answer failures already. Where both fail it is as if the router had asked both in one round.

Stands between Retry and a router, which sees to it that the two sides never ask the same target.
"""

from __future__ import annotations

from typing import ClassVar

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.context import Context
from llmprod.errors import InvalidArgument
from llmprod.mechanisms.hedge_delay import HedgeDelay
from llmprod.mechanisms.retry_budget import RetryBudget
from llmprod.provider import BaseProvider, Provider
from llmprod.request import Request
from llmprod.response import Response
from llmprod.verdict import Classifier, classify
from llmprod.wrapper import Phase, WrappedProvider, Wrapper, leaves
from llmprod.wrappers._race import Race
from llmprod.wrappers.key_pool import KeyPool

__all__ = ["Hedge"]


class Hedge(Wrapper):
    """Ask another target as well where no answer is committed after the usual time, at most once a call.

    Committed means: the first content of a stream is there, or the whole answer where none is streamed. The loser is
    cancelled; what it probably cost is estimated in its row of the trace and told by :class:`HedgeEnded`.

    Args:
        percentile: share of answers that are there within the delay (default 0.95).
        budget: hedges at most, as a share of the calls in the window (default 0.05).
        delay: wait this many seconds instead of a percentile (default None).
        minimum: answers in the window below which nothing is hedged (default 20).
        window: seconds that an answer counts for the delay, and a call for the budget (default 60).
        classify: what an error means (default :func:`llmprod.classify`).
        clock: time, for the window and the budget.

    Raises:
        InvalidArgument: naming the option that is out of range; ``inner``, if there is no router inside.
    """

    phase: ClassVar[Phase] = Phase.HEDGE

    def __init__(
        self,
        *,
        percentile: float = 0.95,
        budget: float = 0.05,
        delay: float | None = None,
        minimum: int = 20,
        window: float = 60.0,
        classify: Classifier = classify,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        _validate.between("percentile", percentile, 0.5, 1)
        _validate.between("budget", budget, 0, 1)
        _validate.seconds("delay", delay, optional=True, zero=True)
        _validate.whole("minimum", minimum, 1)
        _validate.seconds("window", window)
        self.percentile = percentile
        self.budget = budget
        self.delay = delay
        self.minimum = minimum
        self.window = window
        self.classify = classify
        self.clock = clock

    def wrap(self, inner: Provider) -> Provider:
        """Hedge ``inner``'s calls: a router, or a router in other wrappers."""
        router = inner
        while not hasattr(router, "targets"):
            within: Provider | None = getattr(router, "inner", None)
            if within is None:
                raise InvalidArgument(
                    "inner", f"{inner.name}, one deployment", "a router over several, such as Failover(a, b)"
                )
            router = within
        if isinstance(router, KeyPool):
            raise InvalidArgument(
                "inner", f"{inner.name}, several keys of one deployment", "a router over several deployments"
            )
        return _HedgeProvider(inner, self)

    def __repr__(self) -> str:
        after = f"p{self.percentile * 100:g}" if self.delay is None else f"{self.delay:g} s"
        return f"Hedge(after {after}, {self.budget:.3g} of calls)"


class _HedgeProvider(WrappedProvider):
    wrapper: Hedge

    def __init__(self, inner: Provider, wrapper: Hedge) -> None:
        super().__init__(inner, wrapper)
        self.delay = HedgeDelay(wrapper.percentile, minimum=wrapper.minimum, window=wrapper.window, clock=wrapper.clock)
        self.budget = RetryBudget(wrapper.budget, reserve=0, window=wrapper.window, clock=wrapper.clock)
        answering = list(leaves(inner))
        self._free = frozenset(leaf.name for leaf in answering if getattr(leaf, "free", False))
        self._counted = all(isinstance(leaf, BaseProvider) for leaf in answering)

    async def send(self, request: Request, context: Context) -> Response:
        self.budget.deposit()
        delay = self.wrapper.delay
        if delay is None:
            delay = self.delay.seconds(request)
        if delay is not None and self.budget.balance("hedge") >= 1 and not _too_late(context, delay):
            race = Race(
                self.inner,
                request,
                context,
                delay=self.delay,
                budget=self.budget,
                classify=self.wrapper.classify,
                free=self._free,
                counted=self._counted,
            )
            return await race.run(delay)
        clock = context.clock
        started = clock.now()
        try:
            response = await self.inner.send(request, context)
        except Exception:
            self.delay.at_least(request, clock.now() - started)
            raise
        if response.provider not in self._free:
            self.delay.record(request, clock.now() - started)
        return response


def _too_late(context: Context, delay: float) -> bool:
    remaining = context.remaining
    return remaining is not None and remaining <= delay

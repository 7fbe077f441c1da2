"""Sends an overloaded target less, so that it spends its time on answers and not on refusals.

The mechanism and its sources are in :mod:`llmprod.mechanisms.adaptive_throttle`. Not accepted is a call that the
target refused for want of capacity (the verdict says ``throttled``), and one that it let time out without a byte
(Envoy's admission control counts ``UNAVAILABLE`` and ``DEADLINE_EXCEEDED`` as well). Any other answer of the target,
an error among them, shows that it took the call (Finagle: all that is no nack is accepted). A connection that failed,
a cancelled call and a local refusal say nothing about its load, and are taken out of the count; a target that can't be
reached is the circuit breaker's business.
"""

from __future__ import annotations

from typing import ClassVar

from llmprod.clock import SYSTEM_CLOCK, SYSTEM_RANDOM, Clock, Random
from llmprod.context import Context
from llmprod.decisions import CallThrottled
from llmprod.errors import CallTimeout, ConnectTimeout, Shed, TransportError
from llmprod.mechanisms.adaptive_throttle import Throttle, ThrottleTicket
from llmprod.provider import Provider
from llmprod.request import Request
from llmprod.response import Response
from llmprod.verdict import Classifier, classify
from llmprod.wrapper import Phase, WrappedProvider, Wrapper

__all__ = ["AdaptiveThrottle"]


class AdaptiveThrottle(Wrapper):
    """Refuse a share of the calls with :class:`Shed` while the target accepts less than ``1 / k`` of them.

    Args:
        k: calls sent for each that is accepted (default 2).
        window: seconds in which a count falls to 1/e (default 10).
        at_most: bound of the probability of a refusal (default 0.75).
        minimum: requests in the window below which nothing is refused (default 10).
        throttle: a throttle to share with other stacks, with the options that it was made with; without it each
            wrapped target gets its own.
        classify: what an error says about the target (default :func:`llmprod.classify`).
        clock: the throttle's time.
        random: the throttle's chance.

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    phase: ClassVar[Phase] = Phase.LOAD_SHED

    def __init__(
        self,
        *,
        k: float = 2.0,
        window: float = 10.0,
        at_most: float = 0.75,
        minimum: int = 10,
        throttle: Throttle | None = None,
        classify: Classifier = classify,
        clock: Clock = SYSTEM_CLOCK,
        random: Random = SYSTEM_RANDOM,
    ) -> None:
        self.throttle = throttle
        self.classify = classify

        def make() -> Throttle:
            return throttle or Throttle(
                k=k, window=window, at_most=at_most, minimum=minimum, clock=clock, random=random
            )

        self._make = make
        shown = make()  # the options are checked here
        self._label = f"AdaptiveThrottle(k={shown.k:g}, {shown.window:g} s)"

    def wrap(self, inner: Provider) -> Provider:
        """Guard ``inner`` with a throttle of its own, or with the shared one."""
        return _AdaptiveThrottleProvider(inner, self, self._make())

    def __repr__(self) -> str:
        return self._label


class _AdaptiveThrottleProvider(WrappedProvider):
    wrapper: AdaptiveThrottle

    def __init__(self, inner: Provider, wrapper: AdaptiveThrottle, throttle: Throttle) -> None:
        super().__init__(inner, wrapper)
        self.throttle = throttle

    async def send(self, request: Request, context: Context) -> Response:
        ticket = self.throttle.acquire()
        if ticket is None:
            context.decided(CallThrottled, self.name, probability=self.throttle.refused_at)
            raise Shed(provider=self.name, detail="throttled: the target refuses too many calls")
        try:
            response = await self.inner.send(request, context)
        except Exception as error:
            self._report(ticket, error)
            raise
        except BaseException:
            ticket.withdraw()
            raise
        ticket.accepted()  # an answer has begun; how it ends is another matter
        return response

    def _report(self, ticket: ThrottleTicket, error: Exception) -> None:
        verdict = self.wrapper.classify(error)
        if verdict.throttled:
            ticket.refused()
        elif verdict.health == "unknown" or isinstance(error, (TransportError, ConnectTimeout)):
            ticket.withdraw()
        elif isinstance(error, CallTimeout) and error.silent:
            ticket.refused()
        else:
            ticket.accepted()

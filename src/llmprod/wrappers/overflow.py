"""Sends to another target what a full one has no room for, and lets it wait only where nobody else can serve it.

A bulkhead's line is the right place for a call that has no other way. Where another target is at hand, waiting buys
nothing: an engine of your own takes what it can at once, and a hosted API the rest. Routers tell which it is by
``context.alternatives``, and come back to wait when all others have failed.
"""

from __future__ import annotations

from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.context import Context
from llmprod.mechanisms.concurrency_limit import ConcurrencyLimit, ConcurrencyPermit
from llmprod.provider import Provider
from llmprod.request import Request
from llmprod.verdict import Classifier, classify
from llmprod.wrappers.bulkhead import Bulkhead, BulkheadProvider

__all__ = ["Overflow"]


class Overflow(Bulkhead):
    """Let ``limit`` calls be under way at once; what finds no room is refused at once where a router asks others.

    Where nobody else can be asked, or all others have failed, calls wait in line as in :class:`Bulkhead`; while any
    waits, newcomers go to the others.

    Args:
        limit: calls at once: a number, or a limit such as an engine's own (``Overflow(engine.queue_limit())``).
        at_most_waiting: calls that may wait where they have no other way (default 1000: an outage of all others is not
            the moment to send callers away).
        wait_at_most: seconds that a call may wait (default None: as long as its deadline allows).
        classify: what an error says about the target (default :func:`llmprod.classify`).
        clock: time of the observed durations.

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    def __init__(
        self,
        limit: int | ConcurrencyLimit,
        *,
        at_most_waiting: int = 1000,
        wait_at_most: float | None = None,
        classify: Classifier = classify,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(
            limit, at_most_waiting=at_most_waiting, wait_at_most=wait_at_most, classify=classify, clock=clock
        )

    def wrap(self, inner: Provider) -> Provider:
        """Bound ``inner``'s calls, with permits of its own or with the shared limit's."""
        return _OverflowProvider(inner, self)

    def __repr__(self) -> str:
        return super().__repr__().replace("Bulkhead", "Overflow", 1)


class _OverflowProvider(BulkheadProvider):
    gives_way = True
    """Routers tell its calls whether somebody else can be asked."""

    async def _wait(self, request: Request, context: Context) -> ConcurrencyPermit:
        if context.alternatives:
            self._refuse("queue full", 0.0, context)
        return await super()._wait(request, context)

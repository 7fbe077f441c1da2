"""Asks the next target when one can't serve a call.

Stands inside Retry, so that attempts add up and never multiply. What it shares with other routers, such as the filter
by capability, is in :mod:`llmprod.wrappers._router`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.context import Context
from llmprod.provider import Provider
from llmprod.request import Request
from llmprod.verdict import Classifier, Verdict, classify
from llmprod.wrappers._router import Router

__all__ = ["Failover"]

_BACKOFF_ROOM = 2.0
"""Seconds before the deadline under which a failure is not left to a Retry, which might have no time left for it."""


class Failover(Router):
    """A provider over several, asked in order until one answers.

    * ``FATAL`` errors (a wrong request, a content policy) go to the caller: another target would not help.
    * A transient failure (500, a reset) of a target is left to a Retry outside once, so that the preferred target
      gets its second chance; throttling, cuts and timeouts move on at once.
    * A prompt too long for one target goes only to targets known to have a larger context window.
    * A target that asked for a wait is not asked again before it is over, by no call (at most 60 s); the others are.
    * Each further target needs leave of the call's cap of attempts, its deadline and the retry budget, where a Retry
      outside has set them.
    * Where every breaker is open, the target nearest to recovery is asked all the same.
    * When all fail, :class:`AllTargetsFailed` lists what each said.

    Args:
        targets: two or more providers, best first.
        classify: what an error means (default :func:`llmprod.classify`).
        clock: time, for how long attempts take.

    Raises:
        InvalidArgument: no target, or something that is no provider.
    """

    label: ClassVar[str] = "Failover"

    def __init__(self, *targets: Provider, classify: Classifier = classify, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(targets, classify=classify, clock=clock)

    def order(self, request: Request, context: Context) -> Sequence[Provider]:
        """As given."""
        return self.targets

    def leaves_to_retry(self, failures: int, verdict: Verdict, context: Context) -> bool:
        """A first transient failure, where a Retry outside has attempts and time left."""
        if failures > 1 or verdict.prefer_other or context.call.retries_left <= 0:
            return False
        remaining = context.remaining
        return remaining is None or remaining > _BACKOFF_ROOM

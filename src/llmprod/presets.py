"""Stacks that are right for most applications."""

from __future__ import annotations

from collections.abc import Sequence

from llmprod.clock import SYSTEM_CLOCK, SYSTEM_RANDOM, Clock, Random
from llmprod.provider import Provider
from llmprod.providers.static import Static
from llmprod.wrapper import Stack
from llmprod.wrappers.attempt_timeout import AttemptTimeout
from llmprod.wrappers.circuit_breaker import CircuitBreaker
from llmprod.wrappers.deadline import Deadline
from llmprod.wrappers.failover import Failover
from llmprod.wrappers.retry import Retry

__all__ = ["standard"]


def standard(
    primary: Provider,
    fallbacks: Sequence[Provider] = (),
    *,
    deadline: float = 600.0,
    attempts: int = 3,
    timeouts: AttemptTimeout | None = None,
    clock: Clock = SYSTEM_CLOCK,
    random: Random = SYSTEM_RANDOM,
) -> Provider:
    """Return the standard stack: Deadline → Retry → Failover → (CircuitBreaker → AttemptTimeout) for each target.

    Args:
        primary: asked first.
        fallbacks: asked in order when those before can't serve a call. A :class:`Static` at the end is the last
            resort: it stands outside Retry, so it answers only once the models have had all their attempts.
        deadline: seconds that a call may take in all (default 600).
        attempts: rounds of attempts (default 3).
        timeouts: limits of each attempt (default ``AttemptTimeout()``).
        clock: the breakers' time.
        random: the breakers' chance.
    """
    asked = [primary, *fallbacks]
    last_resort: list[Provider] = []
    while len(asked) > 1 and isinstance(asked[-1], Static):
        last_resort.insert(0, asked.pop())
    targets = [_deployment(target, timeouts or AttemptTimeout(), clock, random) for target in asked]
    answered = Retry(attempts)(Failover(*targets) if len(targets) > 1 else targets[0])
    return Deadline(deadline)(Failover(answered, *last_resort) if last_resort else answered)


def _deployment(target: Provider, timeouts: AttemptTimeout, clock: Clock, random: Random) -> Provider:
    if isinstance(target, Static):
        return target  # it has nothing that could fail or take time
    return Stack(CircuitBreaker(clock=clock, random=random), timeouts)(target)

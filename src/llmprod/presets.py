"""Stacks that are right for most applications."""

from __future__ import annotations

from collections.abc import Sequence

from llmprod.clock import SYSTEM_CLOCK, SYSTEM_RANDOM, Clock, Random
from llmprod.errors import InvalidArgument
from llmprod.mechanisms.retry_budget import RetryBudget
from llmprod.provider import Provider
from llmprod.providers.static import Static
from llmprod.wrapper import Phase, Stack, Wrapper
from llmprod.wrappers.attempt_timeout import AttemptTimeout
from llmprod.wrappers.circuit_breaker import CircuitBreaker
from llmprod.wrappers.deadline import Deadline
from llmprod.wrappers.failover import Failover
from llmprod.wrappers.key_pool import KeyPool
from llmprod.wrappers.retry import Retry

__all__ = ["standard"]


def standard(
    primary: Provider,
    fallbacks: Sequence[Provider] = (),
    *,
    extra: Sequence[Wrapper] = (),
    deadline: float = 600.0,
    attempts: int = 3,
    budget: RetryBudget | None = None,
    timeouts: AttemptTimeout | None = None,
    clock: Clock = SYSTEM_CLOCK,
    random: Random = SYSTEM_RANDOM,
) -> Provider:
    """Return the standard stack: Deadline → Retry → Failover → (CircuitBreaker → AttemptTimeout) for each target.

    ``extra`` adds to it: each wrapper takes the place that its phase gives it, once a call, once an attempt or for
    each deployment: ``standard(model, [other], extra=[RateLimit(requests_per_minute=500), Hedge()])``.

    Args:
        primary: asked first.
        fallbacks: asked in order when those before can't serve a call. A :class:`Static` at the end is the last
            resort: it stands outside Retry, so it answers only once the models have had all their attempts.
        extra: more wrappers, in any order.
        deadline: seconds that a call may take in all (default 600).
        attempts: rounds of attempts (default 3).
        budget: leave for further attempts, to share it with other stacks (default: one of its own).
        timeouts: limits of each attempt (default ``AttemptTimeout()``).
        clock: the mechanisms' time.
        random: the breakers' chance.

    Raises:
        InvalidArgument: naming the argument.
    """
    asked = [primary, *fallbacks]
    last_resort: list[Provider] = []
    while len(asked) > 1 and isinstance(asked[-1], Static):
        last_resort.insert(0, asked.pop())
    breaker = CircuitBreaker(clock=clock, random=random)
    each = _placed(
        [breaker, timeouts or AttemptTimeout(), *(item for item in _checked(extra) if item.phase > Phase.ROUTE)]
    )
    targets = [_deployment(target, each) for target in asked]
    answered = Failover(*targets, clock=clock) if len(targets) > 1 else targets[0]
    around = [Retry(attempts, budget=budget, clock=clock), *(item for item in extra if item.phase <= Phase.ROUTE)]
    per_attempt = _placed([item for item in around if item.phase >= Phase.RETRY])
    per_call = _placed([Deadline(deadline), *(item for item in around if item.phase < Phase.RETRY)])
    answered = per_attempt(answered)
    return per_call(Failover(answered, *last_resort, clock=clock) if last_resort else answered)


def _checked(extra: Sequence[Wrapper]) -> Sequence[Wrapper]:
    if isinstance(extra, (str, Wrapper)) or not isinstance(extra, Sequence):
        raise InvalidArgument("extra", type(extra).__name__, "a list of wrappers")
    for place, item in enumerate(extra):
        if not isinstance(item, Wrapper) or isinstance(item, Stack):
            raise InvalidArgument(f"extra[{place}]", type(item).__name__, "a wrapper such as Hedge() or RateLimit(…)")
        if isinstance(item, (Deadline, Retry, CircuitBreaker, AttemptTimeout)):
            name = type(item).__name__
            raise InvalidArgument(f"extra[{place}]", name, "what the standard stack has not already; compose a Stack")
    return extra


def _placed(wrappers: Sequence[Wrapper]) -> Stack:
    return Stack(*sorted(wrappers, key=lambda wrapper: wrapper.phase))


def _deployment(target: Provider, each: Stack) -> Provider:
    if isinstance(target, Static):
        return target  # it has nothing that could fail or take time
    return target.around(each) if isinstance(target, KeyPool) else each(target)

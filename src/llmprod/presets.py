"""Stacks that are right for most applications."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from llmprod._validate import A_PROVIDER, type_of
from llmprod.clock import SYSTEM_CLOCK, SYSTEM_RANDOM, Clock, Random
from llmprod.errors import InvalidArgument
from llmprod.mechanisms.retry_budget import RetryBudget
from llmprod.provider import Provider
from llmprod.providers.static import Static
from llmprod.wrapper import Phase, Stack, Wrapper, leaves
from llmprod.wrappers.attempt_timeout import AttemptTimeout
from llmprod.wrappers.balance import Balance
from llmprod.wrappers.circuit_breaker import CircuitBreaker
from llmprod.wrappers.deadline import Deadline
from llmprod.wrappers.failover import Failover
from llmprod.wrappers.key_pool import KeyPool
from llmprod.wrappers.overflow import Overflow
from llmprod.wrappers.retry import Retry

__all__ = ["local_first", "standard"]


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
    if isinstance(fallbacks, (str, Provider)):
        raise InvalidArgument("fallbacks", type(fallbacks).__name__, "a list of providers")
    for field, target in (("primary", primary), *((f"fallbacks[{at}]", other) for at, other in enumerate(fallbacks))):
        if not isinstance(cast("object", target), Provider):
            raise InvalidArgument(field, type(target).__name__, A_PROVIDER)
    asked, last_resort = _apart([primary, *fallbacks])
    breaker = CircuitBreaker(clock=clock, random=random)
    each = _placed(
        [breaker, timeouts or AttemptTimeout(), *(item for item in _checked(extra) if item.phase > Phase.ROUTE)]
    )
    targets = [_deployment(target, each) for target in asked]
    answered = Failover(*targets, clock=clock) if len(targets) > 1 else targets[0]
    retry = Retry(attempts, budget=budget, clock=clock)
    return _whole(answered, last_resort, Deadline(deadline), retry, extra, clock)


def local_first(
    local: Provider | Sequence[Provider],
    *hosted: Provider,
    waiting: int = 8,
    kv_cache_at_most: float = 0.95,
    at_most_waiting: int = 1000,
    extra: Sequence[Wrapper] = (),
    deadline: float = 600.0,
    attempts: int = 3,
    budget: RetryBudget | None = None,
    timeouts: AttemptTimeout | None = None,
    clock: Clock = SYSTEM_CLOCK,
    random: Random = SYSTEM_RANDOM,
) -> Provider:
    """Return the standard stack over an engine of your own, with hosted models for what it has no room for.

    ``local_first(VLLM("Qwen/Qwen3-8B"), OpenAI("gpt-5-mini"))``: calls go to the engine while its queue is short and
    its cache not full, else to the hosted models in order. They also answer while the engine starts or restarts, and
    when it fails. When they fail, calls wait for a place in the engine, or for its start, as long as their deadline
    allows.

    Several engines share the calls by the beginnings of their prompts, so that each one's prefix cache keeps hitting.

    Args:
        local: a provider with a ``queue_limit``, such as :class:`VLLM`; or several, as good as one another.
        hosted: one or more providers, best first. A :class:`Static` at the end is the last resort, as in
            :func:`standard`.
        waiting: requests that may wait in the engine (default 8).
        kv_cache_at_most: share of its KV cache that may be taken (default 0.95).
        at_most_waiting: calls that may wait here for a place while all hosted models fail (default 1000).
        extra: more wrappers, in any order, as in :func:`standard`; limits (RateLimit, Bulkhead, AdaptiveThrottle) are
            put around the hosted models alone, since the engine has its own.
        deadline: seconds that a call may take in all (default 600).
        attempts: rounds of attempts (default 3).
        budget: leave for further attempts, to share it with other stacks (default: one of its own).
        timeouts: limits of each attempt (default ``AttemptTimeout()``); an engine's start is no time of an attempt.
        clock: the mechanisms' time.
        random: the breakers' chance.

    Raises:
        InvalidArgument: naming the argument.
    """
    locals_ = list(local) if isinstance(local, Sequence) else [local]
    if not locals_ or isinstance(local, str):
        raise InvalidArgument("local", repr(local)[:40], "a provider with a queue_limit, such as VLLM(…), or several")
    if not hosted:
        raise InvalidArgument("hosted", "nothing", "at least one provider; for an engine alone, use standard(local)")
    for place, target in enumerate(hosted):
        if not isinstance(cast("object", target), Provider):
            raise InvalidArgument(f"hosted[{place}]", type(target).__name__, A_PROVIDER)
    asked, last_resort = _apart([*locals_, *hosted])
    asked = asked[len(locals_) :]
    shared = [CircuitBreaker(clock=clock, random=random), timeouts or AttemptTimeout()]
    inner = [item for item in _checked(extra) if item.phase > Phase.ROUTE]
    at_engine = _placed([*shared, *(item for item in inner if item.phase > Phase.CIRCUIT_BREAKER)])
    engines = [
        Overflow(
            _queue_limit(target)(waiting, kv_cache_at_most=kv_cache_at_most),
            at_most_waiting=at_most_waiting,
            clock=clock,
        )(at_engine(target))
        for target in locals_
    ]
    targets = [*engines, *(_deployment(target, _placed([*shared, *inner])) for target in asked)]
    if len(engines) == 1:
        answered: Provider = Failover(*targets, clock=clock)
    else:
        levels = [0] * len(engines) + list(range(1, len(asked) + 1))
        answered = Balance(*targets, policy="priority", priorities=levels, sticky="prefix", clock=clock, random=random)
    retry = Retry(attempts, budget=budget, clock=clock)
    return _whole(answered, last_resort, Deadline(deadline), retry, extra, clock)


def _queue_limit(target: Provider) -> Callable[..., Any]:
    """The maker of an engine's limit."""
    if not isinstance(cast("object", target), Provider):
        raise InvalidArgument("local", type(target).__name__, "a provider with a queue_limit, such as VLLM(…)")
    answering = list(leaves(target))
    made: Callable[..., Any] | None = getattr(answering[0], "queue_limit", None)
    if len(answering) != 1 or made is None:
        raise InvalidArgument("local", target.name, "one engine with a queue_limit, such as VLLM(…), or a list of them")
    return made


def _apart(asked: list[Provider]) -> tuple[list[Provider], list[Provider]]:
    """Part the fixed answers at the end from the models."""
    last_resort: list[Provider] = []
    while len(asked) > 1 and isinstance(asked[-1], Static):
        last_resort.insert(0, asked.pop())
    return asked, last_resort


def _whole(
    answered: Provider,
    last_resort: list[Provider],
    deadline: Deadline,
    retry: Retry,
    extra: Sequence[Wrapper],
    clock: Clock,
) -> Provider:
    """What stands around the router: attempts, and what is done once a call."""
    around = [retry, *(item for item in extra if item.phase <= Phase.ROUTE)]
    per_attempt = _placed([item for item in around if item.phase >= Phase.RETRY])
    per_call = _placed([deadline, *(item for item in around if item.phase < Phase.RETRY)])
    answered = per_attempt(answered)
    return per_call(Failover(answered, *last_resort, clock=clock) if last_resort else answered)


def _checked(extra: Sequence[Wrapper]) -> Sequence[Wrapper]:
    if isinstance(extra, (str, Wrapper)) or not isinstance(extra, Sequence):
        raise InvalidArgument("extra", type(extra).__name__, "a list of wrappers")
    for place, item in enumerate(extra):
        if not isinstance(item, Wrapper) or isinstance(item, Stack):
            raise InvalidArgument(f"extra[{place}]", type_of(item), "a wrapper such as Hedge() or RateLimit(…)")
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

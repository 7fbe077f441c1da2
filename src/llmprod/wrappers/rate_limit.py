"""Keeps calls within limits of requests, tokens, money and concurrency, by waiting rather than by being refused.

A call reserves what it will probably use, in every dimension or in none, and settles the difference when it has ended
(:mod:`llmprod.mechanisms.rate_limit` tells how, and :mod:`llmprod.mechanisms.token_estimate` what is probable). Calls
that find no room stand in one line, by priority and arrival; one that can't get its turn before its deadline is refused
at once. The provider's headers and its 429s are believed where they say less.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeAlias, cast

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.context import Context
from llmprod.decisions import LimitCalibrated, LimitRefused, LimitStoreChanged, LimitWaited
from llmprod.errors import InvalidArgument, RateLimitExceeded
from llmprod.mechanisms.limit_headers import limit_readings
from llmprod.mechanisms.limit_store import DAY, Dimension, Leave, Limit, Limits, LimitStore, Shortage
from llmprod.mechanisms.rate_limit import RateLimiter
from llmprod.mechanisms.token_estimate import TokenEstimate
from llmprod.provider import Provider
from llmprod.request import Request
from llmprod.response import Outcome, Response
from llmprod.usage import Usage
from llmprod.verdict import Classifier, classify
from llmprod.wrapper import Phase, WrappedProvider, Wrapper
from llmprod.wrappers._limit_gate import Entry, Gate, NoLeave, shared_gate
from llmprod.wrappers._line import Line

__all__ = ["RateLimit"]

Per: TypeAlias = str | tuple[str, ...] | Callable[[Context], str]

_PAUSE = 1.0  # seconds, after a 429 without retry-after; botocore's base for throttling
_PAUSE_AT_MOST = 3600.0
_CALIBRATED = 0.01  # of a limit: a smaller correction is no decision worth a record


class RateLimit(Wrapper):
    """Let calls through as fast as the limits allow, and no faster.

    Without ``per`` it guards a deployment: each wrapped target has limits of its own, which follow the provider's
    headers and rest when the provider says 429. With ``per`` it is a quota: each user, key or tenant has limits of its
    own, and it belongs outside the retries (``Phase.QUOTA``).

    Args:
        requests_per_minute: calls sent.
        input_tokens_per_minute: prompt tokens.
        output_tokens_per_minute: answer tokens.
        tokens_per_minute: both together, as OpenAI and Azure count.
        cost_per_minute: money, in the unit of ``price``.
        requests_per_day: calls sent in a day.
        tokens_per_day: tokens in a day.
        cost_per_day: money in a day.
        concurrent: calls under way at once, an open stream included.
        burst: how much may be taken at once after a rest, in seconds of a minute's allowance (default 5 for a
            deployment, where providers count in windows that they don't tell; 60 for a quota).
        per: whose quota: a tag's name (``"user"``, ``"api_key"``, ``"tenant"`` …), several, or a function of the
            context. Calls without the tag share one quota together.
        wait_at_most: seconds that a call waits for its turn (default None: until its deadline). 0 refuses at once.
        at_most_waiting: calls that may wait; more are refused (default 1000).
        count_cached: prompt tokens read from the provider's cache count (default True; False for Anthropic and Groq,
            which don't count them).
        count_max_tokens: an answer counts as ``max_tokens`` however short it is (default False: as what it was). True
            for a provider that takes them for used when it admits a call, as OpenAI, Azure and Cerebras do; requests
            should then carry no more ``max_tokens`` than they need.
        tokens: counts a request's prompt tokens, instead of an estimate from its length.
        price: the cost of a request, from its estimated and then its actual usage; needed for a limit of money.
        store: where several processes share the limits (:class:`llmprod.stores.redis.RedisLimits`).
        name: what the limits go by in the store (default: the target's name, or ``quota``).
        keys_at_most: quotas that are remembered; beyond that the ones longest unused are forgotten (default 10000).
        limiter: a limiter to share with other stacks, instead of limits of its own.
        classify: what an error means (default :func:`llmprod.classify`).
        clock: the limits' time.

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    phase: ClassVar[Phase] = Phase.RATE_LIMIT

    def __init__(
        self,
        *,
        requests_per_minute: float | None = None,
        input_tokens_per_minute: float | None = None,
        output_tokens_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        cost_per_minute: float | None = None,
        requests_per_day: float | None = None,
        tokens_per_day: float | None = None,
        cost_per_day: float | None = None,
        concurrent: int | None = None,
        burst: float | None = None,
        per: Per | None = None,
        wait_at_most: float | None = None,
        at_most_waiting: int | None = 1000,
        count_cached: bool = True,
        count_max_tokens: bool = False,
        tokens: Callable[[Request], int] | None = None,
        price: Callable[[Request, Usage], float] | None = None,
        store: LimitStore | None = None,
        name: str | None = None,
        keys_at_most: int = 10_000,
        limiter: RateLimiter | None = None,
        classify: Classifier = classify,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        _validate.seconds("burst", burst, optional=True)
        _validate.seconds("wait_at_most", wait_at_most, optional=True, zero=True)
        _validate.whole("at_most_waiting", at_most_waiting, 0, optional=True)
        _validate.whole("keys_at_most", keys_at_most, 1)
        _validate.whole("concurrent", concurrent, 1, optional=True)
        _validate.flag("count_cached", count_cached)
        _validate.flag("count_max_tokens", count_max_tokens)
        seconds = burst if burst is not None else 5.0 if per is None else 60.0
        minute: dict[Dimension, float | None] = {
            "requests": requests_per_minute,
            "input_tokens": input_tokens_per_minute,
            "output_tokens": output_tokens_per_minute,
            "tokens": tokens_per_minute,
            "cost": cost_per_minute,
        }
        day: dict[Dimension, float | None] = {
            "requests": requests_per_day,
            "tokens": tokens_per_day,
            "cost": cost_per_day,
        }
        rates: list[Limit] = []
        for named, period, suffix in ((minute, 60.0, "per_minute"), (day, DAY, "per_day")):
            for dimension, amount in named.items():
                if amount is not None:
                    _positive(f"{dimension}_{suffix}", amount)
                    depth = amount * min(seconds / 60.0, 1.0) if period != DAY else amount
                    if dimension == "requests":
                        depth = max(1.0, depth)
                    rates.append(Limit(dimension=dimension, amount=amount, period=period, burst=depth))
        if limiter is None and not rates and concurrent is None:
            raise InvalidArgument("requests_per_minute", "no limit at all", "at least one limit, or a limiter")
        if limiter is not None:
            if rates or concurrent is not None:
                raise InvalidArgument("limiter", "a limiter and limits", "one of them: a limiter has limits of its own")
            if per is not None or store is not None:
                raise InvalidArgument("limiter", "a limiter with per or store", "a limiter alone: it is one, and local")
        _check_per(per)
        if store is not None and not callable(getattr(store, "reserve", None)):
            raise InvalidArgument("store", type(store).__name__, "a store of limits such as RedisLimits(…), or None")
        for field, function in (("tokens", tokens), ("price", price)):
            if function is not None and not callable(function):
                takes = "a request" if field == "tokens" else "request and usage"
                raise InvalidArgument(field, type(function).__name__, f"a function of {takes}, or None")
        self.limits: Limits = (
            limiter.limits if limiter is not None else Limits(rates=tuple(rates), concurrent=concurrent)
        )
        self.per: Per | None = per
        self.wait_at_most = wait_at_most
        self.at_most_waiting = at_most_waiting
        self.count_cached = count_cached
        self.count_max_tokens = count_max_tokens
        self.tokens = tokens
        self.price = price
        self.store = store
        self.name = name
        self.keys_at_most = keys_at_most
        self.limiter = limiter
        self.classify = classify
        self.clock = clock
        self.dimensions: frozenset[str] = frozenset(limit.dimension for limit in self.limits.rates)
        if "cost" in self.dimensions and price is None:
            raise InvalidArgument("price", "None", "a function of request and usage, for a limit of money")
        if per is not None:
            vars(self)["phase"] = Phase.QUOTA  # of this one; the class says where most belong

    def wrap(self, inner: Provider) -> Provider:
        """Limit calls of ``inner``."""
        return _RateLimitProvider(inner, self)

    def __repr__(self) -> str:
        told = [
            f"{limit.amount:g} {limit.dimension}/{_PERIODS.get(limit.period, 'period')}" for limit in self.limits.rates
        ]
        if self.limits.concurrent is not None:
            told.append(f"{self.limits.concurrent} at once")
        if self.per is not None:
            told.append(f"per {'+'.join(_tags(self.per)) or 'key'}")
        return f"RateLimit({', '.join(told)})"


_PERIODS = {60.0: "min", DAY: "day"}


def _positive(field: str, value: float) -> None:
    _validate.between(field, value, 0, float("inf"), optional=True)
    if value <= 0:
        raise InvalidArgument(field, repr(value)[:40], "a number above 0, or None for no limit")


def _check_per(per: object) -> None:
    given = type(per).__name__
    if per is None or callable(per):
        return
    tags = cast("Sequence[object]", per if type(per) is tuple else (per,))
    if not tags or not all(isinstance(tag, str) and tag for tag in tags):
        raise InvalidArgument("per", given, "a tag's name, a tuple of names, or a function of the context")


class _RateLimitProvider(WrappedProvider):
    wrapper: RateLimit

    def __init__(self, inner: Provider, wrapper: RateLimit) -> None:
        super().__init__(inner, wrapper)
        self._estimate = TokenEstimate(tokens=wrapper.tokens, model=inner.name)
        self._counts_tokens = not wrapper.dimensions <= {"requests"}
        self._quota = wrapper.per is not None
        self._store_lost = False
        self._gates: OrderedDict[str, Gate] = OrderedDict()
        self._gate = None if self._quota else self._new_gate("")

    def _new_gate(self, key: str) -> Gate:
        wrapper = self.wrapper
        if wrapper.limiter is not None:
            return shared_gate(wrapper.limiter, wrapper.at_most_waiting)
        limiter = RateLimiter(wrapper.limits, clock=wrapper.clock) if wrapper.store is None else None
        name = wrapper.name or ("quota" if self._quota else self.inner.name)
        line = Line(wrapper.at_most_waiting)
        return Gate(
            wrapper.limits,
            limiter=limiter,
            store=wrapper.store,
            key=f"{name}|{key}" if self._quota else name,
            line=line,
        )

    def _gate_for(self, context: Context) -> Gate:
        if self._gate is not None:
            return self._gate
        key = _key(self.wrapper.per, context)
        gate = self._gates.get(key)
        if gate is not None:
            self._gates.move_to_end(key)
            return gate
        gate = self._gates[key] = self._new_gate(key)
        if len(self._gates) > self.wrapper.keys_at_most:
            self._forget(gate)
        return gate

    def _forget(self, new: Gate) -> None:
        """Forget the quota longest unused, one that owes nothing if there is one among the first few."""
        oldest = [key for _, key in zip(range(16), self._gates, strict=False)]
        free = [key for key in oldest if self._gates[key] is not new and not self._gates[key].busy]
        idle = [key for key in free if self._gates[key].idle]
        for key in (idle or free)[:1]:
            del self._gates[key]

    async def send(self, request: Request, context: Context) -> Response:
        gate = self._gate_for(context)
        raw, costs = 0.0, _ONE
        if self._counts_tokens:
            raw = self._estimate.raw_input(request)
            costs = self._costs(request, raw, context)
        leave = gate.at_once(costs)
        if leave is None:
            leave = (await self._enter(gate, costs, context)).leave
        sent = context.call.sent
        try:
            response = await self.inner.send(request, context)
        except Exception as error:
            self._failed(gate, leave, error, context, sent, request)
            raise
        except BaseException:
            if context.call.sent == sent:
                leave.cancel()
            else:
                leave.keep()
            raise
        if not self._quota and response.headers:
            self._calibrate(leave, response, context)
        response.on_close(lambda outcome: self._ended(leave, outcome, request, raw, context))
        return response

    async def aclose(self) -> None:
        try:
            if self.wrapper.store is not None:
                await self.wrapper.store.flush()
        finally:
            await self.inner.aclose()

    # ---- before -----------------------------------------------------------------------------------------------------

    def _costs(self, request: Request, raw: float, context: Context) -> dict[str, float]:
        estimate = self._estimate
        prompt = estimate.input(raw)
        answer = max(estimate.output(request, _route(context)), self._most(request))
        costs = {"requests": 1.0, "input_tokens": prompt, "output_tokens": answer, "tokens": prompt + answer}
        price = self.wrapper.price
        if price is not None and "cost" in self.wrapper.dimensions:
            costs["cost"] = price(request, Usage(input=round(prompt), output=round(answer), estimated=True))
            _validate.between("price", costs["cost"], 0, float("inf"))
        return costs

    async def _enter(self, gate: Gate, costs: Mapping[str, float], context: Context) -> Entry:
        try:
            entry = await gate.enter(costs, context, self.wrapper.wait_at_most)
        except NoLeave as refused:
            self._watch_store(context)
            raise self._refused(refused.shortage, refused.waited, context) from None
        except RateLimitExceeded as error:  # the store is lost, and so are the calls
            self._watch_store(context)
            raise self._refused(Shortage(error.dimension or "store", error.retry_after), 0.0, context) from None
        self._watch_store(context)
        if entry.short is not None:
            context.trace.waited(entry.waited)
            context.decided(LimitWaited, self.name, seconds=entry.waited, dimension=entry.short.dimension)
        return entry

    def _refused(self, short: Shortage, waited: float, context: Context) -> RateLimitExceeded:
        if waited:
            context.trace.waited(waited)
        after = None if short.seconds is None else round(short.seconds, 3)
        context.trace.skipped(self.name, context.elapsed, f"rate limit: {short.dimension}", error="RateLimitExceeded")
        context.decided(LimitRefused, self.name, dimension=short.dimension, retry_after=after)
        return RateLimitExceeded(
            provider=self.name, dimension=short.dimension, retry_after=after, detail=short.dimension
        )

    def _watch_store(self, context: Context) -> None:
        store = self.wrapper.store
        if store is not None and store.lost is not self._store_lost:
            self._store_lost = store.lost
            context.decided(LimitStoreChanged, self.name, state="lost" if self._store_lost else "back", mode=store.mode)

    # ---- after ------------------------------------------------------------------------------------------------------

    def _failed(
        self, gate: Gate, leave: Leave, error: Exception, context: Context, sent: int, request: Request
    ) -> None:
        if context.call.sent == sent:
            leave.cancel()
            return
        usage = getattr(error, "usage", None)
        if isinstance(usage, Usage):
            leave.settle(self._used(request, usage), final=False)
        else:
            leave.keep()
        if not self._quota:
            verdict = self.wrapper.classify(error)
            if verdict.throttled:
                pause = _PAUSE if verdict.retry_after is None else min(verdict.retry_after, _PAUSE_AT_MOST)
                gate.throttled(pause)

    def _calibrate(self, leave: Leave, response: Response, context: Context) -> None:
        readings = limit_readings(response.headers)
        if not readings:
            return
        rates = {limit.name: limit for limit in self.wrapper.limits.rates}
        for changed in leave.calibrate(readings):
            if changed.before - changed.after >= _CALIBRATED * rates[changed.dimension].amount:
                context.decided(
                    LimitCalibrated,
                    self.name,
                    dimension=changed.dimension,
                    before=changed.before,
                    after=changed.after,
                )

    def _ended(self, leave: Leave, outcome: Outcome, request: Request, raw: float, context: Context) -> None:
        usage = outcome.usage
        if usage is None:
            leave.keep()
            return
        whole = outcome.kind == "ok"
        try:
            used = self._used(request, usage)
            leave.settle(used, final=whole)
        finally:
            leave.keep()  # a price that raised must not hold a place among the concurrent calls
        if whole and used:
            self._estimate.learn(request, raw, used["input_tokens"], used["output_tokens"], _route(context))

    def _most(self, request: Request) -> int:
        return (getattr(request, "max_tokens", None) or 0) if self.wrapper.count_max_tokens else 0

    def _used(self, request: Request, usage: Usage) -> Mapping[str, float]:
        if not self._counts_tokens:
            return _NOTHING
        prompt = usage.total_input if self.wrapper.count_cached else usage.total_input - usage.cached
        answer = max(usage.total_output, self._most(request))
        used: dict[str, float] = {"input_tokens": prompt, "output_tokens": answer, "tokens": prompt + answer}
        price = self.wrapper.price
        if price is not None and "cost" in self.wrapper.dimensions:
            used["cost"] = price(request, usage)
        return used


_ONE: Mapping[str, float] = {"requests": 1.0}
_NOTHING: Mapping[str, float] = {}


def _route(context: Context) -> str:
    return context.prompt[0] if context.prompt is not None else ""


def _tags(per: Per | None) -> tuple[str, ...]:
    if isinstance(per, str):
        return (per,)
    return () if per is None or callable(per) else per


def _key(per: Per | None, context: Context) -> str:
    if callable(per):
        return str(per(context))
    return "\x1f".join([context.tags.get(tag, "") for tag in _tags(per)])

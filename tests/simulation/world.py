"""Runs one scenario: builds its stacks, lets its callers call, and notes what each of them saw."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import anyio

from llmprod import (
    AttemptTimeout,
    Breaker,
    CircuitBreaker,
    Deadline,
    EmbedRequest,
    Failover,
    GenerateRequest,
    LLMProdError,
    Message,
    Provider,
    Request,
    Response,
    Retry,
    Static,
)
from llmprod.context import Context
from llmprod.events import Finish, Reset, Seam, TextDelta
from llmprod.mechanisms.concurrency_limit import AIMDLimit, ConcurrencyLimit, FixedLimit, QueueLimit
from llmprod.mechanisms.gradient2 import Gradient2
from llmprod.mechanisms.key_ring import QuotaGroup
from llmprod.mechanisms.rate_limit import RateLimiter
from llmprod.mechanisms.resume_plan import ContinueText, Restart
from llmprod.mechanisms.retry_budget import RetryBudget
from llmprod.response import Outcome
from llmprod.trace import Attempt
from llmprod.wrappers.adaptive_throttle import AdaptiveThrottle
from llmprod.wrappers.balance import Balance
from llmprod.wrappers.bulkhead import Bulkhead
from llmprod.wrappers.chaos import Chaos
from llmprod.wrappers.hedge import Hedge
from llmprod.wrappers.key_pool import KeyPool
from llmprod.wrappers.rate_limit import RateLimit
from llmprod.wrappers.resume import Resume
from llmprod.wrappers.throughput_guard import ThroughputGuard
from tests.simulation.plan import CallPlan, Plan, StackPlan
from tests.simulation.target import Ledger, SimulatedTarget
from tests.simulation.worlds import WorldClock, random_for, run, runs_as

LATE = 1e-3
"""Seconds after its deadline that a call may end: closing what is open takes some microseconds here."""
_END_OF_TIME = 100_000.0

Wrap = Callable[..., Any]
Replaced = Mapping[str, Wrap]


class CountedBudget(RetryBudget):
    """A retry budget that remembers every movement."""

    def __init__(self, clock: WorldClock) -> None:
        super().__init__(clock=clock)
        self.moves: list[tuple[float, str, str]] = []

    def deposit(self) -> None:
        super().deposit()
        self.moves.append((self._clock.now(), "deposit", ""))

    def withdraw(self, kind: Any = "retry") -> bool:
        given = super().withdraw(kind)
        self.moves.append((self._clock.now(), "withdraw" if given else "refuse", kind))
        return given

    def refund(self) -> None:
        super().refund()
        self.moves.append((self._clock.now(), "refund", ""))


@dataclass
class Call:
    """What a caller saw."""

    plan: CallPlan
    context: Context
    began: float
    ended: float | None = None
    how: str = "running"
    error: BaseException | None = None
    text: str = ""
    embeddings: Any = None
    finished: bool = False
    whole: bool = False
    seams: int = 0
    resets: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)
    """Begin and end of every time that the caller waited for the library."""
    response: Response | None = None


@dataclass
class Result:
    """What happened in a scenario."""

    plan: Plan
    ledger: Ledger
    targets: list[SimulatedTarget]
    stacks: list[Provider]
    calls: list[Call]
    budgets: list[list[CountedBudget]]
    hung: bool = False
    warned: list[str] = field(default_factory=list)
    left_over: int = 0

    def traces(self) -> list[Any]:
        """All that has to be the same for the same seed: attempts, decisions, ends, times, and what the targets saw."""
        told: list[Any] = []
        for call in self.calls:
            rows = [_row(entry) for entry in call.context.trace.entries]
            decisions = [
                (type(decision).__name__, decision.at, decision.target, decision.values())
                for decision in call.context.trace.decisions
            ]
            kinds = [outcome.kind for outcome in call.outcomes]
            told.append((call.plan.number, call.how, call.ended, str(call.error), call.text, kinds, rows, decisions))
        told.append(self.ledger.arrivals)
        return told


def _row(entry: Attempt) -> tuple[Any, ...]:
    # Each backend has an exception of its own for a cancellation.
    error = "Cancelled" if entry.state == "cancelled" else entry.error
    verdict = entry.verdict and entry.verdict.value
    times = entry.started, entry.wait, entry.seconds, entry.ttft
    return entry.target, entry.state, error, *times, verdict, entry.status, entry.reason, entry.usage


class _Builder:
    """Makes the stacks of a plan; ``replaced`` has other makers for some wrappers, to see that they are caught."""

    def __init__(self, plan: Plan, clock: WorldClock, replaced: Replaced) -> None:
        self.plan, self.clock, self.replaced = plan, clock, replaced
        self.budgets: list[list[CountedBudget]] = []
        self._shared: dict[str, Any] = {}
        self._groups: dict[str, QuotaGroup] = {}

    def shared(self, what: str, key: str, make: Callable[[], Any]) -> Any:
        if what not in self.plan.shared:
            return make()
        return self._shared.setdefault(f"{what}/{key}", make())

    def build(self, number: int, stack: StackPlan, targets: list[SimulatedTarget]) -> Provider:
        self.stack, self.number = f"stack{number}", number
        self.budgets.append([])
        chains: list[Provider] = []
        for place, chain in zip(stack.targets, stack.within, strict=True):
            provider: Provider = targets[place]
            for name, options in reversed(chain):
                provider = self.wrapper(name, options, targets[place].name)(provider)
            chains.append(provider)
        if stack.router is not None:
            provider = self.router(stack.router[0], stack.router[1], chains)
        else:
            (provider, *_) = chains
        around = list(stack.around)
        if stack.last_resort:
            while len(around) > 1:
                name, options = around.pop()
                provider = self.wrapper(name, options, "around")(provider)
            provider = Failover(provider, Static("sorry"), clock=self.clock)
        for name, options in reversed(around):
            provider = self.wrapper(name, options, "around")(provider)
        return provider

    def chance(self, *names: object) -> Any:
        return random_for(self.plan.seed, self.stack, *names)

    def wrapper(self, name: str, options: Mapping[str, Any], where: str) -> Wrap:
        if name in self.replaced:
            return self.replaced[name](self, where, **options)
        return getattr(self, f"_{name}")(where, **options)

    def router(self, name: str, options: Mapping[str, Any], chains: list[Provider]) -> Provider:
        if name in self.replaced:
            return self.replaced[name](self, chains, **options)
        return getattr(self, f"_{name}")(chains, **options)

    # ---- one a wrapper ----------------------------------------------------------------------------------------------

    def _Deadline(self, where: str, **options: Any) -> Wrap:
        return Deadline(**options)

    def budget(self) -> CountedBudget:
        budget = self.shared("budget", "", lambda: CountedBudget(self.clock))
        self.budgets[-1].append(budget)
        return budget

    def _Retry(self, where: str, **options: Any) -> Wrap:
        return Retry(budget=self.budget(), clock=self.clock, **options)

    def _AttemptTimeout(self, where: str, **options: Any) -> Wrap:
        return AttemptTimeout(**options)

    def _CircuitBreaker(self, where: str, **options: Any) -> Wrap:
        made = CircuitBreaker(clock=self.clock, random=self.chance("breaker", where), **options)
        breaker: Breaker = self.shared(
            "breaker", where, lambda: Breaker(made.options, clock=made.clock, random=made.random)
        )
        made.breaker = breaker
        return made

    def _AdaptiveThrottle(self, where: str, **options: Any) -> Wrap:
        return AdaptiveThrottle(clock=self.clock, random=self.chance("throttle", where), **options)

    def _Bulkhead(self, where: str, limit: tuple[str, int], **options: Any) -> Wrap:
        bound = self.shared("bulkhead", f"{where}/{limit}", lambda: self._limit(*limit))
        return Bulkhead(bound, clock=self.clock, **options)

    def _limit(self, kind: str, size: int) -> ConcurrencyLimit:
        if kind == "fixed":
            return FixedLimit(size)
        if kind == "aimd":
            return AIMDLimit(initial=3, maximum=20)
        if kind == "gradient2":
            return Gradient2(initial=4, minimum=1, maximum=20)
        readings = self.chance("queue")
        return QueueLimit(lambda: int(readings.random() * 3), initial=3, maximum=20, clock=self.clock)

    def _Chaos(self, where: str, **options: Any) -> Wrap:
        return Chaos(**options)

    def _ThroughputGuard(self, where: str, **options: Any) -> Wrap:
        return ThroughputGuard(**options)

    def _RateLimit(self, where: str, **options: Any) -> Wrap:
        made = RateLimit(clock=self.clock, **options)
        if "limit" not in self.plan.shared:
            return made
        limiter = self.shared("limit", where, lambda: RateLimiter(made.limits, clock=self.clock))
        waits = {name: options[name] for name in ("wait_at_most", "at_most_waiting")}
        return RateLimit(limiter=limiter, clock=self.clock, **waits)

    def _Quota(self, where: str, **options: Any) -> Wrap:
        return RateLimit(clock=self.clock, **options)

    def _Resume(self, where: str, plans: tuple[str, ...], **options: Any) -> Wrap:
        made = [{"ContinueText": ContinueText, "Restart": Restart}[name]() for name in plans]
        return Resume(*made, **options)

    def _Hedge(self, where: str, **options: Any) -> Wrap:
        return Hedge(clock=self.clock, **options)

    def _Failover(self, chains: list[Provider], **options: Any) -> Provider:
        return Failover(*chains, clock=self.clock, **options)

    def _Balance(self, chains: list[Provider], **options: Any) -> Provider:
        return Balance(*chains, clock=self.clock, random=self.chance("balance"), **options)

    def _KeyPool(self, chains: list[Provider], quota_groups: tuple[str | None, ...], **options: Any) -> Provider:
        groups = [None if name is None else self._group(name) for name in quota_groups]
        return KeyPool(*chains, quota_groups=groups, clock=self.clock, **options)

    def _group(self, name: str) -> QuotaGroup:
        return self._groups.setdefault(name, QuotaGroup(name, clock=self.clock))


def _request(call: CallPlan) -> Request:
    if call.kind == "embed":
        return EmbedRequest(inputs=(str(call.number),))
    return GenerateRequest(messages=(Message.user(str(call.number)),), stream=call.kind == "stream")


class _Caller:
    def __init__(self, plan: CallPlan, stack: Provider, seed: int, clock: WorldClock) -> None:
        self.plan, self.stack, self.seed, self.clock = plan, stack, seed, clock
        self.call: Call | None = None

    async def run(self, calls: list[Call]) -> None:
        plan, clock = self.plan, self.clock.of(self.plan.number)
        self.clock = clock
        runs_as(clock)
        await clock.sleep(plan.at)
        context = Context.new(
            clock=clock,
            random=random_for(self.seed, "call", plan.number),
            seconds=plan.seconds,
            priority=plan.priority,
            tags={"user": plan.user, "session": plan.user},
        )
        call = self.call = Call(plan, context, clock.now())
        calls.append(call)
        with anyio.CancelScope() as scope:
            if plan.cancel is not None:
                scope.deadline = call.began + plan.cancel
            try:
                call.how = await self._use(call)
            except LLMProdError as error:
                call.how, call.error = "error", error
            except Exception as error:
                call.how, call.error = "foreign", error
        if scope.cancelled_caught:
            call.how = "cancelled"
        call.ended = clock.now()

    async def _waited(self, call: Call, awaitable: Any) -> Any:
        began = self.clock.now()
        try:
            return await awaitable
        finally:
            call.waits.append((began, self.clock.now()))

    async def _use(self, call: Call) -> str:
        response = call.response = await self._waited(call, self.stack.send(_request(self.plan), call.context))
        call.whole = response.closed
        response.on_close(call.outcomes.append)
        if self.plan.kind != "stream":
            call.text, call.embeddings, call.finished = response.text, response.embeddings, response.complete
            return "ok"
        try:
            return await self._read(call, response)
        finally:
            await self._waited(call, response.aclose())

    async def _read(self, call: Call, response: Response) -> str:
        stop, pause, seen = self.plan.stop, self.plan.pause, 0
        while True:
            if stop is not None and seen >= stop:
                return "stopped"
            try:
                event = await self._waited(call, response.__anext__())
            except StopAsyncIteration:
                return "ok"
            seen += 1
            if isinstance(event, TextDelta):
                call.text += event.text
            elif isinstance(event, Seam):
                call.seams += 1
            elif isinstance(event, Reset):
                call.resets += 1
                call.text = ""
            elif isinstance(event, Finish):
                call.finished = True
            if pause is not None:
                await self.clock.sleep(pause)


async def _play(plan: Plan, clock: WorldClock, replaced: Replaced) -> Result:
    ledger = Ledger(plan.seed, clock, {call.number: (call.tokens, call.stack) for call in plan.calls})
    targets = [SimulatedTarget(target, ledger) for target in plan.targets]
    builder = _Builder(plan, clock, replaced)
    stacks = [builder.build(number, stack, targets) for number, stack in enumerate(plan.stacks)]
    calls: list[Call] = []
    before = len(anyio.get_running_tasks())
    result = Result(plan, ledger, targets, stacks, calls, builder.budgets)
    with anyio.move_on_after(_END_OF_TIME) as scope:
        async with anyio.create_task_group() as group:
            for call in plan.calls:
                group.start_soon(_Caller(call, stacks[call.stack], plan.seed, clock).run, calls)
    result.hung = scope.cancelled_caught
    result.left_over = len(anyio.get_running_tasks()) - before
    calls.sort(key=lambda call: call.plan.number)
    return result


def play(plan: Plan, backend: str, replaced: Replaced = MappingProxyType({})) -> Result:
    """Run ``plan`` on a backend in virtual time."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        result: Result = run(backend, lambda clock: _play(plan, clock, replaced), seed=plan.seed)
    result.warned = [str(warning.message) for warning in warned]
    return result

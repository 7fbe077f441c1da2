"""Budgets in random stacks over random targets: one seed owns all chance, and the targets keep their own accounts."""

import random
from decimal import Decimal
from typing import Any

import anyio
import pytest

from llmprod import (
    AttemptTimeout,
    CircuitBreaker,
    ConnectError,
    Context,
    Deadline,
    Failover,
    GenerateRequest,
    Hedge,
    LLMProdError,
    LoopClock,
    Message,
    Overloaded,
    Provider,
    RateLimited,
    ReadError,
    Resume,
    Retry,
    ServerError,
    Static,
    Usage,
)
from llmprod.decisions import BudgetOverrun
from llmprod.errors import BudgetExceeded
from llmprod.events import Event, Finish, Start, TextDelta, UsageUpdate
from llmprod.mechanisms.budget import BudgetLimit
from llmprod.mechanisms.budget_store import Bound
from llmprod.mechanisms.resume_plan import ContinueText, Restart
from llmprod.provider import BaseProvider, Capabilities, committed
from llmprod.response import Response
from llmprod.wrappers._memory_budgets import MemoryBudgets
from llmprod.wrappers.budget import Budget
from llmprod.wrappers.max_tokens import MaxTokens

PROMPT, LONGEST = 5, 60
FAULTS = [ServerError, Overloaded, ConnectError, RateLimited, lambda: ServerError(status=500)]


class Target(BaseProvider):
    """Bills a prompt when it begins to answer and each token when it is made, at its price."""

    def __init__(self, name: str, price: int, chance: random.Random) -> None:
        self._name, self.price, self.chance = name, price, chance
        self.billed = 0
        self.busy = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(prefill=True)

    def bill(self, tokens: int) -> None:
        self.billed += tokens * self.price

    async def _send(self, request: Any, context: Context, dropped: tuple[str, ...]) -> Response:
        chance = self.chance
        tokens = min(chance.randint(1, LONGEST), request.max_tokens or LONGEST)
        cut = chance.randrange(tokens) if chance.random() < 0.2 else None
        tells = chance.random() < 0.8
        self.busy += 1
        try:
            await context.clock.sleep(chance.expovariate(2.0))
            if chance.random() < 0.2:
                fault = chance.choice(FAULTS)()
                raise fault
            self.bill(PROMPT)
            if chance.random() < 0.05:
                await anyio.sleep_forever()
            source = _Source(self, context, tokens, cut, tells)
            if request.stream:
                response = Response(
                    provider=self.name, context=context, request=request, source=await committed(source)
                )
            else:
                self.bill(tokens)
                await context.clock.sleep(tokens * 0.05)
                if cut is not None:
                    raise ReadError(in_stream=True)
                events: list[Event] = [Start("m"), TextDelta("tok " * tokens)]
                events += [UsageUpdate(Usage(input=PROMPT, output=tokens))] if tells else []
                response = Response(
                    provider=self.name, context=context, request=request, events=[*events, Finish("stop")]
                )
        except BaseException:
            self.busy -= 1
            raise
        response.on_close(self._left)
        return response

    def _left(self, _: object) -> None:
        self.busy -= 1


class _Source:
    def __init__(self, target: Target, context: Context, tokens: int, cut: int | None, tells: bool) -> None:
        self.target, self.context, self.tokens, self.cut, self.tells = target, context, tokens, cut, tells
        self.made = 0
        self.ending: list[Event] = [Finish("stop")]
        if tells:
            self.ending.insert(0, UsageUpdate(Usage(input=PROMPT, output=tokens)))

    async def __anext__(self) -> Event:
        if self.made < self.tokens:
            await self.context.clock.sleep(0.05)
            if self.made == self.cut:
                raise ReadError(in_stream=True)
            self.made += 1
            self.target.bill(1)
            return TextDelta("tok ")
        if self.ending:
            return self.ending.pop(0)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()


class World:
    """One scenario."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        self.seed = seed
        clock = LoopClock()
        self.targets = [
            Target(f"t{place}", chance.choice([1, 1, 3, 10]), random.Random(f"{seed}/{place}"))
            for place in range(chance.randint(1, 3))
        ]
        self.limits = (
            BudgetLimit(Decimal(chance.choice([500, 3000, 20_000])) / 10**6, per=1e9),
            BudgetLimit(Decimal(chance.choice([300, 2000])) / 10**6, per=chance.choice([20, 1e9]), by="user"),
            *([BudgetLimit(Decimal(1500) / 10**6, per="call")] if chance.random() < 0.3 else []),
        )
        self.store = MemoryBudgets(now=lambda: 1.7e9 + anyio.current_time() % 1e6)
        wrap: list[Any] = []
        for target in self.targets:
            made: Provider = AttemptTimeout(first_token=3, idle=3, total=20)(target)
            wrap.append(CircuitBreaker(clock=clock)(made) if chance.random() < 0.5 else made)
        provider: Provider = Failover(*wrap, clock=clock) if len(wrap) > 1 else wrap[0]
        if len(wrap) > 1 and chance.random() < 0.6:
            provider = Hedge(delay=0.6, minimum=1, budget=1.0, clock=clock)(provider)
        if chance.random() < 0.8:
            provider = Retry(chance.randint(2, 4), clock=clock)(provider)
        if chance.random() < 0.5:
            provider = Resume(chance.choice([Restart(), ContinueText()]), resumes=2)(provider)
        self.cheaper = Target("cheap", 1, random.Random(f"{seed}/c")) if chance.random() < 0.3 else None
        self.budget = Budget(
            *self.limits,
            price={target.name: (target.price, target.price) for target in [*self.targets, *self._spare()]},
            tokens=lambda request: 10,
            assume_output=LONGEST + 5,
            store=self.store,
            cheaper=self.cheaper,
            cut_streams=chance.choice(["estimate", "keep"]),
        )
        provider = self.budget(provider)
        if chance.random() < 0.3:
            provider = MaxTokens(chance.choice([20, 50]))(provider)
        if chance.random() < 0.2:
            provider = Failover(provider, Static("sorry"), clock=clock)
        self.provider = Deadline(40)(provider)
        self.calls = chance.randint(5, 40)
        self.ends: list[str] = []
        self.contexts: list[Context] = []

    def _spare(self) -> list[Target]:
        return [self.cheaper] if self.cheaper is not None else []

    async def call(self, number: int) -> None:
        chance = random.Random(f"{self.seed}/call {number}")
        context = Context.new(
            clock=LoopClock(), random=random.Random(f"{number}"), tags={"user": chance.choice("abc")}
        )  # fmt: skip
        self.contexts.append(context)
        await anyio.sleep(chance.random() * 15)
        stream = chance.random() < 0.6
        request = GenerateRequest(messages=(Message.user("Hi"),), stream=stream)
        end = "cancelled"
        with anyio.move_on_after(chance.random() * 8 if chance.random() < 0.2 else 1000):
            try:
                response = await self.provider.send(request, context)
                async with response:
                    stop = chance.randint(1, 40) if chance.random() < 0.2 else None
                    async for _ in response:
                        stop = stop - 1 if stop is not None else None
                        if stop == 0:
                            break
                end = "ok"
            except LLMProdError as error:
                end = type(error).__name__
        self.ends.append(end)

    async def run(self) -> list[str]:
        """Return what does not hold."""
        async with anyio.create_task_group() as group:
            for number in range(self.calls):
                group.start_soon(self.call, number)
        wrong: list[str] = []
        ledger = self.store.ledger
        if ledger.open or any(target.busy for target in self.targets):
            wrong.append(f"{ledger.open} reservations, {[target.busy for target in self.targets]} attempts are open")
        billed = sum(target.billed for target in [*self.targets, *self._spare()]) * 1000
        if any(account.reserved for account in ledger._accounts.values()):
            wrong.append("something stays reserved")
        (whole,) = ledger.levels([Bound(self.limits[0], self.limits[0].key({}))])
        if not billed <= whole.spent <= self.limits[0].nano:
            wrong.append(f"billed {billed}, counted {whole.spent}, limit {self.limits[0].nano}")
        each = self.limits[1]
        for name, account in ledger._accounts.items():
            if any(name.startswith(each.key({"user": user})) for user in "abc") and account.spent > each.nano:
                wrong.append(f"a user spent {account.spent} of {each.nano}")
        for context in self.contexts:
            wrong += [f"{found}" for found in context.trace.decisions if isinstance(found, BudgetOverrun)]
        return wrong


@pytest.mark.parametrize("first", range(0, 80, 20))
async def test_whatever_happens_it_holds(first):
    failed = {}
    refused = served = 0
    for seed in range(first, first + 20):
        world = World(seed)
        wrong = await world.run()
        if wrong:
            failed[seed] = wrong
        served += world.ends.count("ok")
        refused += world.ends.count(BudgetExceeded.__name__)
    assert not failed
    assert served > 20
    assert refused > 5

"""Seeded: whatever fails, is raced, resumed, closed or cancelled, the ledger has what the providers really served."""

from __future__ import annotations

import random
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import anyio
import pytest

from llmprod import (
    AttemptTimeout,
    Capabilities,
    ConnectError,
    Context,
    ContinueText,
    Failover,
    LLMProdError,
    LoopClock,
    Overloaded,
    ReadError,
    Response,
    Restart,
    Retry,
    Usage,
)
from llmprod.events import Event, Finish, Start, TextDelta, UsageUpdate
from llmprod.pricing import Price, PriceBook
from llmprod.provider import BaseProvider, committed
from llmprod.request import Request
from llmprod.wrappers.cost_meter import CostMeter
from llmprod.wrappers.hedge import Hedge
from llmprod.wrappers.resume import Resume
from tests.wrappers.helpers import STREAM

PROMPT = 40
PRICES = {"a": Price(input=3, output=15), "b": Price(input=1, output=5), "c": Price(input=7, output=21)}


def count(asked: Any) -> int:
    return len(asked) if isinstance(asked, str) else PROMPT


@dataclass
class Served:
    """What one attempt was given, by the provider's own count."""

    prompt: int = 0
    output: int = 0


class Till(BaseProvider):
    """Writes a letter at a time, and keeps account of it."""

    def __init__(self, name: str, chance: random.Random) -> None:
        self._name = name
        self._chance = chance
        self.served: list[Served] = []

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities()

    async def _send(self, request: Request, context: Context, dropped: tuple[str, ...]) -> Response:
        chance, served = self._chance, Served()
        self.served.append(served)
        fate = chance.random()
        served.prompt = 0 if fate < 0.15 else PROMPT
        if fate < 0.1:
            raise Overloaded(status=529)
        if fate < 0.15:
            raise ConnectError
        source = Letters(self._chance, served, context)
        return Response(
            provider=self._name, context=context, request=request, dropped=dropped, source=await committed(source)
        )

    @property
    def money(self) -> Decimal:
        price = PRICES[self._name]
        return sum(
            ((price.input * one.prompt + price.output * one.output) / 1_000_000 for one in self.served), Decimal(0)
        )  # type: ignore[operator]


class Letters:
    """The events of one answer."""

    def __init__(self, chance: random.Random, served: Served, context: Context) -> None:
        self._served = served
        self._clock = context.clock
        length = chance.randint(1, 40)
        self._breaks = chance.randint(0, length) if chance.random() < 0.3 else None
        self._waits = [chance.choice((0, 0.1, 1.0, 6.0)), *(chance.choice((0, 0.05, 0.2)) for _ in range(length))]
        self._tells = chance.choice(("at the end", "as it goes", "the prompt", "never"))
        self._left = length
        self._queue: list[Event] = [Start("a model that no price is known of")]

    async def __anext__(self) -> Event:
        if self._queue:
            return self._queue.pop(0)
        if self._left < 0:
            raise StopAsyncIteration
        await self._clock.sleep(self._waits.pop(0) if self._waits else 0)
        served = self._served
        if self._breaks == served.output:
            raise ReadError(in_stream=served.output > 0)
        if self._left == 0:
            self._left = -1
            if self._tells != "never":
                self._queue.append(Finish("stop"))
                return UsageUpdate(Usage(input=PROMPT, output=served.output))
            return Finish("stop")
        self._left -= 1
        served.output += 1
        if self._tells == "as it goes":
            self._queue.append(UsageUpdate(Usage(input=PROMPT, output=served.output)))
        elif self._tells == "the prompt" and served.output == 1:
            self._queue.append(UsageUpdate(Usage(input=PROMPT, output=1)))
        return TextDelta(chr(ord("a") + served.output % 26))

    async def aclose(self) -> None:
        pass


async def call(stack: Any, chance: random.Random, told: list[Context]) -> None:
    """One caller, with or without patience."""
    context = Context.new(clock=LoopClock(), random=chance)
    told.append(context)
    await anyio.sleep(chance.random() * 5)
    patience = chance.choice((None, None, 0.05, 0.5, 3.0))
    with anyio.move_on_after(patience) if patience is not None else anyio.CancelScope():
        try:
            response = await stack.send(STREAM, context)
            until = chance.choice((None, None, 0, 1, 5))
            async with response:
                async for _ in response:
                    if until is not None:
                        until -= 1
                        if until < 0:
                            break
            assert response.cost == response.trace.cost.amount
        except LLMProdError:
            pass


def stack_of(chance: random.Random, tills: list[Till], meter: CostMeter) -> Any:
    clock = LoopClock()
    target: Any = Failover(*(AttemptTimeout(first_token=4, idle=10)(till) for till in tills), clock=clock)
    if chance.random() < 0.7:
        target = Hedge(delay=chance.choice((0.05, 0.5, 1.0)), budget=1.0, clock=clock)(target)
    target = Retry(chance.randint(1, 3), clock=clock)(target)
    if chance.random() < 0.5:
        plan = chance.choice((Restart(), ContinueText()))
        target = Resume(plan, hold=chance.choice((0, 0, 6)), resumes=2)(target)
    return meter(target)


@pytest.mark.slow
@pytest.mark.parametrize(
    "seeds", [range(start, start + 50) for start in range(0, 400, 50)], ids=lambda seeds: str(seeds[0])
)
async def test_the_ledger_has_what_was_served(seeds):
    attempts = estimated = 0
    for seed in seeds:
        chance = random.Random(seed)
        tills = [Till(name, chance) for name in "abc"[: chance.randint(1, 3)]]
        meter = CostMeter(PriceBook(PRICES, prices="none"), tokens=count)
        stack = stack_of(chance, tills, meter)
        told: list[Context] = []
        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(call, stack, chance, told)
        served = sum((till.money for till in tills), Decimal(0))
        story = f"seed {seed}\n" + "\n".join(str(context.trace) for context in told)
        assert meter.ledger.total == served, story
        assert meter.ledger.totals.unpriced == 0, story
        assert meter.ledger.totals.attempts == sum(len(till.served) for till in tills), story
        for till in tills:
            (row,) = [row for row in meter.ledger.by("target") if row["target"] == till.name] or [None]
            assert (row["cost"] if row else 0) == till.money, story
        for context in told:
            for entry in context.trace.attempts:
                assert entry.cost is not None, story
                assert entry.state != "running", story
            costs = [entry.cost.amount for entry in context.trace.attempts]
            if costs:
                assert context.trace.cost.amount == sum(costs, Decimal(0)), story
        attempts += meter.ledger.totals.attempts
        estimated += meter.ledger.totals.estimated
    assert 0 < estimated < attempts

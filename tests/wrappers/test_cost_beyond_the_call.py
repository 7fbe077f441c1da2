"""Attempts that outlive the call that began them are billed too: of shared answers, and of those that are made anew."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from llmprod import Failover, Hedge, LoopClock, Price, PriceBook, Retry, Usage
from llmprod.errors import Overloaded
from llmprod.events import Finish, UsageUpdate
from llmprod.testing.scripted import Scripted
from llmprod.wrappers.cost_meter import CostMeter
from tests.wrappers.cache_helpers import ASKED, STREAMED, caching
from tests.wrappers.helpers import STREAM, WHOLE, ask, context
from tests.wrappers.test_cost_meter import NOON, dollars, meter, scripted

TOLD = UsageUpdate(Usage(input=100, output=7))
SLOW = ["He", 10.0, "llo", TOLD, Finish("stop")]


@pytest.mark.parametrize("request_", [ASKED, STREAMED], ids=["whole", "stream"])
async def test_a_shared_answer_whose_first_caller_has_left(request_):
    counting = meter()
    stack = counting(caching()(scripted(SLOW)))
    leader = context(tags={"user": "ann"})
    responses = []

    async def lead() -> None:
        with anyio.move_on_after(5):
            response = await stack.send(request_, leader)
            await response.read()

    async def follow() -> None:
        await anyio.lowlevel.checkpoint()
        responses.append(await ask(stack, request_, tags={"user": "bob"}))

    async with anyio.create_task_group() as group:
        group.start_soon(lead)
        group.start_soon(follow)
    (response,) = responses
    assert response.text == "Hello"
    assert counting.ledger.total == dollars(100, 7)
    assert counting.ledger.totals.attempts == 1
    assert response.cost == 0
    assert [row["user"] for row in counting.ledger.by("user")] == ["ann"]
    assert leader.trace.cost.amount == dollars(100, 7)


@pytest.mark.parametrize("request_", [ASKED, STREAMED], ids=["whole", "stream"])
async def test_a_stored_answer_that_is_made_anew_in_the_background(request_):
    entries: list[Any] = []
    counting = meter(on_cost=entries.append, now=lambda: NOON + anyio.current_time())
    stack = counting(caching(ttl=100, stale_while_revalidate=50)(scripted(SLOW, SLOW)))
    await ask(stack, request_)
    await anyio.sleep(120)
    hit = await ask(stack, request_, tags={"user": "ann"})
    assert hit.cached.stale
    await anyio.sleep(20)
    assert not hit.cost  # the refresh is no attempt of this call
    assert counting.ledger.total == 2 * dollars(100, 7)
    assert [entry.tags for entry in entries] == [{}, {"user": "ann"}]
    assert (entries[1].at - entries[0].at).total_seconds() == pytest.approx(10 + 120)


async def test_it_waits_for_prices_as_any_other(monkeypatch):
    loading: list[Any] = []
    prices = PriceBook({"p:known": Price(input=1)}, prices="snapshot")
    monkeypatch.setattr(PriceBook, "loaded", property(lambda self: False))
    monkeypatch.setattr(prices, "when_loaded", loading.append)
    counting = CostMeter(prices)
    answer = ["Hi", UsageUpdate(Usage(input=1_000_000, output=1)), Finish("stop")]
    stack = counting(caching(ttl=100, stale_while_revalidate=50)(Scripted(then=answer, name="openai:gpt-5")))
    await ask(stack, ASKED)
    await anyio.sleep(120)
    await ask(stack, ASKED)
    await anyio.sleep(1)
    assert len(loading) == 2
    for job in loading:
        job()
    monkeypatch.setattr(counting.ledger, "_due", [])
    assert counting.ledger.totals.attempts == 2
    assert counting.ledger.total > 2


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_a_meter_within_a_hedge_counts_each_attempt_once(request_):
    counting = meter()
    slow, quick = scripted([5.0, *SLOW]), scripted(["Hi", TOLD, Finish("stop")], name="b")
    both = Failover(counting(slow), counting(quick), clock=LoopClock())
    stack = Hedge(delay=1.0, budget=1.0, clock=LoopClock())(both)
    response = await ask(stack, request_)
    assert response.text == "Hi"
    assert counting.ledger.totals.attempts == 2
    assert sum(entry.cost.amount for entry in response.trace.attempts) == counting.ledger.total
    assert counting.ledger.total > dollars(100, 7, "b")


async def test_a_meter_within_retries_counts_each_attempt_once():
    counting = meter()
    stack = Retry(clock=LoopClock())(counting(scripted(Overloaded(), ["Hi", TOLD, Finish("stop")])))
    response = await ask(stack)
    assert counting.ledger.totals.attempts == 2
    assert response.cost == counting.ledger.total == dollars(100, 7)

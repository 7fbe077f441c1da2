"""Every attempt is billed, each once: the call's cost is the sum of its attempts."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import anyio
import pytest

from llmprod import (
    AsyncClient,
    AttemptTimeout,
    BadRequest,
    Capabilities,
    ConnectError,
    Context,
    Failover,
    InvalidArgument,
    LoopClock,
    Overloaded,
    Provider,
    ReadError,
    Response,
    Restart,
    Retry,
    Stack,
    Static,
    StreamInterrupted,
    Usage,
    lint,
    standard,
)
from llmprod.cost import Cost
from llmprod.cost_table import CostEntry
from llmprod.events import Finish, Start, TextDelta, UsageUpdate
from llmprod.ledger import Ledger
from llmprod.pricing import Price, PriceBook
from llmprod.testing.scripted import CUT, HANG, Scripted
from llmprod.wrappers.cost_meter import CostMeter
from llmprod.wrappers.hedge import Hedge
from llmprod.wrappers.resume import Resume
from tests.cancel_sweep import sweep
from tests.wrappers.helpers import EMBED, STREAM, WHOLE, ask, context

PRICES = {
    "a": Price(input=1, output=10, cache_read="0.5"),
    "b": Price(input=2, output=20),
    "other": Price(input=5, output=50),
}
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC).timestamp()
TOLD = UsageUpdate(Usage(input=100, output=7))


def count(asked: Any) -> int:
    """A token for each letter; every prompt has ten."""
    return len(asked) if isinstance(asked, str) else 10


def meter(**options: Any) -> CostMeter:
    prices = PriceBook(PRICES, prices="none")
    return CostMeter(**{"prices": prices, "tokens": count, "now": lambda: NOON, **options})


def scripted(*steps: Any, name: str = "a", **options: Any) -> Scripted:
    return Scripted(*steps, name=name, **options)


def dollars(tokens_in: int, tokens_out: int, name: str = "a") -> Decimal:
    price = PRICES[name]
    return (price.input * tokens_in + price.output * tokens_out) / 1_000_000  # type: ignore[operator]


def costs(told: Response | Context) -> list[Decimal | None]:
    return [entry.cost.amount if entry.cost else None for entry in told.trace.attempts]


# ---- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_an_answer_costs_what_its_provider_told(request_):
    counting = meter()
    response = await ask(counting(scripted(["Hi", TOLD, Finish("stop")])), request_)
    assert response.cost == dollars(100, 7)
    told = response.trace.cost
    assert told == Cost(
        amount=dollars(100, 7), source="override", buckets={"input": dollars(100, 0), "output": dollars(0, 7)}
    )
    assert counting.ledger.total == response.cost
    assert "$0.00017" in str(response.trace)
    assert response.trace.rows()[0]["cost"] == response.cost


async def test_embeddings_cost_their_prompt():
    counting = meter()
    response = await ask(counting(scripted([UsageUpdate(Usage(input=100)), Finish("stop")])), EMBED)
    assert response.cost == dollars(100, 0)


async def test_the_model_that_answered_is_priced_and_the_one_that_was_asked_where_it_is_unknown():
    counting = meter(prices=PriceBook({"p:small": Price(input=1), "p:large": Price(input=3)}, prices="none"))
    usage = UsageUpdate(Usage(input=1_000_000))
    large = scripted([Start("large"), usage, Finish("stop")], name="p:small")
    assert (await ask(counting(large))).cost == 3
    alias = scripted([Start("small-2026-01-01"), usage, Finish("stop")], name="p:small")
    assert (await ask(counting(alias))).cost == 1
    models = {row["model"] for row in counting.ledger.by("model")}
    assert models == {"large", "small-2026-01-01"}


@pytest.mark.parametrize("loaded", [True, False])
async def test_ones_own_price_holds_for_the_dated_model_that_answers(loaded):
    prices = PriceBook({"openai:gpt-5": Price(input="0.5", output=5)}, prices="snapshot")
    if loaded:
        prices.load()
    answer = [Start("gpt-5-2025-08-07"), "Hi", UsageUpdate(Usage(input=1_000_000, output=1)), Finish("stop")]
    response = await ask(meter(prices=prices)(scripted(answer, name="openai:gpt-5")))
    assert response.cost == Decimal("0.500005")
    assert response.trace.cost.source == "override"
    both = PriceBook({"openai:gpt-5": Price(input=1), "openai:gpt-5-2025-08-07": Price(input=2, output=0)})
    response = await ask(meter(prices=both)(scripted(answer, name="openai:gpt-5")))
    assert response.cost == 2
    response = await ask(meter(prices=PriceBook(prices="snapshot"))(scripted(answer, name="openai:gpt-4o")))
    response.trace.cost  # noqa: B018 - waits for the price data
    assert response.cost == Decimal("1.25001")  # by the model that answered, where neither price is one's own


async def test_without_usage_an_answer_is_estimated_and_marked():
    response = await ask(meter()(scripted(["Hello", Finish("stop")])))
    assert response.cost == dollars(10, 5)
    assert response.trace.cost.estimated
    assert response.trace.attempts[0].usage == Usage(input=10, output=5, estimated=True)
    assert "~$" in str(response.trace)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (Usage(), dollars(10, 5)),
        (Usage(output=7), dollars(10, 7)),
        (Usage(input=100), dollars(100, 5)),
        (Usage(cost=Decimal("0.5")), Decimal("0.5")),
    ],
)
@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_a_server_that_counts_nothing_is_not_free(told, expected, request_):
    counting = meter()
    response = await ask(counting(scripted(["Hello", UsageUpdate(told), Finish("stop")])), request_)
    assert response.cost == expected
    assert response.trace.cost.estimated == (told.cost is None)
    response = await ask(counting(scripted([UsageUpdate(Usage()), Finish("stop")])), EMBED)
    assert response.cost == dollars(10, 0)


async def test_an_estimate_is_of_the_tier_that_was_asked_for():
    prices = PriceBook({"a": Price(input=1, output=10, tiers={"priority": Price(input=2, output=20)})}, prices="none")
    request = replace(WHOLE, extra={"a": {"service_tier": "priority"}})
    response = await ask(meter(prices=prices)(scripted(["Hello", Finish("stop")])), request)
    assert response.cost == 2 * dollars(10, 5)
    assert response.trace.cost.tier == "priority"
    answered = [UsageUpdate(Usage(input=10, output=5)), "Hello", Finish("stop")]
    assert (await ask(meter(prices=prices)(scripted(answered)), request)).cost == dollars(10, 5)


async def test_an_unknown_price_is_no_cost_and_has_a_reason():
    counting = meter()
    response = await ask(counting(scripted(["Hi", TOLD, Finish("stop")], name="nobody")))
    assert response.cost is None
    assert response.trace.cost.reason == "no price data"
    assert "cost" not in str(response.trace)  # a column that says nothing is left out
    assert counting.ledger.totals.unpriced == 1
    assert counting.ledger.totals.cost is None


async def test_one_unknown_price_among_others_shows():
    counting = meter()
    broken = scripted(["Hel", ReadError(in_stream=True)], name="nobody")
    stack = counting(Resume(Restart())(Failover(broken, scripted(["Hi", TOLD, Finish("stop")]), clock=LoopClock())))
    response = await ask(stack, STREAM)
    assert response.cost is None
    assert (response.trace.cost.reason, response.trace.cost.at_least) == ("no price data", dollars(100, 7))
    assert str(response.trace).splitlines()[1].endswith("unknown")
    assert counting.ledger.total == dollars(100, 7)


async def test_a_fixed_answer_is_free():
    counting = meter()
    response = await ask(counting(Failover(scripted(Overloaded()), Static("Sorry."), clock=LoopClock())))
    assert response.cost == 0
    assert [entry.cost.source for entry in response.trace.attempts] == ["unbilled", "free"]


async def test_a_cost_that_the_provider_sets_by_itself_stands():
    class Own(Scripted):
        cost_source = "gpu-hour"

        async def _send(self, *args: Any) -> Response:
            response = await super()._send(*args)
            response.cost = Decimal("0.25")
            return response

    response = await ask(meter()(Own(["Hi", TOLD, Finish("stop")], name="a")))
    assert (response.cost, response.trace.cost.source) == (Decimal("0.25"), "gpu-hour")


async def test_an_engine_of_ones_own_prices_what_was_cut_too():
    class Own(Scripted):
        cost_source = "gpu-hour"

        def cost_of(self, usage: Usage | None) -> Decimal | None:
            return None if usage is None else Decimal(usage.total)

    with pytest.raises(StreamInterrupted) as broke:
        await ask(meter()(Own(["Hel", ReadError(in_stream=True)], name="engine")), STREAM)
    assert broke.value.trace.cost.amount == 10 + 3
    assert broke.value.trace.cost.estimated


# ---- attempts that gave no answer ------------------------------------------------------------------------------------


async def test_failures_before_an_answer():
    """A refusal is not billed; what may have been computed is."""
    counting = meter()
    target = scripted(
        Overloaded(), BadRequest(status=400), ConnectError(), ReadError(), ReadError(in_stream=True), ["Hi", TOLD,
        Finish("stop")],
    )  # fmt: skip
    stack = counting(Retry(6, clock=LoopClock())(target))
    told = context()
    with pytest.raises(BadRequest):  # it is final
        await stack.send(STREAM, told)
    response = await stack.send(STREAM, told)
    await response.read()
    assert costs(told) == [0, 0, 0, dollars(10, 0), dollars(10, 0), dollars(100, 7)]
    assert [entry.cost.estimated for entry in told.trace.attempts] == [False, False, False, True, True, False]


async def test_the_cost_of_a_call_is_that_of_all_attempts():
    counting = meter()
    a, b = scripted(["x" * 50, ReadError(in_stream=True)]), scripted(["Hi", TOLD, Finish("stop")], name="b")
    stack = counting(Resume(Restart())(Failover(a, b, clock=LoopClock())))
    response = await ask(stack, STREAM)
    assert costs(response) == [dollars(10, 50), dollars(100, 7, "b")]
    assert response.cost == dollars(10, 50) + dollars(100, 7, "b") == response.trace.cost.amount
    assert response.trace.cost.estimated
    assert counting.ledger.total == response.cost
    assert [row["cost"] for row in counting.ledger.by("target")] == [dollars(10, 50), dollars(100, 7, "b")]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([], (10, 5)),
        ([UsageUpdate(Usage(input=90, output=1))], (90, 5)),  # Anthropic tells the prompt before the answer
        ([UsageUpdate(Usage(input=90, output=8))], (90, 8)),  # with what it thought unseen
    ],
    ids=["nothing", "the prompt", "more"],
)
@pytest.mark.parametrize("end", ["break", "close", "drop", "cancel"])
async def test_a_stream_that_is_cut(told, expected, end):
    counting = meter()
    last = ReadError(in_stream=True) if end == "break" else HANG
    stack = counting(scripted([*told, "Hel", "lo", last]))
    response: Any = await stack.send(STREAM, context())
    trace = response.trace
    if end == "break":
        with pytest.raises(StreamInterrupted):
            await response.read()
    else:
        with anyio.move_on_after(1):
            async for event in response:
                if end != "cancel" and event == TextDelta("lo"):
                    break
        if end == "close":
            await response.aclose()
        elif end == "drop":
            with pytest.warns(ResourceWarning, match="dropped unread"):
                del response
    assert trace.cost.amount == dollars(*expected)
    assert trace.cost.estimated is (expected != (90, 8))
    assert counting.ledger.total == dollars(*expected)


async def test_a_cut_that_loses_the_terminal_event():
    counting = meter()
    with pytest.raises(StreamInterrupted) as cut:
        await ask(counting(scripted(["Hello", CUT])), STREAM)
    assert cut.value.trace.cost.amount == dollars(10, 5)


async def test_a_whole_answer_that_times_out_is_billed_by_the_time_it_had():
    counting = meter()
    fast = [10.0, "Hi", UsageUpdate(Usage(input=100, output=200)), Finish("stop")]  # 20 tokens a second
    target = scripted(fast, [5.0, HANG], [60.0, HANG])
    stack = counting(AttemptTimeout(total=30)(target))
    await ask(stack)
    with anyio.move_on_after(5):
        await ask(stack)
    assert counting.ledger.total == dollars(100, 200) + dollars(10, 100)
    with pytest.raises(TimeoutError):
        await ask(stack)  # in half a minute it would have written more than it ever has
    assert counting.ledger.total == dollars(100, 200) + dollars(10, 100) + dollars(10, 200)


async def test_a_hedges_loser_is_billed_and_the_table_says_so():
    counting = meter()
    a = scripted(["He", 30.0, "llo", TOLD, Finish("stop")])
    slow, quick = scripted([20.0, "late"]), scripted([1.0, "Hi", TOLD, Finish("stop")], name="b")
    stack = counting(Hedge(delay=1.0, budget=1.0, clock=LoopClock())(Failover(slow, quick, clock=LoopClock())))
    response = await ask(stack, STREAM)
    assert costs(response) == [dollars(10, 0), dollars(100, 7, "b")]
    assert response.cost == dollars(10, 0) + dollars(100, 7, "b")
    assert "lost to the hedge" in str(response.trace)
    assert a.calls == 0


async def test_a_whole_loser_is_billed_by_what_the_winner_wrote():
    counting = meter()
    slow = scripted([20.0, "late"])
    quick = scripted([1.0, "Hi", UsageUpdate(Usage(input=100, output=80)), Finish("stop")], name="b")
    stack = counting(Hedge(delay=1.0, budget=1.0, clock=LoopClock())(Failover(slow, quick, clock=LoopClock())))
    response = await ask(stack)
    loser = response.trace.attempts[0]
    assert loser.usage == Usage(input=100, output=80, estimated=True)  # in two seconds, where the winner took one
    assert costs(response) == [dollars(100, 80), dollars(100, 80, "b")]


async def test_skipped_targets_cost_nothing_and_have_no_cost():
    deaf = scripted(name="b", capabilities=Capabilities())
    counting = meter()
    response = await ask(counting(Failover(deaf, scripted(["Hi", TOLD, Finish("stop")]), clock=LoopClock())), EMBED)
    assert response.cost == dollars(100, 7)
    assert [entry.cost is None for entry in response.trace.entries] == [True, False]


async def test_cancelled_at_every_await_each_attempt_is_counted_once():
    def scenario():
        a = scripted([0.5, ReadError(in_stream=True)], ["He", 0.5, "llo", TOLD, Finish("stop")])
        b = scripted(then=[2.0, "Hi", TOLD, Finish("stop")], name="b")
        counting, told = meter(), context()
        race = Hedge(delay=0.2, budget=1.0, clock=LoopClock())(Failover(a, b, clock=LoopClock()))

        async def call():
            response = await counting(Retry(3, clock=LoopClock())(race)).send(STREAM, told)
            async with response:
                await response.read()

        def check():
            attempts = told.trace.attempts
            assert counting.ledger.totals.attempts == len(attempts) == a.calls + b.calls
            assert all(entry.cost is not None and entry.cost.known for entry in attempts)
            assert counting.ledger.total == sum(entry.cost.amount for entry in attempts)

        return call(), check

    assert await sweep(scenario) >= 5


# ---- callbacks, labels, prices that are not there yet ----------------------------------------------------------------


async def test_callbacks_are_told_and_a_broken_one_breaks_nothing(caplog):
    told: list[CostEntry] = []

    def broken(entry: CostEntry) -> None:
        raise RuntimeError("secret")

    counting = meter(on_cost=[broken, told.append])
    context_ = context(tags={"user": "ann", "endpoint": "chat"}, prompt=("greet", "3"))
    with caplog.at_level(logging.ERROR):
        await (await counting(scripted(["Hi", TOLD, Finish("stop")])).send(WHOLE, context_)).read()
    assert "on_cost raised RuntimeError" in caplog.text
    assert "secret" not in caplog.text
    (entry,) = told
    assert (entry.target, entry.model, entry.cost.amount) == ("a", "a", dollars(100, 7))
    assert (entry.tags["user"], entry.prompt, entry.usage) == ("ann", ("greet", "3"), Usage(input=100, output=7))
    assert (entry.at.timestamp(), entry.attempt.state) == (NOON, "ok")
    (row,) = counting.ledger.rows()
    assert (row["user"], row["endpoint"], row["tenant"]) == ("ann", "chat", None)
    assert (row["prompt"], row["prompt_version"]) == ("greet", "3")


async def test_a_broken_token_count_breaks_nothing(caplog):
    def broken(asked: Any) -> int:
        raise RuntimeError("secret")

    counting = meter(tokens=broken)
    with caplog.at_level(logging.ERROR):
        response = await ask(counting(scripted(["Hello", Finish("stop")])))
    assert response.text == "Hello"
    assert response.cost is None
    assert response.trace.cost.reason == "no usage, and nothing to estimate it by"
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


async def test_the_price_of_the_day_of_the_attempt():
    prices = PriceBook({"a": [Price(input=1), Price(input=9, since=date(2026, 11, 29))]}, prices="none")
    usage = UsageUpdate(Usage(input=1_000_000))
    late = meter(prices=prices, now=lambda: NOON + 13 * 3600)
    assert (await ask(late(scripted([usage, Finish("stop")])))).cost == 9
    assert (await ask(meter(prices=prices)(scripted([usage, Finish("stop")])))).cost == 1


async def test_costs_wait_for_prices_that_are_still_being_loaded(monkeypatch):
    from llmprod.pricing import book

    monkeypatch.setattr(book, "_at_hand", lambda prices: False)
    counting = meter(prices=PriceBook(prices="snapshot"))
    usage = UsageUpdate(Usage(input=1_000_000))
    target = scripted([Start("gpt-5"), usage, Finish("stop")], name="openai:gpt-5")
    first = await ask(counting(target))
    assert first.cost == Decimal("1.25")
    assert first.trace.costs_due is None
    assert counting.prices.loaded
    assert counting.ledger.total == Decimal("1.25")


async def test_a_ledger_that_is_read_waits_for_them_too(monkeypatch):
    from llmprod.pricing import book

    monkeypatch.setattr(book, "_at_hand", lambda prices: False)
    seen: list[int] = []
    counting = meter(prices=PriceBook(prices="snapshot"), on_cost=lambda entry: seen.append(ledger.totals.attempts))
    ledger = counting.ledger
    slow, loaded = threading.Event(), book._snapshot()
    monkeypatch.setattr(book, "_snapshot", lambda: slow.wait(10) and loaded)
    usage = UsageUpdate(Usage(input=1_000_000))
    for _ in range(3):
        await ask(counting(scripted([Start("gpt-5"), usage, Finish("stop")], name="openai:gpt-5")))
    assert not counting.prices.loaded
    threading.Timer(0.05, slow.set).start()
    assert ledger.total == Decimal("3.75")
    assert len(seen) == 3  # told in the thread that loads, where a callback may read the ledger without a deadlock
    assert seen[-1] <= 3


async def test_prices_that_were_being_loaded_at_a_fork_are_loaded_by_the_child(monkeypatch):
    from llmprod.pricing import book

    monkeypatch.setattr(book, "_at_hand", lambda prices: False)
    prices = PriceBook(prices="snapshot")
    prices._loader = gone = threading.Thread(target=lambda: None)  # as a fork leaves it: known, and not alive
    gone.start()
    gone.join()
    counting = meter(prices=prices)
    usage = UsageUpdate(Usage(input=1_000_000))
    await ask(counting(scripted([Start("gpt-5"), usage, Finish("stop")], name="openai:gpt-5")))
    assert counting.ledger.total == Decimal("1.25")


async def test_a_provider_that_can_not_tell_its_cost_breaks_nothing(caplog):
    class Own(Scripted):
        def cost_of(self, usage: Usage | None) -> Decimal | None:
            raise RuntimeError("secret")

    with caplog.at_level(logging.ERROR):
        response = await ask(meter()(Own(["Hi", TOLD, Finish("stop")], name="a")))
    assert (response.text, response.cost, response.trace.cost.reason) == ("Hi", None, "it could not be priced")
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


async def test_a_meter_within_the_attempts_counts_each_once():
    """Its place is around them; there it is told of each attempt as of a call."""
    counting = meter()
    target = scripted(ReadError(), ReadError(), ["Hi", TOLD, Finish("stop")])
    response = await ask(Retry(3, clock=LoopClock())(counting(target)))
    assert counting.ledger.totals.attempts == 3
    assert response.cost == dollars(100, 7)
    assert response.trace.cost.amount == counting.ledger.total


async def test_two_meters_agree_and_a_ledger_may_be_shared():
    ledger = Ledger()
    inner, outer = meter(ledger=ledger), meter(prices=PriceBook(prices="none"), ledger=Ledger())
    for _ in range(2):
        response = await ask(outer(inner(scripted(["Hello", Finish("stop")]))))
        assert response.cost == dollars(10, 5)
    assert ledger.total == outer.ledger.total == 2 * dollars(10, 5)
    other = meter(ledger=ledger)
    await ask(other(scripted(["Hello", Finish("stop")], name="b")))
    assert ledger.total == 2 * dollars(10, 5) + dollars(10, 5, "b")


# ---- the client ------------------------------------------------------------------------------------------------------


async def test_a_client_counts_without_being_asked_to():
    target = scripted(then=["Hi", UsageUpdate(Usage(input=999_992, output=1)), Finish("stop")], name="openai:gpt-5")
    async with AsyncClient(target, clock=LoopClock()) as client:
        assert "CostMeter" not in client.describe()
        response = await client.generate("Hello", tags={"user": "ann"})
        assert response.cost == Decimal("1.25")
        async with client.stream("Hello", deadline=5) as stream:
            await stream.read()
        assert client.costs.total == Decimal("2.5")
        assert [row["user"] for row in client.costs.by("user")] == ["ann", None]


async def test_a_client_takes_the_meter_of_its_stack_or_the_one_it_is_given():
    counting = meter()
    target = scripted(then=["Hi", TOLD, Finish("stop")])
    async with AsyncClient(target, cost_meter=counting, clock=LoopClock()) as client:
        assert (await client.generate("Hello")).cost == dollars(100, 7)
        assert client.costs is counting.ledger
    async with AsyncClient(standard(target, extra=[counting], clock=LoopClock())) as client:
        assert "CostMeter()" in client.describe()
        assert (await client.generate("Hello")).cost == dollars(100, 7)
        assert client.costs is counting.ledger
    assert counting.ledger.totals.attempts == 2
    with pytest.raises(InvalidArgument, match="cost_meter"):
        AsyncClient(standard(target, extra=[counting]), cost_meter=meter())
    with pytest.raises(InvalidArgument, match="cost_meter"):
        AsyncClient(target, cost_meter=PriceBook())  # type: ignore[arg-type]


def test_its_place_in_a_stack():
    target: Provider = scripted()
    assert lint(Stack(meter(), Retry())(target)) == []
    with pytest.warns(match="stands outside"):
        Stack(Retry(), meter())


@pytest.mark.parametrize(
    "wrong",
    [{"prices": {}}, {"ledger": []}, {"on_cost": [1]}, {"tokens": 3}, {"now": 3}],
    ids=str,
)
def test_wrong_options(wrong):
    with pytest.raises(InvalidArgument):
        CostMeter(**wrong)

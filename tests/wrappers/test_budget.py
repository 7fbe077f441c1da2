"""Budget: what may be spent is reserved before each attempt, and what was spent is settled after it."""

import gc
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import anyio
import pytest

from llmprod import (
    AllTargetsFailed,
    AsyncClient,
    AttemptTimeout,
    CircuitBreaker,
    ConnectError,
    Failover,
    Hedge,
    InvalidArgument,
    LoopClock,
    MemoryStore,
    Overloaded,
    Price,
    PriceBook,
    Provider,
    ReadError,
    Resume,
    Retry,
    ServerError,
    Simulated,
    Static,
    StreamInterrupted,
    Usage,
    resilient,
)
from llmprod.context import Context
from llmprod.decisions import BudgetEstimated, BudgetOverrun, BudgetPassedSoft, BudgetRefused
from llmprod.errors import BudgetExceeded, PriceUnknown
from llmprod.events import Finish, Start, UsageUpdate
from llmprod.mechanisms.budget import BudgetLimit, dollars
from llmprod.mechanisms.budget_store import Bound
from llmprod.mechanisms.resume_plan import Restart
from llmprod.provider import Capabilities
from llmprod.testing.scripted import HANG, Scripted
from llmprod.wrapper import Phase
from llmprod.wrappers._memory_budgets import MemoryBudgets
from llmprod.wrappers.budget import Budget
from tests.cancel_sweep import sweep
from tests.wrappers.helpers import EMBED, STREAM, WHOLE, ask, context

PRICES = {"a": (1, 1), "b": (1, 1), "dear": (10, 10), "scripted": (1, 1)}  # a dollar a million: a micro-dollar a token
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
TEN = 10  # prompt tokens that are reserved
HUNDRED = 100  # answer tokens that are


class Now:
    def __init__(self) -> None:
        self.time = NOON

    def __call__(self) -> float:
        return self.time


def used(output: int, prompt: int = 5) -> list[Any]:
    """An answer that used so many tokens."""
    return ["Hello", UsageUpdate(Usage(input=prompt, output=output)), Finish("stop")]


def day(tokens: int, **options: Any) -> BudgetLimit:
    """A budget of so many micro-dollars a day."""
    return BudgetLimit(Decimal(tokens) / 10**6, **options)


class Kept:
    """A budget, and how it stands."""

    def __init__(self, *limits: BudgetLimit, **options: Any) -> None:
        self.now = Now()
        self.store = MemoryBudgets(now=self.now)
        self.limits = limits
        self.wrapper = Budget(
            *limits,
            **{
                "price": PRICES,
                "tokens": lambda request: TEN,
                "store": self.store,
                "assume_output": HUNDRED,
                **options,
            },
        )

    def __call__(self, inner: Provider) -> Provider:
        return self.wrapper(inner)

    def stands(self, place: int = 0, **tags: str) -> tuple[int, int]:
        """Micro-dollars spent and reserved."""
        (level,) = self.store.ledger.levels([Bound(self.limits[place], self.limits[place].key(tags))])
        assert level.spent % 1000 == level.reserved % 1000 == 0
        return level.spent // 1000, level.reserved // 1000

    @property
    def open(self) -> int:
        return self.store.ledger.open


def decisions(told: Any, kind: type) -> list[Any]:
    trace = told.trace
    return [decision for decision in trace.decisions if isinstance(decision, kind)]


def test_options_are_checked():
    for options, field in [
        ({"price": {}}, "price"),
        ({"price": 3}, "price"),
        ({"price": {"a": ("x", 1)}}, "price['a']"),
        ({"price": {"a": (-1, 1)}}, "price['a']"),
        ({"price": {"a": 1}}, "price['a']"),
        ({"price": {"a": Price(input=1, output=2)}}, "price['a']"),
        ({"store": "redis://localhost"}, "store"),
        ({"store": MemoryStore()}, "store"),
        ({"tokens": 3}, "tokens"),
        ({"price": 3}, "price"),
        ({"on_soft": 3}, "on_soft"),
        ({"output_limit": 3}, "output_limit"),
        ({"cheaper": "a"}, "cheaper"),
        ({"assume_output": 0}, "assume_output"),
        ({"set_max_tokens": 1}, "set_max_tokens"),
        ({"cache_writes": None}, "cache_writes"),
        ({"unpriced": "maybe"}, "unpriced"),
        ({"cut_streams": "maybe"}, "cut_streams"),
    ]:
        with pytest.raises(InvalidArgument) as caught:
            Budget(day(1), **{"price": PRICES, **options})
        assert caught.value.field == field
    for limits in ((), (3,), (day(1), day(2))):
        with pytest.raises(InvalidArgument, match="limits"):
            Budget(*limits, price=PRICES)


def test_it_says_what_it_is():
    made = Budget(BudgetLimit(5, by="user"), BudgetLimit("0.1", per="call"), price=PRICES, cheaper=Scripted(name="b"))
    assert repr(made) == "Budget($5/day, by user; $0.1/call; then b)"
    assert made.phase is Phase.BUDGET


def test_a_target_that_can_not_be_made_to_pay_is_refused():
    class Foreign:
        name, capabilities = "foreign", Capabilities()

        async def send(self, request: Any, context: Any) -> Any: ...
        async def aclose(self) -> None: ...

    with pytest.raises(InvalidArgument, match="foreign"):
        Budget(day(1), price=PRICES)(Foreign())


# ---- one attempt ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_reserved_before_and_settled_after(request_):
    kept = Kept(day(1000))
    seen = []

    async def look(request, told):
        seen.append(kept.stands())
        return await Scripted(used(30), name="a").send(request, told.but(tolls=()))

    response = await ask(kept(Scripted(look, name="a")), request_)
    assert seen == [(0, TEN + HUNDRED)]
    assert kept.stands() == (35, 0)
    assert kept.open == 0
    assert not response.trace.decisions, "leave that is given as usual is no decision"


async def test_an_open_stream_holds_what_it_may_cost():
    kept = Kept(day(1000))
    response = await kept(Scripted(used(30), name="a")).send(STREAM, context())
    assert kept.stands() == (0, 110)
    await response.read()
    assert kept.stands() == (35, 0)


async def test_max_tokens_bounds_the_answer():
    kept = Kept(day(100))
    from dataclasses import replace

    provider = Scripted(then=used(20), name="a")
    with pytest.raises(BudgetExceeded):
        await ask(kept(provider))
    await ask(kept(provider), replace(WHOLE, max_tokens=90))
    assert kept.stands() == (25, 0)


async def test_an_embedding_has_no_answer_to_pay():
    kept = Kept(day(10))
    await ask(kept(Scripted([UsageUpdate(Usage(input=4)), Finish("stop")], name="a")), EMBED)
    assert kept.stands() == (4, 0)


@pytest.mark.parametrize(("set_it", "sent"), [(True, HUNDRED), (False, None)])
async def test_requests_can_be_bounded_by_what_is_reserved(set_it, sent):
    provider = Scripted(used(1), name="a")
    await ask(Kept(day(1000), set_max_tokens=set_it)(provider))
    assert provider.requests[0].max_tokens == sent


async def test_a_model_s_own_limit_is_reserved_where_it_is_known():
    known = {("a", "a"): 400}
    for name, reserved in (("a", 410), ("b", 110)):
        kept = Kept(day(1000), output_limit=lambda *model: known.get(model))
        response = await kept(Scripted(used(1), name=name)).send(STREAM, context())
        assert kept.stands() == (0, reserved)
        await response.aclose()


async def test_a_refusal_says_all_about_it():
    kept = Kept(day(1000), day(100, by=("user", "tenant"), name="team"))
    provider = kept(Scripted(then=used(1), name="a"))
    told = context(tags={"user": "ann@example.org", "tenant": "t"})
    with pytest.raises(BudgetExceeded) as caught:
        await provider.send(WHOLE, told)
    error = caught.value
    assert (error.limit, error.scope) == ("team", ("user", "tenant"))
    assert (error.amount, error.spent, error.reserved, error.needed) == tuple(
        Decimal(micro) / 10**6 for micro in (100, 0, 0, 110)
    )
    assert error.resets_at == datetime(2026, 3, 2, tzinfo=UTC)
    assert error.retry_after is None, "a new day would not help: it needs more than a day has"
    assert "ann" not in str(error) + repr(error)
    assert "team: $0 of $0.0001 spent" in str(error)
    (row,) = told.trace.entries
    assert (row.state, row.error, row.reason) == ("skipped", "BudgetExceeded", "budget: team")
    (refused,) = decisions(told, BudgetRefused)
    assert (refused.limit, refused.needed, refused.left) == ("team", Decimal("0.00011"), Decimal("0.0001"))
    assert kept.open == 0


async def test_it_resets_with_its_period():
    kept = Kept(day(200))
    provider = kept(Scripted(then=used(95), name="a"))
    await ask(provider)
    with pytest.raises(BudgetExceeded) as caught:
        await ask(provider)
    assert caught.value.retry_after == 12 * 3600
    kept.now.time += caught.value.retry_after
    await ask(provider)


async def test_what_calls_under_way_hold_may_come_back_before():
    kept = Kept(day(200))
    provider = kept(Scripted(then=used(5), name="a"))
    response = await provider.send(STREAM, context())
    with pytest.raises(BudgetExceeded) as caught:
        await ask(provider)
    assert caught.value.retry_after is None
    assert caught.value.resets_at is not None
    await response.aclose()
    await ask(provider)


async def test_each_user_has_a_budget_and_those_without_a_name_share_one():
    kept = Kept(day(150, by="user"))
    provider = kept(Scripted(then=used(95), name="a"))
    for tags in ({"user": "a"}, {"user": "b"}, {}):
        await ask(provider, tags=tags)
        with pytest.raises(BudgetExceeded):
            await ask(provider, tags=tags)
        assert kept.stands(**tags) == (100, 0)


async def test_a_call_can_have_a_limit_of_its_own():
    kept = Kept(day(1000), day(150, per="call"))
    provider = kept(Retry(3)(Scripted(ReadError(in_stream=True), used(1), used(1), name="a")))
    with pytest.raises(BudgetExceeded) as caught:  # the first may have cost 110
        await ask(provider)
    assert (caught.value.limit, caught.value.resets_at, caught.value.spent) == ("all/call", None, Decimal("0.00011"))
    assert kept.stands() == (110, 0)
    await ask(provider)
    assert kept.stands() == (116, 0)


async def test_a_limit_of_a_call_alone_needs_no_store():
    kept = Kept(day(50, per="call"))
    with pytest.raises(BudgetExceeded):
        await ask(kept(Scripted(used(1), name="a")))
    await ask(Kept(day(110, per="call"))(Scripted(used(1), name="a")))


async def test_more_than_was_reserved_counts_in_full_and_is_told():
    kept = Kept(day(1000))
    response = await ask(kept(Scripted(used(400), name="a")))
    assert kept.stands() == (405, 0)
    (overrun,) = decisions(response, BudgetOverrun)
    assert (overrun.reserved, overrun.cost) == (Decimal("0.00011"), Decimal("0.000405"))


# ---- prices ---------------------------------------------------------------------------------------------------------


async def test_an_unknown_price_is_refused():
    provider = Scripted(then=used(1), name="odd:model")
    told = context()
    with pytest.raises(PriceUnknown, match="odd:model"):
        await Kept(day(1000))(provider).send(WHOLE, told)
    assert provider.calls == 0
    assert [decision.limit for decision in decisions(told, BudgetRefused)] == ["price"]


async def test_or_costs_nothing_where_that_is_allowed():
    kept = Kept(day(1), unpriced="allow")
    response = await ask(kept(Scripted(used(30), name="odd:model")))
    assert kept.stands() == (0, 0)
    assert [found.basis for found in decisions(response, BudgetEstimated)] == ["unpriced"]


async def test_a_failover_passes_over_what_has_no_price():
    first, second = Scripted(then=used(1), name="odd"), Scripted(then=used(1), name="b")
    response = await ask(Kept(day(1000))(Failover(first, second)))
    assert response.provider == "b"
    assert first.calls == 0


async def test_a_price_is_asked_for_the_model_that_answered_and_else_for_the_one_that_was_asked():
    asked = []

    def price(provider, model, usage):
        asked.append((provider, model))
        return Decimal(usage.total) / 10**6 if model == "m" else None

    kept = Kept(day(1000), price=price)
    await ask(kept(Scripted([Start("m-2026-01"), *used(30)], name="vendor:m")))
    assert asked == [("vendor", "m"), ("vendor", "m"), ("vendor", "m-2026-01"), ("vendor", "m")]
    assert kept.stands() == (35, 0)


async def test_ones_own_price_holds_for_the_dated_model_that_answers():
    kept = Kept(day(10**7), price=PriceBook({"openai:gpt-5": Price(input=1, output=1)}, prices="snapshot"))
    answer = [Start("gpt-5-2025-08-07"), "Hi", UsageUpdate(Usage(input=50, output=5)), Finish("stop")]
    await ask(kept(Scripted(answer, name="openai:gpt-5")))
    assert kept.stands() == (55, 0)


async def test_a_price_that_the_address_tells_is_known():
    class Compatible(Scripted):
        priced_as = ("openai-compatible", "deepseek-v4-pro", "https://api.deepseek.com/v1")

    book = PriceBook(prices="snapshot")
    kept = Kept(BudgetLimit(1), price=book)
    await ask(kept(Compatible(used(10, 100), name="openai-compatible:deepseek-v4-pro")))
    spent = (await kept.wrapper.state())[0].spent
    cost = book.cost(Usage(input=100, output=10), provider="deepseek", model="deepseek-v4-pro").amount
    assert 0 <= spent - cost < Decimal("1e-9")


async def test_a_cost_that_the_response_knows_is_taken_as_it_is():
    kept = Kept(day(1000))

    async def measured(request: Any, told: Context) -> Any:
        response = await Scripted(used(30), name="a").send(request, told.but(tolls=()))
        response.cost = Decimal("0.000050")
        return response

    await ask(kept(Scripted(measured, name="a")))
    assert kept.stands() == (50, 0)


async def test_writing_to_the_cache_may_be_dearer():
    def price(provider, model, usage):
        return Decimal(usage.input + usage.output + 2 * usage.cache_write_1h) / 10**6

    for writes, reserved in ((True, 120), (False, 110)):
        kept = Kept(day(1000), price=price, cache_writes=writes)
        response = await kept(Scripted(used(30), name="a")).send(STREAM, context())
        assert kept.stands() == (0, reserved)
        await response.aclose()


async def test_what_a_price_raises_reaches_the_caller_and_nothing_stays_reserved():
    def price(provider, model, usage):
        raise ZeroDivisionError

    kept = Kept(day(1000), price=price)
    with pytest.raises(ZeroDivisionError):
        await ask(kept(Scripted(used(30), name="a")))
    assert kept.open == 0


@pytest.mark.parametrize("given", [1.5, Decimal(-1), Decimal("NaN"), "1"])
async def test_what_is_no_price_is_named(given):
    with pytest.raises(InvalidArgument, match="price"):
        await ask(Kept(day(1000), price=lambda *what: given)(Scripted(used(30), name="a")))


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_a_price_that_raises_afterwards_settles_as_reserved(request_):
    answers = iter([Decimal("0.00011")] * 2)
    kept = Kept(day(1000), price=lambda *what: next(answers, None) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await ask(kept(Scripted(used(30), name="a")), request_)
    assert (kept.open, kept.stands()) == (0, (110, 0))


# ---- several attempts -----------------------------------------------------------------------------------------------


async def test_all_attempts_are_counted_at_their_own_price():
    kept = Kept(day(5000))
    first, second = Scripted(ReadError(in_stream=True), name="a"), Scripted(used(30), name="dear")
    response = await ask(kept(Failover(first, second)))
    # 110 of the first were kept, since nobody knows what it used; 35 tokens at ten times the price.
    assert kept.stands() == (110 + 350, 0)
    assert [(found.cost, found.basis) for found in decisions(response, BudgetEstimated)] == [
        (Decimal("0.00011"), "reservation")
    ]


@pytest.mark.parametrize("error", [ServerError(), Overloaded(), ConnectError(), ServerError(status=500)])
async def test_a_refusal_by_the_provider_costs_nothing(error):
    kept = Kept(day(120))
    await ask(kept(Retry(3)(Scripted(error, used(30), name="a"))))
    assert kept.stands() == (35, 0)


@pytest.mark.parametrize("error", [ReadError(), ServerError(status=504), ServerError(in_stream=True), ValueError()])
async def test_what_may_have_been_billed_is_counted(error):
    kept = Kept(day(1000))
    with pytest.raises(type(error)):
        await ask(kept(Scripted(error, name="a")))
    assert kept.stands() == (110, 0)


async def test_a_retry_that_the_budget_has_no_room_for_is_not_made():
    kept = Kept(day(200))
    provider = Scripted(ReadError(in_stream=True), name="a")
    told = context()
    with pytest.raises(BudgetExceeded):
        await kept(Retry(3)(provider)).send(WHOLE, told)
    assert provider.calls == 1
    assert kept.stands() == (110, 0)
    assert [row.state for row in told.trace.entries] == ["failed", "skipped"]


async def test_a_failover_to_a_dearer_model_is_reserved_for_at_its_price():
    kept = Kept(day(1000))
    first, second = Scripted(Overloaded(), name="a"), Scripted(name="dear")
    with pytest.raises(AllTargetsFailed) as caught:
        await ask(kept(Failover(first, second)))
    assert [type(error) for _, error in caught.value.attempts] == [Overloaded, BudgetExceeded]
    assert second.calls == 0
    assert kept.stands() == (0, 0)


async def test_a_router_goes_on_to_what_can_be_paid():
    kept = Kept(day(500))
    first, second = Scripted(name="dear"), Scripted(used(30), name="b")
    response = await ask(kept(Failover(first, second)))
    assert response.provider == "b"
    assert first.calls == 0
    assert kept.stands() == (35, 0)


async def test_where_nothing_can_be_paid_the_caller_gets_the_budget_s_refusal():
    kept = Kept(day(50))
    told = context()
    with pytest.raises(BudgetExceeded):
        await kept(Failover(Scripted(name="a"), Scripted(name="dear"))).send(WHOLE, told)
    assert len(told.trace.entries) == 1, "refused before any target was looked at"


async def test_a_fixed_answer_costs_nothing():
    kept = Kept(day(50))
    with pytest.raises(BudgetExceeded):
        await ask(kept(Scripted(name="a")))
    assert (await ask(kept(Static("sorry")))).text == "sorry"
    assert (await ask(Failover(kept(Scripted(name="a")), Static("sorry")))).text == "sorry"


async def test_a_hedge_pays_too_and_its_loser_is_estimated():
    kept = Kept(day(1000))
    slow, quick = Scripted([5.0, *used(30)], name="a"), Scripted(used(30), name="b")
    hedge = Hedge(delay=1.0, minimum=1, budget=1.0, clock=LoopClock())
    response = await ask(kept(hedge(Failover(slow, quick))), STREAM)
    assert response.provider == "b"
    assert kept.stands() == (110 + 35, 0)
    assert [found.target for found in decisions(response, BudgetEstimated)] == ["a"]


async def test_a_hedge_that_can_not_be_paid_is_no_harm():
    kept = Kept(day(150))
    slow, quick = Scripted([5.0, *used(30)], name="a"), Scripted(used(30), name="b")
    hedge = Hedge(delay=1.0, minimum=1, budget=1.0, clock=LoopClock())
    response = await ask(kept(hedge(Failover(slow, quick))), STREAM)
    assert response.provider == "a"
    assert (quick.calls, kept.stands()) == (0, (35, 0))


async def test_a_resumed_stream_pays_for_each_hop():
    kept = Kept(day(1000))
    provider = Scripted(["Hello ", ReadError(in_stream=True)], used(30), name="a")
    response = await ask(kept(Resume(Restart())(Retry()(provider))), STREAM)
    assert response.text == "Hello"
    assert kept.stands() == (TEN + 3 + 35, 0)  # six letters are taken for three tokens
    assert [found.basis for found in decisions(response, BudgetEstimated)] == ["shown"]


async def test_a_hop_that_can_not_be_paid_leaves_the_break_as_it_was():
    kept = Kept(day(120))
    provider = Scripted(["Hello ", ReadError(in_stream=True)], used(30), name="a")
    with pytest.raises(StreamInterrupted) as caught:
        await ask(kept(Resume(Restart())(Retry()(provider))), STREAM)
    assert caught.value.partial_text == "Hello "
    assert (provider.calls, kept.stands()) == (1, (13, 0))


async def test_two_budgets_are_paid_both_or_none():
    outer, inner = Kept(day(1000, name="outer")), Kept(day(50, name="inner"))
    with pytest.raises(BudgetExceeded) as caught:
        await ask(outer(inner(Scripted(name="a"))))
    assert caught.value.limit == "inner"
    assert (outer.stands(), inner.stands()) == ((0, 0), (0, 0))
    inner = Kept(day(1000, name="inner"))
    await ask(outer(inner(Scripted(used(30), name="a"))))
    assert (outer.stands(), inner.stands()) == ((35, 0), (35, 0))
    # The inner one notices at the attempt that it is short, after the outer one was paid for it.
    outer, inner = Kept(day(2000, name="outer")), Kept(day(200, name="inner"))
    dear = Scripted(name="dear")
    response = await ask(outer(inner(Failover(dear, Scripted(used(30), name="b")))))
    assert (response.provider, dear.calls) == ("b", 0)
    assert (outer.stands(), inner.stands()) == ((35, 0), (35, 0))
    assert outer.open == inner.open == 0


async def test_a_budget_around_one_target_lets_the_others_be():
    kept = Kept(day(10))
    cheap, other = Scripted(name="a"), Scripted(then=used(1), name="b")
    assert (await ask(Failover(kept(cheap), other))).provider == "b"
    assert (cheap.calls, kept.stands()) == (0, (0, 0))


async def test_a_refusal_by_the_budget_says_nothing_about_the_target():
    kept = Kept(day(220))
    breaker = CircuitBreaker(clock=LoopClock())(AttemptTimeout()(Scripted(then=ReadError(), name="a")))
    for _ in range(2):
        with pytest.raises(ReadError):
            await ask(kept(breaker))
    for _ in range(10):
        with pytest.raises(BudgetExceeded):
            await ask(kept(breaker))
    assert breaker.breaker.state.value == "closed"


# ---- endings --------------------------------------------------------------------------------------------------------


async def test_a_stream_that_is_closed_is_estimated_from_what_arrived():
    kept = Kept(day(1000))
    response = await kept(Scripted(["Hello ", "world ", HANG], name="a")).send(STREAM, context())
    await response.__anext__()
    await response.__anext__()
    await response.aclose()
    assert kept.stands() == (TEN + 3, 0)
    assert [found.basis for found in decisions(response, BudgetEstimated)] == ["shown"]


async def test_or_counts_as_reserved_where_that_is_asked_for():
    kept = Kept(day(1000), cut_streams="keep")
    response = await kept(Scripted(["Hello ", HANG], name="a")).send(STREAM, context())
    await response.aclose()
    assert kept.stands() == (110, 0)


async def test_what_a_cut_stream_told_is_believed_and_what_was_seen_is_added():
    kept = Kept(day(1000))
    told = UsageUpdate(Usage(input=7, output=1, cache_read=2))
    response = await kept(Scripted([told, "Hello ", HANG], name="a")).send(STREAM, context())
    await response.__anext__()
    await response.__anext__()
    await response.__anext__()
    await response.aclose()
    assert kept.stands() == (9 + 3, 0)


async def test_an_answer_that_tells_no_usage_counts_as_reserved():
    kept = Kept(day(1000))
    response = await ask(kept(Scripted(["Hello", Finish("stop")], name="a")))
    assert kept.stands() == (110, 0)
    assert [found.basis for found in decisions(response, BudgetEstimated)] == ["reservation"]


@pytest.mark.parametrize(
    ("told", "tokens"),
    [
        (Usage(), TEN + 3),
        (Usage(output=7), TEN + 7),
        (Usage(input=5), 5 + 3),
    ],
)
@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_a_server_that_counts_nothing_is_not_free(told, tokens, request_):
    kept = Kept(day(1000))
    response = await ask(kept(Scripted(["Hello", UsageUpdate(told), Finish("stop")], name="a")), request_)
    assert kept.stands() == (tokens, 0)
    assert [found.basis for found in decisions(response, BudgetEstimated)] == ["shown"]


async def test_a_dearer_tier_is_reserved_at_its_price():
    prices = PriceBook({"a": Price(input=1, output=1, tiers={"priority": Price(input=2, output=2)})}, prices="none")
    kept = Kept(day(1000), price=prices)

    async def held(tier: str) -> int:
        request = replace(STREAM, extra={"a": {"service_tier": tier}})
        response = await kept(Scripted(["Hello", Finish("stop")], name="a")).send(request, context())
        reserved = kept.stands()[1]
        await response.aclose()
        return reserved

    assert await held("default") == 110
    assert await held("priority") == 220
    assert await held("flex") == 110  # no price; may be served as standard


async def test_a_response_that_was_dropped_unread_is_settled_too():
    kept = Kept(day(1000))
    response = await kept(Scripted(["Hello ", HANG], name="a")).send(STREAM, context())
    with pytest.warns(ResourceWarning, match="dropped unread"):  # noqa: PT031
        del response
        gc.collect()
    assert kept.open == 0
    assert kept.stands()[0] in (TEN + 0, 110)


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_cancelled_anywhere_nothing_stays_reserved(request_):
    def scenario():
        kept = Kept(day(10_000, by="user"), day(5000))
        a = Scripted([Start("m"), 0.5, ReadError(in_stream=True)], Overloaded(), [0.5, "Hel", 0.5, *used(9)], name="a")
        b = Scripted([2.0, ReadError()], then=[0.5, "Hel", 0.5, *used(9)], name="b")
        hedge = Hedge(delay=0.7, minimum=1, budget=1.0, clock=LoopClock())
        provider = kept(Retry(4, clock=LoopClock())(hedge(Failover(a, b, clock=LoopClock()))))

        async def run():
            response = await provider.send(request_, context())
            async with response:
                await response.read()

        def check():
            assert [a.in_flight, b.in_flight, a.open_sources, b.open_sources] == [0, 0, 0, 0]
            assert kept.open == 0
            assert kept.stands(1)[1] == 0
            assert kept.stands(1)[0] <= 110 * (a.calls + b.calls)

        return run(), check

    assert await sweep(scenario) > 5


# ---- soft limits ----------------------------------------------------------------------------------------------------


async def test_a_soft_limit_is_told_once_a_period_and_decided_in_every_call():
    told: list[tuple[BudgetPassedSoft, Context]] = []
    kept = Kept(day(1000, soft=0.2, by="user"), on_soft=lambda *what: told.append(what))
    provider = kept(Scripted(then=used(60), name="a"))
    passed = [
        len(decisions(await ask(provider, tags={"user": user}), BudgetPassedSoft)) for user in ("x", "x", "x", "x", "y")
    ]
    assert passed == [0, 0, 1, 1, 0]
    ((decision, call),) = told
    assert (decision.limit, decision.used, decision.amount) == ("user/day", Decimal("0.00024"), Decimal("0.001"))
    assert call.tags == {"user": "x"}
    kept.now.time += 86400
    for _ in range(3):
        await ask(provider, tags={"user": "x"})
    assert len(told) == 2


async def test_each_soft_limit_that_is_passed_is_told():
    told: list[str] = []
    kept = Kept(
        day(1000, soft=0.05), day(1000, by="user", soft=0.9), day(1000, by="tenant", soft=0.1),
        on_soft=lambda passed, call: told.append(passed.limit),
    )  # fmt: skip
    await ask(kept(Scripted(used(1), name="a")))
    assert told == ["all/day", "tenant/day"]


async def test_a_broken_callback_breaks_no_call(caplog):
    def broken(decision, call):
        raise ValueError("secret")

    kept = Kept(day(1000, soft=0), on_soft=broken)
    assert (await ask(kept(Scripted(used(1), name="a")))).text == "Hello"
    assert "on_soft raised ValueError" in caplog.text
    assert "secret" not in caplog.text


async def test_a_cheaper_target_takes_over_at_the_soft_limit_and_beyond():
    dear, cheap = Scripted(then=used(60), name="dear"), Scripted(then=used(60), name="b")
    kept = Kept(day(2500, soft=0.5), cheaper=cheap)
    provider = kept(dear)
    served = []
    for _ in range(20):
        try:
            served.append((await ask(provider)).provider)
        except BudgetExceeded:
            served.append("none")
    # 650 each: the second of them would pass half of the limit with what is reserved for it.
    assert served[0] == "dear"
    assert set(served[1:]) == {"b"}
    assert kept.stands() == (650 + 19 * 65, 0)
    for _ in range(20):
        try:
            served.append((await ask(provider)).provider)
        except BudgetExceeded:
            served.append("none")
    assert served[-1] == "none"
    assert kept.stands()[0] <= 2500
    await provider.aclose()
    assert (dear.closed, cheap.closed) == (1, 1)


async def test_a_request_that_the_cheaper_target_can_not_serve_stays():
    dear = Scripted(then=used(6), name="dear")
    cheap = Scripted(name="b", capabilities=Capabilities(embeddings=True, generate=False))
    kept = Kept(day(2500, soft=0), cheaper=cheap)
    assert (await ask(kept(dear))).provider == "dear"


async def test_a_call_too_dear_by_itself_goes_to_the_cheaper_target():
    kept = Kept(day(200, per="call"), cheaper=Scripted(then=used(6), name="b"))
    assert (await ask(kept(Scripted(name="dear")))).provider == "b"


# ---- looking at it, and functions ------------------------------------------------------------------------------------


async def test_how_it_stands_can_be_asked():
    kept = Kept(day(1000, by="user"), day(500, per="call"))
    provider = kept(Scripted(then=used(95), name="a"))
    await ask(provider, tags={"user": "x"})
    response = await provider.send(STREAM, context(tags={"user": "x"}))
    (state,) = await kept.wrapper.state({"user": "x"})
    assert (state.limit, state.resets_at) == ("user/day", datetime(2026, 3, 2, tzinfo=UTC))
    assert [state.amount, state.spent, state.reserved, state.left] == [
        Decimal(micro) / 10**6 for micro in (1000, 100, 110, 790)
    ]
    assert (await kept.wrapper.state())[0].left == Decimal("0.001")
    await response.aclose()
    assert await Kept(day(500, per="call")).wrapper.state() == []


async def test_a_decorated_function_is_kept_within_it():
    calls = 0
    kept = Kept(day(150), price={"ask": (1, 1)})

    @resilient(kept.wrapper)
    async def ask(question: str, max_tokens: int) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        return {
            "id": "x", "object": "chat.completion", "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}],
            "usage": {"prompt_tokens": 20, "completion_tokens": 30, "total_tokens": 50},
        }  # fmt: skip

    await ask("Hello", max_tokens=100)
    assert kept.stands() == (50, 0)
    with pytest.raises(BudgetExceeded):
        await ask("Hello", max_tokens=100)
    await ask("Hello", max_tokens=80)
    assert (calls, kept.stands()) == (2, (100, 0))


# ---- many at once ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_many_at_once_never_overshoot(request_):
    import random

    chance = random.Random(1)
    billed = 0

    async def serve(request: Any, told: Context) -> Any:
        nonlocal billed
        tokens = chance.randint(1, HUNDRED)
        await anyio.sleep(chance.random())
        fate = chance.random()
        if fate < 0.2:
            raise ServerError
        billed += 5 + tokens
        if fate < 0.3:
            raise ReadError(in_stream=True)
        return await Scripted([chance.random(), *used(tokens)], name="a").send(request, told.but(tolls=()))

    kept = Kept(day(5000))
    provider = kept(Retry(3, clock=LoopClock())(Scripted(then=serve, name="a")))
    ends = {"ok": 0, "refused": 0, "failed": 0}

    async def call() -> None:
        try:
            await ask(provider, request_)
            ends["ok"] += 1
        except BudgetExceeded:
            ends["refused"] += 1
        except (ServerError, ReadError, StreamInterrupted):
            ends["failed"] += 1

    async with anyio.create_task_group() as group:
        for _ in range(200):
            group.start_soon(call)
    spent, reserved = kept.stands()
    assert reserved == 0
    assert billed <= spent <= 5000
    assert ends["ok"] > 20
    assert ends["refused"] > 20
    assert dollars(spent * 1000) <= Decimal("0.005")


async def test_a_price_book_and_a_count_of_tokens_stand_behind_it() -> None:
    book = PriceBook({"simulated:instant": Price(input=2, output=8)}, prices="none")
    for kept in (Budget(BudgetLimit("0.01"), price=book), Budget(BudgetLimit("0.0001"), price=book)):
        async with AsyncClient(kept(Simulated("instant"))) as client:
            if kept.limits[0].amount == Decimal("0.01"):
                answer = await client.generate("Hello", max_tokens=20)
                assert answer.usage is not None
                spent = (await kept.state())[0].spent
                assert spent == Decimal(2 * answer.usage.total_input + 8 * answer.usage.total_output) / 10**6
            else:
                with pytest.raises(BudgetExceeded):
                    await client.generate("Hello", max_tokens=20)
    unknown = Budget(BudgetLimit(1), price=PriceBook(prices="snapshot"))
    async with AsyncClient(unknown(Simulated("instant"))) as client:
        with pytest.raises(PriceUnknown):
            await client.generate("Hello", max_tokens=20)
    assert unknown.book is not None
    assert unknown.book.loaded, "not on the event loop"

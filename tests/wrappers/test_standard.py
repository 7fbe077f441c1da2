"""The standard stack as a whole."""

import anyio
import pytest

from llmprod import (
    AdaptiveThrottle,
    AllTargetsFailed,
    AsyncClient,
    BadRequest,
    BreakerState,
    Bulkhead,
    CircuitBreaker,
    Context,
    Deadline,
    Hedge,
    IdleTimeout,
    InvalidArgument,
    KeyPool,
    LoopClock,
    OpenAI,
    Overloaded,
    RateLimit,
    RateLimited,
    Restart,
    Resume,
    Retry,
    RetryBudget,
    ServerError,
    Stack,
    Static,
    StreamInterrupted,
    lint,
    standard,
)
from llmprod.testing import assert_stack
from llmprod.testing.scripted import HANG, Scripted
from llmprod.wrapper import leaves
from tests.wrappers.helpers import Drawn, states


def client(*targets) -> AsyncClient:
    return AsyncClient(targets[0], fallbacks=targets[1:], clock=LoopClock(), random=Drawn())


async def test_a_bad_day_of_the_first_target_is_not_the_callers():
    a = Scripted(RateLimited(retry_after=30), [HANG], ServerError(), ServerError(), then=Overloaded(), name="a")
    b = Scripted(then="B", name="b")
    made = client(a, b)
    for _ in range(3):
        assert (await made.generate("Hi", max_tokens=10)).text == "B"
    assert a.calls == 1  # it asked all calls to leave it alone, not the one that it told
    await anyio.sleep(30)
    for _ in range(20):
        assert (await made.generate("Hi", max_tokens=10)).text == "B"
    # Five failures in a row, the timeout among them, opened its circuit; every few seconds one call tries it.
    assert 5 <= a.calls < 12


async def test_a_recovered_target_is_found_again():
    a = Scripted(*[Overloaded() for _ in range(5)], then="A", name="a")
    made = client(a, Scripted(then="B", name="b"))
    answers = []
    for _ in range(40):
        answers.append((await made.generate("Hi")).text)
        await anyio.sleep(1)
    assert answers[:5] == ["B"] * 5
    assert answers[-1] == "A"
    assert answers.index("A") <= 10


async def test_a_stream_moves_on_before_content_and_tells_after_it():
    a = Scripted([HANG], ["Hel", HANG], name="a")
    b = Scripted(then=["B"], name="b")
    made = client(a, b)
    async with made.stream("Hi") as response:
        await response.read()
    assert response.text == "B"
    assert states(response) == ["failed", "ok"]
    with pytest.raises(StreamInterrupted) as caught:
        async with made.stream("Hi") as response:
            await response.read()
    assert isinstance(caught.value.__cause__, IdleTimeout)
    assert caught.value.partial_text == "Hel"
    assert states(caught.value) == ["interrupted"]
    assert anyio.current_time() == pytest.approx(30 + 20)


async def test_when_all_is_lost_the_error_tells_all():
    a, b = Scripted(then=Overloaded(), name="a"), Scripted(then=ServerError(), name="b")
    with pytest.raises(AllTargetsFailed) as caught:
        await client(a, b).generate("Hi")
    assert [name for name, _ in caught.value.attempts] == ["a", "b"]
    # a, b's first failure left to the retry; then both, then a: five attempts are all that a call may make.
    assert [entry.target for entry in caught.value.trace.attempts] == ["a", "b", "a", "b", "a"]


async def test_a_static_last_resort_answers_only_after_all_retries():
    model = Scripted(then=Overloaded())
    made = standard(model, [Static("Sorry")])
    context = Context.new()
    response = await made.send(_request(), context)
    assert response.text == "Sorry"
    assert len(model.requests) == 3
    assert [entry.state for entry in context.trace.entries] == ["failed", "failed", "failed", "ok"]


async def test_a_static_last_resort_answers_when_a_wait_is_too_long_to_retry():
    model = Scripted(then=ServerError(retry_after=3600))
    response = await standard(model, [Static("Sorry")]).send(_request(), Context.new())
    assert response.text == "Sorry"
    assert len(model.requests) == 1


async def test_a_static_last_resort_hides_no_error_of_the_request():
    with pytest.raises(BadRequest):
        await standard(Scripted(then=BadRequest()), [Static("Sorry")]).send(_request(), Context.new())


async def test_one_target_needs_no_failover():
    made = client(Scripted(ServerError(), "A"))
    assert (await made.generate("Hi")).text == "A"
    breaker = made.provider.inner.inner.breaker
    assert breaker.state is BreakerState.CLOSED


async def test_the_deadline_bounds_it_all():
    made = client(Scripted(then=[100.0, ServerError()], name="a"), Scripted(then=[100.0, ServerError()], name="b"))
    with pytest.raises(Exception) as caught:
        await made.generate("Hi", deadline=250)
    assert anyio.current_time() <= 250
    assert caught.value.trace.entries


def _request():
    from tests.wrappers.helpers import WHOLE

    return WHOLE


# ---- what it is made of ---------------------------------------------------------------------------------------------


def test_more_wrappers_take_the_places_of_their_phases():
    extra = [Bulkhead(5), Resume(Restart()), Hedge(), RateLimit(requests_per_minute=5), AdaptiveThrottle()]
    quota = RateLimit(requests_per_minute=5, per="user")
    stack = standard(Scripted(name="a"), [Scripted(name="b"), Static("Sorry")], extra=[quota, *extra])
    assert lint(stack) == []
    assert_stack(stack).order(
        "Deadline", "RateLimit", "Resume", "Failover", "Retry", "Hedge", "Failover",
        "AdaptiveThrottle", "RateLimit", "Bulkhead", "CircuitBreaker", "AttemptTimeout",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ([Retry(2)], "extra[0]"),
        ([Hedge(), Deadline(3)], "extra[1]"),
        (Hedge(), "extra"),
        (["Hedge"], "extra[0]"),
        ([Stack(Hedge())], "extra[0]"),
    ],
    ids=str,
)
def test_what_may_be_more(extra, field):
    with pytest.raises(InvalidArgument) as caught:
        standard(Scripted(), extra=extra)
    assert caught.value.field == field


def test_a_client_of_several_keys_has_a_breaker_for_each():
    made = AsyncClient("openai:m", api_key=["one-key", "other-key"])
    assert made.describe().count("CircuitBreaker") == 2
    assert made.describe().count("KeyPool") == 1
    assert "-key" not in made.describe()
    pool = KeyPool.of(lambda key: OpenAI("m", api_key=key), ["one-key", "other-key"])
    with_spare = AsyncClient(pool, fallbacks=["simulated:instant"])
    assert with_spare.describe().count("CircuitBreaker") == 3
    assert AsyncClient(pool).describe() == made.describe()
    guarded = KeyPool.of(lambda key: CircuitBreaker()(OpenAI("m", api_key=key)), ["one-key", "other-key"])
    assert AsyncClient(guarded).provider is guarded


async def test_the_budget_is_shared_where_it_is_handed_in():
    budget = RetryBudget(ratio=0, reserve=1, clock=LoopClock())
    stacks = [standard(Scripted(then=ServerError()), budget=budget, clock=LoopClock()) for _ in range(2)]
    for stack in stacks:
        with pytest.raises(ServerError):
            await stack.send(_request(), Context.new(clock=LoopClock(), random=Drawn()))
    assert [len(_leaf(stack).requests) for stack in stacks] == [2, 1]


def _leaf(stack):
    (leaf,) = leaves(stack)
    return leaf

"""A second deployment is asked when the first is slow; who commits first wins, and the other leaves nothing behind."""

import contextvars
import gc
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from llmprod import (
    AllTargetsFailed,
    AttemptTimeout,
    BadRequest,
    BreakerOptions,
    Capabilities,
    CircuitBreaker,
    Context,
    Deadline,
    DeadlineExceeded,
    Failover,
    FirstTokenTimeout,
    GenerateRequest,
    InvalidArgument,
    KeyPool,
    LoopClock,
    Message,
    Overloaded,
    Provider,
    RateLimited,
    ReadError,
    Response,
    Retry,
    RetryBudget,
    ServerError,
    Stack,
    Static,
    Usage,
    describe,
    lint,
)
from llmprod.decisions import AttemptRefused, HedgeEnded, HedgeStarted
from llmprod.events import Finish, TextDelta, UsageUpdate
from llmprod.mechanisms.circuit_breaker import Breaker
from llmprod.testing.scripted import HANG, Scripted
from llmprod.wrappers.hedge import Hedge
from tests.wrappers.helpers import EMBED, STREAM, WHOLE, Drawn, ask, context, states

KINDS = pytest.mark.parametrize("request_", [WHOLE, STREAM, EMBED], ids=["whole", "stream", "embed"])


def scripted(*steps: Any, name: str = "a", **options: Any) -> Scripted:
    return Scripted(*steps, name=name, **options)


def failover(*targets: Provider) -> Failover:
    return Failover(*targets, clock=LoopClock())


def hedged(*targets: Provider, **options: Any) -> Any:
    """Hedged after one second, without waiting for data."""
    return Hedge(**{"delay": 1.0, "budget": 1.0, "clock": LoopClock(), **options})(failover(*targets))


def decisions(told: Context, *kinds: type) -> list[Any]:
    return [decision for decision in told.trace.decisions if isinstance(decision, kinds or (HedgeStarted, HedgeEnded))]


def over(*targets: Scripted) -> None:
    """Nothing is in flight, nothing open."""
    assert [(target.in_flight, target.open_sources) for target in targets] == [(0, 0)] * len(targets)


# ---- who wins -------------------------------------------------------------------------------------------------------


@KINDS
async def test_a_quick_answer_is_not_hedged(request_):
    a, b = scripted([0.9, "one"]), scripted(name="b")
    told = context()
    async with await hedged(a, b).send(request_, told) as response:
        await response.read()
    assert (a.calls, b.calls) == (1, 0)
    assert told.trace.decisions == []
    over(a, b)


@KINDS
async def test_the_hedge_wins(request_):
    a, b = scripted([60, "one"]), scripted([0.5, "two"], name="b")
    told = context()
    async with await hedged(a, b).send(request_, told) as response:
        assert told.elapsed == pytest.approx(1.5)
        await response.read()
    assert response.provider == "b"
    assert response.context is told
    started, ended = decisions(told)
    assert (started.target, started.delay, started.at) == ("b", 1.0, pytest.approx(1.0))
    assert (ended.target, ended.winner) == ("b", "hedge")
    lost, won = response.trace.attempts
    assert (lost.state, lost.reason, lost.error, lost.seconds) == ("cancelled", "lost to the hedge", None, 1.5)
    assert lost.usage is not None
    assert lost.usage.estimated
    assert lost.usage.total == ended.wasted > 0
    assert (won.state, won.target) == ("ok", "b")
    over(a, b)


@KINDS
async def test_the_primary_wins(request_):
    a, b = scripted([1.5, "one"]), scripted([60, "two"], name="b")
    told = context()
    async with await hedged(a, b).send(request_, told) as response:
        assert told.elapsed == pytest.approx(1.5)
        await response.read()
    assert response.provider == "a"
    assert response.context is told
    assert [decision.winner for decision in decisions(told, HedgeEnded)] == ["primary"]
    assert [(entry.target, entry.state, entry.reason) for entry in response.trace.attempts] == [
        ("a", "ok", None),
        ("b", "cancelled", "lost to the primary"),
    ]
    over(a, b)


@KINDS
async def test_both_at_once(request_):
    a, b = scripted([1.5, "one", 1, "more"]), scripted([0.5, "two", 1, "more"], name="b")
    told = context()
    async with await hedged(a, b).send(request_, told) as response:
        await response.read()
    (ended,) = decisions(told, HedgeEnded)
    assert ended.winner == ("primary" if response.provider == "a" else "hedge")
    loser = next(entry for entry in response.trace.attempts if entry.target != response.provider)
    assert loser.state in ("cancelled", "closed", "ok")
    assert loser.reason in ("lost to the primary", "lost to the hedge")
    assert loser.usage is not None
    over(a, b)


def stubborn(name: str, seconds: float, callback: Any = None) -> Any:
    """Answers although it is cancelled, as what has the answer in its hands already does."""

    async def step(request, context):
        with anyio.CancelScope(shield=True):
            await anyio.sleep(seconds)
        response = await Scripted([name, UsageUpdate(Usage(input=7, output=3)), Finish("stop")], name=name)._send(
            request, context, ()
        )
        if callback is not None:
            response.on_close(callback)
        return response

    return step


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize("winner", ["primary", "hedge"])
async def test_an_answer_that_comes_all_the_same_is_closed(request_, winner):
    a = scripted([1.5, "one"] if winner == "primary" else stubborn("a", 3))
    b = scripted(stubborn("b", 2) if winner == "primary" else [0.5, "two"], name="b")
    told = context()
    async with await hedged(a, b).send(request_, told) as response:
        await response.read()
    assert response.provider == ("a" if winner == "primary" else "b")
    assert told.elapsed == pytest.approx(3)
    loser = next(entry for entry in response.trace.attempts if entry.target != response.provider)
    assert (loser.state, loser.reason) == ("ok" if request_ is WHOLE else "closed", f"lost to the {winner}")
    if request_ is WHOLE:
        assert loser.usage == Usage(input=7, output=3)
    else:
        assert (loser.usage.output, loser.usage.estimated) == (1, True)
    (ended,) = decisions(told, HedgeEnded)
    assert (ended.winner, ended.wasted) == (winner, loser.usage.total)
    over(a, b)


async def test_the_hedge_follows_the_observed_percentile():
    a, b = scripted(*[[number / 100, "x"] for number in range(1, 101)], [60, "slow"]), scripted([0.1, "y"], name="b")
    provider = Hedge(percentile=0.9, window=600, clock=LoopClock())(failover(a, b))
    provider.budget.withdraw = lambda kind: False  # while learning
    for _ in range(100):
        await ask(provider, STREAM)
    del provider.budget.withdraw
    await anyio.sleep(2)
    told = context()
    await (await provider.send(STREAM, told)).read()
    started, ended = decisions(told)
    assert started.delay == pytest.approx(0.9, rel=0.06)
    assert ended.winner == "hedge"


async def test_streams_and_whole_answers_are_measured_apart():
    a, b = scripted(then=[0.2, "x"]), scripted(name="b")
    provider = Hedge(minimum=5, clock=LoopClock())(failover(a, b))
    for _ in range(5):
        await ask(provider, STREAM)
    assert provider.delay.seconds(STREAM) is not None
    assert provider.delay.seconds(WHOLE) is None
    assert b.calls == 0


async def test_no_task_group_before_there_is_data_or_budget(monkeypatch):
    def group():
        raise AssertionError("a task group")

    a, b = scripted(then=[0.2, "x"]), scripted(name="b")
    learning = Hedge(clock=LoopClock())(failover(a, b))
    monkeypatch.setattr(anyio, "create_task_group", group)
    for _ in range(19):
        await ask(learning, STREAM)
    broke = hedged(a, b, budget=0.05)  # a call alone earns a twentieth
    for _ in range(19):
        await ask(broke, STREAM)
    with pytest.raises(AssertionError, match="a task group"):
        await ask(broke, STREAM)  # the twentieth has earned one


# ---- other deployments only -----------------------------------------------------------------------------------------


@KINDS
async def test_no_other_deployment_no_hedge(request_):
    a = scripted([5, "one"])
    told = context()
    told.call.budget = budget = RetryBudget(reserve=3, clock=LoopClock())
    provider = hedged(a)
    async with await provider.send(request_, told) as response:
        await response.read()
    assert told.elapsed == pytest.approx(5)
    assert told.trace.decisions == []
    assert provider.budget.balance() == pytest.approx(1)
    assert budget.balance() == 3
    assert states(response) == ["ok"]
    over(a)


async def test_another_that_cannot_serve_the_request_is_no_hedge():
    deaf = Capabilities(parameters=frozenset({"max_tokens"}))
    a, b = scripted([5, "one"]), scripted(name="b", capabilities=deaf)
    told = context()
    provider = hedged(a, b)
    request = GenerateRequest(messages=(Message.user("Hi"),), stream=True, temperature=0.5)
    await (await provider.send(request, told)).read()
    assert b.calls == 0
    assert decisions(told) == []
    assert provider.budget.balance() == pytest.approx(1)


async def test_the_hedge_goes_on_to_a_third_where_the_second_fails():
    a, b, c = scripted([60, "one"]), scripted(Overloaded(), name="b"), scripted([0.5, "three"], name="c")
    told = context()
    async with await hedged(a, b, c).send(STREAM, told) as response:
        await response.read()
    assert response.provider == "c"
    assert told.elapsed == pytest.approx(1.5)
    assert [entry.state for entry in told.trace.attempts] == ["cancelled", "failed", "ok"]
    over(a, b, c)


async def test_the_primary_does_not_fail_over_to_where_the_hedge_is():
    a, b, c = scripted([1.2, Overloaded()]), scripted([9, "two"], name="b"), scripted([0.5, "three"], name="c")
    told = context()
    async with await hedged(a, b, c).send(STREAM, told) as response:
        await response.read()
    assert (a.calls, b.calls, c.calls) == (1, 1, 1)
    assert response.provider == "c"
    assert [decision.winner for decision in decisions(told, HedgeEnded)] == ["primary"]
    over(a, b, c)


async def test_the_hedge_falls_back_to_nobody_who_is_being_asked():
    a, b = scripted([3, "one"]), scripted([0.5, Overloaded()], name="b")
    told = context()
    async with await hedged(a, b).send(WHOLE, told) as response:
        assert response.provider == "a"
    assert (a.calls, b.calls) == (1, 1)
    (ended,) = decisions(told, HedgeEnded)
    assert (ended.winner, ended.wasted) == ("primary", None)  # it failed by itself: its row says how
    assert told.trace.attempts[1].error == "Overloaded"


async def test_routers_within_routers():
    a, b, c = scripted([60, "one"]), scripted([0.5, "two"], name="b"), scripted(name="c")
    told = context()
    response = await hedged(failover(a, b), c).send(STREAM, told)
    async with response:
        await response.read()
    assert response.provider == "b"
    assert c.calls == 0


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_a_fixed_answer_wins_no_race(request_):
    a = scripted([5, "one"])
    told = context()
    provider = hedged(a, Static("sorry"))
    async with await provider.send(request_, told) as response:
        await response.read()
    assert response.text == "one"
    assert decisions(told) == []
    assert provider.budget.balance() == pytest.approx(1)


async def test_a_fixed_answer_waits_for_the_hedge_and_serves_if_it_fails():
    for step, text in (([3, "two"], "two"), ([3, Overloaded()], "sorry")):
        a, b = scripted([1.5, Overloaded()]), scripted(step, name="b")
        told = context()
        async with await hedged(a, b, Static("sorry")).send(WHOLE, told) as response:
            assert response.text == text
        assert told.elapsed == pytest.approx(4)
        over(a, b)


async def test_a_fixed_answer_is_no_measure_of_the_delay():
    provider = hedged(scripted(then=[0.2, Overloaded()]), Static("sorry"), delay=None, minimum=1)
    for _ in range(5):
        assert (await ask(provider, WHOLE)).text == "sorry"
    assert provider.delay.seconds(WHOLE) is None


async def test_an_open_breaker_in_the_other_is_no_hedge():
    breaker = Breaker(BreakerOptions(consecutive_failures=1), clock=LoopClock(), random=Drawn())
    breaker.acquire().failure()
    a, b = scripted(then=[3, "one"]), scripted(then=Overloaded(), name="b")
    told = context()
    told.call.budget = budget = RetryBudget(reserve=3, clock=LoopClock())
    third = scripted(Overloaded(), name="c")
    provider = hedged(a, CircuitBreaker(breaker=breaker)(b), third)
    async with await provider.send(WHOLE, told) as response:
        assert response.provider == "a"
    assert b.calls == 0
    assert (third.calls, budget.balance()) == (1, 2)


# ---- failures -------------------------------------------------------------------------------------------------------


@KINDS
async def test_a_failure_before_the_delay_is_the_calls(request_):
    a, b = scripted([0.5, Overloaded()]), scripted([0.3, ServerError()], name="b")
    told = context()
    with pytest.raises(AllTargetsFailed):
        await hedged(a, b).send(request_, told)
    assert told.elapsed == pytest.approx(0.8)
    assert told.trace.decisions == []


@KINDS
async def test_one_failure_waits_for_the_other(request_):
    a, b = scripted([1.2, Overloaded()]), scripted([2, "two"], name="b")
    async with await hedged(a, b).send(request_, told := context()) as response:
        await response.read()
    assert response.provider == "b"
    assert told.elapsed == pytest.approx(3)
    over(a, b)


@KINDS
async def test_where_both_fail_it_is_as_one_round_over_both(request_):
    a, b = scripted([1.2, Overloaded()]), scripted([1, ServerError()], name="b")
    told = context()
    with pytest.raises(AllTargetsFailed) as caught:
        await hedged(a, b).send(request_, told)
    assert [(target, type(error)) for target, error in caught.value.attempts] == [("a", Overloaded), ("b", ServerError)]
    assert caught.value.__context__ is None
    assert [decision.winner for decision in decisions(told, HedgeEnded)] == ["none"]
    over(a, b)


@KINDS
async def test_a_primary_that_fails_after_its_hedge_did_may_ask_that_target_again(request_):
    a, b = scripted([5, Overloaded()]), scripted([1, ServerError()], [1, "two"], name="b")
    told = context()
    async with await hedged(a, b).send(request_, told) as response:
        await response.read()
    assert [entry.target for entry in told.trace.attempts] == ["a", "b", "b"]
    assert [decision.winner for decision in decisions(told, HedgeEnded)] == ["primary"]
    over(a, b)


async def test_a_timeout_of_one_does_not_hide_that_the_other_may_be_asked_again():
    timeout = AttemptTimeout(first_token=3)
    a, b = scripted([HANG]), scripted([0.5, ServerError()], [0.5, "two"], name="b")
    provider = Retry(clock=LoopClock())(hedged(timeout(a), timeout(b)))
    response = await ask(provider, STREAM)
    assert response.text == "two"
    over(a, b)


async def test_a_hedge_that_found_nobody_says_nothing():
    a = scripted([2, ServerError()])
    with pytest.raises(ServerError):
        await hedged(a).send(WHOLE, context())


@KINDS
async def test_a_fatal_failure_of_the_hedge_ends_both(request_):
    a, b = scripted([9, "one"]), scripted([1, BadRequest(status=400)], name="b")
    told = context()
    with pytest.raises(BadRequest):
        await hedged(a, b).send(request_, told)
    assert told.elapsed == pytest.approx(2)
    assert [(entry.state, entry.reason) for entry in told.trace.attempts] == [
        ("cancelled", "the hedge failed for good"),
        ("failed", None),
    ]
    (ended,) = decisions(told, HedgeEnded)
    assert ended.winner == "none"
    assert ended.wasted > 0
    over(a, b)


@KINDS
async def test_a_fatal_failure_of_the_primary_ends_both(request_):
    a, b = scripted([2, BadRequest(status=400)]), scripted([9, "two"], name="b")
    told = context()
    with pytest.raises(BadRequest):
        await hedged(a, b).send(request_, told)
    assert told.elapsed == pytest.approx(2)
    assert [entry.reason for entry in told.trace.attempts] == [None, "the primary failed for good"]
    over(a, b)


async def test_errors_leave_no_cycles_and_no_groups():
    a, b = scripted([2, ServerError()]), scripted([9, BadRequest(status=400)], name="b")
    with pytest.raises(BadRequest) as caught:
        await hedged(a, b).send(WHOLE, context())
    assert not isinstance(caught.value, BaseExceptionGroup)
    error = caught.value
    frame: Any = error.__traceback__
    while frame is not None:
        assert all(value is not error for name, value in frame.tb_frame.f_locals.items() if name == "self")
        frame = frame.tb_next


class Abrupt(BaseException):
    """As KeyboardInterrupt, without ending the test run."""


@pytest.mark.parametrize("side", ["primary", "hedge"])
async def test_no_exception_group_even_of_what_nobody_catches(side):
    async def abrupt(request, context):
        await anyio.sleep(0.5 if side == "hedge" else 2)
        raise Abrupt

    a = scripted(abrupt if side == "primary" else [9, "one"])
    b = scripted(abrupt if side == "hedge" else [9, "two"], name="b")
    with pytest.raises(Abrupt):
        await hedged(a, b).send(STREAM, context())
    over(a, b)


async def test_a_broken_callback_of_the_loser_reaches_the_caller_and_the_winner_is_closed():
    def callback(outcome):
        raise RuntimeError("broken")

    a, b = scripted([1.5, "one"]), scripted(stubborn("b", 2, callback), name="b")
    with pytest.raises(RuntimeError, match="broken"):
        await hedged(a, b).send(STREAM, told := context())
    assert [entry.state for entry in told.trace.attempts] == ["closed", "closed"]
    assert a.in_flight == a.open_sources == b.open_sources == 0


# ---- budgets --------------------------------------------------------------------------------------------------------


async def test_hedges_stay_within_their_share():
    a, b = scripted(then=[3, "one"]), scripted(then=[0.1, "two"], name="b")
    provider = hedged(a, b, budget=0.1, window=1e6)
    winners = [(await ask(provider, STREAM)).provider for _ in range(100)]
    assert winners.count("b") == b.calls == 10


async def test_hedges_draw_on_the_calls_budget():
    budget = RetryBudget(ratio=0, reserve=1, clock=LoopClock())
    a, b = scripted(then=[3, "one"]), scripted(then=[0.1, "two"], name="b")
    provider = Retry(budget=budget, clock=LoopClock())(hedged(a, b))
    assert (await ask(provider, STREAM)).provider == "b"
    told = context()
    assert (await (await provider.send(STREAM, told)).read()).provider == "a"
    (refused,) = decisions(told, AttemptRefused)
    assert (refused.kind, refused.reason) == ("hedge", "budget")
    assert provider.inner.budget.balance() == pytest.approx(1)  # 2 calls, 1 hedge: the refused one was given back


async def test_hedges_count_towards_the_cap():
    a, b = scripted([3, "one"]), scripted(name="b")
    told = context()
    await (await Retry(attempts=1, attempts_at_most=1, clock=LoopClock())(hedged(a, b)).send(STREAM, told)).read()
    (refused,) = decisions(told, AttemptRefused)
    assert (refused.kind, refused.reason) == ("hedge", "attempts")
    assert told.call.attempts == 1


async def test_the_cap_counts_what_is_on_its_way():
    """The primary waits in a queue when the hedge begins: both would be two."""

    class Queue(CircuitBreaker):
        def wrap(self, inner):
            made = super().wrap(inner)
            send = made.send

            async def later(request, context):
                await anyio.sleep(2)
                return await send(request, context)

            made.send = later
            return made

    a, b = scripted([3, "one"]), scripted(name="b")
    told = context()
    told.call.cap = 1
    provider = hedged(Queue(clock=LoopClock())(a), b)
    await (await provider.send(STREAM, told)).read()
    assert [decision.reason for decision in decisions(told, AttemptRefused)] == ["attempts"]
    assert told.call.attempts == 1


async def test_a_hedge_in_place_of_a_primary_that_never_reached_a_provider_costs_no_leave():
    async def wait(request, context):
        raise AssertionError

    class Never(CircuitBreaker):
        def wrap(self, inner):
            made = super().wrap(inner)

            async def send(request, context):
                await anyio.sleep_forever()

            made.send = send
            return made

    a, b = scripted(wait), scripted([0.5, "two"], name="b")
    told = context()
    told.call.budget = budget = RetryBudget(ratio=0, reserve=1, clock=LoopClock())
    provider = hedged(Never(clock=LoopClock())(a), b)
    await (await provider.send(STREAM, told)).read()
    assert told.call.attempts == 1
    assert budget.balance() == 1
    assert provider.budget.balance() == pytest.approx(1)


async def test_no_hedge_that_cannot_be_over_before_the_deadline():
    a, b = scripted(*[[2, "x"]] * 5, [2.5, "one"]), scripted(name="b")
    provider = hedged(a, b, minimum=5, delay=2.2)
    for _ in range(5):
        await ask(provider, STREAM)
    told = context(seconds=3)
    await (await provider.send(STREAM, told)).read()
    assert [decision.reason for decision in decisions(told, AttemptRefused)] == ["deadline"]
    told = context(seconds=2)
    a._steps.append([1, "one"])
    await (await provider.send(STREAM, told)).read()
    assert told.trace.decisions == []


async def test_a_deadline_ends_both():
    a, b = scripted(HANG), scripted(HANG, name="b")
    told = context()
    with pytest.raises(DeadlineExceeded):
        await Deadline(4)(hedged(a, b)).send(STREAM, told)
    assert told.elapsed == pytest.approx(4)
    assert [entry.state for entry in told.trace.attempts] == ["cancelled", "cancelled"]
    assert [decision.winner for decision in decisions(told, HedgeEnded)] == ["none"]
    over(a, b)


# ---- what it learns -------------------------------------------------------------------------------------------------


async def test_failures_and_losers_never_shorten_the_delay():
    steps = [[1, "x"]] * 20 + [[0.01, Overloaded()]] * 50 + [[9, "slow"]] * 2
    a = scripted(*steps, then=[1, "x"])
    provider = hedged(a, scripted(then=[0.01, Overloaded()], name="b"), delay=None, window=1e5)
    provider.budget.withdraw = lambda kind: False
    for _ in range(20):
        await ask(provider, STREAM)
    for _ in range(50):
        with pytest.raises(AllTargetsFailed):
            await ask(provider, STREAM)
    await anyio.sleep(2)
    assert provider.delay.seconds(STREAM) == pytest.approx(1, rel=0.06)
    assert provider.delay._stream.count == 20
    del provider.budget.withdraw
    a._steps[70:] = [[9, "slow"]] * 2
    b = provider.inner.targets[1]
    b._then = [0.5, "y"]
    for _ in range(2):
        assert (await ask(provider, STREAM)).provider == "b"
    assert provider.delay._stream.count == 22  # no token after 1.5 s is known of each


async def test_a_cancelled_call_teaches_nothing():
    a, b = scripted(*[[1, "x"]] * 20, then=HANG), scripted(then=HANG, name="b")
    provider = hedged(a, b, delay=None)
    for _ in range(20):
        await ask(provider, STREAM)
    for seconds in (0.5, 5):
        with anyio.move_on_after(seconds):
            await ask(provider, STREAM)
    assert provider.delay._stream.count == 20
    over(a, b)


# ---- metering -------------------------------------------------------------------------------------------------------


async def test_what_a_lost_whole_answer_probably_cost():
    tokens = [UsageUpdate(Usage(input=100, output=50)), Finish("stop")]
    a, b = scripted([9, "one", *tokens]), scripted([3, "two", *tokens], name="b")
    told = context()
    await hedged(a, b).send(WHOLE, told)
    lost = told.trace.attempts[0]
    assert lost.usage == Usage(input=100, output=50, estimated=True)  # it had as much time as the winner, and more
    a, b = scripted([2, "one", *tokens]), scripted([9, "two", *tokens], name="b")
    told = context()
    await hedged(a, b).send(WHOLE, told)
    assert told.trace.attempts[1].usage == Usage(input=100, output=25, estimated=True)  # half the time
    assert decisions(told, HedgeEnded)[0].wasted == 125


async def test_what_a_lost_stream_probably_cost():
    request = GenerateRequest(messages=(Message.user("word " * 800),), stream=True)
    a, b = scripted([9, "one"]), scripted([3, "two"], name="b")
    told = context()
    async with await hedged(a, b).send(request, told) as response:
        await response.read()
    lost = told.trace.attempts[0].usage
    assert lost is not None
    assert lost.input == pytest.approx(1000, rel=0.02)
    assert (lost.output, lost.estimated) == (0, True)


# ---- the stack around and inside ------------------------------------------------------------------------------------


def full(a: Provider, b: Provider, **options: Any) -> Any:
    inside = Stack(CircuitBreaker(clock=LoopClock(), random=Drawn()), AttemptTimeout(first_token=3, total=6))
    hedge = Hedge(**{"delay": 1.0, "budget": 1.0, "clock": LoopClock(), **options})
    return Deadline(60)(Retry(3, clock=LoopClock())(hedge(failover(inside(a), inside(b)))))


def breakers(provider: Any) -> Sequence[Breaker]:
    return [target.breaker for target in provider.inner.inner.inner.targets]


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_full_stack(request_):
    a, b = scripted([9, "one"]), scripted([0.5, "two"], name="b")
    provider, told = full(a, b), context()
    assert lint(provider) == []
    assert "Hedge(after 1 s, 1 of calls)" in describe(provider)
    async with await provider.send(request_, told) as response:
        await response.read()
    assert response.provider == "b"
    assert [(sum(each._good._counts), sum(each._bad._counts)) for each in breakers(provider)] == [(0, 0), (1, 0)]
    over(a, b)


async def test_a_timeout_marks_its_own_attempt():
    """The primary times out while the hedge is the last in the trace."""
    a, b = scripted([HANG]), scripted([2.5, "two"], name="b")
    provider, told = full(a, b), context()
    async with await provider.send(STREAM, told) as response:
        await response.read()
    assert told.elapsed == pytest.approx(3.5)
    assert [(entry.target, entry.state, entry.error) for entry in told.trace.attempts] == [
        ("a", "failed", "FirstTokenTimeout"),
        ("b", "ok", None),
    ]
    assert [(sum(each._good._counts), sum(each._bad._counts)) for each in breakers(provider)] == [(0, 1), (1, 0)]


async def test_both_time_out_and_the_retry_gets_it():
    a, b = scripted([HANG]), scripted([HANG], name="b")
    provider, told = full(a, b), context()
    with pytest.raises(AllTargetsFailed) as caught:
        await provider.send(STREAM, told)
    assert [type(error) for _, error in caught.value.attempts] == [FirstTokenTimeout, FirstTokenTimeout]
    assert [(sum(each._good._counts), sum(each._bad._counts)) for each in breakers(provider)] == [(0, 1), (0, 1)]
    over(a, b)


async def test_a_retry_hedges_again():
    a, b = scripted([1.5, ServerError()], [5, "one"]), scripted([0.2, RateLimited()], [0.5, "two"], name="b")
    provider, told = full(a, b), context()
    async with await provider.send(STREAM, told) as response:
        await response.read()
    assert response.text == "two"
    assert [decision.winner for decision in decisions(told, HedgeEnded)] == ["none", "hedge"]
    assert told.call.attempts == 4
    over(a, b)


async def test_an_interrupted_winner_is_the_callers_interruption():
    a, b = scripted([9, "one"]), scripted([0.5, "two", 1, ReadError(in_stream=True)], name="b")
    from llmprod import StreamInterrupted

    told = context()
    response = await full(a, b).send(STREAM, told)
    with pytest.raises(StreamInterrupted) as caught:
        await response.read()
    assert caught.value.trace is told.trace
    assert caught.value.partial.text == "two"
    over(a, b)


async def test_the_callers_context_variables_are_seen_inside_and_left_alone():
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    async def look(request, context):
        seen.append(variable.get())
        variable.set("from inside")
        await anyio.sleep(2)
        return await Scripted(["x"])._send(request, context, ())

    variable.set("mine")
    a, b = scripted(look), scripted(look, name="b")
    response = await hedged(a, b).send(STREAM, context())
    await response.read()
    assert seen == ["mine", "mine"]


async def test_many_at_once():
    a, b = scripted(then=[3, "one", 1, "more"]), scripted(then=[0.5, "two", 1, "more"], name="b")
    provider = hedged(a, b)

    async def one():
        assert (await ask(provider, STREAM)).text == "twomore"

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(one)
    assert (a.calls, b.calls) == (50, 50)
    over(a, b)


async def test_nothing_of_a_finished_race_waits_for_the_garbage_collector():
    a, b = scripted(then=[3, "one"]), scripted(then=[0.5, "two"], name="b")
    provider = hedged(a, b)
    await ask(provider, STREAM)
    gc.collect()
    response = await ask(provider, STREAM)
    from llmprod.wrappers._lanes import LaneState

    state: Any = b.contexts[-1].call
    assert isinstance(state, LaneState)
    assert state.beside is None
    assert b.contexts[-1].lane.other is None
    assert response.context.lane is None


class Plain:
    """A provider that is no BaseProvider, so it counts nothing."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.capabilities = Capabilities()
        self.seconds = seconds
        self.calls = 0

    async def send(self, request, context):
        self.calls += 1
        await anyio.sleep(self.seconds)
        return Response(provider=self.name, context=context, request=request, events=[TextDelta("x"), Finish("stop")])

    async def aclose(self):
        pass


async def test_providers_that_count_nothing_are_hedged_within_the_budget():
    a, b = Plain("a", 3), Plain("b", 0.5)
    provider = hedged(a, b, budget=0.5, window=1e6)
    told = [context() for _ in range(10)]
    for each in told:
        await provider.send(WHOLE, each)
    assert (a.calls, b.calls) == (10, 5)
    assert sum(len(decisions(each)) for each in told) == 10


# ---- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"percentile": 1.5}, "percentile"),
        ({"percentile": True}, "percentile"),
        ({"budget": -0.1}, "budget"),
        ({"budget": 2}, "budget"),
        ({"delay": -1}, "delay"),
        ({"delay": float("nan")}, "delay"),
        ({"minimum": 0}, "minimum"),
        ({"window": 0}, "window"),
    ],
)
def test_bad_options(options, field):
    with pytest.raises(InvalidArgument) as caught:
        Hedge(**options)
    assert caught.value.field == field


def test_one_deployment_is_refused():
    with pytest.raises(InvalidArgument, match="a router over several") as caught:
        Hedge()(Retry()(scripted("x")))
    assert caught.value.field == "inner"


def test_repr():
    assert repr(Hedge()) == "Hedge(after p95, 0.05 of calls)"
    assert repr(Hedge(delay=2, budget=0.1)) == "Hedge(after 2 s, 0.1 of calls)"


# ---- what a hedge must not do to the routers inside ------------------------------------------------------------------


async def test_a_hedge_forces_no_open_breaker():
    opened = Breaker(BreakerOptions(consecutive_failures=1, open_for=100), clock=LoopClock(), random=Drawn())
    opened.acquire().failure()
    a, b = Scripted(then=[5.0, "A"], name="a"), Scripted(then="B", name="b")
    stack = Hedge(delay=1)(Failover(a, CircuitBreaker(breaker=opened)(b)))
    response = await ask(stack, STREAM)
    assert (response.text, b.calls) == ("A", 0)
    assert "LeastBadTried" not in [type(decision).__name__ for decision in response.trace.decisions]


async def test_a_router_inside_with_nobody_else_to_ask_is_not_left_out_for_the_rest_of_the_call():
    a = Scripted([3.0, ServerError()], "A", name="a")
    b = Scripted(then=Overloaded(), name="b")
    told = context()
    stack = Retry(2)(Hedge(delay=1)(Failover(Failover(a), b)))
    response = await stack.send(WHOLE, told)
    assert response.text == "A"
    assert not told.call.silent


def test_keys_of_one_deployment_are_no_deployments_to_hedge_to():
    pool = KeyPool(Scripted(name="a"), Scripted(name="b"))
    with pytest.raises(InvalidArgument, match="inner: got a, several keys of one deployment"):
        Retry()(Hedge()(pool))
    assert Hedge()(Failover(pool, Scripted(name="c"))).name == "a | c"

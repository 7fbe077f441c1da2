"""Engines that have to be started: whose clock runs meanwhile, who waits, who gives way, who comes back to wait."""

import anyio
import pytest

from llmprod import (
    Action,
    AllTargetsFailed,
    AttemptRefused,
    AttemptTimedOut,
    AttemptTimeout,
    Balance,
    Capabilities,
    CircuitBreaker,
    Deadline,
    DeadlineExceeded,
    EngineDied,
    EngineNotReady,
    EngineStartFailed,
    Failover,
    FirstTokenTimeout,
    GenerateRequest,
    Hedge,
    HedgeStarted,
    KeyPool,
    LoopClock,
    NotFound,
    Overloaded,
    RateLimited,
    Retry,
    RetryBudget,
    Static,
    TargetPaused,
    classify,
)
from llmprod.testing.scripted import HANG, Scripted
from tests.cancel_sweep import sweep
from tests.wrappers.helpers import HI, STREAM, WHOLE, ask, context
from tests.wrappers.starting import Direct, Engine

TIMED = AttemptTimeout(first_token=10, total=12)


# ---- AttemptTimeout --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_the_start_is_no_time_of_the_attempt(request_):
    engine = Engine([5.0, "A"], start=100)
    assert (await ask(TIMED(engine), request_)).text == "A"
    assert anyio.current_time() == pytest.approx(105)


@pytest.mark.parametrize(("request_", "error"), [(STREAM, FirstTokenTimeout), (WHOLE, AttemptTimedOut)], ids=str)
async def test_after_it_the_limits_hold(request_, error):
    engine = Engine([HANG], start=100)
    with pytest.raises(error) as caught:
        await ask(TIMED(engine), request_)
    assert anyio.current_time() == pytest.approx(100 + caught.value.limit)
    assert engine.in_flight == 0


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_the_deadline_bounds_the_start(request_):
    engine = Engine("A", start=100)
    with pytest.raises(DeadlineExceeded):
        await ask(Deadline(50)(Retry(3)(TIMED(engine))), request_)
    assert (anyio.current_time(), engine.calls) == (50, 0)
    assert (await ask(Deadline(51)(TIMED(engine)), request_)).text == "A"  # it went on starting
    assert anyio.current_time() == pytest.approx(100)


@pytest.mark.parametrize("error", [EngineNotReady(), EngineStartFailed()], ids=lambda error: type(error).__name__)
async def test_what_prepare_raises_is_the_attempts_error(error):
    class Broken(Engine):
        async def prepare(self, context):
            raise error

    engine = Broken()
    with pytest.raises(type(error)):
        await ask(TIMED(engine))
    assert engine.calls == 0


async def test_several_engines_behind_one_limit_are_not_waited_for_outside_it():
    one, other = Direct(start=100), Direct(start=100)
    with pytest.raises(AttemptTimedOut):
        await ask(TIMED(Failover(one, other)))
    assert anyio.current_time() == pytest.approx(12)


async def test_targets_without_a_start_get_the_callers_own_context():
    """Nothing is copied and nothing is awaited for them."""
    first, second = Scripted(NotFound(), name="a"), Scripted("B", name="b")
    sent = context()
    await (await Failover(first, second).send(WHOLE, sent)).read()
    assert first.contexts[0] is second.contexts[0] is sent
    assert AttemptTimeout()(first)._prepare is None


# ---- who is told that there are others -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "router",
    [
        lambda engine, hosted: Failover(engine, hosted),
        lambda engine, hosted: Balance(engine, hosted, policy="priority", priorities=[0, 1], clock=LoopClock()),
        lambda engine, hosted: Failover(TIMED(engine), CircuitBreaker(clock=LoopClock())(hosted)),
        lambda engine, hosted: Failover(KeyPool(engine), hosted),
        lambda engine, hosted: Failover(engine, KeyPool(hosted)),
        lambda engine, hosted: Failover(Failover(engine), Failover(hosted, Static("sorry"))),
        lambda engine, hosted: Hedge(delay=1)(Failover(engine, hosted)),
    ],
    ids=["failover", "balance", "wrapped", "in a pool", "before a pool", "nested", "hedged"],
)
async def test_a_starting_engine_gives_way_and_serves_once_it_is_ready(router):
    engine, hosted = Direct(start=30, then="A", name="engine"), Scripted("B", "B", name="hosted")
    stack = Retry(3)(router(engine, hosted))
    for _ in range(2):
        response = await ask(stack)
        assert response.text == "B"
        assert anyio.current_time() == 0
        assert response.context.call.attempts == 1  # a refusal is none
    assert engine.calls == 0
    assert all(engine.prepared)
    await anyio.sleep(30)
    assert (await ask(stack)).text == "A"


async def test_a_balance_of_an_engine_and_others_never_waits():
    engine, hosted = Direct(start=30, then="A"), Scripted(then="B", name="hosted")
    stack = Balance(engine, hosted, clock=LoopClock())
    for _ in range(20):
        assert (await ask(stack)).text == "B"
    assert anyio.current_time() == 0


async def test_the_last_one_is_waited_for():
    engine, hosted = Direct("A", start=30), Scripted(Overloaded(), name="hosted")
    response = await ask(Retry(3)(Failover(hosted, engine)))
    assert (response.text, engine.prepared, anyio.current_time()) == ("A", [False], 30)


NOBODY_ELSE = {
    "alone": lambda engine: Failover(engine),
    "a fixed answer": lambda engine: Failover(engine, Static("sorry")),
    "one that lacks what is asked for": lambda engine: Failover(
        engine, Scripted(capabilities=Capabilities(parameters=Capabilities().parameters - {"seed"}))
    ),
    "keys of the same": lambda engine: KeyPool(engine),
}


@pytest.mark.parametrize("case", NOBODY_ELSE)
async def test_where_nobody_else_can_serve_the_engine_is_waited_for(case):
    engine = Direct("A", start=30)
    response = await ask(NOBODY_ELSE[case](engine), GenerateRequest(messages=HI, seed=1))
    assert (response.text, engine.prepared, anyio.current_time()) == ("A", [False], 30)


async def test_one_that_was_silent_in_this_call_is_nobody_else():
    engine, hosted = Direct("A", start=30), Scripted([HANG], name="hosted")
    stack = Retry(3)(Failover(engine, TIMED(hosted)))
    response = await ask(stack, STREAM)
    # Hosted times out after 10 s; by then it is silent, and the engine is waited for.
    assert (response.text, engine.prepared, anyio.current_time()) == ("A", [True, False], 30)
    told = context()
    told.call.silent.add(id(hosted))
    engine.die()
    engine._steps.append("A")
    await Failover(engine, hosted).send(WHOLE, told)
    assert engine.prepared == [True, False, False]


async def test_one_that_asked_for_a_wait_is_nobody_else():
    engine, hosted = Direct("A", "A", start=5), Scripted(RateLimited(retry_after=60), name="hosted")
    stack = Failover(engine, hosted)
    assert (await ask(stack)).text == "A"
    engine.die()
    assert (await ask(stack)).text == "A"
    assert (engine.prepared, hosted.calls) == ([True, False, False], 1)


async def test_a_pool_passes_on_what_it_was_told_and_is_no_alternative_to_itself():
    one, other = Direct("A", start=30), Direct(start=30)
    assert (await ask(KeyPool(one, other))).text == "A"
    assert (one.prepared, other.prepared) == ([False], [])


# ---- hedges ----------------------------------------------------------------------------------------------------------


async def test_a_hedge_to_an_engine_waits_for_it_and_loses():
    engine, hosted = Direct(start=30, name="engine"), Scripted([5.0, "B"], name="hosted")
    response = await ask(Hedge(delay=1, budget=1, clock=LoopClock())(Failover(hosted, engine)))
    assert (response.text, anyio.current_time()) == ("B", 5)
    assert (engine.prepared, engine.calls, response.context.call.attempts) == ([False], 0, 1)
    assert not any(isinstance(decision, HedgeStarted) for decision in response.trace.decisions)


async def test_a_hedge_to_an_engine_wins_once_it_has_started():
    engine, hosted = Direct("A", start=3, name="engine"), Scripted([HANG], name="hosted")
    response = await ask(Hedge(delay=1, budget=1, clock=LoopClock())(Failover(hosted, engine)))
    assert (response.text, anyio.current_time(), hosted.in_flight) == ("A", 4, 0)


async def test_an_engine_that_gave_way_is_no_hedge_while_it_starts():
    engine, hosted = Direct(start=30, name="engine"), Scripted([5.0, "B"], name="hosted")
    hedged = Hedge(delay=1, budget=1, clock=LoopClock())(Failover(engine, hosted))
    response = await ask(hedged)
    assert (response.text, anyio.current_time()) == ("B", 5)
    assert engine.prepared == [True, True]
    assert hedged.budget.balance("hedge") == 1  # given back


# ---- coming back to wait ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", [lambda p: p, Retry(3)], ids=["bare", "retry"])
async def test_when_all_others_fail_for_good_the_engine_is_waited_for(around):
    engine, hosted = Direct("A", start=200, name="engine"), Scripted(NotFound(), name="hosted")
    response = await ask(around(Failover(engine, hosted)))
    assert (response.text, engine.prepared, anyio.current_time()) == ("A", [True, False], 200)


async def test_a_retry_asks_others_again_rather_than_wait_for_a_start():
    engine, hosted = Direct(start=1000), Scripted(Overloaded(), "B", name="hosted")
    response = await ask(Retry(3)(Failover(engine, hosted)))
    assert response.text == "B"
    assert anyio.current_time() < 10


async def test_with_its_last_round_the_start_is_waited_for():
    engine, hosted = Direct("A", start=1000), Scripted(then=Overloaded(), name="hosted")
    response = await ask(Retry(3)(Failover(engine, hosted)))
    assert (response.text, hosted.calls) == ("A", 3)
    assert anyio.current_time() == pytest.approx(1000)


async def test_an_open_breaker_elsewhere_is_no_reason_to_fail():
    breaker = CircuitBreaker(clock=LoopClock())
    hosted = Scripted(name="hosted")
    breaker.breaker_of(hosted).isolate()
    engine = Direct("A", start=30)
    response = await ask(Retry(3)(Failover(TIMED(engine), breaker(hosted))))
    assert (response.text, hosted.calls, anyio.current_time()) == ("A", 0, 30)


async def test_coming_back_is_bounded_by_the_deadline_and_needs_leave():
    engine, hosted = Direct(start=1000), Scripted(then=NotFound(), name="hosted")
    with pytest.raises(DeadlineExceeded):
        await ask(Deadline(60)(Retry(3)(Failover(engine, hosted))))
    assert anyio.current_time() == 60
    told = context()
    told.call.cap = 1
    with pytest.raises(AllTargetsFailed) as caught:
        await Failover(engine, hosted).send(WHOLE, told)
    assert [type(error) for _, error in caught.value.attempts] == [EngineNotReady, NotFound]
    assert [(d.kind, d.reason) for d in told.trace.decisions if isinstance(d, AttemptRefused)] == [
        ("failover", "attempts")
    ]


async def test_one_that_refuses_whoever_asks_fails_with_the_others():
    engine, hosted = Direct(start=30, refuses=True), Scripted(NotFound(), name="hosted")
    with pytest.raises(AllTargetsFailed) as caught:
        await ask(Failover(engine, hosted))
    assert caught.value.verdict.action is Action.RETRY_SAME
    assert caught.value.retry_after == 1.0


async def test_engines_within_a_router_give_way_together_and_are_not_paused():
    one, other = Direct("A", start=30, told=40, name="one"), Direct(start=30, told=40, name="other")
    hosted = Scripted("B", "B", NotFound(), name="hosted")
    engines = Failover(one, other)
    stack = Retry(3)(Failover(engines, hosted))
    for _ in range(2):
        response = await ask(stack)
        assert response.text == "B"
        assert not any(isinstance(decision, TargetPaused) for decision in response.trace.decisions)
    assert one.prepared == other.prepared == [True, True]
    response = await ask(stack)  # hosted fails, and the group is waited for
    assert (response.text, anyio.current_time()) == ("A", 30)


async def test_of_two_that_start_the_first_is_waited_for_after_both_were_asked():
    one, other = Direct("A", start=30), Direct("B", start=0)
    assert (await ask(Failover(one, other))).text == "B"
    assert anyio.current_time() == 0
    other.die()
    other.start = 90
    assert (await ask(Failover(one, other))).text == "A"
    assert anyio.current_time() == 30


# ---- what the errors mean --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "action", "health", "prefer_other", "retry_after"),
    [
        (EngineNotReady(retry_after=7), Action.RETRY_SAME, "unknown", True, 7),
        (EngineNotReady(), Action.RETRY_SAME, "unknown", True, None),
        (EngineStartFailed(), Action.RETRY_OTHER, "down", False, None),
        (EngineDied(), Action.RETRY_SAME, "down", True, None),
        (EngineDied(in_stream=True), Action.RETRY_SAME, "down", True, None),
    ],
)
def test_verdicts(error, action, health, prefer_other, retry_after):
    verdict = classify(error)
    assert (verdict.action, verdict.health, verdict.prefer_other) == (action, health, prefer_other)
    assert verdict.retry_after == retry_after


async def test_a_retry_waits_as_long_as_the_engine_said():
    engine = Engine("A", start=12, told=12, refuses=True)
    response = await ask(Retry(3)(TIMED(engine)))
    assert (response.text, engine.calls) == ("A", 1)
    assert anyio.current_time() == pytest.approx(12.6)  # and half of the tenth that parts those who were told the same
    assert response.context.call.attempts == 1


async def test_a_start_that_takes_too_long_to_wait_for_is_told():
    with pytest.raises(EngineNotReady):
        await ask(Retry(3)(TIMED(Engine(start=900, told=900, refuses=True))))
    assert anyio.current_time() == 0


async def test_a_start_neither_opens_a_breaker_nor_holds_a_trial():
    engine, hosted = Engine("A", start=30), Scripted(then="B", name="hosted")
    breaker = CircuitBreaker(consecutive_failures=1, clock=LoopClock())
    stack = Failover(breaker(TIMED(engine)), hosted)
    for _ in range(20):
        assert (await ask(stack)).text == "B"
    assert breaker.breaker_of(engine).state.value == "closed"
    await anyio.sleep(30)
    assert (await ask(stack)).text == "A"


async def test_one_that_died_is_left_for_the_others_at_once():
    engine, hosted = Direct(EngineDied(), name="engine"), Scripted("B", name="hosted")
    budget = RetryBudget(clock=LoopClock())
    response = await ask(Retry(3, budget=budget)(Failover(engine, hosted)))
    assert (response.text, engine.calls, anyio.current_time()) == ("B", 1, 0)


# ---- cancellation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize("case", ["waited for", "gives way", "comes back"])
async def test_cancelled_anywhere(case, request_):
    def scenario():
        engine = Engine([0.5, "A"], start=30, name="engine")
        hosted = Scripted([0.5, NotFound()] if case == "comes back" else [0.5, "B"], name="hosted")
        others = [] if case == "waited for" else [hosted]
        stack = Retry(3, clock=LoopClock())(Failover(TIMED(engine), *others))
        told = context()

        async def run():
            async with await stack.send(request_, told) as response:
                await response.read()

        def check():
            assert engine.in_flight == hosted.in_flight == engine.open_sources == hosted.open_sources == 0
            assert not [entry for entry in told.trace.entries if entry.state in ("running", "abandoned")]
            assert told.call.retries_left == 0

        return run(), check

    assert await sweep(scenario) >= (1 if case == "gives way" else 2)

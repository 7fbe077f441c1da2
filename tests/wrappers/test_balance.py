"""Balance: what it measures, whom it asks first, and how calls spread in simulated traffic."""

import random
from collections import Counter
from dataclasses import replace

import anyio
import pytest

from llmprod import (
    AllTargetsFailed,
    AttemptTimeout,
    AuthenticationFailed,
    BadRequest,
    Breaker,
    BreakerOptions,
    Capabilities,
    CircuitBreaker,
    ContextTooLong,
    Deadline,
    EmbedRequest,
    GenerateRequest,
    InvalidArgument,
    LoopClock,
    Message,
    Overloaded,
    RateLimited,
    ReadError,
    Rejected,
    Retry,
    RetryBudget,
    ServerError,
    Stack,
    StreamInterrupted,
    TargetChosen,
    UnsupportedParameter,
    Usage,
)
from llmprod.context import Lane
from llmprod.events import Finish, UsageUpdate
from llmprod.mechanisms.balancing import BalancePolicy, Weighted
from llmprod.testing.scripted import CUT, HANG, Scripted
from llmprod.wrappers.balance import Balance
from llmprod.wrappers.failover import Failover
from tests.cancel_sweep import sweep
from tests.wrappers.helpers import EMBED, STREAM, WHOLE, Drawn, ask, context, states

REQUESTS = pytest.mark.parametrize("request_", [WHOLE, STREAM, EMBED], ids=["whole", "stream", "embed"])


def balance(*targets, **options) -> Balance:
    return Balance(*targets, **{"clock": LoopClock(), "random": random.Random(5), **options})


def answering(*names: str, after: float = 0.5) -> list[Scripted]:
    return [Scripted(then=[after, "Hi"], name=name) for name in names]


def chosen(told) -> list[TargetChosen]:
    return [decision for decision in told.trace.decisions if isinstance(decision, TargetChosen)]


def pending(made: Balance) -> list[float]:
    return [load.pending for load in made.loads]


# ---- whom it asks ---------------------------------------------------------------------------------------------------


@REQUESTS
async def test_it_asks_one_and_tells_why(request_):
    a, b = answering("a", "b")
    made = balance(a, b)
    told = context()
    response = await made.send(request_, told)
    await response.read()
    assert a.calls + b.calls == 1
    (decision,) = chosen(told)
    assert decision.values() == {"policy": "p2c", "of": 2, "cost": 1.0}
    assert decision.target == response.provider
    assert pending(made) == [0, 0]


@pytest.mark.parametrize("error", [ServerError(), ReadError(), Overloaded(), RateLimited(), AuthenticationFailed()])
async def test_a_failure_moves_on_at_once_even_inside_a_retry(error):
    a, b = Scripted(error, name="a"), Scripted("Hi", name="b")
    stack = Retry(3)(balance(a, b, policy="weighted", weights=[1, 0]))
    response = await ask(stack)
    assert response.text == "Hi"
    assert response.timing.total == 0
    assert states(response) == ["failed", "ok"]


async def test_the_next_one_needs_leave():
    a, b = Scripted(ServerError(), name="a"), Scripted("Hi", name="b")
    stack = Retry(3, attempts_at_most=1)(balance(a, b, policy="weighted", weights=[1, 0]))
    with pytest.raises(ServerError):
        await ask(stack)
    assert b.calls == 0
    budget = RetryBudget(reserve=0, failover_ratio=0, clock=LoopClock())
    a, b = Scripted(ServerError(), name="a"), Scripted("Hi", name="b")
    with pytest.raises(ServerError):
        await ask(Retry(3, budget=budget)(balance(a, b, policy="weighted", weights=[1, 0])))
    assert b.calls == 0


async def test_in_the_next_round_those_that_failed_come_last():
    a = Scripted(ServerError(), "a", name="a")
    b = Scripted(ServerError(), "b", name="b")
    c = Scripted(ServerError(), "c", name="c")
    stack = Retry(3)(balance(a, b, c, policy="weighted", weights=[1, 0, 0]))
    told = context()
    with pytest.raises(AllTargetsFailed):
        await balance(*(Scripted(ServerError()) for _ in range(3))).send(WHOLE, context())
    response = await stack.send(WHOLE, told)
    assert response.text == "a"  # all have failed once, so the policy decides again
    assert [decision.of for decision in chosen(told)] == [3, 3]


async def test_a_fatal_error_goes_to_the_caller_and_is_nobodys_fault():
    a, b = Scripted(BadRequest(), name="a"), Scripted("Hi", name="b")
    made = balance(a, b, policy="weighted", weights=[1, 0])
    with pytest.raises(BadRequest):
        await ask(made)
    assert b.calls == 0
    assert made.loads[0].estimate == pytest.approx(1)
    assert pending(made) == [0, 0]


async def test_one_whose_breaker_is_open_is_not_asked_first():
    breaker = Breaker(BreakerOptions(consecutive_failures=1), clock=LoopClock(), random=Drawn())
    breaker.acquire().failure()
    a, b = answering("a", "b")
    made = balance(CircuitBreaker(breaker=breaker)(a), b, policy="weighted", weights=[1, 0])
    told = context()
    response = await made.send(WHOLE, told)
    assert states(response) == ["ok"]  # not even skipped: it was known beforehand
    assert [decision.of for decision in chosen(told)] == [1]
    assert made.ready
    await anyio.sleep(5)
    await ask(made)
    assert (a.calls, b.calls) == (1, 1)


async def test_when_all_breakers_are_open_the_least_bad_is_asked():
    def opened() -> Breaker:
        made = Breaker(BreakerOptions(consecutive_failures=1), clock=LoopClock(), random=Drawn())
        made.acquire().failure()
        return made

    a, b = answering("a", "b")
    made = balance(*(CircuitBreaker(breaker=opened())(target) for target in (a, b)))
    assert not made.ready
    assert (await ask(made)).text == "Hi"


async def test_one_that_asked_for_a_wait_is_left_alone_by_all_calls():
    a, b = Scripted(RateLimited(retry_after=30), then="a", name="a"), Scripted(then="b", name="b")
    made = balance(a, b, policy="weighted", weights=[9, 1])
    for _ in range(20):
        told = context()
        await made.send(WHOLE, told)
    assert a.calls == 1
    assert states(told) == ["ok"]
    await anyio.sleep(31)
    for _ in range(10):
        await ask(made)
    assert a.calls == 10


async def test_one_that_lacks_what_is_asked_takes_no_turn():
    blind = Scripted(then="Hi", name="blind", capabilities=Capabilities(embeddings=False))
    able = Scripted(then="Hi", name="able")
    made = balance(blind, able, policy="weighted", weights=[1, 1])
    for _ in range(4):
        response = await ask(made, EMBED)
        assert states(response) == ["ok"]
    for _ in range(4):
        await ask(made)
    assert blind.calls == 2


async def test_it_does_not_choose_the_one_that_the_attempt_beside_is_asking():
    a, b, c = answering("a", "b", "c")
    made = balance(a, b, c)
    for _ in range(10):
        told = replace(context(), lane=Lane(other=Lane(asking=id(a))))
        assert (await made.send(WHOLE, told)).provider != "a"
        assert [decision.of for decision in chosen(told)] == [2]


async def test_one_target_is_just_asked():
    (a,) = answering("a")
    told = context()
    await balance(a).send(WHOLE, told)
    assert chosen(told) == []


async def test_a_balance_is_a_target_of_another():
    a, b, c = answering("a", "b", "c")
    inner = balance(a, b, policy="weighted", weights=[1, 1])
    response = await ask(Failover(inner, c))
    assert response.provider == "a"
    assert response.text == "Hi"


# ---- what it measures -----------------------------------------------------------------------------------------------


async def test_a_stream_is_measured_at_its_first_token_and_pending_to_its_end():
    (a,) = [Scripted([2.0, "Hel", 5.0, "lo"], name="a")]
    made = balance(a)
    response = await made.send(STREAM, context())
    assert made.loads[0].estimate == pytest.approx(2, rel=0.01)
    assert pending(made) == [pytest.approx(1)]
    await response.read()
    assert pending(made) == [0]
    assert made.loads[0].estimate == pytest.approx(2 / 2.718 ** (5 / 10), rel=0.01)


async def test_a_whole_answer_is_measured_by_its_length():
    long = [31.5, "Hi", UsageUpdate(Usage(input=5, output=640)), Finish("stop")]
    made = balance(Scripted(long))
    await ask(made)
    assert made.loads[0].estimate == pytest.approx(1.5, rel=0.01)


async def test_a_whole_answer_without_usage_is_measured_by_its_text():
    made = balance(Scripted([3.0, "x" * 256, Finish("stop")]))
    await ask(made)
    assert made.loads[0].estimate == pytest.approx(1.0, rel=0.01)


async def test_a_long_prompt_does_not_make_a_target_slow():
    prompt = GenerateRequest(messages=(Message.user("word " * 32_768),), stream=True)
    made = balance(Scripted([11.0, "Hi"]))
    await ask(made, prompt)
    assert made.loads[0].estimate == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize(
    ("error", "penalised"),
    [
        (ServerError(), True),
        (RateLimited(), True),
        (AuthenticationFailed(), True),
        (Rejected(), False),
        (ContextTooLong(), False),
        (UnsupportedParameter("a", ("seed",)), False),
        (AllTargetsFailed((("a", ServerError()), ("b", Rejected())), Retry().classify(ServerError())), True),
        (AllTargetsFailed((("a", Rejected()),), Retry().classify(ServerError())), False),
        (ValueError(), False),
    ],
    ids=["5xx", "429", "401", "rejected", "too long", "unsupported", "all failed", "none asked", "a bug"],
)
async def test_what_counts_against_a_target(error, penalised):
    made = balance(Scripted(error))
    with pytest.raises(Exception):  # noqa: B017
        await ask(made)
    assert made.loads[0].estimate == pytest.approx(10 if penalised else 1, rel=0.01)
    assert pending(made) == [0]


@pytest.mark.parametrize("broken", [[0.5, "Hel", ReadError(in_stream=True)], [0.5, "Hel", CUT]], ids=["reset", "cut"])
async def test_a_stream_that_breaks_counts_against_its_target(broken):
    made = balance(Scripted(broken))
    with pytest.raises(StreamInterrupted):
        await ask(made, STREAM)
    assert made.loads[0].estimate == pytest.approx(10, rel=0.01)
    assert pending(made) == [0]


async def test_a_stream_that_the_caller_closes_counts_for_nothing():
    made = balance(Scripted([0.5, "Hel", HANG]))
    async with await made.send(STREAM, context()):
        pass
    assert made.loads[0].estimate == pytest.approx(1, rel=0.06)
    assert pending(made) == [0]


async def test_a_call_given_up_before_its_first_token_tells_how_long_it_waited():
    made = balance(Scripted([HANG]))
    with anyio.move_on_after(7):
        await ask(made, STREAM)
    assert made.loads[0].estimate == pytest.approx(7)
    assert pending(made) == [0]


# ---- sticky ---------------------------------------------------------------------------------------------------------


async def test_a_session_stays_moves_when_it_must_and_comes_back():
    targets = [Scripted(then="Hi", name=name) for name in "abc"]
    made = balance(*targets, sticky="session")
    told = context(tags={"session": "s1"})
    home = (await made.send(WHOLE, told)).provider
    assert chosen(told)[0].values() == {"policy": "sticky", "of": 3}
    for _ in range(10):
        assert (await ask(made, tags={"session": "s1"})).provider == home
    number = [target.name for target in targets].index(home)
    targets[number]._steps = [None] * targets[number].calls + [RateLimited(retry_after=20)]
    moved = (await ask(made, tags={"session": "s1"})).provider
    assert moved != home
    for _ in range(10):
        assert (await ask(made, tags={"session": "s1"})).provider == moved
    await anyio.sleep(21)
    assert (await ask(made, tags={"session": "s1"})).provider == home


async def test_many_sessions_are_spread_and_every_call_of_one_hits():
    targets = [Scripted(then="Hi", name=name) for name in "abcd"]
    made = balance(*targets, sticky="session")
    homes: dict[str, str] = {}
    for number in range(400):
        session = f"s{number % 100}"
        provider = (await ask(made, tags={"session": session})).provider
        assert homes.setdefault(session, provider) == provider
    assert all(12 <= Counter(homes.values())[name] <= 40 for name in "abcd")


async def test_without_a_session_the_policy_decides():
    made = balance(*answering("a", "b"), sticky="session", policy="weighted", weights=[0, 1])
    told = context()
    response = await made.send(WHOLE, told)
    assert response.provider == "b"
    assert chosen(told)[0].policy == "weighted"


async def test_by_prefix_a_conversation_stays():
    made = balance(*answering(*"abcdefgh"), sticky="prefix")
    messages = [Message.system("You are brief."), Message.user("Hello")]
    seen = set()
    for turn in range(6):
        seen.add((await ask(made, GenerateRequest(messages=tuple(messages)))).provider)
        messages += [Message.assistant("Hi"), Message.user(f"turn {turn}")]
    assert len(seen) == 1


async def test_by_a_function_of_ones_own():
    made = balance(*answering(*"abcd"), sticky=lambda request, context: context.tags.get("tenant"))
    first = {(await ask(made, tags={"tenant": "t"})).provider for _ in range(5)}
    assert len(first) == 1
    wrong = balance(*answering("a", "b"), sticky=lambda request, context: 3)
    with pytest.raises(InvalidArgument, match="sticky: got a function that returned int"):
        await ask(wrong)


async def test_sticky_keeps_to_the_level():
    made = balance(*answering(*"abcd"), policy="priority", priorities=[0, 0, 1, 1], sticky="session")
    for number in range(20):
        assert (await ask(made, tags={"session": str(number)})).provider in "ab"


# ---- traffic --------------------------------------------------------------------------------------------------------


class Sim(Scripted):
    """A target with a first-token time and a failure of its own, both of which a test may change."""

    def __init__(self, name: str, ttft: float = 0.5, error: Exception | None = None) -> None:
        super().__init__(name=name)
        self.ttft = ttft
        self.error = error
        self.most = 0

    def _step(self):
        self.most = max(self.most, self.in_flight + 1)
        return [self.ttft, "Hi"] if self.error is None else [0.01, self.error]


async def traffic(made, *, seconds: float, rate: float = 5.0, request_=STREAM, **options) -> int:
    """Poisson arrivals, each a task; returns how many of them failed."""
    drawn, failed = random.Random(11), 0

    async def one() -> None:
        nonlocal failed
        try:
            await ask(made, request_, **options)
        except Exception:
            failed += 1

    async with anyio.create_task_group() as group:
        end = anyio.current_time() + seconds
        while anyio.current_time() < end:
            group.start_soon(one)
            await anyio.sleep(drawn.expovariate(rate))
    return failed


async def test_a_slow_one_of_three_gets_few_calls_and_its_share_when_it_heals():
    slow, b, c = Sim("slow", 8.0), Sim("b"), Sim("c")
    made = balance(slow, b, c)
    await traffic(made, seconds=120)
    total = slow.calls + b.calls + c.calls
    assert slow.calls < 0.05 * total
    assert abs(b.calls - c.calls) < 0.2 * total
    slow.ttft = 0.5
    before = slow.calls
    await traffic(made, seconds=120)
    assert slow.calls - before > 100  # a third of about 600 once it was tried again


async def test_a_fast_failing_one_gets_few_calls_and_is_found_again():
    bad, b, c = Sim("bad", error=ServerError()), Sim("b"), Sim("c")
    made = balance(bad, b, c)
    assert await traffic(made, seconds=120) == 0  # each moved on at once
    assert bad.calls < 0.02 * (b.calls + c.calls)
    bad.error = None
    before = bad.calls
    await traffic(made, seconds=240)
    assert bad.calls - before > 150


async def test_a_silent_one_gets_few_calls_and_nobody_waits_for_it_twice():
    silent, b, c = Sim("silent", 1e6), Sim("b"), Sim("c")
    limited = AttemptTimeout(first_token=5)
    assert await traffic(balance(limited(silent), limited(b), limited(c)), seconds=120) == 0
    assert silent.calls < 0.05 * (b.calls + c.calls)


async def test_equals_share_the_load():
    targets = [Sim(str(number)) for number in range(5)]
    await traffic(balance(*targets), seconds=8, rate=100)
    counted = [target.calls for target in targets]
    assert max(counted) < 1.15 * sum(counted) / 5
    # 50 calls are under way in the mean, 10 a target; at the busiest moment the fullest stays near that.
    assert max(target.most for target in targets) <= 17


async def test_weights_are_kept_in_traffic():
    a, b, c = Sim("a"), Sim("b"), Sim("c")
    await traffic(balance(a, b, c, policy="weighted", weights=[7, 2, 1]), seconds=60)
    total = a.calls + b.calls + c.calls
    assert [round(10 * target.calls / total, 1) for target in (a, b, c)] == [7, 2, 1]


async def test_levels_in_traffic():
    a, b, c = Sim("a"), Sim("b"), Sim("c", error=Overloaded())
    made = balance(c, a, b, policy="priority", priorities=[0, 1, 1])
    assert await traffic(made, seconds=10) == 0
    assert a.calls > 10
    assert b.calls > 10
    c.error = None
    a.requests.clear(), b.requests.clear()
    await traffic(made, seconds=10)
    assert (a.calls, b.calls) == (0, 0)


async def test_one_hot_prefix_does_not_overload_its_target():
    targets = [Sim(str(number), 1.0) for number in range(4)]
    made = balance(*targets, sticky=lambda request, context: "hot")
    await traffic(made, seconds=10, rate=80)  # 80 under way in the mean, 20 a target
    assert max(target.most for target in targets) <= 1.25 * 120 / 4 + 1
    assert sorted(target.calls for target in targets)[2] > 100  # three at their bound, and what overflows


# ---- cancellation ---------------------------------------------------------------------------------------------------


@REQUESTS
@pytest.mark.parametrize("sticky", [None, "session"])
async def test_cancelled_anywhere_it_gives_all_back(request_, sticky):
    def scenario():
        a = Scripted(Overloaded(), then=[0.5, "Hel", 0.5, "lo"], name="a")
        b = Scripted(then=[0.5, "Hel", 0.5, "lo"], name="b")
        made = balance(a, b, policy="weighted", weights=[1, 0], sticky=sticky)
        told = context(tags={"session": "s"})

        async def run():
            response = await made.send(request_, told)
            async with response:
                await response.read()

        def check():
            assert [a.in_flight, b.in_flight, a.open_sources, b.open_sources] == [0, 0, 0, 0]
            assert pending(made) == [0, 0]
            assert [load.calls for load in made.loads] == [0, 0]
            failures = [entry.target for entry in told.trace.entries if entry.state == "failed"]
            for load, target in zip(made.loads, (a, b), strict=True):
                assert (load._row > 0) == (target.name in failures)

        return run(), check

    assert await sweep(scenario) >= 3


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_cancelled_anywhere_in_a_whole_stack(request_):
    def scenario():
        a = Scripted([0.5, ServerError()], then=[0.5, "Hel", 0.5, "lo"], name="a")
        b = Scripted([0.5, ReadError()], then=[0.5, "Hel", 0.5, "lo"], name="b")
        breaker = CircuitBreaker(clock=LoopClock(), random=Drawn())
        guard = Stack(breaker, AttemptTimeout())
        guarded = [guard(a), guard(b)]
        made = balance(*guarded, policy="weighted", weights=[1, 0])
        budget = RetryBudget(reserve=5, clock=LoopClock())
        stack = Stack(Deadline(60), Retry(3, budget=budget))(made)
        told = context()

        async def run():
            async with await stack.send(request_, told) as response:
                await response.read()

        def check():
            assert [a.in_flight, b.in_flight, a.open_sources, b.open_sources] == [0, 0, 0, 0]
            assert pending(made) == [0, 0]
            entries = told.trace.entries
            assert "running" not in [entry.state for entry in entries]
            for target, load in zip((a, b), made.loads, strict=True):
                failed = any(entry.target == target.name and entry.state == "failed" for entry in entries)
                assert (load.estimate > 5) == failed, "a penalty without a failure, or a failure without one"

        return run(), check

    assert await sweep(scenario) >= 5


# ---- arguments ------------------------------------------------------------------------------------------------------

A, B = answering("a", "b")
WRONG = {
    "no target": ((), {}, "targets"),
    "no provider": (("a",), {}, "targets"),
    "the same twice": ((A, A), {}, "targets"),
    "an unknown policy": ((A, B), {"policy": "best"}, "policy"),
    "weighted without weights": ((A, B), {"policy": "weighted"}, "weights"),
    "too few weights": ((A, B), {"policy": "weighted", "weights": [1]}, "weights"),
    "weights for p2c": ((A, B), {"weights": [1, 1]}, "weights"),
    "priority without levels": ((A, B), {"policy": "priority"}, "priorities"),
    "levels for p2c": ((A, B), {"priorities": [0, 1]}, "priorities"),
    "a policy for others": ((A, B), {"policy": Weighted([1])}, "weights"),
    "sticky by what": ((A, B), {"sticky": "user"}, "sticky"),
    "decay": ((A, B), {"decay": 0}, "decay"),
    "penalty": ((A, B), {"penalty": "10"}, "penalty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arguments_out_of_range_are_refused(case):
    targets, options, field = WRONG[case]
    with pytest.raises(InvalidArgument, match=rf"{field}: got .*; allowed: "):
        Balance(*targets, **options)


async def test_a_policy_of_ones_own():
    class Last(BalancePolicy):
        name = "last"

        def order(self, ready, loads, random, key=None):
            return sorted(ready, reverse=True)

    made = balance(*answering("a", "b", "c"), policy=Last())
    told = context()
    assert (await made.send(WHOLE, told)).provider == "c"
    assert chosen(told)[0].values() == {"policy": "last", "of": 3}


def test_it_says_what_it_is():
    made = Balance(A, B)
    assert repr(made) == "Balance(<Scripted a>, <Scripted b>)"
    assert made.name == "a | b"


async def test_a_request_of_another_kind_has_no_prompt_to_look_at():
    class Opaque:
        stream, max_tokens, drop_unsupported = False, None, False

    from llmprod.mechanisms.call_weight import CallWeight
    from llmprod.mechanisms.prefix_key import prefix_key

    assert CallWeight().weigh(Opaque()).weight == 1
    assert prefix_key(Opaque()) is None
    assert CallWeight().weigh(EmbedRequest(inputs=("Hi",))).weight == 1

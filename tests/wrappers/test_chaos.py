"""Chaos: each kind, whole and streamed, through the wrappers around it; who is spared; that a seed repeats it."""

import anyio
import pytest

from llmprod import (
    Action,
    AllTargetsFailed,
    AttemptTimedOut,
    AttemptTimeout,
    CallError,
    CircuitBreaker,
    Deadline,
    DeadlineExceeded,
    Failover,
    FirstTokenTimeout,
    IdleTimeout,
    InvalidArgument,
    LoopClock,
    Overloaded,
    Phase,
    RateLimited,
    ReadError,
    Response,
    Retry,
    ServerError,
    Stack,
    Static,
    StreamInterrupted,
    TruncatedAnswer,
    classify,
    lint,
    resilient,
)
from llmprod._functions.request import FunctionRequest
from llmprod.decisions import ChaosInjected
from llmprod.events import Finish, TextDelta
from llmprod.testing.scripted import Scripted
from llmprod.wrappers._injected import INJECTED
from llmprod.wrappers.chaos import Chaos
from tests.cancel_sweep import sweep
from tests.wrappers.helpers import EMBED, STREAM, WHOLE, ask, context, states

ANSWER = ["Hel", "lo", " wor", "ld"]
FUNCTION = FunctionRequest(args=(), kwargs={}).as_request()


def injected(told):
    return [(decision.kind, decision.target) for decision in told.trace.decisions if type(decision) is ChaosInjected]


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [WHOLE, STREAM, EMBED, FUNCTION], ids=["whole", "stream", "embed", "function"])
async def test_a_fault_is_raised_instead_of_asking(request_):
    provider, told = Scripted(then=ANSWER), context()
    with pytest.raises(RateLimited) as caught:
        await Chaos(fault=RateLimited(status=429, retry_after=2), rate=1)(provider).send(request_, told)
    error = caught.value
    assert provider.calls == 0
    assert (error.provider, error.code, error.detail) == ("scripted", INJECTED, "injected by Chaos")
    assert (error.status, error.retry_after) == (429, 2)
    assert injected(told) == [("fault", "scripted")]
    assert told.trace.decisions[0].error == "RateLimited"
    assert [(e.state, e.error, e.reason) for e in told.trace.entries] == [("failed", "RateLimited", INJECTED)]
    assert told.call.attempts == 1  # a provider that had failed would have been asked


async def test_the_default_faults_are_of_all_sorts_and_all_pass():
    stack = Chaos(fault_rate=1, seed=1)(Scripted())
    kinds = set()
    for _ in range(200):
        with pytest.raises(CallError, match="injected by Chaos") as caught:
            await ask(stack)
        assert caught.value.transient
        assert classify(caught.value).action in (Action.RETRY_SAME, Action.RETRY_OTHER)
        kinds.add(type(caught.value).__name__)
    assert kinds == {
        "RateLimited", "Overloaded", "ServerError", "ReadError", "ConnectError", "ConnectTimeout", "AttemptTimedOut",
    }  # fmt: skip


async def test_faults_may_be_exceptions_classes_and_functions():
    given = KeyError("own"), ServerError(code="mine", detail="said so"), Overloaded, lambda: OSError("made")
    stack = Chaos(fault=given, rate=1, seed=2)(Scripted())
    seen = {}
    for _ in range(100):
        with pytest.raises(Exception) as caught:
            await ask(stack)
        seen[type(caught.value)] = caught.value
    assert set(seen) == {KeyError, ServerError, Overloaded, OSError}
    assert seen[KeyError] is not given[0]
    assert seen[KeyError].__notes__ == seen[OSError].__notes__ == ["injected by Chaos"]
    assert (seen[ServerError].code, seen[ServerError].detail) == ("mine", "said so; injected by Chaos")
    assert given[1].detail == "said so"
    assert given[0].__traceback__ is None


async def test_an_exception_that_cannot_be_copied_is_raised_itself():
    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(one)

    given = Odd(1, 2)
    with pytest.raises(Odd) as caught:
        await ask(Chaos(fault=given, rate=1)(Scripted()))
    assert caught.value is given


async def test_the_stack_around_it_does_what_it_would_for_a_broken_provider():
    broken = Stack(CircuitBreaker(consecutive_failures=2, clock=LoopClock()), Chaos(fault=ServerError, rate=1))
    primary, fallback = Scripted(then=ANSWER, name="a"), Scripted(then=ANSWER, name="b")
    stack = Retry(3)(Failover(broken(primary), fallback))
    assert lint(stack) == []
    for _ in range(3):
        response = await ask(stack)
        assert (response.provider, response.text) == ("b", "Hello world")
    assert primary.calls == 0
    assert states(response) == ["skipped", "ok"]


async def test_injected_attempts_count_towards_the_cap():
    provider, told = Scripted(), context()
    stack = Retry(10, attempts_at_most=4)(Chaos(fault=ServerError, rate=1)(provider))
    with pytest.raises(ServerError):
        await stack.send(WHOLE, told)
    assert told.call.attempts == 4
    assert len(told.trace.attempts) == 4


# ---- outcomes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_another_outcome(request_):
    provider, told = Scripted(), context()
    response = await Chaos(outcome="Nonsense.", rate=1)(provider).send(request_, told)
    await response.read()
    assert (response.text, response.model, response.provider) == ("Nonsense.", "chaos", "scripted")
    assert (response.finish_reason, response.raw_finish) == ("stop", INJECTED)
    assert response.usage.total == 0
    assert (provider.calls, injected(told), states(response)) == (0, [("outcome", "scripted")], ["ok"])


async def test_an_outcome_of_events_and_one_that_is_made():
    events = [TextDelta("half"), Finish("length")]
    assert (await ask(Chaos(outcome=events, rate=1)(Scripted()))).finish_reason == "length"

    def made(request, context):
        return Response(provider="made", context=context, request=request, embeddings=[[9.0]])

    assert (await ask(Chaos(outcome=made, rate=1)(Scripted()), EMBED)).embeddings == [[9.0]]

    def broken(request, context):
        raise KeyError("x")

    told = context()
    with pytest.raises(KeyError):
        await Chaos(outcome=broken, rate=1)(Scripted()).send(WHOLE, told)
    assert [entry.state for entry in told.trace.entries] == ["failed"]


@pytest.mark.parametrize("request_", [EMBED, FUNCTION], ids=["embed", "function"])
async def test_a_text_is_no_outcome_for_what_is_not_generated(request_):
    provider, told = Scripted(then=ANSWER), context()
    provider._capabilities = type("Any", (type(provider.capabilities),), {"_lacking": lambda *_: set()})()
    await Chaos(outcome="Nonsense.", rate=1)(provider).send(request_, told)
    assert provider.calls == 1
    assert injected(told) == []


# ---- latency ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [WHOLE, STREAM, EMBED], ids=["whole", "stream", "embed"])
async def test_latency_comes_before_the_answer(request_):
    told = context()
    response = await Chaos(latency=7, rate=1)(Scripted(ANSWER)).send(request_, told)
    await response.read()
    assert response.timing.total == pytest.approx(7)
    assert told.trace.decisions[0].seconds == 7
    assert states(response) == ["ok"]


async def test_latency_is_cut_short_by_the_limits_around_it():
    slow = Chaos(latency=100, rate=1)
    told = context()
    with pytest.raises(FirstTokenTimeout):
        await Stack(AttemptTimeout(first_token=5), slow)(Scripted()).send(STREAM, told)
    assert [(e.state, e.error, e.seconds) for e in told.trace.entries] == [("failed", "FirstTokenTimeout", 5)]
    told = context()
    with pytest.raises(AttemptTimedOut):
        await Stack(AttemptTimeout(total=5), slow)(Scripted()).send(WHOLE, told)
    assert told.call.attempts == 1
    with pytest.raises(DeadlineExceeded):
        await ask(Stack(Deadline(5), slow)(Scripted()))


async def test_latency_and_a_fault_make_a_slow_failure():
    told = context()
    with pytest.raises(ServerError):
        await Chaos(latency=3, fault=ServerError, rate=1)(Scripted()).send(WHOLE, told)
    assert told.elapsed == pytest.approx(3)
    assert injected(told) == [("latency", "scripted"), ("fault", "scripted")]


# ---- cuts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cut", "text"), [(1, "Hel"), (3, "Hello wor"), (4, "Hello world"), (99, "Hello world")])
async def test_a_stream_is_cut(cut, text):
    provider, told = Scripted(ANSWER), context()
    response = await Chaos(cut=cut, rate=1)(provider).send(STREAM, told)
    assert injected(told) == []  # not yet
    with pytest.raises(StreamInterrupted, match=INJECTED) as caught:
        await response.read()
    cause = caught.value.__cause__
    assert type(cause) is ReadError
    assert cause.in_stream
    assert (caught.value.partial.text, caught.value.code) == (text, INJECTED)
    assert injected(told) == [("cut", "scripted")]
    assert told.trace.decisions[0].events == min(cut, 4)
    assert [(e.state, e.error, e.reason) for e in told.trace.entries] == [("interrupted", "ReadError", INJECTED)]
    assert (provider.in_flight, provider.open_sources) == (0, 0)


async def test_a_stream_closed_before_its_cut_was_not_cut():
    told = context()
    async with await Chaos(cut=3, rate=1)(Scripted(ANSWER)).send(STREAM, told) as response:
        assert [await anext(response) for _ in range(2)]
    assert injected(told) == []
    assert states(response) == ["closed"]


@pytest.mark.parametrize("request_", [WHOLE, EMBED], ids=["whole", "embed"])
async def test_a_whole_answer_is_lost_after_it_was_paid_for(request_):
    provider, told = Scripted("Hello"), context()
    with pytest.raises(TruncatedAnswer, match="injected by Chaos") as caught:
        await Chaos(cut=5, rate=1)(provider).send(request_, told)
    assert provider.calls == 1
    assert caught.value.usage.total == 2
    (entry,) = told.trace.entries
    assert (entry.state, entry.error, entry.usage.total) == ("failed", "TruncatedAnswer", 2)


async def test_a_whole_answer_to_a_stream_request_is_lost_as_well():
    with pytest.raises(TruncatedAnswer):
        await ask(Chaos(cut=1, rate=1)(Static("Hello")), STREAM)


async def test_the_breaker_sees_a_cut():
    stack = Stack(CircuitBreaker(consecutive_failures=2, clock=LoopClock()), Chaos(cut=1, rate=1))(
        Scripted(then=ANSWER)
    )
    for _ in range(2):
        with pytest.raises(StreamInterrupted):
            await ask(stack, STREAM)
    with pytest.raises(CallError, match="breaker"):
        await ask(stack, STREAM)


# ---- decorated functions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [["a", "b", "c"], [object(), object(), object()]], ids=["texts", "unknown values"])
async def test_the_items_of_a_functions_stream_are_counted(values):
    @resilient(Chaos(cut=2, drip=3, rate=1), clock=LoopClock())
    async def stream():
        for value in values:
            yield value

    seen, started = [], anyio.current_time()

    async def read():
        async for value in stream():
            seen.append(value)  # noqa: PERF401

    with pytest.raises(StreamInterrupted, match=INJECTED):
        await read()
    assert seen == values[:2]
    assert anyio.current_time() - started == pytest.approx(6)


async def test_a_functions_value_is_lost():
    calls = []

    @resilient(Chaos(cut=2, rate=1), clock=LoopClock())
    async def whole():
        calls.append(1)
        return "value"

    with pytest.raises(TruncatedAnswer):
        await whole()
    assert calls == [1]


# ---- drip ------------------------------------------------------------------------------------------------------------


async def test_a_drip_slows_each_event():
    told = context()
    response = await Chaos(drip=2, rate=1)(Scripted(ANSWER)).send(STREAM, told)
    times = [told.elapsed async for event in response if type(event) is TextDelta]
    assert times == pytest.approx([2, 4, 6, 8])
    assert injected(told) == [("drip", "scripted")]
    assert told.trace.decisions[0].seconds == 2
    assert response.text == "Hello world"


async def test_a_drip_is_nothing_to_a_whole_answer():
    response = await ask(Chaos(drip=2, rate=1)(Scripted(ANSWER)))
    assert response.timing.total == 0
    assert injected(response) == []


async def test_a_drip_meets_the_idle_limit():
    stack = Stack(AttemptTimeout(idle=1), Chaos(drip=2, rate=1))(Scripted(ANSWER))
    with pytest.raises(StreamInterrupted) as caught:
        await ask(stack, STREAM)
    assert type(caught.value.__cause__) is IdleTimeout


async def test_a_drip_and_a_cut():
    told = context()
    response = await Chaos(drip=2, cut=2, rate=1)(Scripted(ANSWER)).send(STREAM, told)
    with pytest.raises(StreamInterrupted):
        await response.read()
    assert (response.text, told.elapsed) == ("Hello", pytest.approx(4))


# ---- who, how often --------------------------------------------------------------------------------------------------


async def outcomes(stack, calls=300):
    seen = ""
    for _ in range(calls):
        try:
            seen += "." if (await ask(stack)).text else "?"
        except CallError as error:
            seen += type(error).__name__[0]
    return seen


async def test_a_seed_repeats_it_and_targets_differ():
    chaos = Chaos(fault_rate=0.3, latency_rate=0.1, seed=5)
    one, two = chaos(Scripted(then=ANSWER)), chaos(Scripted(then=ANSWER))
    first, second = await outcomes(one), await outcomes(two)
    again = await outcomes(Chaos(fault_rate=0.3, seed=5)(Scripted(then=ANSWER)))
    assert first == again
    assert first != second
    assert 60 < sum(letter != "." for letter in first) < 120


async def test_without_a_seed_it_differs():
    runs = {await outcomes(Chaos(fault_rate=0.5)(Scripted(then=ANSWER)), 60) for _ in range(2)}
    assert len(runs) == 2


async def test_the_default_rate_is_one_in_a_thousand():
    assert Chaos(fault=ServerError).rates == {"fault": 0.001}
    assert Chaos(latency_rate=0.2, cut=3, rate=0.5).rates == {"latency": 0.2, "cut": 0.5}


async def test_for_one_tenant_alone():
    chaos = Chaos(fault=ServerError, rate=1, enabled=lambda request, context: context.tags.get("tenant") == "game day")
    provider = Scripted(then=ANSWER)
    stack = chaos(provider)
    assert (await ask(stack, tags={"tenant": "other"})).text
    with pytest.raises(ServerError):
        await ask(stack, tags={"tenant": "game day"})
    chaos.enabled = False
    assert (await ask(stack, tags={"tenant": "game day"})).text
    assert "disabled" in repr(chaos)
    chaos.enabled = True
    with pytest.raises(ServerError):
        await ask(stack)
    assert provider.calls == 2


async def test_calls_that_are_spared_take_nothing_from_the_sequence():
    only = Chaos(fault_rate=0.3, seed=5, enabled=lambda request, context: request is WHOLE)
    alone = Chaos(fault_rate=0.3, seed=5)(Scripted(then=ANSWER))
    mixed = only(Scripted(then=ANSWER))
    seen = ""
    for _ in range(50):
        await ask(mixed, STREAM)
        seen += await outcomes(mixed, 1)
    assert seen == await outcomes(alone, 50)


async def test_an_enabled_that_fails_spares_the_call_and_says_so(caplog):
    def broken(request, context):
        raise KeyError("tenant")

    assert (await ask(Chaos(fault=ServerError, rate=1, enabled=broken)(Scripted(ANSWER)))).text
    assert "its enabled raised KeyError" in caplog.text


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, "rates"),
        ({"rate": 0.5}, "rates"),
        ({"fault_rate": 1.5}, "fault_rate"),
        ({"fault": ServerError, "rate": -1}, "rate"),
        ({"fault": "x"}, "fault"),
        ({"fault": []}, "fault"),
        ({"fault": KeyboardInterrupt}, "fault"),
        ({"fault": InvalidArgument}, "fault"),
        ({"outcome": ""}, "outcome"),
        ({"outcome": [TextDelta("x")]}, "outcome"),
        ({"outcome_rate": 0.5}, "outcome"),
        ({"latency": -1}, "latency"),
        ({"latency": (1, 2, 3)}, "latency"),
        ({"cut": 0}, "cut"),
        ({"cut": (3, 2)}, "cut's greatest"),
        ({"drip": 0}, "drip"),
        ({"fault": ServerError, "seed": "x"}, "seed"),
        ({"fault": ServerError, "enabled": "yes"}, "enabled"),
    ],
)
def test_bad_options_are_named(options, field):
    with pytest.raises(InvalidArgument) as caught:
        Chaos(**options)
    assert caught.value.field == field


def test_functions_must_not_be_async():
    async def later(request, context): ...

    for field in ("enabled", "outcome"):
        with pytest.raises(InvalidArgument, match="not async"):
            Chaos(**{"fault": ServerError, field: later})


def test_it_stands_innermost():
    assert Chaos.phase is Phase.CHAOS is max(Phase)
    assert repr(Chaos(fault_rate=0.1, cut=3)) == "Chaos(fault 0.1, cut 0.001)"


# ---- cancellation ----------------------------------------------------------------------------------------------------

SWEPT = {
    "latency": ({"latency": 2}, {"ok"}),
    "drip": ({"drip": 2}, {"ok"}),
    "latency, drip and cut": ({"latency": 2, "drip": 2, "cut": 2}, {"interrupted", "failed"}),
}


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", SWEPT)
async def test_cancelled_anywhere(kind, request_):
    options, _ = SWEPT[kind]

    def scenario():
        provider = Scripted([0.5, "Hel", 0.5, "lo", 0.5])
        told = context()

        async def run():
            try:
                response = await Chaos(**options, rate=1)(provider).send(request_, told)
                async with response:
                    await response.read()
            except (StreamInterrupted, TruncatedAnswer):
                pass

        def check():
            assert (provider.in_flight, provider.open_sources) == (0, 0)
            ended = [entry.state for entry in told.trace.entries]
            assert len(ended) == told.call.attempts == 1
            assert "running" not in ended

        return run(), check

    assert await sweep(scenario) >= 2


async def test_when_all_targets_are_broken_the_error_says_by_whom():
    stack = Failover(*(Chaos(fault=Overloaded, rate=1)(Scripted(name=name)) for name in "ab"))
    with pytest.raises(AllTargetsFailed, match="injected by Chaos"):
        await ask(stack)

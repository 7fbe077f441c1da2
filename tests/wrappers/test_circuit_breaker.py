"""CircuitBreaker: what an attempt tells the breaker, and what the caller sees of it."""

import gc

import anyio
import pytest

from llmprod import (
    Action,
    AllTargetsFailed,
    AuthenticationFailed,
    BadRequest,
    Breaker,
    BreakerOptions,
    BreakerState,
    CircuitBreaker,
    CircuitOpen,
    Failover,
    LoopClock,
    OpenAI,
    Overloaded,
    RateLimited,
    ReadError,
    Rejected,
    ServerError,
    StreamInterrupted,
    Verdict,
)
from llmprod.decisions import BreakerChanged
from llmprod.testing.scripted import HANG, Scripted
from tests.wrappers.helpers import STREAM, WHOLE, Drawn, ask, context

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def breaker(**options) -> Breaker:
    """Opens after two failures in a row, for 3.75 s (half of the bound, and half of the other half)."""
    settings = {"consecutive_failures": 2, "open_for": 5.0, "successes_to_close": 1, "trials": 1, **options}
    return Breaker(BreakerOptions(**settings), clock=LoopClock(), random=Drawn())


def counted(made: Breaker) -> tuple[int, int]:
    return sum(made._good._counts), sum(made._bad._counts)


async def failing(stack, times: int = 2) -> None:
    for _ in range(times):
        with pytest.raises(ServerError):
            await ask(stack)


async def test_it_opens_skips_tries_and_closes():
    made = breaker()
    provider = Scripted(ServerError(), ServerError(), "Hi", "Hi")
    stack = CircuitBreaker(breaker=made)(provider)
    await failing(stack)
    assert made.state is OPEN
    told = context()
    with pytest.raises(CircuitOpen) as caught:
        await stack.send(WHOLE, told)
    assert provider.calls == 2
    assert caught.value.retry_after == pytest.approx(3.75)
    assert caught.value.provider == "scripted"
    assert [(entry.state, entry.reason) for entry in told.trace.entries] == [("skipped", "circuit open")]
    await anyio.sleep(3.75)
    assert made.state is HALF_OPEN
    assert (await ask(stack)).text == "Hi"
    assert made.state is CLOSED
    assert (await ask(stack)).text == "Hi"


async def test_a_failed_trial_opens_it_for_longer():
    made = breaker()
    stack = CircuitBreaker(breaker=made)(Scripted(then=ServerError()))
    await failing(stack)
    await anyio.sleep(3.75)
    await failing(stack, 1)
    assert made.state is OPEN
    assert made.retry_after == pytest.approx(7.5)


async def test_half_open_only_the_trials_get_through():
    made = breaker()
    provider = Scripted(ServerError(), ServerError(), [5.0, "Hi"])
    stack = CircuitBreaker(breaker=made)(provider)
    await failing(stack)
    await anyio.sleep(4)
    async with anyio.create_task_group() as group:
        group.start_soon(ask, stack)
        await anyio.sleep(1)
        with pytest.raises(CircuitOpen, match="trials under way"):
            await ask(stack)
    assert made.state is CLOSED
    assert provider.calls == 3


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ServerError(), (0, 1)),
        (Overloaded(), (0, 1)),
        (ReadError(), (0, 1)),
        (RateLimited(), (1, 0)),
        (BadRequest(), (1, 0)),
        (AuthenticationFailed(), (1, 0)),
        (Rejected(), (0, 0)),
        (ValueError(), (0, 0)),
    ],
    ids=lambda item: type(item).__name__ if isinstance(item, Exception) else str(item),
)
async def test_what_an_error_says_about_the_target(error, expected):
    made = breaker()
    with pytest.raises(type(error)):
        await ask(CircuitBreaker(breaker=made)(Scripted(error)))
    assert counted(made) == expected


async def test_a_classifier_of_ones_own():
    made = breaker()
    stack = CircuitBreaker(breaker=made, classify=lambda _: Verdict(action=Action.FATAL, health="down"))(
        Scripted(ValueError())
    )
    with pytest.raises(ValueError):
        await ask(stack)
    assert counted(made) == (0, 1)


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_a_cancelled_call_says_nothing(request_):
    made = breaker()
    stack = CircuitBreaker(breaker=made)(Scripted(["a", HANG] if request_ is STREAM else [HANG]))
    with anyio.move_on_after(1) as scope:
        await ask(stack, request_)
    assert scope.cancelled_caught
    assert counted(made) == (0, 0)


async def test_a_cancelled_trial_neither_closes_nor_opens():
    made = breaker()
    provider = Scripted(ServerError(), ServerError(), [HANG], [HANG], "Hi")
    stack = CircuitBreaker(breaker=made)(provider)
    await failing(stack)
    await anyio.sleep(4)
    for _ in range(2):
        with anyio.move_on_after(1):
            await ask(stack)
        assert made.state is HALF_OPEN
        assert made._trials == []
    await ask(stack)
    assert made.state is CLOSED


async def test_a_stream_counts_when_it_ends():
    made = breaker()
    stack = CircuitBreaker(breaker=made)(Scripted(["a", "b"], ["a", ReadError()]))
    response = await stack.send(STREAM, context())
    assert counted(made) == (0, 0)
    await response.read()
    assert counted(made) == (1, 0)
    response = await stack.send(STREAM, context())
    with pytest.raises(StreamInterrupted):
        await response.read()
    assert counted(made) == (1, 1)


async def test_a_stream_that_the_caller_closes_or_drops_counts_nothing():
    made = breaker(consecutive_failures=1)
    stack = CircuitBreaker(breaker=made)(Scripted(ServerError(), then=["a", "b"]))
    await failing(stack, 1)
    await anyio.sleep(5)
    response = await stack.send(STREAM, context())
    with pytest.raises(CircuitOpen):
        await stack.send(STREAM, context())
    await response.aclose()
    response = await stack.send(STREAM, context())  # the permit is back
    with pytest.warns(ResourceWarning):  # noqa: PT031
        del response
        gc.collect()
    assert made.state is HALF_OPEN
    assert made._trials == []
    assert counted(made) == (0, 1)


async def test_each_target_has_its_own_and_a_shared_one_is_shared():
    wrapper = CircuitBreaker(consecutive_failures=2)
    bad, good = wrapper(Scripted(then=ServerError())), wrapper(Scripted(then="Hi"))
    await failing(bad)
    with pytest.raises(CircuitOpen):
        await ask(bad)
    assert (await ask(good)).text == "Hi"

    shared = CircuitBreaker(breaker=breaker())
    bad, good = shared(Scripted(then=ServerError())), shared(Scripted(then="Hi"))
    await failing(bad)
    with pytest.raises(CircuitOpen):
        await ask(good)


async def test_a_failover_skips_the_open_one():
    a, b = Scripted(then=ServerError(), name="a"), Scripted(then="B", name="b")
    stack = Failover(CircuitBreaker(breaker=breaker())(a), b)
    for _ in range(5):
        assert (await ask(stack)).text == "B"
    assert a.calls == 2


# ---- which breaker ---------------------------------------------------------------------------------------------------


def test_a_deployment_is_provider_address_model_and_credential():
    wrapper = CircuitBreaker()

    def of(model="m", **options):
        return wrapper.breaker_of(OpenAI(model, **{"api_key": "k", "base_url": "http://x/v1", **options}))

    assert of() is of()
    assert of() is not of("n")
    assert of() is not of(api_key="l")
    assert of() is not of(base_url="http://y/v1")
    assert wrapper(OpenAI("m", api_key="k", base_url="http://x/v1")).breaker is of()
    assert CircuitBreaker().breaker_of(OpenAI("m", api_key="k")) is not of()


def test_no_credential_is_in_an_identity():
    assert "secret-key" not in repr(OpenAI("m", api_key="secret-key").identity)


async def test_it_tells_each_change_once():
    made = breaker()
    provider = Scripted(ServerError(), ServerError(), then=["Hi"])
    stack = CircuitBreaker(breaker=made)(provider)
    told = context()
    running = await CircuitBreaker(breaker=made)(Scripted(["Hi"])).send(STREAM, context())
    for _ in range(2):
        with pytest.raises(ServerError):
            await stack.send(WHOLE, told)
    await running.read()
    await anyio.sleep(4)
    response = await stack.send(STREAM, told)
    await response.read()
    changes = [decision for decision in told.trace.decisions if isinstance(decision, BreakerChanged)]
    assert [(change.before, change.after, change.reason) for change in changes] == [
        ("closed", "open", "failures in a row"),
        ("open", "half_open", "open time over"),
        ("half_open", "closed", "successful trials"),
    ]
    assert running.trace.decisions == []
    assert "BreakerChanged: before closed, after open" in str(told.trace)


async def test_slow_first_tokens_of_streams_open_it_and_whole_answers_are_not_measured():
    stack = CircuitBreaker(slow_first_token=2, minimum_calls=2, clock=LoopClock())(Scripted(then=[3.0, "Hi"]))
    for _ in range(5):
        await ask(stack)
    assert stack.breaker.state is CLOSED
    for _ in range(2):
        await ask(stack, STREAM)
    assert stack.breaker.state is OPEN


async def test_isolated_by_hand():
    wrapper = CircuitBreaker()
    provider = Scripted(then="Hi")
    stack = wrapper(provider)
    wrapper.breaker_of(provider).isolate()
    with pytest.raises(CircuitOpen, match="isolated by hand") as caught:
        await ask(stack)
    assert caught.value.retry_after is None
    assert provider.calls == 0


async def test_where_all_are_open_the_least_bad_is_asked():
    a, b = Scripted(ServerError(), then="A", name="a"), Scripted(*[ServerError()] * 3, then="B", name="b")
    slow, quick = breaker(consecutive_failures=1, open_for=100), breaker(consecutive_failures=1, open_for=50)
    stack = Failover(CircuitBreaker(breaker=slow)(a), CircuitBreaker(breaker=quick)(b))
    with pytest.raises(AllTargetsFailed):
        await ask(stack)
    assert (slow.state, quick.state) == (OPEN, OPEN)
    told = context()
    with pytest.raises(AllTargetsFailed):
        await stack.send(WHOLE, told)
    assert (a.calls, b.calls) == (1, 2)
    assert [type(decision).__name__ for decision in told.trace.decisions] == ["LeastBadTried"]
    assert quick.retry_after == pytest.approx(37.5)  # the failure prolonged nothing
    with pytest.raises(AllTargetsFailed):
        await ask(stack)
    assert (await ask(stack)).text == "B"
    assert quick.state is CLOSED


async def test_a_single_open_target_is_left_alone():
    stack = Failover(CircuitBreaker(breaker=breaker(consecutive_failures=1))(Scripted(ServerError())))
    with pytest.raises(ServerError):
        await ask(stack)
    with pytest.raises(AllTargetsFailed):
        await ask(stack)


async def test_an_overloaded_target_that_serves_some_is_asked_on():
    script = [item for _ in range(10) for item in ("Hi", *[Overloaded()] * 6)]
    made = breaker(consecutive_failures=3)
    provider = Scripted(*script, then=ServerError())
    stack = CircuitBreaker(breaker=made)(provider)
    answers = 0
    for _ in script:
        try:
            answers += (await ask(stack)).text == "Hi"
        except Overloaded:
            pass
        await anyio.sleep(0.1)
    assert answers == 10
    assert made.state is CLOSED
    await failing(stack, 3)
    assert made.state is OPEN

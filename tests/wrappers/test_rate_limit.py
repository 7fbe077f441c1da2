"""RateLimit: what a call reserves and settles, who waits, who is refused, and what the provider's word changes."""

import gc
from dataclasses import replace

import anyio
import pytest

from llmprod import (
    AuthenticationFailed,
    CircuitOpen,
    Context,
    InvalidArgument,
    Overloaded,
    Phase,
    RateLimited,
    RateLimitExceeded,
    ReadError,
    Response,
    Retry,
    ServerError,
    Stack,
    StreamInterrupted,
    Usage,
)
from llmprod.decisions import LimitCalibrated, LimitRefused, LimitWaited
from llmprod.events import Finish, TextDelta, UsageUpdate
from llmprod.mechanisms.limit_store import Limit, Limits
from llmprod.mechanisms.rate_limit import RateLimiter
from llmprod.testing.scripted import HANG, Scripted
from llmprod.wrappers._lanes import lane
from llmprod.wrappers.rate_limit import RateLimit
from tests.cancel_sweep import sweep
from tests.wrappers.helpers import EMBED, STREAM, WHOLE, LoopClock, ask, context

USED = [0.5, "Hi", 0.5, UsageUpdate(Usage(input=40, output=60)), Finish("stop")]


def limiter(*rates: Limit, concurrent: int | None = None) -> RateLimiter:
    return RateLimiter(Limits(rates=rates, concurrent=concurrent), clock=LoopClock())


def tokens(amount: float = 6000.0, **options) -> Limit:
    return Limit(dimension="tokens", amount=amount, **options)


def requests(amount: float = 60.0, **options) -> Limit:
    return Limit(dimension="requests", amount=amount, **options)


def limited(provider, made: RateLimiter, **options):
    return RateLimit(limiter=made, clock=LoopClock(), **options)(provider)


def paced(provider, **options):
    """One request a second, none saved up."""
    return RateLimit(**{"requests_per_minute": 60, "burst": 1, "clock": LoopClock(), **options})(provider)


def decisions(told: Context, kind: type) -> list:
    return [decision for decision in told.trace.decisions if type(decision) is kind]


# ---- waiting --------------------------------------------------------------------------------------------------------


async def test_calls_go_at_the_pace_of_the_limit():
    stack = paced(Scripted(then="Hi"))
    times = []
    for _ in range(4):
        await ask(stack)
        times.append(anyio.current_time())
    assert [time - times[0] for time in times] == pytest.approx([0, 1, 2, 3], abs=0.01)


async def test_a_wait_is_told():
    stack = paced(Scripted(then="Hi"))
    await ask(stack)
    told = context()
    await stack.send(WHOLE, told)
    (waited,) = decisions(told, LimitWaited)
    assert (waited.dimension, waited.target) == ("requests", "scripted")
    assert waited.seconds == pytest.approx(1, abs=0.01)
    assert told.trace.entries[0].wait == pytest.approx(1, abs=0.01)


async def test_leave_that_is_given_at_once_is_no_decision():
    told = context()
    await paced(Scripted("Hi")).send(WHOLE, told)
    assert told.trace.decisions == []


async def test_first_come_first_served_and_the_urgent_before():
    stack = paced(Scripted(then="Hi"))
    await ask(stack)
    served = []

    async def call(name, priority):
        await ask(stack, priority=priority)
        served.append(name)

    async with anyio.create_task_group() as tasks:
        for name, priority in [("a", 0), ("b", 0), ("later", -1), ("urgent", 5), ("c", 0)]:
            tasks.start_soon(call, name, priority)
            await anyio.sleep(0.01)
    assert served == ["urgent", "a", "b", "c", "later"]


async def test_one_who_leaves_the_line_holds_up_nobody():
    stack = paced(Scripted(then="Hi"))
    await ask(stack)
    served = []

    async def call(name):
        await ask(stack)
        served.append((name, anyio.current_time()))

    started = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        with anyio.move_on_after(0.5):
            async with anyio.create_task_group() as impatient:
                impatient.start_soon(call, "impatient")
                await anyio.sleep(0.01)
                tasks.start_soon(call, "patient")
                await anyio.sleep_forever()
    assert [(name, round(at - started, 1)) for name, at in served] == [("patient", 1.0)]


# ---- being refused --------------------------------------------------------------------------------------------------


async def test_a_call_that_cannot_go_before_its_deadline_is_refused_at_once():
    provider = Scripted(then="Hi")
    stack = paced(provider, requests_per_minute=6)
    await ask(stack)
    told, started = context(seconds=5), anyio.current_time()
    with pytest.raises(RateLimitExceeded) as caught:
        await stack.send(WHOLE, told)
    assert anyio.current_time() == started
    error = caught.value
    assert (error.dimension, error.retry_after, error.provider) == ("requests", pytest.approx(10), "scripted")
    assert not isinstance(error, RateLimited)
    assert [(entry.state, entry.error) for entry in told.trace.entries] == [("skipped", "RateLimitExceeded")]
    (refused,) = decisions(told, LimitRefused)
    assert (refused.dimension, refused.retry_after) == ("requests", pytest.approx(10))
    assert provider.calls == 1


async def test_the_line_counts_too():
    stack = paced(Scripted(then="Hi"))
    await ask(stack)
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(ask, stack)
        await anyio.sleep(0.1)
        started = anyio.current_time()
        with pytest.raises(RateLimitExceeded) as caught:
            await ask(stack, seconds=5)
        assert anyio.current_time() == started
        assert caught.value.retry_after == pytest.approx(5.9, abs=0.01)
        await ask(stack, seconds=5, priority=1)  # before those who wait, it is in time


@pytest.mark.parametrize(("wait_at_most", "good"), [(0, False), (0.9, False), (1.1, True), (None, True)])
async def test_a_wait_may_be_bounded(wait_at_most, good):
    stack = paced(Scripted(then="Hi"), wait_at_most=wait_at_most)
    await ask(stack)
    if good:
        await ask(stack)
    else:
        with pytest.raises(RateLimitExceeded):
            await ask(stack)


async def test_so_may_the_line():
    stack = paced(Scripted(then="Hi"), at_most_waiting=2)
    await ask(stack)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, stack)
        tasks.start_soon(ask, stack)
        await anyio.sleep(0.01)
        with pytest.raises(RateLimitExceeded) as caught:
            await ask(stack)
        assert caught.value.retry_after == pytest.approx(3, abs=0.1)


async def test_whoever_waits_for_a_place_is_refused_when_its_time_is_over():
    made = limiter(concurrent=1)
    stack = limited(Scripted([5, "Hi"], then="Hi"), made)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, stack)
        await anyio.sleep(0.1)
        started = anyio.current_time()
        with pytest.raises(RateLimitExceeded) as caught:
            await ask(stack, seconds=2)
        assert anyio.current_time() - started == pytest.approx(2, abs=0.01)
        assert (caught.value.dimension, caught.value.retry_after) == ("concurrent", None)
    assert made.in_flight == 0


async def test_a_refusal_is_a_local_one():
    stack = Stack(Retry(3), RateLimit(requests_per_minute=1, burst=1, clock=LoopClock()))(Scripted(then="Hi"))
    await ask(stack)
    with pytest.raises(RateLimitExceeded):
        await ask(stack, seconds=10)


# ---- reserving and settling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_a_call_settles_with_what_it_used(request_):
    made = limiter(tokens())
    await ask(limited(Scripted(USED), made), request_)
    assert made.left()["tokens"] == pytest.approx(5900, abs=101)  # refilled meanwhile: 1 s, 100 tokens
    assert made.in_flight == 0


async def test_the_estimate_is_held_while_a_stream_is_open():
    made = limiter(tokens(0.06), concurrent=3)
    response = await limited(Scripted(USED), made).send(STREAM, context())
    assert made.in_flight == 1
    assert made.left()["tokens"] == pytest.approx(0.06 - 304.5, abs=0.01)
    await response.read()
    assert made.in_flight == 0
    assert made.left()["tokens"] == pytest.approx(0.06 - 100, abs=0.01)


async def test_embeddings_take_no_answer_tokens():
    made = limiter(tokens(0.06), Limit(dimension="output_tokens", amount=0.06))
    answered = limited(Scripted([UsageUpdate(Usage(input=7)), Finish("stop")]), made)
    await ask(answered, EMBED)
    assert made.left() == {"tokens": pytest.approx(-6.94, abs=0.01), "output_tokens": pytest.approx(0.06)}


async def test_answers_are_learned():
    made = limiter(Limit(dimension="output_tokens", amount=60_000))
    stack = limited(Scripted(then=USED), made)
    await ask(stack)
    response = await stack.send(STREAM, context())
    assert stack._estimate.output(STREAM) == 60
    await response.read()


@pytest.mark.parametrize(("count", "left"), [(True, 5000), (False, 5900)])
async def test_tokens_from_a_cache_count_where_the_provider_counts_them(count, left):
    made = limiter(Limit(dimension="input_tokens", amount=6000))
    used = [UsageUpdate(Usage(input=100, cache_read=900, output=5)), Finish("stop")]
    await ask(limited(Scripted(used), made, count_cached=count))
    assert made.left()["input_tokens"] == pytest.approx(left)


async def test_max_tokens_count_where_the_provider_counts_them():
    made = limiter(tokens(0.06), Limit(dimension="output_tokens", amount=0.06))
    stack = limited(Scripted(USED), made, count_max_tokens=True)
    response = await stack.send(replace(STREAM, max_tokens=1000), context())
    assert made.left()["output_tokens"] == pytest.approx(-999.94, abs=0.01)
    await response.read()
    left = made.left()
    assert left["output_tokens"] == pytest.approx(-999.94, abs=0.01)
    assert left["tokens"] == pytest.approx(-1039.94, abs=0.01)


async def test_money():
    def price(request, usage):
        return usage.total_output / 1000

    with pytest.raises(InvalidArgument, match="price"):
        RateLimit(cost_per_minute=1)
    made = limiter(Limit(dimension="cost", amount=0.6))
    with pytest.raises(InvalidArgument, match="price"):
        limited(Scripted(USED), made)
    response = await limited(Scripted(USED), made, price=price).send(STREAM, context())
    assert made.left()["cost"] == pytest.approx(0.3, abs=0.01)
    await response.read()
    assert made.left()["cost"] == pytest.approx(0.54, abs=0.02)


async def test_a_price_that_raises_at_the_end_holds_no_place():
    def price(request, usage):
        if not usage.estimated:
            raise ZeroDivisionError
        return 0.1

    made = limiter(Limit(dimension="cost", amount=0.6), concurrent=1)
    with pytest.raises(ZeroDivisionError):
        await ask(limited(Scripted(USED), made, price=price))
    assert made.in_flight == 0
    assert made.left()["cost"] == pytest.approx(0.5, abs=0.02)


async def test_no_usage_keeps_the_estimate():
    made = limiter(tokens(0.06))
    await ask(limited(Scripted([TextDelta("Hi"), Finish("stop")]), made))
    assert made.left()["tokens"] == pytest.approx(0.06 - 304.5, abs=0.01)


async def test_an_error_after_sending_keeps_the_estimate():
    made = limiter(requests(), tokens(0.06))
    with pytest.raises(ServerError):
        await ask(limited(Scripted(ServerError()), made))
    assert made.left() == {"requests": 59, "tokens": pytest.approx(0.06 - 304.5, abs=0.01)}
    assert made.in_flight == 0


async def test_an_error_that_knows_its_usage_can_only_add():
    for used, kept in [(Usage(input=3, output=1), 304.5), (Usage(input=300, output=500), 800)]:
        made = limiter(tokens(0.06))
        error = ServerError()
        error.usage = used
        with pytest.raises(ServerError):
            await ask(limited(Scripted(error), made))
        assert made.left()["tokens"] == pytest.approx(0.06 - kept, abs=0.01)


async def test_a_stream_that_breaks_can_only_add():
    for used, kept in [(Usage(input=3, output=1), 304.5), (Usage(input=300, output=500), 800)]:
        made = limiter(tokens(0.06))
        with pytest.raises(StreamInterrupted):
            await ask(limited(Scripted(["Hi", UsageUpdate(used), ReadError(in_stream=True)]), made), STREAM)
        assert made.left()["tokens"] == pytest.approx(0.06 - kept, abs=0.01)
        assert made.in_flight == 0


async def test_a_call_that_reached_no_provider_gives_all_back():
    class Refusing(Scripted):
        async def send(self, request, context):
            raise CircuitOpen(retry_after=3)

    made = limiter(requests(), tokens())
    with pytest.raises(CircuitOpen):
        await ask(limited(Refusing(), made))
    assert made.left() == {"requests": 60, "tokens": 6000}
    assert made.in_flight == 0


async def test_beside_another_lane_a_local_refusal_gives_all_back():
    class Refusing(Scripted):
        async def send(self, request, context):
            other.call.attempts += 1
            raise CircuitOpen(retry_after=3)

    told = context()
    mine, _ = lane(told)
    other, _ = lane(told)
    made = limiter(requests())
    with pytest.raises(CircuitOpen):
        await limited(Refusing(), made).send(WHOLE, mine)
    assert told.call.attempts == 1
    assert made.left() == {"requests": 60}


async def test_a_stream_that_is_dropped_or_closed_gives_its_place_back():
    made = limiter(concurrent=1)
    stack = limited(Scripted(then=["Hi", HANG]), made)
    response = await stack.send(STREAM, context())
    await response.aclose()
    assert made.in_flight == 0
    response = await stack.send(STREAM, context())
    held = [response]
    del response
    with pytest.warns(ResourceWarning):
        held.clear()
    gc.collect()
    assert made.in_flight == 0


# ---- the provider's word --------------------------------------------------------------------------------------------


async def test_a_refusal_of_the_provider_pauses_everybody():
    stack = paced(Scripted(RateLimited(retry_after=7), then="Hi"), requests_per_minute=600, burst=10)
    started = anyio.current_time()
    with pytest.raises(RateLimited):
        await ask(stack)
    with pytest.raises(RateLimitExceeded) as caught:
        await ask(stack, seconds=5)
    assert (caught.value.dimension, caught.value.retry_after) == ("paused", pytest.approx(7.1, abs=0.02))
    told = context()
    await stack.send(WHOLE, told)
    assert anyio.current_time() - started == pytest.approx(7.1, abs=0.02)


@pytest.mark.parametrize(("error", "pause"), [(RateLimited(), 1), (Overloaded(retry_after=3), 3), (ServerError(), 0)])
async def test_only_a_throttle_pauses(error, pause):
    stack = paced(Scripted(error, then="Hi"), requests_per_minute=6000, burst=10)
    with pytest.raises(type(error)):
        await ask(stack)
    started = anyio.current_time()
    await ask(stack)
    assert anyio.current_time() - started == pytest.approx(pause, abs=0.02)


def answering(**headers):
    async def step(request, context):
        events = [TextDelta("Hi"), UsageUpdate(Usage(input=1, output=1)), Finish("stop")]
        headers_ = {name.replace("_", "-"): value for name, value in headers.items()}
        return Response(provider="scripted", context=context, request=request, events=events, headers=headers_)

    return step


async def test_headers_that_tell_less_are_believed():
    made = limiter(requests())
    told = context()
    await limited(Scripted(answering(x_ratelimit_remaining_requests="9")), made).send(WHOLE, told)
    (calibrated,) = decisions(told, LimitCalibrated)
    assert (calibrated.dimension, calibrated.before, calibrated.after) == ("requests", 59, 9)
    assert made.left() == {"requests": 9}


async def test_headers_that_tell_more_are_not():
    made = limiter(requests())
    told = context()
    await limited(Scripted(answering(x_ratelimit_remaining_requests="5000")), made).send(WHOLE, told)
    assert told.trace.decisions == []
    assert made.left() == {"requests": 59}


async def test_garbage_in_headers_breaks_no_call():
    made = limiter(requests())
    response = await ask(limited(Scripted(answering(x_ratelimit_remaining_requests="soon")), made))
    assert response.text == "Hi"


# ---- quotas ---------------------------------------------------------------------------------------------------------


async def test_each_user_has_a_quota_of_their_own():
    quota = RateLimit(requests_per_minute=2, per="user", wait_at_most=0, clock=LoopClock())
    assert quota.phase is Phase.QUOTA
    assert RateLimit(requests_per_minute=2).phase is Phase.RATE_LIMIT
    stack = quota(Scripted(then="Hi"))
    for user in ("ann", "ann", "bob", "bob"):
        await ask(stack, tags={"user": user})
    for user in ("ann", "bob"):
        with pytest.raises(RateLimitExceeded) as caught:
            await ask(stack, tags={"user": user})
        assert caught.value.retry_after == pytest.approx(30)
        assert user not in str(caught.value)


@pytest.mark.parametrize(
    ("per", "same", "other"),
    [
        (("tenant", "user"), {"tenant": "a", "user": "x"}, {"tenant": "b", "user": "x"}),
        (lambda context: context.tags["user"][0], {"user": "xavier"}, {"user": "yves"}),
        ("user", {}, {"user": "x"}),
    ],
    ids=["tuple", "function", "missing"],
)
async def test_whose_quota(per, same, other):
    stack = RateLimit(requests_per_minute=1, per=per, wait_at_most=0, clock=LoopClock())(Scripted(then="Hi"))
    await ask(stack, tags=same)
    await ask(stack, tags=other)
    with pytest.raises(RateLimitExceeded):
        await ask(stack, tags=same)


async def test_a_quota_is_not_paused_or_corrected_by_a_provider():
    quota = RateLimit(requests_per_minute=60, per="user", clock=LoopClock())
    stack = quota(Scripted(RateLimited(retry_after=30), answering(x_ratelimit_remaining_requests="0"), "Hi"))
    started = anyio.current_time()
    with pytest.raises(RateLimited):
        await ask(stack)
    await ask(stack)
    await ask(stack)
    assert anyio.current_time() == started


async def test_quotas_do_not_fill_the_memory():
    stack = RateLimit(requests_per_minute=60, per="user", keys_at_most=10, clock=LoopClock())(Scripted(then="Hi"))
    for number in range(100):
        await ask(stack, tags={"user": str(number)})
    assert len(stack._gates) == 10


async def test_a_quota_in_use_is_not_forgotten():
    stack = RateLimit(concurrent=1, per="user", keys_at_most=2, clock=LoopClock())(Scripted(then=["Hi", 5, "Hi"]))
    held = await stack.send(STREAM, context(tags={"user": "held"}))
    for number in range(5):
        await ask(stack, tags={"user": str(number)})
    with pytest.raises(RateLimitExceeded):
        await ask(stack, tags={"user": "held"}, seconds=1)
    await held.aclose()


async def test_a_limiter_is_shared_by_passing_it():
    made = limiter(requests(60, burst=1), concurrent=1)
    first, second = limited(Scripted([0.2, "Hi"], then="Hi"), made), limited(Scripted(then="Hi"), made)
    times = []

    async def call(stack):
        await ask(stack)
        times.append(anyio.current_time())

    started = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for stack in (first, second, first, second):
            tasks.start_soon(call, stack)
            await anyio.sleep(0.01)
    assert [time - started for time in times] == pytest.approx([0.2, 1, 2, 3], abs=0.03)


# ---- cancelled ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_cancelled_anywhere(request_):
    def scenario():
        made = limiter(requests(60, burst=1), tokens(6000, burst=500), concurrent=1)
        provider = Scripted(then=USED)
        stack = limited(provider, made)
        gate = made.gate
        made.reserve({"requests": 1.0}).keep()  # so that the call has to wait

        async def run():
            response = await stack.send(request_, context())
            async with response:
                await response.read()

        def check():
            assert made.in_flight == 0
            assert gate.line.places == []
            assert gate._waiting == {}
            assert provider.in_flight == provider.open_sources == 0
            left = made.left()
            sent = provider.calls
            assert left["requests"] <= 1 + 1e-9
            assert sent or left["tokens"] == 500, "a call that was never sent has cost something"

        return run(), check

    assert await sweep(scenario) >= 3


# ---- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, "requests_per_minute"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"tokens_per_minute": -5}, "tokens_per_minute"),
        ({"cost_per_day": "1"}, "cost_per_day"),
        ({"tokens_per_day": float("nan")}, "tokens_per_day"),
        ({"concurrent": 0}, "concurrent"),
        ({"concurrent": 1.5}, "concurrent"),
        ({"burst": 0}, "burst"),
        ({"wait_at_most": -1}, "wait_at_most"),
        ({"at_most_waiting": -1}, "at_most_waiting"),
        ({"keys_at_most": 0}, "keys_at_most"),
        ({"count_cached": 1}, "count_cached"),
        ({"count_max_tokens": None}, "count_max_tokens"),
        ({"per": ""}, "per"),
        ({"per": ()}, "per"),
        ({"per": ("user", 3)}, "per"),
        ({"per": 5}, "per"),
        ({"store": "redis://localhost"}, "store"),
        ({"price": 2.5}, "price"),
        ({"tokens": 100}, "tokens"),
    ],
)
def test_bad_options_are_named(options, field):
    with pytest.raises(InvalidArgument) as caught:
        RateLimit(**({} if not options or field == "concurrent" else {"input_tokens_per_minute": 5}) | options)
    assert caught.value.field == field


def test_a_limiter_excludes_other_limits():
    made = limiter(requests())
    for more in ({"requests_per_minute": 5}, {"concurrent": 5}, {"per": "user"}):
        with pytest.raises(InvalidArgument, match="limiter"):
            RateLimit(limiter=made, **more)


def test_it_tells_what_it_is():
    quota = RateLimit(requests_per_minute=500, tokens_per_day=1e6, concurrent=20, per=("tenant", "user"))
    assert repr(quota) == "RateLimit(500 requests/min, 1e+06 tokens/day, 20 at once, per tenant+user)"
    assert repr(RateLimit(concurrent=5, per=lambda context: "secret")) == "RateLimit(5 at once, per key)"


async def test_an_answer_of_an_error_without_throttle_is_no_pause():
    made = limiter(requests(burst=5))
    with pytest.raises(AuthenticationFailed):
        await ask(limited(Scripted(AuthenticationFailed()), made))
    assert made.pace == 1

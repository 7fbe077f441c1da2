"""AdaptiveThrottle: what a call tells the throttle, what the caller sees, and a minute of overload."""

import random

import anyio
import pytest

from llmprod import (
    Action,
    AttemptTimedOut,
    BadRequest,
    CircuitOpen,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    Failover,
    FirstTokenTimeout,
    InvalidArgument,
    LoopClock,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    ReadError,
    ServerError,
    StreamInterrupted,
    Verdict,
)
from llmprod.decisions import CallThrottled
from llmprod.errors import Shed
from llmprod.mechanisms.adaptive_throttle import Throttle
from llmprod.testing.scripted import HANG, Scripted
from llmprod.wrappers.adaptive_throttle import AdaptiveThrottle
from tests.cancel_sweep import sweep
from tests.wrappers.helpers import EMBED, STREAM, WHOLE, Drawn, ask, context


def throttled(provider, chance: float = 0.0, **options):
    """A throttle that forgets next to nothing while a test lasts, and refuses whenever it may."""
    settings = {"minimum": 0, "window": 1e9, "clock": LoopClock(), "random": Drawn(chance), **options}
    return AdaptiveThrottle(**settings)(provider)


def counted(stack) -> tuple[int, int]:
    return round(stack.throttle.requests), round(stack.throttle.accepts)


async def test_a_target_that_refuses_most_calls_is_sent_fewer():
    provider = Scripted(*[Overloaded()] * 3, then="Hi")
    stack = throttled(provider)
    with pytest.raises(Overloaded):
        await ask(stack)
    told = context()
    with pytest.raises(Shed) as caught:
        await stack.send(WHOLE, told)
    assert provider.calls == 1
    assert caught.value.provider == "scripted"
    (shed,) = told.trace.decisions
    assert isinstance(shed, CallThrottled)
    assert shed.probability == pytest.approx(0.5)
    assert counted(stack) == (2, 0)


async def test_a_failover_asks_another_target():
    a, b = Scripted(Overloaded(), name="a"), Scripted(then="B", name="b")
    stack = Failover(throttled(a), b)
    for _ in range(3):
        assert (await ask(stack)).text == "B"
    assert a.calls == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RateLimited(), (1, 0)),
        (Overloaded(), (1, 0)),
        (FirstTokenTimeout(30.0, silent=True), (1, 0)),
        (AttemptTimedOut(30.0, silent=True), (1, 0)),
        (ServerError(), (1, 1)),
        (BadRequest(), (1, 1)),
        (QuotaExhausted(), (1, 1)),
        (ConnectError(), (0, 0)),
        (ConnectTimeout(5.0, silent=True), (0, 0)),
        (ReadError(), (0, 0)),
        (CircuitOpen(), (0, 0)),
        (DeadlineExceeded(1.0), (0, 0)),
        (ValueError(), (0, 0)),
    ],
    ids=lambda item: type(item).__name__ if isinstance(item, Exception) else "",
)
async def test_what_an_error_says_about_the_targets_load(error, expected):
    stack = throttled(Scripted(error))
    with pytest.raises(type(error)):
        await ask(stack)
    assert counted(stack) == expected


async def test_a_classifier_of_ones_own():
    verdict = Verdict(action=Action.FATAL, throttled=True)
    stack = throttled(Scripted(ValueError()), classify=lambda _: verdict)
    with pytest.raises(ValueError):
        await ask(stack)
    assert counted(stack) == (1, 0)


@pytest.mark.parametrize("request_", [WHOLE, STREAM, EMBED], ids=["whole", "stream", "embed"])
async def test_an_answer_is_an_accept_and_one_that_is_under_way_is_presumed_to_be(request_):
    stack = throttled(Scripted([10.0, "Hi"]))
    async with anyio.create_task_group() as group:
        group.start_soon(ask, stack, request_)
        await anyio.sleep(5)
        assert counted(stack) == (1, 1)
    assert counted(stack) == (1, 1)


async def test_a_stream_was_accepted_however_it_ends():
    stack = throttled(Scripted(["a", ReadError()]))
    with pytest.raises(StreamInterrupted):
        await ask(stack, STREAM)
    assert counted(stack) == (1, 1)


async def test_a_cancelled_call_was_never_made():
    stack = throttled(Scripted([HANG]))
    with anyio.move_on_after(1):
        await ask(stack)
    assert counted(stack) == (0, 0)


async def test_each_target_has_its_own_and_a_shared_one_is_shared():
    own = AdaptiveThrottle(minimum=0, random=Drawn(0))
    bad, good = own(Scripted(Overloaded())), own(Scripted("Hi"))
    with pytest.raises(Overloaded):
        await ask(bad)
    assert (await ask(good)).text == "Hi"

    shared = AdaptiveThrottle(throttle=Throttle(minimum=0, window=1e9, random=Drawn(0)))
    bad, good = shared(Scripted(Overloaded())), shared(Scripted("Hi"))
    with pytest.raises(Overloaded):
        await ask(bad)
    with pytest.raises(Shed):
        await ask(good)


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_cancelled_anywhere(request_):
    def scenario():
        provider = Scripted([0.5, "Hel", 0.5, "lo", 0.5])
        stack = throttled(provider)
        told = context()

        async def run():
            response = await stack.send(request_, told)
            async with response:
                await response.read()

        def check():
            assert [provider.in_flight, provider.open_sources] == [0, 0]
            accepted = sum(entry.state == "ok" or entry.ttft is not None for entry in told.trace.entries)
            assert counted(stack) == (accepted, accepted)

        return run(), check

    assert await sweep(scenario) >= 2


async def test_a_minute_of_overload():
    """20 calls a second; the target takes all, then 30% for a minute, then all: the share sent follows and recovers."""
    clock, chance = LoopClock(), random.Random(3)
    began = clock.now()
    taken = {"full": 0, "reduced": 0}
    room, last = 1.0, began

    async def serve(request, told):
        nonlocal room, last
        now = clock.now()
        capacity = 6 if 30 <= now - began < 90 else 22
        room, last = min(capacity / 2 + 1, room + (now - last) * capacity), now
        if room < 1:
            await anyio.sleep(0.05)
            raise Overloaded
        room -= 1
        taken["reduced" if capacity == 6 else "full"] += 1
        await anyio.sleep(2)
        return await Scripted("Hi").send(request, told)

    provider = Scripted(then=serve)
    stack = AdaptiveThrottle(clock=clock, random=chance)(provider)
    shed: list[float] = []
    sent_while_reduced = 0

    async def call():
        try:
            await ask(stack)
        except Shed:
            shed.append(clock.now() - began)
        except Overloaded:
            pass

    async with anyio.create_task_group() as group:
        for number in range(120 * 20):
            at = number / 20
            if at == 50:
                sent_while_reduced = -provider.calls
            if at == 90:
                sent_while_reduced += provider.calls
            group.start_soon(call)
            await anyio.sleep(began + at + 0.05 - clock.now())
    assert taken["reduced"] >= 0.9 * 6 * 60  # goodput
    assert sent_while_reduced <= 1.2 * 2 * 6 * 40  # k = 2 for each that is accepted; 20 of 6 without a throttle
    assert min(shed) > 30
    assert max(shed) < 90 + 10  # recovered


@pytest.mark.parametrize(("field", "value"), [("k", 0.9), ("window", -1), ("at_most", 1.0), ("minimum", 2.5)], ids=str)
def test_options_out_of_range_are_refused(field, value):
    with pytest.raises(InvalidArgument, match=rf"{field}: got .*; allowed: "):
        AdaptiveThrottle(**{field: value})


def test_it_says_what_it_is():
    assert repr(AdaptiveThrottle()) == "AdaptiveThrottle(k=2, 10 s)"
    assert repr(AdaptiveThrottle(throttle=Throttle(k=1.5, window=5))) == "AdaptiveThrottle(k=1.5, 5 s)"

"""local_first: an engine of one's own, with hosted models for what it has no room for."""

import anyio
import pytest

from llmprod import (
    AsyncClient,
    AttemptTimeout,
    BreakerState,
    Bulkhead,
    CircuitBreaker,
    ConnectError,
    EngineDied,
    GenerateRequest,
    Hedge,
    InvalidArgument,
    KeyPool,
    LoopClock,
    Message,
    NotFound,
    Overloaded,
    RateLimit,
    Restart,
    Resume,
    Retry,
    Static,
    ThroughputGuard,
    describe,
    lint,
)
from llmprod.presets import local_first
from llmprod.testing import assert_stack
from llmprod.testing.scripted import CUT, Scripted
from tests.wrappers.helpers import STREAM, Drawn, ask
from tests.wrappers.starting import Engine


def stack(*targets, **options):
    local, *hosted = targets
    return local_first(local, *hosted, clock=LoopClock(), random=Drawn(), **options)


def pair(*steps, **options) -> tuple[Engine, Scripted]:
    return Engine(*steps, then=[10.0, "A"], name="engine", **options), Scripted(then="B", name="hosted")


async def answers(provider, count, **options) -> list[str]:
    """What so many calls that begin together get, in the order in which they end."""
    ended: list[str] = []

    async def one() -> None:
        ended.append((await ask(provider, **options)).text)

    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(one)
    return ended


async def test_a_burst_overflows_and_comes_back():
    engine, hosted = pair()
    made = stack(engine, hosted)
    assert await answers(made, 5) == ["B"] * 3 + ["A"] * 2  # the test's limit begins at 2
    await anyio.sleep(1)
    assert (await ask(made)).text == "A"


async def test_a_long_queue_sends_calls_away_and_a_short_one_takes_them_back():
    engine, hosted = pair()
    made = stack(engine, hosted, waiting=8)
    engine.waiting = 8
    assert (await ask(made)).text == "A"
    engine.waiting = 9  # the limit is cut at each reading, down to one call at once
    async with anyio.create_task_group() as group:
        group.start_soon(ask, made)
        await anyio.sleep(1)
        assert await answers(made, 3) == ["B"] * 3
        engine.waiting = 0
        await anyio.sleep(1)
        assert "A" in await answers(made, 3)


async def test_a_full_cache_sends_calls_away():
    engine, hosted = pair()
    made = stack(engine, hosted, kv_cache_at_most=0.5)
    engine.cache = 0.6
    async with anyio.create_task_group() as group:
        group.start_soon(ask, made)
        await anyio.sleep(1)
        assert await answers(made, 3) == ["B"] * 3


async def test_hosted_models_answer_while_the_engine_starts_and_while_it_is_down():
    engine, hosted = pair(EngineDied(), start=60)
    made = stack(engine, hosted)
    assert (await ask(made)).text == "B"
    assert (engine.calls, anyio.current_time()) == (0, 0)
    await anyio.sleep(60)
    assert (await ask(made)).text == "B"  # it dies
    engine.die()
    for _ in range(3):
        assert (await ask(made)).text == "B"
    assert engine.calls == 1
    await anyio.sleep(60)
    assert (await ask(made)).text == "A"


async def test_when_hosted_models_are_down_the_engine_takes_all():
    engine, _ = pair()
    hosted = Scripted(then=ConnectError(), name="hosted")
    made = stack(engine, hosted)
    assert await answers(made, 30) == ["A"] * 30
    assert hosted.calls <= 30
    assert await answers(made, 30) == ["A"] * 30  # the breaker is open: nobody asks


@pytest.mark.parametrize("error", [NotFound(), ConnectError(), Overloaded()], ids=lambda error: type(error).__name__)
async def test_when_they_are_down_while_the_engine_starts_its_start_is_waited_for(error):
    engine, _ = pair(start=120)
    hosted = Scripted(then=error, name="hosted")
    made = stack(engine, hosted)
    assert await answers(made, 30) == ["A"] * 30  # more than the retry budget has leave for
    assert anyio.current_time() >= 130


async def test_the_deaths_of_many_calls_are_nobodys_loss():
    """All that an engine had taken die with it, at one moment."""
    engine, hosted = Engine(*[[5.0, EngineDied()]] * 2, then="A", name="engine"), Scripted(then="B", name="hosted")
    made = stack(engine, hosted)
    assert await answers(made, 40) == ["B"] * 40
    assert anyio.current_time() == 5


async def test_a_stream_that_dies_with_the_engine_goes_on_at_a_hosted_model():
    engine, hosted = Engine(["Hel", CUT], name="engine"), Scripted(["Hello"], name="hosted")
    response = await ask(stack(engine, hosted, extra=[Resume(Restart())]), STREAM)
    assert (response.text, response.provider) == ("Hello", "hosted")


async def test_the_order_of_hosted_models_is_kept():
    engine, first = pair(start=60)
    first._then = Overloaded()
    second = Scripted(then="C", name="second")
    assert (await ask(stack(engine, first, second))).text == "C"
    assert first.calls >= 1


async def test_a_fixed_answer_is_the_last_resort():
    engine, hosted = pair(start=30)
    hosted._then = NotFound()
    engine._then = EngineDied()
    response = await ask(stack(engine, hosted, Static("Sorry.")))
    assert (response.text, engine.calls) == ("Sorry.", 3)  # after the engine was waited for, in each round
    response = await ask(stack(Engine("A", start=30), Static("Sorry.")))
    assert response.text == "A"


# ---- several engines -------------------------------------------------------------------------------------------------


def beginning(topic: int) -> GenerateRequest:
    return GenerateRequest(messages=(Message.system(f"You know all about {topic}."), Message.user("Go on.")))


async def test_calls_of_one_beginning_go_to_one_engine():
    engines = [Engine(then=[1.0, str(number)], name=f"engine{number}") for number in range(3)]
    made = stack(engines, Scripted(name="hosted"))
    homes = {}
    for _ in range(4):
        for topic in range(12):
            homes.setdefault(topic, set()).add((await ask(made, beginning(topic))).text)
    assert all(len(home) == 1 for home in homes.values())
    assert set.union(*homes.values()) == {"0", "1", "2"}


async def test_an_engine_that_is_full_or_down_sends_its_calls_to_its_neighbour_and_then_away():
    engines = [Engine(then=[1.0, str(number)], name=f"engine{number}") for number in range(2)]
    made = stack(engines, Scripted(then="B", name="hosted"))
    home = (await ask(made, beginning(1))).text
    got = await answers(made, 6, request=beginning(1))
    assert got.count("B") == 2
    assert got.count(home) == 2
    engines[int(home)].start = 100
    engines[int(home)].die()
    assert (await ask(made, beginning(1))).text == str(1 - int(home))
    engines[1 - int(home)].start = 100
    engines[1 - int(home)].die()
    assert (await ask(made, beginning(1))).text == "B"


# ---- the stack -------------------------------------------------------------------------------------------------------


async def test_the_stack():
    engine, hosted = pair()
    made = stack(
        engine,
        hosted,
        Static("Sorry."),
        extra=[RateLimit(requests_per_minute=5), Bulkhead(3), ThroughputGuard(), Hedge()],
    )
    assert lint(made) == []
    at_engine = describe(made).partition("├─ Overflow")[2].partition("├─")[0].partition("└─ RateLimit")[0]
    assert "engine" in at_engine
    assert "ThroughputGuard" in at_engine
    assert "RateLimit" not in at_engine
    assert describe(made).count("Bulkhead") == describe(made).count("RateLimit") == 1
    assert describe(made).count("CircuitBreaker") == 2
    simple = stack(engine, hosted)
    assert_stack(simple).order("Deadline", "Retry", "Failover", "Overflow", "CircuitBreaker", "AttemptTimeout")
    assert lint(stack([engine, Engine(name="other")], hosted)) == []


async def test_it_takes_an_engine_in_wrappers_keys_and_a_client():
    engine, hosted = pair()
    made = stack(AttemptTimeout()(engine), KeyPool(hosted, Scripted(name="second")))
    assert describe(made).count("Overflow") == 1
    assert AsyncClient(made).provider is made


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: local_first(Engine()), "hosted"),
        (lambda: local_first([], Scripted()), "local"),
        (lambda: local_first(Scripted(), Scripted()), "local"),
        (lambda: local_first("vllm:m", Scripted()), "local"),
        (lambda: local_first([Engine(), "x"], Scripted()), "local"),
        (lambda: local_first(Engine(), "openai:m"), "hosted[0]"),
        (lambda: local_first(Engine(), Scripted(), waiting=-1), "target"),
        (lambda: local_first(Engine(), Scripted(), at_most_waiting=-1), "at_most_waiting"),
        (lambda: local_first(Engine(), Scripted(), extra=[Retry(3)]), "extra[0]"),
        (lambda: local_first(Engine(), Scripted(), extra=[CircuitBreaker()]), "extra[0]"),
        (lambda: local_first(Engine(), Scripted(), deadline=0), "seconds"),
    ],
    ids=range(11),
)
async def test_what_it_refuses(make, field):
    with pytest.raises(InvalidArgument) as caught:
        make()
    assert caught.value.field == field


async def test_a_breaker_is_the_engines_own():
    engine = Engine(*[EngineDied() for _ in range(5)], then="A", name="engine")
    hosted = Scripted(then="B", name="hosted")
    made = stack(engine, hosted)
    got = [(await ask(made)).text for _ in range(6)]
    assert got == ["B"] * 6
    assert engine.calls == 5
    provider = made
    while not hasattr(provider, "targets"):
        provider = provider.inner
    first, second = (target for target in provider.targets)
    assert first.inner.breaker.state is BreakerState.OPEN
    assert second.breaker.state is BreakerState.CLOSED
    await anyio.sleep(10)
    assert (await ask(made)).text == "A"

"""Limits on a real server: what several clients share, and what happens when it goes and comes back."""

import asyncio
import signal
import time
from typing import Any

import anyio
import pytest

from llmprod import Context, GenerateRequest, InvalidArgument, Message, RateLimitExceeded, Usage
from llmprod.decisions import LimitStoreChanged
from llmprod.events import Finish, UsageUpdate
from llmprod.mechanisms.limit_headers import LimitReading
from llmprod.mechanisms.limit_store import Leave, Limit, Limits, Shortage
from llmprod.testing.scripted import Scripted
from llmprod.wrappers.rate_limit import RateLimit
from tests.stores.conftest import Server

redis = pytest.importorskip("redis")

from llmprod.stores.redis import RedisLimits  # noqa: E402

WHOLE = GenerateRequest(messages=(Message.user("Hi"),))
SLOW = {"period": 1e6}  # slow enough that a test sees no refill


def limits(*rates: Limit, concurrent: int | None = None) -> Limits:
    return Limits(rates=rates, concurrent=concurrent)


PLAIN = limits(
    Limit(dimension="requests", amount=10, **SLOW), Limit(dimension="tokens", amount=1000, burst=500, **SLOW)
)


async def reserve(store: RedisLimits, key: str = "k", of: Limits = PLAIN, **costs: float) -> Any:
    return await store.reserve(key, of, costs, lambda: None)


async def take(store: RedisLimits, key: str = "k", of: Limits = PLAIN, **costs: float) -> Leave:
    got = await reserve(store, key, of, **costs)
    assert not isinstance(got, Shortage), got
    return got


async def left(store: RedisLimits, of: Limits = PLAIN) -> list[float]:
    """What is left of each limit: by asking for nothing."""
    leave: Any = await take(store, "k", of)
    leave.keep()
    await store.flush()
    return [round(level, 1) for level, _ in leave.levels]


@pytest.fixture
async def store(server: Server):
    made = RedisLimits(server.url, timeout=10)
    yield made
    await made.aclose()


@pytest.fixture
async def other(server: Server):
    made = RedisLimits(server.url, timeout=10)
    yield made
    await made.aclose()


# ---- one decision ---------------------------------------------------------------------------------------------------


async def test_all_limits_or_none(store):
    await take(store, requests=1, tokens=400)
    got = await reserve(store, requests=1, tokens=200)
    assert got == Shortage("tokens/1e+06s", pytest.approx(1e5, rel=0.01))
    assert await left(store) == [9, 100]


async def test_two_clients_share_and_other_keys_do_not(store, other):
    await take(store, requests=1, tokens=400)
    assert isinstance(await reserve(other, requests=1, tokens=200), Shortage)
    await take(other, "another", requests=1, tokens=200)


async def test_waiting_as_told_is_enough(store):
    quick = limits(Limit(dimension="requests", amount=600, burst=1))
    await take(store, "k", quick, requests=1)
    for _ in range(3):
        while not isinstance(got := await reserve(store, "k", quick, requests=1), Shortage):
            pass  # a slow machine: in the meantime one had come back
        await anyio.sleep(got.seconds)
        await take(store, "k", quick, requests=1)


async def test_more_than_the_burst_passes_when_full(store):
    await take(store, requests=1, tokens=5000)
    assert await left(store) == [9, -4500]
    assert isinstance(await reserve(store, requests=1, tokens=1), Shortage)


async def test_settling_keeping_and_cancelling(store, other):
    leaves = [await take(store, requests=1, tokens=100) for _ in range(4)]
    leaves[0].settle({"tokens": 10})
    leaves[1].settle({"tokens": 160})
    leaves[2].cancel()
    leaves[3].settle({"tokens": 1}, final=False)
    for leave in leaves:
        leave.cancel()  # comes too late
    await store.flush()
    assert await left(other) == [7, 500 - 10 - 160 - 100]


async def test_refunds_never_lift_it_above_the_burst(store):
    leave = await take(store, requests=1, tokens=100)
    leave.settle({"tokens": -1000.0})
    await store.flush()
    assert await left(store) == [9, 500]


async def test_a_pause_is_for_everybody_and_begins_with_nothing(store, other):
    hourly = limits(Limit(dimension="requests", amount=10, period=3600.0))
    store.throttled("long", hourly, 100)
    store.throttled("short", hourly, 0.3)
    await store.flush()
    got = await reserve(other, "long", hourly, requests=1)
    assert got == Shortage("paused", pytest.approx(100, abs=30))
    with anyio.fail_after(60):
        while (got := await reserve(other, "short", hourly, requests=1)).dimension == "paused":
            assert got.seconds <= 0.3
            await anyio.sleep(got.seconds)
    assert got.dimension == "requests/3600s"


async def test_calibration_is_for_everybody_and_counts_once(store, other):
    several: list[Any] = [await take(store, requests=1, tokens=50) for _ in range(3)]
    for number, leave in enumerate(several):
        told = (LimitReading(dimension="tokens", remaining=250 - 50 * number),)  # 200 fewer than believed
        (changed,) = leave.calibrate(told)
        assert changed.before - changed.after == pytest.approx(200, abs=1)
    await store.flush()
    assert await left(other) == [7, pytest.approx(150, abs=1)]


async def test_nothing_of_a_user_is_readable_in_the_server(store, server):
    await take(store, "quota|sk-secret-key", requests=1)
    assert b"secret" not in server.command("KEYS", "*")


async def test_idle_keys_go_away(store, server):
    await take(store, "k", limits(Limit(dimension="requests", amount=60, burst=5), concurrent=5), requests=1)
    for key in ("limits", "leases", "processes"):
        (name,) = [line for line in server.command("KEYS", f"*:{key}").split(b"\r\n") if line.startswith(b"llmprod")]
        assert 0 < int(server.command("TTL", name.decode()).strip(b":\r\n")) <= 1000


async def test_keys_of_one_limit_stay_on_one_node_of_a_cluster(store):
    tags = {key.partition("{")[2].partition("}")[0] for key in store._keys("a {b} c")}
    assert len(tags) == 1


async def test_the_script_is_loaded_again_when_the_server_forgot_it(store, server):
    await take(store, requests=1)
    server.command("SCRIPT", "FLUSH")
    leave = await take(store, requests=1)
    server.command("SCRIPT", "FLUSH")
    leave.cancel()
    await store.flush()
    assert await left(store) == [9, 500]
    assert not store.lost


@pytest.mark.parametrize("decode", [True, False])
async def test_a_client_of_the_application(server, decode):
    from redis.asyncio import Redis

    client = Redis(unix_socket_path=str(server.path), decode_responses=decode)
    store = RedisLimits(client)
    await take(store, requests=1, tokens=400)
    assert (await reserve(store, requests=1, tokens=400)).dimension == "tokens/1e+06s"
    await store.aclose()
    assert await client.ping(), "the client was not ours to close"
    await client.aclose()


# ---- calls under way ------------------------------------------------------------------------------------------------

TWO = limits(concurrent=2)


async def test_places_are_shared_and_given_back_once(store, other):
    woken = []
    first = await store.reserve("k", TWO, {}, lambda: woken.append(1))
    await take(other, "k", TWO)
    assert await reserve(other, "k", TWO) == Shortage("concurrent", None)
    first.settle({})
    first.cancel()
    await store.flush()
    assert woken == [1]
    await take(other, "k", TWO)
    assert await reserve(store, "k", TWO) == Shortage("concurrent", None)


async def test_a_process_that_dies_gives_its_places_back(server, other):
    dying = RedisLimits(server.url, timeout=10, lease=1.5)
    await take(dying, "k", TWO)
    await take(dying, "k", TWO)
    assert await reserve(other, "k", TWO) == Shortage("concurrent", None)
    dying._outbox.errands.clear()
    await dying.aclose()
    with anyio.fail_after(60):
        while isinstance(await reserve(other, "k", TWO), Shortage):  # noqa: ASYNC110
            await anyio.sleep(0.05)


async def test_cancelled_while_it_asks_it_takes_nothing(server):
    store = RedisLimits(server.url, timeout=5)
    await take(store, requests=1)
    for wait in (0.0, 0.0002, 0.0005, 0.001, 0.002, 0.005) * 5:
        task = asyncio.ensure_future(reserve(store, "k", PLAIN, tokens=10))
        await asyncio.sleep(wait)
        if not task.cancel():
            (await task).cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result().cancel()
    await store.flush()
    assert await left(store) == [9, 500]
    assert not store.lost
    await store.aclose()


# ---- lost and back --------------------------------------------------------------------------------------------------


async def until_back(store: RedisLimits, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while store.lost:
        assert time.monotonic() < end, "it did not come back"
        await reserve(store, "probing")
        await anyio.sleep(0.02)


async def test_lost_it_goes_on_with_its_share_and_comes_back(server, store, other):
    await take(store, requests=1)
    await take(other, requests=1)
    assert store._seen == 1
    await take(store, requests=1)
    assert store._seen == 2
    held: Any = await take(store, requests=1, tokens=100)
    server.kill()
    for _ in range(5):  # half of ten
        await take(store, requests=1)
    assert (await reserve(store, requests=1)).dimension == "requests/1e+06s"
    assert store.lost
    held.settle({"tokens": 10})  # nobody to tell
    server.start()
    await until_back(store)
    await store.flush()
    # A new server knows nothing of the calls before: full again, and the old lease changes nothing.
    assert await left(store) == [10, 500]


async def test_no_burst_is_let_loose_when_it_is_lost_nor_when_it_is_back(server, store):
    # one in a hundred seconds
    paced = limits(
        Limit(dimension="requests", amount=60, period=6000, burst=5), Limit(dimension="tokens", amount=60, period=6000)
    )
    await take(store, "k", paced, requests=1)
    server.kill()
    lost = await reserve(store, "k", paced, requests=1)
    assert lost == Shortage("requests/6000s", pytest.approx(100, abs=30))
    await take(store, "k", paced, tokens=20)  # a quota's whole allowance is there
    server.start()
    await until_back(store)
    back = await reserve(store, "k", paced, requests=1)
    assert back == Shortage("requests/6000s", pytest.approx(100, abs=30))
    await take(store, "k", paced, tokens=60)


async def test_what_was_said_of_the_lost_memory_corrects_no_other(server, store):
    leaves: list[Any] = [await take(store, tokens=100)]
    leaves[0].calibrate((LimitReading(dimension="tokens", remaining=10),))
    await store.flush()
    leaves.append(await take(store))
    server.kill()
    await reserve(store)
    leaves[0].calibrate((LimitReading(dimension="tokens", remaining=5),))  # while nobody can be told
    server.start()
    await until_back(store)
    leaves[1].calibrate((LimitReading(dimension="tokens", remaining=5),))  # by a call from before
    await store.flush()
    assert await left(store) == [10, 500]


async def test_the_share_may_be_told(server):
    store = RedisLimits(server.url, timeout=10, processes=5)
    server.kill()
    for _ in range(2):
        await take(store, requests=1)
    assert isinstance(await reserve(store, requests=1), Shortage)
    server.start()
    await until_back(store)
    await store.aclose()


async def test_lost_it_may_refuse(server):
    store = RedisLimits(server.url, timeout=10, when_lost="refuse")
    server.kill()
    with pytest.raises(RateLimitExceeded) as caught:
        await reserve(store, requests=1)
    assert caught.value.dimension == "store"
    server.start()
    end = time.monotonic() + 60
    while store.lost:
        assert time.monotonic() < end
        with pytest.raises(RateLimitExceeded):
            await reserve(store, requests=1)
        await anyio.sleep(0.02)
    await take(store, requests=1)
    await store.aclose()


async def test_a_server_that_hangs_costs_one_timeout_not_one_a_call(server):
    store = RedisLimits(server.url, timeout=1)
    await take(store, requests=1)
    server.process.send_signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        for _ in range(30):
            await reserve(store, requests=1)
        assert 0.9 < time.monotonic() - started < 15
        assert store.lost
    finally:
        server.process.send_signal(signal.SIGCONT)
    await until_back(store)
    await store.flush()
    assert await left(store) == [9, 500], "what was asked in vain is taken back"
    await store.aclose()


async def test_what_cannot_be_told_is_bounded(server):
    store = RedisLimits(server.url, timeout=10)
    await take(store, requests=1)
    server.kill()
    await reserve(store, requests=1)
    for _ in range(20_000):
        store.later(["k"], ["end"], lambda: None)
    assert len(store._outbox.errands) == 10_000
    server.start()
    store._outbox.errands.clear()
    await store.aclose()


# ---- with the wrapper -----------------------------------------------------------------------------------------------


async def call(stack, **options) -> Context:
    context = Context.new(**options)
    response = await stack.send(WHOLE, context)
    await response.read()
    return context


async def test_two_processes_keep_one_pace(store, other):
    stacks = [
        RateLimit(requests_per_minute=1200, burst=0.05, store=each)(Scripted(then="Hi")) for each in (store, other)
    ]
    started = time.monotonic()

    async def several(stack):
        for _ in range(10):
            await call(stack)

    async with anyio.create_task_group() as tasks:
        for stack in stacks * 3:
            tasks.start_soon(several, stack)
    # 60 calls at 20 a second; each at a pace of its own, they would be over in half the time
    assert 2.8 < time.monotonic() - started < 60


@pytest.mark.parametrize("options", [{}, {"at_most_waiting": 0}, {"wait_at_most": 0.3}])
async def test_standing_in_line_to_ask_is_no_waiting(store, options):
    limit = RateLimit(requests_per_day=5, store=store, **{"wait_at_most": 0, **options})
    stack = limit(Scripted(then="Hi"))
    ends = []

    async def one():
        try:
            await call(stack)
            ends.append("served")
        except RateLimitExceeded as error:
            ends.append(error.dimension.partition("/")[0])

    started = time.monotonic()
    for number in (4, 10):
        async with anyio.create_task_group() as tasks:
            for _ in range(number):
                tasks.start_soon(one)
    assert sorted(ends) == ["requests"] * 9 + ["served"] * 5
    assert time.monotonic() - started < 300  # one is given back after 17,280


async def test_usage_is_settled_in_the_server(store):
    used = [UsageUpdate(Usage(input=40, output=60)), Finish("stop")]
    stack = RateLimit(tokens_per_minute=0.06, burst=60, store=store, name="k")(Scripted(used))
    await call(stack)
    await stack.aclose()
    (level,) = await left(store, stack.wrapper.limits)
    assert level == pytest.approx(0.1 - 100, abs=0.1)


async def test_a_deadline_is_kept_over_the_store(store):
    stack = RateLimit(requests_per_minute=0.6, burst=10, store=store)(Scripted(then="Hi"))
    await call(stack)
    started = time.monotonic()
    with pytest.raises(RateLimitExceeded) as caught:
        await call(stack, seconds=80)
    assert time.monotonic() - started < 40
    assert caught.value.retry_after == pytest.approx(100, abs=15)


async def test_losing_and_finding_the_store_is_told(server, store):
    stack = RateLimit(requests_per_minute=6000, burst=60, store=store)(Scripted(then="Hi"))
    await call(stack)
    server.kill()
    told = [decision for _ in range(3) for decision in (await call(stack)).trace.decisions]
    assert [(type(each), each.state, each.mode) for each in told] == [(LimitStoreChanged, "lost", "local_share")]
    server.start()
    await until_back(store)
    told = (await call(stack)).trace.decisions
    assert [(each.state, each.mode) for each in told] == [("back", "local_share")]


async def test_lost_and_refusing_is_a_local_refusal(server):
    store = RedisLimits(server.url, timeout=10, when_lost="refuse")
    server.kill()
    stack = RateLimit(requests_per_minute=6000, store=store)(Scripted(then="Hi"))
    with pytest.raises(RateLimitExceeded) as caught:
        await call(stack)
    assert caught.value.provider == "scripted"
    await store.aclose()
    server.start()


# ---- where it works -------------------------------------------------------------------------------------------------


def test_on_trio_it_says_so(server):
    async def main():
        stack = RateLimit(requests_per_minute=60, store=RedisLimits(server.url, timeout=10))(Scripted("Hi"))
        with pytest.raises(InvalidArgument, match="asyncio"):
            await call(stack)
        await stack.aclose()

    anyio.run(main, backend="trio")


def test_one_event_loop_after_another(server):
    store = RedisLimits(server.url, timeout=10)

    async def main():
        await take(store, requests=1)
        assert not store.lost
        await store.aclose()

    asyncio.run(main())
    asyncio.run(main())

    async def end():
        assert await left(store) == [8, 500]
        await store.aclose()

    asyncio.run(end())


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"server": "localhost"}, "server"),
        ({"server": "http://localhost"}, "server"),
        ({"server": 5}, "server"),
        ({"when_lost": "open"}, "when_lost"),
        ({"prefix": "a{b}"}, "prefix"),
        ({"prefix": ""}, "prefix"),
        ({"processes": 0}, "processes"),
        ({"timeout": 0}, "timeout"),
        ({"lease": -1}, "lease"),
    ],
)
def test_bad_options_are_named(options, field):
    with pytest.raises(InvalidArgument) as caught:
        RedisLimits(**{"server": "redis://localhost", **options})
    assert caught.value.field == field


def test_a_url_with_a_password_is_not_shown():
    store = RedisLimits("valkey://user:secret@localhost:6379/0")
    assert store._link.url == "redis://user:secret@localhost:6379/0"
    assert "secret" not in repr(store)

"""Budgets on a real server: its clock, its cluster, and what happens when it goes and comes back."""

import time
from typing import Any

import anyio
import pytest

from llmprod import InvalidArgument
from llmprod.decisions import BudgetRefused, BudgetStoreChanged
from llmprod.errors import BudgetUnavailable
from llmprod.mechanisms.budget import BudgetLimit
from llmprod.mechanisms.budget_store import Bound, Reserved, Short
from llmprod.testing.scripted import Scripted
from llmprod.wrappers.budget import Budget
from tests.stores.conftest import Server
from tests.wrappers.helpers import WHOLE, ask, context

pytest.importorskip("redis")

from llmprod.stores.redis_budgets import RedisBudgets

LIMIT = BudgetLimit("0.000001", per=1e9)
USER = BudgetLimit(1, per=60, by="user")
ACCOUNT = Bound(LIMIT, LIMIT.key({}))


@pytest.fixture
async def store(server: Server):
    made = RedisBudgets(server.url, timeout=10)
    yield made
    await made.aclose()


def budget(store: RedisBudgets) -> Budget:
    return Budget(BudgetLimit("0.001", per=1e9), price={"scripted": (1, 1)}, store=store, assume_output=100)


async def stands(store: RedisBudgets, bound: Bound = ACCOUNT) -> tuple[int, int]:
    await store.flush()
    (level,) = await store.spent([bound])
    return level.spent, level.reserved


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"server": "ftp://x"}, "server"),
        ({"prefix": "a{b}"}, "prefix"),
        ({"when_lost": "guess"}, "when_lost"),
        ({"lapsed": "gone"}, "lapsed"),
        ({"lease": 0}, "lease"),
        ({"timeout": -1}, "timeout"),
    ],
)
def test_wrong_options_are_named(options, field):
    with pytest.raises(InvalidArgument) as caught:
        RedisBudgets(**{"server": "redis://localhost", **options})
    assert caught.value.field == field


@pytest.mark.parametrize("wrong", [-86400 * 40, -70, 70, 86400 * 400])
async def test_the_server_s_clock_decides_whatever_ours_says(server, store, wrong):
    skewed = RedisBudgets(server.url, timeout=10, now=lambda: time.time() + wrong)
    limits = [BudgetLimit(1, per=per, timezone="Asia/Tokyo") for per in ("day", "month", "minute", 45)]
    bounds = [Bound(limit, limit.key({})) for limit in limits]
    got: Any = await skewed.reserve(bounds, 500)
    assert abs(got.now - time.time()) < 35
    assert all(level.ends > got.now for level in got.levels)
    there = [level.reserved for level in await store.spent(bounds)]
    assert there[:2] == [500, 500]
    skewed.settle(got, 400)
    assert [level.spent for level in await skewed.spent(bounds)][:2] in ([400, 400], [0, 0])
    await skewed.flush()
    assert [level.spent for level in await store.spent(bounds)][:2] == [400, 400]
    await skewed.aclose()


async def test_keys_stay_on_one_node_hold_no_names_and_go_away(store, server):
    user = Bound(USER, USER.key({"user": "ann@example.org"}))
    store.settle(await store.reserve([ACCOUNT, user], 5), 5)
    await store.reserve([ACCOUNT, user], 5)
    await store.flush()
    names = [line.decode() for line in server.command("KEYS", "*").split(b"\r\n") if line.startswith(b"llmprod")]
    assert len(names) == 4
    assert {name.partition("{")[2].partition("}")[0] for name in names} == {"budgets"}
    assert not any("ann" in name for name in names)
    for name in names:
        assert int(server.command("TTL", name).strip(b":\r\n")) > 0
    (minute,) = [name for name in names if user.key in name]
    assert int(server.command("TTL", minute).strip(b":\r\n")) < 60 + 900 + 3600 + 5


async def test_asked_twice_it_is_taken_once(store):
    got: Any = await store.reserve([ACCOUNT], 300)
    again, _, _ = await store._ask(
        [ACCOUNT], ["reserve", "1", got.id, "300", "900.0"], limits=True
    )  # fmt: skip
    assert [int(number) for number in again[2:]] == [0, 300]
    assert await stands(store) == (0, 300)


async def test_given_up_before_it_arrived_it_is_never_made(store):
    store._end(Reserved("late", 300, (), 0.0), 0, "2")
    await store.flush()
    with pytest.raises(BudgetUnavailable):
        await store._ask([ACCOUNT], ["reserve", "1", "late", "300", "900.0"], limits=True)
    assert await stands(store) == (0, 0)


async def test_the_script_is_loaded_again_when_the_server_forgot_it(store, server):
    got = await store.reserve([ACCOUNT], 300)
    server.command("SCRIPT", "FLUSH")
    store.settle(got, 200)
    assert await stands(store) == (200, 0)


@pytest.mark.parametrize("decode", [True, False])
async def test_a_client_of_the_application(server, decode):
    from redis.asyncio import Redis

    client = Redis(unix_socket_path=str(server.path), decode_responses=decode)
    store = RedisBudgets(client)
    got: Any = await store.reserve([ACCOUNT], 700)
    assert isinstance(await store.reserve([ACCOUNT], 700), Short)
    store.cancel(got)
    assert await stands(store) == (0, 0)
    await store.aclose()
    assert await client.ping(), "the client was not ours to close"
    await client.aclose()


async def test_a_call_of_the_wrapper(store):
    provider = budget(store)(Scripted(then="Hi"))
    for _ in range(20):
        assert (await ask(provider)).text == "Hi"
    await provider.aclose()
    limit = provider.windows[0]
    assert await stands(store, Bound(limit, limit.key({}))) == (20 * 2000, 0)


# ---- lost -----------------------------------------------------------------------------------------------------------


async def until_back(store: RedisBudgets) -> None:
    with anyio.fail_after(60):
        while True:
            try:
                await store.spent([ACCOUNT])
            except BudgetUnavailable:
                await anyio.sleep(0.05)
            else:
                return


async def test_without_a_server_calls_are_refused(server):
    store = RedisBudgets(server.url, timeout=10)
    provider = Scripted(then="Hi")
    wrapped = budget(store)(provider)
    await ask(wrapped)
    server.kill()
    for place in range(3):
        told = context()
        with pytest.raises(BudgetUnavailable):
            await wrapped.send(WHOLE, told)
        kinds = [type(decision) for decision in told.trace.decisions]
        assert kinds == ([BudgetStoreChanged, BudgetRefused] if not place else [BudgetRefused])
    assert provider.calls == 1
    server.start()
    await until_back(store)
    assert (await ask(wrapped)).text == "Hi"
    await store.aclose()


async def test_or_allowed_and_counted_when_it_is_back(server):
    store = RedisBudgets(server.url, timeout=10, when_lost="allow")
    wrapped = budget(store)(Scripted(then="Hi"))
    await ask(wrapped)
    await store.flush()
    server.kill()
    for _ in range(3):
        await ask(wrapped)
    assert store.lost
    server.start()  # it has forgotten the first
    await until_back(store)
    limit = wrapped.windows[0]
    bound = Bound(limit, limit.key({}))
    with anyio.fail_after(60):
        while await stands(store, bound) != (3 * 2000, 0):  # noqa: ASYNC110 - a server tells no event
            await anyio.sleep(0.02)
    await store.aclose()


async def test_what_is_settled_while_it_is_away_is_told_when_it_is_back(server):
    # A network that is gone for a while, and a server that still knows: the connection is taken for lost by hand.
    store = RedisBudgets(server.url, timeout=20)
    got: Any = await store.reserve([ACCOUNT], 700)
    store._link.lose(OSError())
    store.settle(got, 600)
    await store.flush()
    await until_back(store)
    assert await stands(store) == (600, 0)
    await store.aclose()

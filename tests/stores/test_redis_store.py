"""The store on a real Redis and a real Valkey: the contract of all, and what happens when the server goes."""

import asyncio
import signal
import time

import anyio
import pytest

from llmprod import InvalidArgument
from llmprod.errors import StoreUnavailable
from llmprod.testing import StoreConformance

redis = pytest.importorskip("redis")

from llmprod.stores.redis_store import RedisStore  # noqa: E402


@pytest.fixture
async def store(server):
    made = RedisStore(server.url)
    yield made
    await made.aclose()


@pytest.fixture
async def other(server):
    made = RedisStore(server.url)
    yield made
    await made.aclose()


class TestRedisStore(StoreConformance):
    @pytest.fixture
    async def store(self, server):
        made = RedisStore(server.url, timeout=20)
        yield made
        await made.aclose()

    @pytest.fixture
    async def other(self, server):
        made = RedisStore(server.url, timeout=20)
        yield made
        await made.aclose()


class TestRedisStoreOnAClientOfTheApplication(StoreConformance):
    @pytest.fixture
    async def store(self, server):
        client = redis.asyncio.Redis(unix_socket_path=str(server.path), decode_responses=True)
        yield RedisStore(client, prefix="a*[b]", timeout=20)
        assert await client.ping(), "the client was not ours to close"
        await client.aclose()


# ---- what is in the server ------------------------------------------------------------------------------------------


async def test_names_are_hashes_and_prefixes_apart(server, store):
    another = RedisStore(server.url, prefix="another")
    await store.set("sk-secret", b"1")
    await another.set("sk-secret", b"2")
    assert b"secret" not in server.command("KEYS", "*")
    server.command("SET", "llmprod:store:stranger", "x")
    server.command("RPUSH", "llmprod:store:list", "x")
    assert await store.clear("sk-") == 1
    assert await another.get("sk-secret") == b"2"
    await another.aclose()
    assert b"stranger" in server.command("KEYS", "*"), "what it did not write it does not remove"


async def test_an_entry_of_another_key_is_a_miss(server, store, caplog):
    await store.set("a", b"1")
    server.command("RENAME", store._name("a")[0], store._name("b")[0])
    assert await store.get("b") is None
    assert [record.message for record in caplog.records] == [
        "RedisStore: an entry is not one of this key's and counts as a miss"
    ]


async def test_scripts_are_sent_again_when_the_server_forgot_them(server, store):
    await store.set("k", b"1")
    server.command("SCRIPT", "FLUSH")
    assert await store.delete("k", only=b"1")
    await store.set("k", b"1")
    server.command("SCRIPT", "FLUSH")
    assert await store.clear() == 1


async def test_a_full_server_is_unavailable_and_not_lost(server, store, caplog):
    await store.set("k", b"1")
    server.command("CONFIG", "SET", "maxmemory", "1")
    try:
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="full"):
                await store.set("k", b"2" * 1000)
        assert not store.lost
        assert await store.get("k") == b"1"
        assert len(caplog.records) == 1
    finally:
        server.command("CONFIG", "SET", "maxmemory", "0")
    await store.set("k", b"2")
    assert await store.get("k") == b"2"


async def test_no_more_connections_than_it_may_have(server):
    store = RedisStore(server.url, at_once=3, timeout=20)
    async with anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(store.set, str(number), b"x" * 1000)
    clients = server.command("INFO", "clients")
    connected = int(clients.split(b"connected_clients:")[1].split()[0])
    assert connected <= 3 + 2  # those of other tests' objects, and the one that asks
    assert await store.clear() == 200
    await store.aclose()


# ---- lost and back --------------------------------------------------------------------------------------------------


async def until_back(store, seconds=60.0):
    end = time.monotonic() + seconds
    while store.lost:
        assert time.monotonic() < end, "it did not come back"
        with pytest.raises(StoreUnavailable):
            await store.get("probing")
        await anyio.sleep(0.02)


async def test_stopped_and_started_again_while_in_use(server, store, caplog):
    wrong: list[object] = []
    waits: list[object] = []
    served = 0
    over = False

    async def use(name: int) -> None:
        nonlocal served
        number = 0
        while not over:
            key, number = f"{name}:{number % 20}", number + 1
            try:
                await store.set(key, key.encode() * 100)
                got = await store.get(key)
                if got not in (None, key.encode() * 100):
                    wrong.append(got)
                served += 1
            except StoreUnavailable as error:
                waits.append(error.retry_after)
                await anyio.sleep(0.01)

    async with anyio.create_task_group() as tasks:
        for name in range(20):
            tasks.start_soon(use, name)
        for _ in range(2):
            await anyio.sleep(0.3)
            await anyio.to_thread.run_sync(server.kill)
            while not store.lost:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            await anyio.to_thread.run_sync(server.start)
            before = served
            while store.lost or served < before + 20:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        over = True
    assert wrong == []
    assert waits
    assert None not in waits
    said = [record.message.split(" (")[0] for record in caplog.records]
    assert said == ["the store on Redis is lost", "the store on Redis is back"] * 2


async def test_a_server_that_hangs_costs_one_timeout_not_one_a_call(server):
    store = RedisStore(server.url, timeout=1)
    await store.set("k", b"1")
    server.process.send_signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        refused = 0

        async def ask() -> None:
            nonlocal refused
            try:
                await store.get("k")
            except StoreUnavailable:
                refused += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(500):
                tasks.start_soon(ask)
        assert refused == 500
        # One timeout, where one after the other, 32 at once, would be sixteen.
        assert 0.9 < time.monotonic() - started < 10
    finally:
        server.process.send_signal(signal.SIGCONT)
    await until_back(store)
    assert await store.get("k") == b"1"
    await store.aclose()


async def test_one_probe_at_a_time(server, store):
    await store.set("k", b"1")
    server.kill()
    probes = 0
    probe = store._link._probe

    async def counted() -> None:
        nonlocal probes
        probes += 1
        await probe()

    store._link._probe = counted
    started = time.monotonic()
    asked = 0
    while time.monotonic() < started + 1.2 or asked < 100:
        with pytest.raises(StoreUnavailable):
            await store.get("k")
        asked += 1
        await asyncio.sleep(0.002)
    # The first after half a second, the others no sooner after the one before.
    assert 1 <= probes <= (time.monotonic() - started) / 0.5
    server.start()
    await until_back(store)


async def test_a_restart_between_two_uses_is_not_noticed(server, store):
    await store.set("k", b"1")
    server.kill()
    server.start()
    assert await store.get("k") is None
    assert not store.lost


async def test_cancelled_under_way_no_answer_goes_to_another(store):
    for number in range(20):
        await store.set(str(number), b"%d" % number * 2000)
    for wait in (0.0, 0.0002, 0.0005, 0.001, 0.002) * 8:
        tasks = [asyncio.ensure_future(store.get(str(number))) for number in range(20)]
        await asyncio.sleep(wait)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait(tasks)
        for number, task in enumerate(tasks):
            if not task.cancelled():
                assert task.result() == b"%d" % number * 2000
    assert not store.lost


# ---- where it works -------------------------------------------------------------------------------------------------


def test_on_trio_it_says_so(server):
    async def main():
        store = RedisStore(server.url)
        for ask in (store.get("k"), store.set("k", b""), store.clear()):
            with pytest.raises(InvalidArgument, match="asyncio"):
                await ask
        await store.aclose()

    anyio.run(main, backend="trio")


def test_one_event_loop_after_another_and_no_two_at_once(server):
    store = RedisStore(server.url)

    async def main(last: bytes | None, value: bytes) -> None:
        assert await store.get("k") == last
        await store.set("k", value)

        def beside() -> None:
            with pytest.raises(InvalidArgument, match="two event loops"):
                asyncio.run(store.get("k"))

        await asyncio.to_thread(beside)
        await store.aclose()

    asyncio.run(main(None, b"1"))
    asyncio.run(main(b"1", b"2"))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"server": "localhost"}, "server"),
        ({"server": 5}, "server"),
        ({"prefix": "a{b}"}, "prefix"),
        ({"prefix": ""}, "prefix"),
        ({"timeout": 0}, "timeout"),
        ({"at_once": 0}, "at_once"),
    ],
)
def test_bad_options_are_named(options, field):
    with pytest.raises(InvalidArgument) as caught:
        RedisStore(**{"server": "redis://localhost", **options})
    assert caught.value.field == field


def test_a_url_with_a_password_is_not_shown():
    assert "secret" not in repr(RedisStore("valkey://user:secret@localhost:6379/0"))


async def test_nobody_there_is_unavailable_from_the_start(tmp_path):
    store = RedisStore(f"unix://{tmp_path}/nothing")
    with pytest.raises(StoreUnavailable, match="no connection"):
        await store.add("k", b"")
    assert store.lost
    await store.aclose()

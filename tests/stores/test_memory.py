"""The store in memory: the contract of all, and its bounds, its order and its clock."""

import os
import subprocess
import sys
import threading
import tracemalloc

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod import InvalidArgument
from llmprod.errors import StoreUnavailable
from llmprod.store import Store
from llmprod.stores.memory import MemoryStore
from llmprod.testing import StoreConformance
from tests.mechanisms.hand_clock import HandClock


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def clock(self):
        self.hand = HandClock()
        return self.hand

    @pytest.fixture
    async def store(self, clock):
        return MemoryStore(clock=clock)

    async def wait(self, seconds):
        self.hand.time += seconds


def test_it_is_a_store():
    assert isinstance(MemoryStore(), Store)


async def test_the_least_recently_used_goes_first():
    store = MemoryStore(max_items=3)
    for key in "abc":
        await store.set(key, b"")
    await store.get("a")
    await store.set("d", b"")
    assert [await store.get(key) is not None for key in "abcd"] == [True, False, True, True]
    stats = store.stats()
    assert (stats.items, stats.evictions, stats.hits, stats.misses) == (3, 1, 4, 1)


async def test_a_value_larger_than_the_store_is_dropped_with_the_one_before():
    store = MemoryStore(max_bytes=1000)
    await store.set("k", b"x")
    await store.set("k", b"x" * 1000)
    assert await store.get("k") is None
    with pytest.raises(StoreUnavailable):
        await store.add("k", b"x" * 1000)
    assert store.stats().bytes == 0


async def test_a_time_to_live_for_all():
    clock = HandClock()
    store = MemoryStore(ttl=10, clock=clock)
    await store.set("a", b"1")
    await store.set("b", b"1", ttl=100)
    clock.time += 10
    assert (await store.get("a"), await store.get("b")) == (None, b"1")
    assert store.stats().items == 1


operations = st.lists(
    st.tuples(
        st.sampled_from(["get", "set", "add", "delete", "only", "clear", "wait"]),
        st.sampled_from(["a", "ab", "b", "ключ"]),
        st.integers(0, 900),
    ),
    max_size=60,
)


@given(operations, st.integers(1, 2500), st.none() | st.integers(1, 3))
def test_it_stays_in_its_bounds_and_never_returns_other_bytes(steps, max_bytes, max_items):
    async def main():
        clock = HandClock()
        store = MemoryStore(max_bytes=max_bytes, max_items=max_items, clock=clock)
        last: dict[str, tuple[bytes, float]] = {}
        for number, (what, key, size) in enumerate(steps):
            value = b"%d" % number * size
            if what == "get":
                got = await store.get(key)
                assert got is None or (got == last[key][0] and clock.now() < last[key][1])
            elif what == "set":
                await store.set(key, value, ttl=size + 1)
                last[key] = value, clock.now() + size + 1
            elif what == "add":
                there = await store.get(key)
                try:
                    added = await store.add(key, value)
                except StoreUnavailable:
                    continue
                assert added == (there is None)
                if added:
                    last[key] = value, float("inf")
            elif what == "delete":
                await store.delete(key)
                assert await store.get(key) is None
            elif what == "only":
                there = await store.get(key)
                assert await store.delete(key, only=last.get(key, (b"",))[0]) == (there is not None)
            elif what == "clear":
                await store.clear(key)
                assert await store.get(key) is None
            else:
                clock.time += size
            stats = store.stats()
            assert 0 <= stats.bytes <= max_bytes
            assert max_items is None or stats.items <= max_items
        await store.clear()
        assert (store.stats().bytes, store.stats().items) == (0, 0)

    anyio.run(main)


async def test_the_bytes_it_counts_are_no_fewer_than_those_it_takes(anyio_backend):
    for size, key in ((0, "k:%d"), (100, "%064d"), (5000, "ключ %d")):
        store = MemoryStore(max_bytes=10**9)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for number in range(5000):
                await store.set(key % number, b"%d" % number + b"x" * size, ttl=1000.0 + number)
            took = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert took <= store.stats().bytes <= 2.5 * took


def test_threads_and_loops_share_it():
    store = MemoryStore(max_items=20)
    wrong: list[object] = []

    async def work(seed: int) -> None:
        for number in range(1500):
            key = str((number * seed) % 40)
            await store.set(key, key.encode() * 50)
            got = await store.get(key)
            if got not in (None, key.encode() * 50):
                wrong.append(got)

    threads = [
        threading.Thread(target=anyio.run, args=(work, seed), kwargs={"backend": backend})
        for seed, backend in ((1, "asyncio"), (3, "trio"), (7, "asyncio"), (11, "trio"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert store.stats().items == 20


@pytest.mark.parametrize(
    ("options", "field"),
    [({"max_bytes": 0}, "max_bytes"), ({"max_items": 0}, "max_items"), ({"ttl": 0}, "ttl"), ({"ttl": -1}, "ttl")],
)
def test_bad_options_are_named(options, field):
    with pytest.raises(InvalidArgument) as caught:
        MemoryStore(**options)
    assert caught.value.field == field


async def test_its_repr_shows_no_key():
    store = MemoryStore()
    await store.set("secret", b"secret")
    assert "secret" not in repr(store)


_FORKED = """
import os, signal, threading, time
import anyio
from llmprod.stores.memory import MemoryStore

store, empty = MemoryStore(), MemoryStore()
anyio.run(store.set, "k", b"1")
anyio.run(empty.set, "k", b"1")
held, done = threading.Event(), threading.Event()

def hold():
    with store._lock:  # as in the middle of a set
        held.set()
        done.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(10)
    anyio.run(store.set, "k", b"2")
    kept = anyio.run(store.get, "k"), anyio.run(empty.get, "k"), store.stats().items
    os._exit(0 if kept == (b"2", b"1", 1) else 1)
_, status = os.waitpid(child, 0)
done.set()
thread.join()
assert anyio.run(store.get, "k") == b"1"
raise SystemExit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_not_wait_for_a_thread_that_it_does_not_have():
    ended = subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORKED], timeout=60, check=False)
    assert ended.returncode == 0

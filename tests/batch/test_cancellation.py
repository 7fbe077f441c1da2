"""A batch that is left early leaves nothing behind: no call, no task, no lock, no half line."""

import asyncio
import gc
import itertools
import json

import anyio
import pytest
import trio

from llmprod.testing import virtual_backend
from tests.batch.helpers import Timed, bare
from tests.cancel_sweep import sweep


async def settled(provider: Timed) -> None:
    """Give calls that were cancelled without waiting a moment to go."""
    await anyio.sleep(0.01)
    assert provider.in_flight == 0


@pytest.mark.parametrize("ordered", [True, False])
async def test_leaving_the_loop_cancels_what_is_in_flight(ordered):
    provider = Timed()
    async for _ in bare(provider).map(itertools.repeat("1"), concurrency=5, ordered=ordered):
        break
    await settled(provider)
    asked = len(provider.asked)
    await anyio.sleep(100)
    assert len(provider.asked) == asked


async def test_an_error_in_the_loop_does_as_well():
    provider = Timed()

    async def loop():
        async for _ in bare(provider).map(itertools.repeat("1"), concurrency=5):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await loop()
    await settled(provider)


async def test_async_with_waits_for_it():
    provider = Timed()
    async with bare(provider).map(itertools.repeat("1"), concurrency=5) as results:
        async for _ in results:
            break
        await anyio.sleep(0.5)
        assert provider.in_flight == 5
    assert (provider.in_flight, provider.cancelled) == (0, 5)
    assert [result async for result in results] == []
    await results.aclose()


async def test_closing_beside_a_waiting_reader_ends_its_loop():
    provider = Timed()
    results = bare(provider).map(["50"])
    async with anyio.create_task_group() as group:

        async def read():
            assert [result async for result in results] == []

        group.start_soon(read)
        await anyio.sleep(1)
        await results.aclose()
    assert provider.in_flight == 0
    assert anyio.current_time() < 1e9


async def test_one_that_was_never_begun():
    provider = Timed()
    results = bare(provider).map(["1"])
    await results.aclose()
    assert [result async for result in results] == []
    async with bare(provider).map(["1"]):
        pass
    assert provider.asked == []


async def test_cancelled_while_it_waits_it_is_over():
    provider = Timed()
    results = bare(provider).map(["5"] * 10, concurrency=4)
    with anyio.move_on_after(1) as scope:
        await anext(results)
    assert scope.cancelled_caught
    assert (provider.in_flight, provider.cancelled) == (0, 4)
    assert [result async for result in results] == []


@pytest.mark.parametrize("ordered", [True, False])
async def test_cancelled_anywhere_it_leaves_no_call(ordered):
    def scenario():
        provider = Timed()
        closed = []

        async def source():
            try:
                for number in range(12):
                    await anyio.sleep(0.3)
                    yield f"{number % 3} {number}"
            finally:
                closed.append(True)

        async def use():
            async with bare(provider).map(source(), concurrency=2, ordered=ordered) as results:
                async for result in results:
                    assert result.ok
                    await anyio.sleep(0.1)

        def check():
            assert provider.in_flight == 0
            assert closed in ([True], [])  # [] where it was not begun

        return use(), check

    assert await sweep(scenario) > 10


async def test_cancelled_anywhere_the_file_goes_on(tmp_path):
    numbers = itertools.count()
    checked = []

    def scenario():
        provider = Timed()
        path = tmp_path / f"{next(numbers)}.jsonl"

        async def use():
            async with bare(provider).map(["1", "2", "0"], concurrency=2, checkpoint=path) as results:
                async for result in results:
                    assert result.ok

        def check():
            assert provider.in_flight == 0
            checked.append((path, len(provider.asked) - provider.cancelled))

        return use(), check

    assert await sweep(scenario) > 3
    for path, answered in checked:
        again = Timed()
        results = [result async for result in bare(again).map(["1", "2", "0"], checkpoint=path)]  # the lock is free
        assert [result.text for result in results] == ["a 1", "a 2", "a 0"]
        assert len(again.asked) == 3 - answered
        assert sum(result.restored for result in results) == answered
        lines = path.read_bytes().splitlines()
        assert len([json.loads(line) for line in lines]) == 4


async def test_garbage_in_a_cycle_is_cancelled_too():
    provider = Timed()
    results = bare(provider).map(itertools.repeat("1"), concurrency=5)
    await anext(results)
    cycle = [results]
    cycle.append(cycle)
    del results, cycle
    gc.collect()
    await settled(provider)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_loop_may_end_with_one_open(backend):
    provider = Timed()
    kept = []

    async def main():
        results = bare(provider).map(itertools.repeat("1"), concurrency=5)
        kept.append(results)
        await anext(results)
        await anyio.sleep(0.5)
        assert provider.in_flight == 5

    name, options = virtual_backend(backend)
    anyio.run(main, backend=name, backend_options=options)
    assert provider.in_flight == 0
    kept.clear()


def test_no_task_is_left():
    async def on_asyncio():
        before = asyncio.all_tasks()
        async with bare(Timed()).map(itertools.repeat("0"), concurrency=5) as results:
            await anext(results)
        assert asyncio.all_tasks() == before
        async for _ in bare(Timed()).map(["0"] * 3):
            pass
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before

    async def on_trio():
        before = trio.lowlevel.current_statistics().tasks_living
        async with bare(Timed()).map(itertools.repeat("0"), concurrency=5) as results:
            await anext(results)
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == before

    asyncio.run(on_asyncio())
    trio.run(on_trio)

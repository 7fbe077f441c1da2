"""Scenarios made from seeds, on both backends: what must always hold does, and both tell the same story.

A failure prints its seed and the command that runs it alone. For others than those of every push:

    LLMPROD_SEEDS=0:10000 python -m pytest tests/simulation
    python -m tests.simulation --seeds 0:10000 --jobs 2
"""

import os

import pytest

from tests.simulation.plan import INNER, OUTER, ROUTERS, plan
from tests.simulation.scenario import investigate
from tests.simulation.worlds import TICK, on_grid, run

_BLOCK = 30


def _blocks() -> list[range]:
    first, _, end = os.environ.get("LLMPROD_SEEDS", "0:300").partition(":")
    seeds = range(int(first), int(end) if end else int(first) + 1)
    return [seeds[place : place + _BLOCK] for place in range(0, len(seeds), _BLOCK)]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", _blocks(), ids=lambda seeds: f"{seeds.start}:{seeds.stop}")
def test_every_scenario_holds(seeds):
    failed = [found for found in map(investigate, seeds) if found.violations]
    assert not failed, "\n".join(map(str, failed))


def test_one_seed_is_one_scenario_and_one_story():
    for seed in (2, 17, 23):
        assert plan(seed) == plan(seed)
        first, second = investigate(seed), investigate(seed)
        assert first.digest == second.digest
        assert first.digest != investigate(seed + 1).digest


def test_the_seeds_reach_every_wrapper():
    names = set().union(*(stack.names() for seed in range(300) for stack in plan(seed).stacks))
    assert names >= {"Deadline", "Static", *OUTER, *INNER, *ROUTERS}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_callers_have_ticks_of_their_own(backend):
    woken = {}

    async def main(clock):
        import anyio

        async def sleeper(number):
            await clock.of(number).sleep(0.1)
            woken[number] = clock.now()

        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(sleeper, number)

    run(backend, main, seed=1)
    assert len(set(woken.values())) == 5
    for number, time in woken.items():
        assert time == on_grid(time)
        assert 0.1 <= time < 0.1 + 129 * TICK
        assert int(time / TICK) % 128 == 2 * number + 1

"""Budgets in this process, in a file and on a server keep to the same rules, and many processes to the same limit."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest

from llmprod.mechanisms.budget import BudgetLimit
from llmprod.mechanisms.budget_ledger import BudgetLedger
from llmprod.mechanisms.budget_store import Bound, Reserved, Short
from llmprod.stores.disk_budgets import DiskBudgets
from llmprod.wrappers._memory_budgets import MemoryBudgets
from tests.stores import budget_worker
from tests.stores.budget_worker import PERIOD, RESERVED
from tests.stores.conftest import Server, binaries

ROOT = Path(__file__).resolve().parents[2]
LIMITS = [
    BudgetLimit("0.000001", per=PERIOD),
    BudgetLimit("0.0000006", per=PERIOD, by="user"),
    BudgetLimit("9000000", per=PERIOD, by="tenant"),
]


def bound(limit: BudgetLimit, **tags: str) -> Bound:
    return Bound(limit, limit.key(tags))


SERVERS = ["redis-server", "valkey-server"]


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Gives a running, empty server of a name."""
    pytest.importorskip("redis")
    started: dict[str, Server] = {}

    def empty(name: str) -> str:
        if name not in binaries():
            pytest.skip(f"no {name} on PATH or in a package")
        if name not in started:
            started[name] = Server(binaries()[name], tmp_path_factory.mktemp("s"))
        started[name].command("FLUSHALL")
        return started[name].url

    yield empty
    for one in started.values():
        one.kill()


@pytest.fixture(params=["memory", "disk", *SERVERS])
async def store(request: pytest.FixtureRequest, tmp_path: Path, servers: Any):
    if request.param == "memory":
        made: Any = MemoryBudgets()
    elif request.param == "disk":
        made = DiskBudgets(tmp_path / "budgets.db")
    else:
        from llmprod.stores.redis_budgets import RedisBudgets

        made = RedisBudgets(servers(request.param), timeout=30)
    yield made
    await made.aclose()


async def stands(store: Any, *bounds: Bound) -> list[tuple[int, int]]:
    await store.flush()
    return [(level.spent, level.reserved) for level in await store.spent(bounds)]


@pytest.mark.parametrize("seed", range(4))
async def test_every_store_counts_as_the_ledger_does(store, seed):
    chance = random.Random(seed)
    ledger = BudgetLedger(now=time.time)
    accounts = [bound(limit, user=user, tenant=user) for limit in LIMITS for user in "ab"]
    under_way: list[tuple[Reserved, Reserved]] = []
    for _ in range(150):
        if under_way and chance.random() < 0.5:
            one, other = under_way.pop(chance.randrange(len(under_way)))
            if chance.random() < 0.2:
                store.cancel(one)
                ledger.cancel(other)
            else:
                actual = chance.choice([0, 1, chance.randint(0, 300), 2**52])
                store.settle(one, actual if actual < 2**52 else 7)
                ledger.settle(other, actual if actual < 2**52 else 7)
            if chance.random() < 0.3:
                store.settle(one, 99)  # a second time counts nothing
        else:
            user = chance.choice("ab")
            some = [bound(limit, user=user, tenant=user) for limit in chance.sample(LIMITS, chance.randint(1, 3))]
            amount = chance.choice([0, 100, chance.randint(1, 700), 9 * 10**14])
            await store.flush()
            got, expected = await store.reserve(some, amount), ledger.reserve(some, amount)
            assert type(got) is type(expected)
            if isinstance(got, Short):
                assert isinstance(expected, Short)
                assert (got.bound, got.level) == (expected.bound, expected.level)
            else:
                assert got.levels == expected.levels
                under_way.append((got, expected))
        assert await stands(store, *accounts) == [
            (level.spent, level.reserved) for level in ledger.levels(accounts)
        ]  # fmt: skip
    for one, other in under_way:
        store.settle(one, 3)
        ledger.settle(other, 3)
    assert await stands(store, *accounts) == [(level.spent, 0) for level in ledger.levels(accounts)]


async def test_many_at_once_never_take_more_than_there_is(store):
    account = bound(LIMITS[0])
    got: list[Any] = []

    async def one() -> None:
        got.append(await store.reserve([account], 90))

    async with anyio.create_task_group() as group:
        for _ in range(100):
            group.start_soon(one)
    assert sum(isinstance(answer, Reserved) for answer in got) == 11
    assert await stands(store, account) == [(0, 990)]


async def test_windows_roll_and_old_ones_keep_their_own(store):
    quick = bound(BudgetLimit("0.000001", per=0.5))
    first: Any = await store.reserve([quick], 1000)
    assert first.levels[0].ends - 0.5 <= first.now < first.levels[0].ends
    assert isinstance(await store.reserve([quick], 1), Short) or time.time() >= first.levels[0].ends
    while True:
        second: Any = await store.reserve([quick], 700)
        if isinstance(second, Reserved):
            break
        await anyio.sleep(0.02)
    assert second.levels[0].ends > first.levels[0].ends
    store.settle(first, 1000)
    store.cancel(second)
    await store.flush()


# ---- leases ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["disk", *SERVERS])
def place(request: pytest.FixtureRequest, tmp_path: Path, servers: Any) -> tuple[str, str]:
    """A kind of store that is shared, and where it is."""
    if request.param == "disk":
        return "disk", str(tmp_path / "budgets.db")
    return "redis", servers(request.param)


def shared(place: tuple[str, str], **options: Any) -> Any:
    made = budget_worker.store(*place, lease=options.pop("lease", 900.0))
    for name, value in options.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(("lapsed", "then"), [("spent", 600), ("returned", 0)])
async def test_what_nobody_ends_lapses_and_a_late_settlement_corrects_it(place, lapsed, then):
    one, other = shared(place, lease=0.3, lapsed=lapsed), shared(place, lapsed=lapsed)
    account = bound(LIMITS[0])
    started = time.time()
    late = await one.reserve([account], 600)
    with anyio.fail_after(60):
        while (there := await stands(other, account)) == [(0, 600)]:  # noqa: ASYNC110 - a server tells no event
            await anyio.sleep(0.02)
    assert there == [(then, 0)]
    assert time.time() - started >= 0.3, "before its lease was over"
    one.settle(late, 250)
    await one.flush()
    assert await stands(other, account) == [(250, 0)]
    await one.aclose()
    await other.aclose()


async def test_a_cancelled_reservation_is_given_back(place):
    store = shared(place)
    account = bound(LIMITS[2], tenant="x")
    for delay in [0.0, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005] * 6:
        with anyio.move_on_after(delay):
            got = await store.reserve([account], 5)
            store.cancel(got)
    await store.flush()
    other = shared(place)
    with anyio.fail_after(60):
        while await stands(other, account) != [(0, 0)]:  # noqa: ASYNC110 - a server tells no event
            await anyio.sleep(0.02)
    await store.aclose()
    await other.aclose()


async def test_it_is_kept_over_restarts(place):
    account = bound(LIMITS[0])
    store = shared(place)
    store.settle(await store.reserve([account], 600), 500)
    await store.reserve([account], 100)
    await store.aclose()
    again = shared(place)
    assert await stands(again, account) == [(500, 100)]
    await again.aclose()


# ---- several processes ----------------------------------------------------------------------------------------------


class Workers:
    """Processes that spend, and what their providers billed together."""

    def __init__(self, place: tuple[str, str], folder: Path, amount: int, lease: float = 900.0) -> None:
        self.place, self.amount, self.lease = place, amount, lease
        self.log = folder / "billed"
        self.log.touch()
        self.running: list[subprocess.Popen[str]] = []
        self.seeds = iter(range(10_000))

    def start(self, callers: int, rounds: int) -> subprocess.Popen[str]:
        words = [*self.place, self.amount, callers, rounds, self.log, next(self.seeds), self.lease]
        worker = subprocess.Popen(
            [sys.executable, budget_worker.__file__, *map(str, words)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.running.append(worker)
        return worker

    def billed(self) -> int:
        return sum(map(int, self.log.read_text().split()))

    def close(self) -> None:
        for worker in self.running:
            worker.kill()
            worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()


@pytest.fixture
def workers(place: tuple[str, str], tmp_path: Path) -> Iterator[Any]:
    made: list[Workers] = []

    def make(amount: int, lease: float = 900.0) -> Workers:
        made.append(Workers(place, tmp_path, amount, lease))
        return made[-1]

    yield make
    for one in made:
        one.close()


def whole(amount: int) -> Bound:
    return bound(budget_worker.limits(amount)[0])


@pytest.mark.slow
async def test_two_hundred_callers_in_four_processes_spend_no_more_than_the_limit(workers, place):
    amount = 15_000
    team = workers(amount)
    started = [team.start(50, 12) for _ in range(4)]
    served = 0
    for worker in started:
        out, _ = await anyio.to_thread.run_sync(worker.communicate)
        assert worker.returncode == 0
        served += int(out.split()[-1])
    billed = team.billed()
    kept = shared(place)
    ((spent, reserved),) = await stands(kept, whole(amount))
    users = [bound(budget_worker.limits(amount)[1], user=f"u{number}") for number in range(3)]
    apart = await stands(kept, *users)
    await kept.aclose()
    assert reserved == 0
    assert billed * 1000 == spent, "what the budget counted is not what the providers billed"
    assert amount - RESERVED < billed <= amount
    assert sum(one for one, _ in apart) == spent
    assert served > 150


@pytest.mark.slow
async def test_killed_at_any_point_it_loses_and_doubles_nothing_beyond_its_reservations(workers, place):
    amount, lease = 1_000_000, 4.0  # more than they can spend, however long they are let live
    team = workers(amount, lease)
    chance = random.Random(7)
    killed = 0
    for _ in range(3):
        crew = [team.start(10, 0) for _ in range(3)]
        for worker in crew:
            assert worker.stdout is not None
            await anyio.to_thread.run_sync(worker.stdout.readline)
        before = team.billed()
        with anyio.fail_after(60):
            while team.billed() == before:  # a busy machine is slow to begin  # noqa: ASYNC110
                await anyio.sleep(0.01)
        await anyio.sleep(chance.random() * 0.3)
        for worker in crew:
            worker.send_signal(signal.SIGKILL)
            killed += 1
            await anyio.to_thread.run_sync(worker.wait)
            await anyio.sleep(chance.random() * 0.1)
    kept = shared(place, lease=lease)
    billed = team.billed() * 1000
    (before,) = await kept.spent([whole(amount)])
    assert before.spent + before.reserved <= amount * 1000
    assert before.reserved <= killed * 10 * RESERVED * 1000
    with anyio.fail_after(60):
        while True:
            (after,) = await kept.spent([whole(amount)])
            if not after.reserved:
                break
            await anyio.sleep(0.1)
    await kept.aclose()
    # Lapsed reservations of attempts that were billed are more than was billed, never less.
    assert billed <= after.spent <= amount * 1000
    assert after.spent == before.spent + before.reserved
    assert before.spent <= billed + killed * 10 * RESERVED * 1000
    assert Decimal(after.spent) > 0

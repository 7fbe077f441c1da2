"""Budgets in a file: on both event loops, in threads, after a fork, and when the file is gone or no database."""

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from llmprod import Backoff, InvalidArgument, Retry, ServerError, SystemClock
from llmprod.decisions import BudgetRefused, BudgetStoreChanged
from llmprod.errors import BudgetExceeded, BudgetUnavailable
from llmprod.mechanisms.budget import BudgetLimit
from llmprod.mechanisms.budget_store import Bound, Reserved, Short
from llmprod.stores.disk_budgets import DiskBudgets
from llmprod.testing.scripted import Scripted
from llmprod.wrappers.budget import Budget
from tests.cancel_sweep import sweep
from tests.wrappers.helpers import STREAM, WHOLE, ask, context

ROOT = Path(__file__).resolve().parents[2]
LIMIT = BudgetLimit("0.000001", per=1e9)
ACCOUNT = Bound(LIMIT, LIMIT.key({}))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both, unlike Redis's."""
    return request.param


@pytest.fixture
async def store(tmp_path: Path):
    made = DiskBudgets(tmp_path / "budgets.db")
    yield made
    await made.aclose()


async def stands(store: DiskBudgets) -> tuple[int, int]:
    (level,) = await store.spent([ACCOUNT])
    return level.spent, level.reserved


def budget(store: DiskBudgets, **options: Any) -> Budget:
    return Budget(BudgetLimit("0.001", per=1e9), price={"scripted": (1, 1)}, store=store, assume_output=100, **options)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"path": 3}, "path"),
        ({"path": ""}, "path"),
        ({"when_lost": "guess"}, "when_lost"),
        ({"lapsed": "gone"}, "lapsed"),
        ({"lease": 0}, "lease"),
        ({"timeout": -1}, "timeout"),
    ],
)
def test_wrong_options_are_named(options, field):
    with pytest.raises(InvalidArgument) as caught:
        DiskBudgets(**{"path": "x", **options})
    assert caught.value.field == field


async def test_reserve_settle_and_what_is_left(store):
    got = await store.reserve([ACCOUNT], 700)
    assert isinstance(got, Reserved)
    assert isinstance(await store.reserve([ACCOUNT], 301), Short)
    store.settle(got, 500)
    store.settle(got, 500)
    assert await stands(store) == (500, 0)
    assert isinstance(await store.reserve([ACCOUNT], 500), Reserved)


async def test_cancelled_anywhere_it_is_given_back(store):
    for delay in [0.0, 0.0003, 0.001, 0.002] * 5:
        with anyio.move_on_after(delay):
            store.cancel(await store.reserve([ACCOUNT], 5))
    assert await stands(store) == (0, 0)


async def test_no_tag_can_be_read_in_the_file(tmp_path):
    limit = BudgetLimit(1, per=1e9, by="user")
    store = DiskBudgets(tmp_path / "b.db")
    await store.reserve([Bound(limit, limit.key({"user": "ann@example.org"}))], 5)
    await store.aclose()
    assert all(b"example" not in path.read_bytes() for path in tmp_path.iterdir())


async def test_a_call_of_the_wrapper(store):
    provider = budget(store)(Scripted(then="Hi"))
    assert (await ask(provider)).text == "Hi"
    for _ in range(20):
        await ask(provider)
    await provider.aclose()
    level = (await store.spent([Bound(provider.windows[0], provider.windows[0].key({}))]))[0]
    assert (level.spent, level.reserved) == (21 * 2000, 0)


def test_threads_with_loops_of_their_own_share_one(tmp_path):
    store = DiskBudgets(tmp_path / "b.db")
    got: list[Any] = []

    async def main() -> None:
        got.extend([await store.reserve([ACCOUNT], 30) for _ in range(10)])

    threads = [threading.Thread(target=anyio.run, args=(main,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(answer, Reserved) for answer in got) == 33
    anyio.run(store.aclose)


def _in_a_child(path: str, store: DiskBudgets, answer: Any) -> None:
    async def main() -> None:
        got = await store.reserve([ACCOUNT], 200)
        assert isinstance(got, Reserved)
        store.settle(got, 150)
        await store.aclose()

    anyio.run(main)
    answer.put(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_goes_on_by_itself(tmp_path):
    store = DiskBudgets(tmp_path / "b.db")

    async def parent() -> None:
        store.settle(await store.reserve([ACCOUNT], 300), 250)
        await store.flush()

    anyio.run(parent)
    forking = multiprocessing.get_context("fork")
    answer = forking.SimpleQueue()
    child = forking.Process(target=_in_a_child, args=("x", store, answer))
    child.start()
    child.join(120)
    assert child.exitcode == 0

    async def after() -> None:
        assert await stands(store) == (400, 0)
        await store.aclose()

    anyio.run(after)


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_a_call_cancelled_at_any_await_leaves_nothing_reserved(tmp_path, request_):
    store = DiskBudgets(tmp_path / "b.db")
    looking = sqlite3.connect(tmp_path / "b.db")
    await store.spent([ACCOUNT])

    def scenario():
        scripted = Scripted(ServerError(), [0.001, "Hi", 0.001], name="scripted")
        provider = Budget(
            BudgetLimit(1000, per=1e9), BudgetLimit(1000, per="day", by="user"), price={"scripted": (1, 1)}, store=store
        )(Retry(2, backoff=Backoff(base=0.001))(scripted))

        async def run():
            async with await provider.send(request_, context(clock=SystemClock())) as response:
                await response.read()

        def check():
            assert store._worker is not None
            store._worker.submit(lambda: None).result()  # what is settled is written
            assert looking.execute("SELECT count(*) FROM held").fetchone() == (0,)
            assert looking.execute("SELECT sum(reserved) FROM accounts").fetchone() == (0,)
            assert scripted.in_flight == scripted.open_sources == 0

        return run(), check

    assert await sweep(scenario) >= 4
    looking.close()
    await store.aclose()


async def test_a_full_disk_refuses_calls_and_loses_nothing(tmp_path):
    store = DiskBudgets(tmp_path / "b.db")
    held: Any = [await store.reserve([ACCOUNT], 1) for _ in range(3)]

    def fill() -> None:
        connection = store._open()
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite then says what it says of a full disk

    await store._in_worker(fill)
    limit = BudgetLimit(1, per=1e9, by="user")

    async def go_on() -> None:
        for number in range(10_000):
            held.append(await store.reserve([Bound(limit, limit.key({"user": str(number)}))], 7))

    with pytest.raises(BudgetUnavailable) as caught:
        await go_on()
    assert "full" in str(caught.value.__cause__)
    # The limit was the connection's, which is opened anew.
    assert await stands(store) == (0, 3)
    for one in held:
        store.settle(one, 1)
    assert await stands(store) == (3, 0)
    await store.aclose()


# ---- lost -----------------------------------------------------------------------------------------------------------


async def test_without_a_file_calls_are_refused(tmp_path):
    store = DiskBudgets(tmp_path / "no such folder" / "b.db")
    provider, told = Scripted(then="Hi"), context()
    with pytest.raises(BudgetUnavailable) as caught:
        await budget(store)(provider).send(WHOLE, told)
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert provider.calls == 0
    assert [type(decision) for decision in told.trace.decisions] == [BudgetStoreChanged, BudgetRefused]
    assert store.lost
    with pytest.raises(BudgetUnavailable):
        await store.spent([ACCOUNT])
    (tmp_path / "no such folder").mkdir()
    told = context()
    await budget(store)(provider).send(WHOLE, told)
    assert not store.lost
    await store.aclose()


async def test_or_allowed_and_counted_when_it_is_back(tmp_path):
    folder = tmp_path / "later"
    store = DiskBudgets(folder / "b.db", when_lost="allow")
    wrapped = budget(store)(Scripted(then="Hi"))
    told = context()
    for _ in range(3):
        await wrapped.send(WHOLE, told)
    await store.flush()
    assert [type(decision) for decision in told.trace.decisions] == [BudgetStoreChanged]
    folder.mkdir()
    limit = wrapped.windows[0]
    (level,) = await store.spent([Bound(limit, limit.key({}))])
    assert (level.spent, level.reserved) == (3 * 2000, 0)
    (level,) = await store.spent([Bound(limit, limit.key({}))])
    assert level.spent == 3 * 2000, "told twice"
    await store.aclose()


async def test_a_file_that_is_no_database_is_not_written_over(tmp_path):
    path = tmp_path / "b.db"
    path.write_bytes(b"something of yours" * 200)
    store = DiskBudgets(path)
    with pytest.raises(BudgetUnavailable):
        await store.reserve([ACCOUNT], 5)
    await store.aclose()
    assert path.read_bytes() == b"something of yours" * 200


async def test_another_process_that_holds_on_to_it_is_waited_for_and_no_longer_than_told(tmp_path):
    path = tmp_path / "b.db"
    store = DiskBudgets(path, timeout=0.2)
    settled: Any = await store.reserve([ACCOUNT], 5)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BudgetUnavailable):
        await store.reserve([ACCOUNT], 5)
    store.settle(settled, 3)
    await store.flush()
    other.execute("ROLLBACK")
    other.close()
    assert await stands(store) == (3, 0)
    await store.aclose()


async def test_what_is_settled_is_written_before_the_interpreter_ends(tmp_path):
    code = f"""
import anyio
from tests.stores.test_disk_budgets import ACCOUNT, DiskBudgets
store = DiskBudgets({str(tmp_path / "b.db")!r})
async def main():
    store.settle(await store.reserve([ACCOUNT], 500), 300)
anyio.run(main)
"""
    await anyio.run_process([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE)
    store = DiskBudgets(tmp_path / "b.db")
    assert await stands(store) == (300, 0)
    await store.aclose()


async def test_a_budget_that_is_used_up_stays_so_after_a_restart(tmp_path):
    for expected in ("Hi", None):
        store = DiskBudgets(tmp_path / "b.db")
        wrapped = Budget(
            BudgetLimit("0.0001", per=1e9),
            price={"scripted": (1, 1)},
            tokens=lambda request: 10,
            store=store,
            assume_output=90,
        )(Scripted(then=["Hi", 0.0]))
        served = None
        try:
            while True:
                served = (await ask(wrapped)).text
        except BudgetExceeded:
            pass
        assert served == expected
        await wrapped.aclose()
        await store.aclose()


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
async def test_redis_on_trio_is_refused_by_name():
    pytest.importorskip("redis")
    from llmprod.stores.redis_budgets import RedisBudgets

    with pytest.raises(InvalidArgument, match="trio"):
        await RedisBudgets("redis://localhost").reserve([ACCOUNT], 5)

"""The store on a disk: the contract of all, its bounds, who may read it, and what else uses the folder."""

import contextlib
import os
import stat
import subprocess
import sys
import threading
import time

import anyio
import pytest

from llmprod import InvalidArgument
from llmprod.errors import StoreUnavailable
from llmprod.testing import StoreConformance

diskcache = pytest.importorskip("diskcache")

from llmprod.stores.disk import DiskStore  # noqa: E402


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture
async def store(tmp_path):
    made = DiskStore(tmp_path / "store")
    yield made
    await made.aclose()


class TestDiskStore(StoreConformance):
    @pytest.fixture
    async def store(self, tmp_path):
        made = DiskStore(tmp_path / "store")
        yield made
        await made.aclose()

    @pytest.fixture
    async def other(self, tmp_path, store):
        made = DiskStore(tmp_path / "store")
        yield made
        await made.aclose()


class TestDiskStoreInThreadsAlone(StoreConformance):
    @pytest.fixture
    async def store(self, tmp_path):
        made = DiskStore(tmp_path / "store $HOME ~", inline=0)
        yield made
        await made.aclose()


# ---- bounds ---------------------------------------------------------------------------------------------------------


def taken(folder) -> int:
    return sum(file.stat().st_size for file in folder.rglob("cache.db"))


@pytest.mark.parametrize("size", [500, 20_000, 300_000])
async def test_it_stays_below_its_bound_and_the_oldest_go(tmp_path, size):
    store = DiskStore(tmp_path, max_bytes=2**20)
    count = 2 * 2**20 // size
    for number in range(count):
        await store.set(str(number), os.urandom(size))
    await store.aclose()
    assert taken(tmp_path) <= 2**20
    kept = [number for number in range(count) if await store.get(str(number)) is not None]
    assert kept == list(range(kept[0], count)), "the oldest went"
    assert len(kept) * size > 2**20 / 3
    await store.aclose()


async def test_what_is_over_goes_before_what_is_old(tmp_path):
    store = DiskStore(tmp_path, max_bytes=2**20)
    await store.set("old", b"x" * 1000)
    for number in range(400):
        await store.set(f"over {number}", os.urandom(1000), ttl=0.001)
    for number in range(500):
        await store.set(f"new {number}", os.urandom(1000))
    assert await store.get("old") == b"x" * 1000
    await store.aclose()


async def test_a_value_larger_than_the_store_is_dropped_with_the_one_before(tmp_path):
    store = DiskStore(tmp_path, max_bytes=2**20)
    await store.set("k", b"x")
    await store.set("k", b"x" * 2**20)
    assert await store.get("k") is None
    with pytest.raises(StoreUnavailable, match="larger"):
        await store.add("k", b"x" * 2**20)
    await store.aclose()


async def test_large_values(tmp_path, store):
    value = os.urandom(20_000_000)
    await store.set("k", value)
    assert await store.get("k") == value


# ---- whose it is ----------------------------------------------------------------------------------------------------


async def test_it_is_this_users_alone(tmp_path):
    before = os.umask(0)
    try:
        store = DiskStore(tmp_path / "a" / "b")
        await store.set("k", b"1")
        files = [tmp_path / "a" / "b", *(tmp_path / "a" / "b").rglob("*")]
    finally:
        os.umask(before)
    assert {file.name for file in files} >= {"cache.db", "cache.db-wal", "cache.db-shm"}
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == (0o700 if file.is_dir() else 0o600), file
    await store.aclose()


async def test_what_others_could_read_is_closed_to_them(tmp_path):
    store = DiskStore(tmp_path)
    await store.set("k", b"1")
    await store.aclose()
    (tmp_path / "db-1").chmod(0o755)
    (tmp_path / "db-1" / "cache.db").chmod(0o644)
    assert await store.get("k") == b"1"
    assert stat.S_IMODE((tmp_path / "db-1").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "db-1" / "cache.db").stat().st_mode) == 0o600
    await store.aclose()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
async def test_a_folder_of_another_user_is_refused(tmp_path):
    (tmp_path / "db-1").mkdir()
    os.chown(tmp_path / "db-1", 12345, 12345)
    store = DiskStore(tmp_path)
    with pytest.raises(StoreUnavailable, match="another user"):
        await store.get("k")


async def test_a_folder_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "db-1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailable):
        await DiskStore(tmp_path / "store").set("k", b"1")
    assert list((tmp_path / "elsewhere").iterdir()) == []


async def test_a_file_in_the_folders_place_is_unavailable(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    store = DiskStore(tmp_path / "file")
    for ask in (store.get("k"), store.set("k", b""), store.clear()):
        with pytest.raises(StoreUnavailable, match="can't be read or written"):
            await ask
    assert (tmp_path / "file").read_bytes() == b"mine"


# ---- threads, loops, processes --------------------------------------------------------------------------------------


def test_threads_and_loops_share_it(tmp_path):
    store = DiskStore(tmp_path)
    wrong: list[object] = []

    async def work(seed: int) -> None:
        for number in range(100):
            key = str((number * seed) % 20)
            await store.set(key, key.encode() * 500)
            got = await store.get(key)
            if got != key.encode() * 500:
                wrong.append(got)

    threads = [
        threading.Thread(target=anyio.run, args=(work, seed), kwargs={"backend": backend})
        for seed, backend in ((1, "asyncio"), (3, "trio"), (7, "asyncio"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    anyio.run(store.aclose)


@contextlib.contextmanager
def held(folder):
    """Another process has begun to write."""
    code = (
        "import sqlite3, sys; link = sqlite3.connect(sys.argv[1], isolation_level=None);"
        " link.execute('BEGIN IMMEDIATE'); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / "db-1" / "cache.db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == b"held\n"
    try:
        yield
    finally:
        holder.stdin.close()
        holder.wait()
        holder.stdout.close()


async def test_while_another_process_writes_reads_do_not_wait(tmp_path):
    store = DiskStore(tmp_path, timeout=0.2)
    await store.set("k", b"1")
    with held(tmp_path):
        assert await store.get("k") == b"1"
        with pytest.raises(StoreUnavailable, match="another process"):
            await store.set("k", b"2")
        assert await store.get("k") == b"1"
    await store.set("k", b"2")
    assert await store.get("k") == b"2"
    await store.aclose()


async def test_while_a_write_of_its_own_waits_reads_do_not(tmp_path):
    store = DiskStore(tmp_path, timeout=120)
    await store.set("k", b"1")
    written = []

    async def write() -> None:
        await store.set("k", b"2")
        written.append("k")

    async with anyio.create_task_group() as group:
        with held(tmp_path):
            group.start_soon(write)
            with anyio.fail_after(60):
                while not store._open[0]._writing.locked():  # noqa: ASYNC110
                    await anyio.sleep(0.01)
            assert await store.get("k") == b"1"
            assert written == []
    assert await store.get("k") == b"2"
    await store.aclose()


def read_so_far() -> int:
    with open("/proc/self/io") as told:
        return int(told.readline().removeprefix("rchar:"))


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="nobody counts here what is read")
async def test_what_it_has_just_written_is_not_fetched_from_the_files_again(tmp_path, store):
    values = {str(number): os.urandom(20_000) for number in range(50)}
    for key, value in values.items():
        await store.set(key, value)
    before = read_so_far()
    for key, value in values.items():
        assert await store.get(key) == value
    assert read_so_far() - before < 20_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork_both_go_on(tmp_path):
    code = """
import anyio, os, sys, warnings
from llmprod.stores.disk import DiskStore
store = DiskStore(sys.argv[1])
anyio.run(store.set, "k", b"parent")
child = os.fork()
if not child:
    try:
        async def main():
            assert await store.get("k") == b"parent"
            for number in range(50):
                await store.set(str(number), b"child")
            await store.aclose()
        anyio.run(main)
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
async def main():
    for number in range(50, 100):
        await store.set(str(number), b"parent")
    assert os.waitpid(child, 0)[1] == 0
    for number in range(100):
        assert await store.get(str(number)) == (b"child" if number < 50 else b"parent")
    await store.aclose()
anyio.run(main)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], check=True, timeout=240)


async def test_a_folder_removed_while_in_use_is_begun_again(tmp_path):
    import shutil

    first, second = DiskStore(tmp_path / "s"), DiskStore(tmp_path / "s")
    await first.set("k", b"1")
    assert await second.get("k") == b"1"
    shutil.rmtree(tmp_path / "s")
    await first.set("a", b"1")
    end = time.monotonic() + 60
    while await second.get("a") is None:
        assert time.monotonic() < end, "the other one still reads what was removed"
        await anyio.sleep(0.05)
    assert await second.get("k") is None
    await second.set("b", b"2")
    await second.aclose()
    await first.aclose()
    third = DiskStore(tmp_path / "s")
    assert (await third.get("a"), await third.get("b")) == (b"1", b"2")
    await third.aclose()


async def test_left_open_it_is_closed_with_the_object(tmp_path):
    store = DiskStore(tmp_path)
    await store.set("k", b"1")
    assert (tmp_path / "db-1" / "cache.db-wal").exists()
    del store
    end = time.monotonic() + 60
    while (tmp_path / "db-1" / "cache.db-wal").exists():  # a worker thread may hold the last work for a moment
        assert time.monotonic() < end
        await anyio.sleep(0.01)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"path": ""}, "path"),
        ({"path": 5}, "path"),
        ({"max_bytes": 1000}, "max_bytes"),
        ({"timeout": 0}, "timeout"),
        ({"inline": -1}, "inline"),
    ],
)
def test_bad_options_are_named(tmp_path, options, field):
    with pytest.raises(InvalidArgument) as caught:
        DiskStore(**{"path": tmp_path, **options})
    assert caught.value.field == field

"""A folder that is not as it was left: planted pickles, damaged files, a full disk. No wrong value, no crash.

A sample of what can be damaged is. To damage each byte, which takes minutes:

    LLMPROD_EVERY_BYTE=1 python -m pytest tests/stores/test_disk_damage.py -o faulthandler_timeout=3600
"""

import contextlib
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys

import anyio
import pytest

from llmprod.errors import StoreUnavailable

diskcache = pytest.importorskip("diskcache")

from llmprod.stores._sealed import Damaged, seal, unseal  # noqa: E402
from llmprod.stores.disk import DiskStore  # noqa: E402

EVERY_BYTE = os.environ.get("LLMPROD_EVERY_BYTE") == "1"
ENTRIES = {f"key {number}": bytes([number]) * (number * 20) for number in range(1, 7)} | {"key 7": bytes(5000)}


async def filled(folder) -> None:
    store = DiskStore(folder)
    for key, value in ENTRIES.items():
        await store.set(key, value)
    await store.aclose()


async def use(store) -> int:
    """Do everything; what is read has to be right or missing. Return how many were there."""
    there = 0
    for key, value in ENTRIES.items():
        got = await store.get(key)
        assert got in (None, value), f"{key}: {len(got)} other bytes"
        there += got is not None
    for key, value in list(ENTRIES.items())[::3]:
        await store.set(key, value)
        assert await store.get(key) == value
    await store.delete("key 2", only=ENTRIES["key 2"])
    await store.add("key 2", ENTRIES["key 2"])
    assert await store.get("key 2") in (None, ENTRIES["key 2"])
    return there


def database(folder, number=1):
    return folder / f"db-{number}" / "cache.db"


# ---- nothing is unpickled -------------------------------------------------------------------------------------------


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


COLUMNS = "key, raw, store_time, expire_time, access_time, tag, size, mode, filename, value"


def plant(path, *rows, settings=()) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as link:
        for row in rows:
            link.execute(f"INSERT OR REPLACE INTO Cache({COLUMNS}) VALUES (?, ?, 0, ?, 0, NULL, 0, ?, ?, ?)", row)
        for row in settings:
            link.execute("INSERT OR REPLACE INTO Settings VALUES (?, ?)", row)


@pytest.mark.parametrize("disk", [diskcache.Disk, diskcache.JSONDisk])
def test_bare_diskcache_would_run_what_was_planted(tmp_path, disk):
    with diskcache.Cache(tmp_path / "c", disk=disk) as cache:
        key = cache.disk.put("key")[0]
    plant(tmp_path / "c" / "cache.db", (key, 1, None, 4, None, pickle.dumps(Bomb(tmp_path / "boom"))))
    with diskcache.Cache(tmp_path / "c", disk=disk) as cache:
        with contextlib.suppress(Exception):
            cache.get("key")
    assert (tmp_path / "boom").exists()


async def test_a_planted_pickle_is_never_loaded_and_a_planted_name_never_used(tmp_path, caplog):
    folder, boom, victim = tmp_path / "store", tmp_path / "boom", tmp_path / "victim"
    bomb = pickle.dumps(Bomb(boom))
    await filled(folder)
    victim.write_bytes(bomb)
    (folder / "db-1" / "x.val").write_bytes(bomb)
    plant(
        database(folder),
        (b"key 1", 1, None, 4, None, bomb),  # a value
        (b"key 2", 1, None, 4, str(victim), None),  # a value in a file
        (b"key 3", 1, None, 4, "x.val", None),
        (b"key 4", 1, None, 2, str(victim), None),  # a file
        (b"key 5", 1, None, 2, "../../victim", None),
        (b"key 6", 1, None, 1, str(victim), "text"),
        (bomb, 0, None, 1, None, bomb),  # a key
        (bomb, 0, 1.0, 4, str(victim), bomb),  # which is over, so that each write looks at it
        ("key 7", 1, 1.0, 4, str(victim), bomb),
        (7, 0, 1.0, 4, "../../victim", bomb),
        settings=[
            ("disk_evil", bomb),
            ("disk_min_file_size", 1),
            ("disk_pickle_protocol", bomb),
            ("disk__directory", str(tmp_path)),
            ("_disk", bomb),
            ("_path", str(tmp_path / "elsewhere.db")),
            ("disk", "pickle"),
            ("sqlite_mmap_size", 2**40),
            ("sqlite_writable_schema", 1),
            ("sqlite_temp_store_directory", f"'{tmp_path}'"),
            ("eviction_policy", "none"),
            ("size_limit", -1),
            ("cull_limit", bomb),
            ("statistics", 1),
            ("tag_index", 1),
            ("size", bomb),
            ("count", bomb),
        ],
    )
    for inline in (65_536, 0):
        store = DiskStore(folder, max_bytes=2**20, inline=inline)
        for key in (*ENTRIES, bomb.decode("latin-1")):
            assert await store.get(key) in (None, ENTRIES.get(key))
        for key in ENTRIES:
            await store.delete(key, only=bomb)
            await store.add(key, ENTRIES[key])
            assert await store.get(key) == ENTRIES[key]
        for number in range(300):
            await store.set(f"new {number}", os.urandom(8000), ttl=0.001 if number % 3 else None)
        assert 2**19 < database(folder).stat().st_size <= 2**20, "the bound holds, whatever the settings say"
        await store.clear("key")
        await store.clear()
        await store.aclose()
    assert not boom.exists(), "a pickle was loaded"
    assert victim.read_bytes() == bomb
    assert not (tmp_path / "elsewhere.db").exists()
    assert caplog.records, "damaged entries are told"


async def test_a_planted_pickle_as_the_sealed_value_is_no_value(tmp_path):
    await filled(tmp_path)
    bomb = pickle.dumps(Bomb(tmp_path / "boom"))
    plant(database(tmp_path), (b"key 1", 1, None, 1, None, bomb))
    store = DiskStore(tmp_path)
    assert await store.get("key 1") is None
    await store.aclose()
    assert not (tmp_path / "boom").exists()


# ---- damage ---------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_and_every_cut_of_an_entry_shows():
    sealed = seal(b"key", b"a value", 2000.0)
    assert unseal(b"key", sealed, 1999.0) == b"a value"
    assert unseal(b"key", sealed, 2000.0) is None
    for place in range(len(sealed)):
        for bit in range(8):
            changed = bytearray(sealed)
            changed[place] ^= 1 << bit
            with pytest.raises(Damaged):
                unseal(b"key", bytes(changed), 0.0)
        with pytest.raises(Damaged):
            unseal(b"key", sealed[:place], 0.0)
    for other in (b"kex", b"ke", b"keya", b""):
        with pytest.raises(Damaged):
            unseal(other, sealed, 0.0)
    for nothing in ("text", None, 5, b"", sealed + b"x"):
        with pytest.raises(Damaged):
            unseal(b"key", nothing, 0.0)


async def test_entries_that_changed_places_are_misses(tmp_path, caplog):
    await filled(tmp_path)
    with contextlib.closing(sqlite3.connect(database(tmp_path), isolation_level=None)) as link:
        link.execute("UPDATE Cache SET key = CAST('key 99' AS BLOB) WHERE key = CAST('key 1' AS BLOB)")
        link.execute("UPDATE Cache SET key = CAST('key 1' AS BLOB) WHERE key = CAST('key 2' AS BLOB)")
    store = DiskStore(tmp_path)
    assert [await store.get(key) for key in ("key 1", "key 2", "key 99")] == [None, None, None]
    assert [record.message for record in caplog.records] == ["DiskStore: an entry is damaged and counts as a miss"]
    await store.set("key 1", b"new")
    assert await store.get("key 1") == b"new"
    assert not await store.add("key 1", b"newer")
    assert await store.add("key 99", b"newer"), "what is damaged holds no lease"
    await store.aclose()


async def each(tmp_path, damages) -> dict[str, int]:
    """Use a copy of a filled folder after each damage, a function of the file's bytes."""
    await filled(tmp_path / "good")
    good = database(tmp_path / "good").read_bytes()
    ends = {"kept": 0, "fewer": 0, "set aside": 0}
    for number, damage in enumerate(damages(good)):
        folder = tmp_path / f"{number % 2}"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "db-1").mkdir(parents=True)
        database(folder).write_bytes(damage)
        store = DiskStore(folder)
        there = await use(store)
        await store.aclose()
        aside = (folder / "db-2").exists()
        ends["set aside" if aside else "kept" if there == len(ENTRIES) else "fewer"] += 1
        if aside:
            assert database(folder, 2).exists()
            assert database(folder).exists(), "it is left for whoever wants to look"
    return ends


def flipped(step):
    def damages(good):
        # Where nothing but zeros stands there is little to read: one in fifty is enough.
        places = [place for place in range(len(good)) if good[place] or place % 50 == 0]
        for place in places[::step]:
            yield good[:place] + bytes([good[place] ^ (1 << place % 8)]) + good[place + 1 :]

    return damages


def cut(step):
    return lambda good: (good[:length] for length in range(0, len(good), step))


@pytest.fixture(params=["asyncio"])
def anyio_backend(request):
    return request.param


async def test_flipped_bytes(tmp_path):
    ends = await each(tmp_path, flipped(1 if EVERY_BYTE else 23))
    assert min(ends.values()) > 0, ends


async def test_cut_files(tmp_path):
    ends = await each(tmp_path, cut(16 if EVERY_BYTE else 251))
    assert ends["set aside"] > 0, ends


@pytest.mark.parametrize("garbage", [b"", b"\x00" * 5000, b"not a database" * 100, os.urandom(20_000)])
async def test_no_database_at_all(tmp_path, garbage, caplog):
    (tmp_path / "db-1").mkdir()
    database(tmp_path).write_bytes(garbage)
    store = DiskStore(tmp_path)
    assert await store.get("key 1") is None
    assert await use(store) == 0
    await store.aclose()
    assert (tmp_path / "db-2").exists() == (garbage != b"")
    if garbage:
        assert database(tmp_path).read_bytes() == garbage
        assert [record.message for record in caplog.records] == [
            "DiskStore: the database db-1 is damaged; it is left there and a new one begun"
        ]


async def test_damaged_log(tmp_path):
    store = DiskStore(tmp_path / "s")
    for key, value in ENTRIES.items():
        await store.set(key, value)
    for number in range(0, 60_000, 1009):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        (tmp_path / "copy" / "db-1").mkdir(parents=True)
        for name in ("cache.db", "cache.db-wal"):
            # By another process: to close it here would give up SQLite's locks.
            await anyio.run_process(["cp", str(tmp_path / "s" / "db-1" / name), str(tmp_path / "copy" / "db-1" / name)])
        log = tmp_path / "copy" / "db-1" / "cache.db-wal"
        content = bytearray(log.read_bytes())
        content[number % len(content)] ^= 0xA5
        log.write_bytes(content)
        copy = DiskStore(tmp_path / "copy")
        await use(copy)
        await copy.aclose()
    await store.aclose()


async def test_damaged_while_open_all_go_to_the_same_new_one(tmp_path, caplog):
    stores = [DiskStore(tmp_path) for _ in range(3)]
    for store in stores:
        for key, value in ENTRIES.items():
            await store.set(key, value)
    code = (
        "import sys; file = open(sys.argv[1], 'r+b'); size = file.seek(0, 2); file.seek(0); file.write(b'x' * size);"
        " file = open(sys.argv[1] + '-wal', 'r+b'); size = file.seek(0, 2); file.seek(0); file.write(b'x' * size)"
    )
    await anyio.run_process([sys.executable, "-c", code, str(database(tmp_path))])
    for store in stores:
        await use(store)
    for number, store in enumerate(stores):
        await store.set(f"by {number}", b"1")
    for store in stores:
        assert [await store.get(f"by {number}") for number in range(3)] == [b"1"] * 3
        await store.aclose()
    assert sorted(place.name for place in tmp_path.iterdir()) == ["db-1", "db-2"]


async def test_of_those_set_aside_the_last_is_kept(tmp_path):
    for number in (1, 2, 3):
        (tmp_path / f"db-{number}").mkdir()
        database(tmp_path, number).write_bytes(b"not a database" * 100)
    store = DiskStore(tmp_path)
    await store.set("k", b"1")
    assert await store.get("k") == b"1"
    await store.aclose()
    assert sorted(place.name for place in tmp_path.iterdir()) == ["db-3", "db-4"]


# ---- a full disk ----------------------------------------------------------------------------------------------------

FILL = """
import anyio, logging, os, sys
from llmprod.errors import StoreUnavailable
from llmprod.stores.disk import DiskStore

warnings = []
handler = logging.Handler()
handler.emit = lambda record: warnings.append(record.getMessage())
logging.getLogger("llmprod").addHandler(handler)


async def main():
    store = DiskStore(sys.argv[1])
    kept, refused = {}, 0
    for number in range(400):
        key, value = f"key {number % 150}", os.urandom(15_000)
        before = kept.get(key)
        try:
            await store.set(key, value)
            kept[key] = value
        except StoreUnavailable as error:
            assert "full" in str(error) or "written" in str(error), error
            refused += 1
            assert await store.get(key) == before, "the value before, or none"
            try:
                assert await store.add(f"lease {number}", b"x" * 5000)
            except StoreUnavailable:
                assert await store.get(f"lease {number}") is None
    assert kept and refused, (len(kept), refused)
    for key, value in kept.items():
        assert await store.get(key) == value
    assert len(warnings) <= 2, warnings
    print(len(kept), refused, warnings)
    await store.aclose()
    again = DiskStore(sys.argv[1])
    for key, value in kept.items():
        try:
            assert await again.get(key) == value
        except StoreUnavailable:
            pass
    if len(sys.argv) > 2:
        os.unlink(sys.argv[2])
        await again.set("room", b"1" * 20_000)
        assert await again.get("room") == b"1" * 20_000
    await again.aclose()


anyio.run(main)
"""


def run_full(*arguments, limit=None):
    import resource

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", FILL, *map(str, arguments)],
        capture_output=True, text=True, timeout=240, preexec_fn=lower if limit else None,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "full" in done.stdout or "written" in done.stdout


@pytest.fixture
def small(tmp_path):
    """A file system of six megabytes."""
    place = tmp_path / "small"
    place.mkdir()
    if sys.platform != "linux" or not shutil.which("mount"):
        pytest.skip("no tmpfs here")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may mount nothing")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_file_system(small):
    (small / "ballast").write_bytes(b"x" * 3 * 2**20)
    run_full(small / "store", small / "ballast")
    assert [place.name for place in (small / "store").iterdir()] == ["db-1"], "nothing was set aside for want of room"


async def test_full_from_the_start(small):
    (small / "ballast").write_bytes(b"x" * (6 * 2**20 - 4096))
    store = DiskStore(small / "store")
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.set("k", b"x")
    (small / "ballast").unlink()
    await store.set("k", b"x")
    assert await store.get("k") == b"x"
    await store.aclose()


@pytest.mark.skipif(sys.platform != "linux", reason="file size limits differ")
def test_files_that_may_not_grow(tmp_path):
    run_full(tmp_path / "store", limit=2**20)
    assert [place.name for place in (tmp_path / "store").iterdir()] == ["db-1"]

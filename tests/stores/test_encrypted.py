"""Encryption over other stores: the contract of all, keys that change, and entries that were tampered with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod import InvalidArgument
from llmprod.errors import StoreUnavailable
from llmprod.stores.memory import MemoryStore
from llmprod.testing import StoreConformance

pytest.importorskip("cryptography")

from llmprod.stores.encrypted import Encrypted

OLD, NEW = b"o" * 32, b"n" * 16


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


class TestEncryptedMemory(StoreConformance):
    @pytest.fixture
    async def store(self):
        return Encrypted(MemoryStore(), key=OLD)


class TestEncryptedDisk(StoreConformance):
    @pytest.fixture
    async def store(self, tmp_path):
        pytest.importorskip("diskcache")
        from llmprod.stores.disk import DiskStore

        made = Encrypted(DiskStore(tmp_path), key=OLD)
        yield made
        await made.aclose()

    @pytest.fixture
    async def other(self, tmp_path, store):
        from llmprod.stores.disk import DiskStore

        made = Encrypted(DiskStore(tmp_path), key=[OLD, NEW])
        yield made
        await made.aclose()


class TestEncryptedRedis(StoreConformance):
    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

    @pytest.fixture
    async def store(self, server):
        pytest.importorskip("redis")
        from llmprod.stores.redis_store import RedisStore

        made = Encrypted(RedisStore(server.url, timeout=20), key=OLD)
        yield made
        await made.aclose()


async def test_nothing_of_a_value_is_readable_and_equal_values_differ(tmp_path):
    inner = MemoryStore()
    store = Encrypted(inner, key=OLD)
    for key in "ab":
        await store.set(key, b"a secret" * 20)
    first, second = await inner.get("a"), await inner.get("b")
    assert first is not None
    assert second is not None
    assert b"secret" not in first
    assert len(set(zip(first[5:], second[5:], strict=True))) > 50
    assert "oooo" not in repr(store)


async def test_keys_change(caplog):
    inner = MemoryStore()
    await Encrypted(inner, key=OLD).set("k", b"1")
    both = Encrypted(inner, key=[NEW, OLD])
    assert await both.get("k") == b"1"
    assert not await both.add("k", b"2")
    assert await both.delete("k", only=b"1")
    await both.set("k", b"2")
    assert await Encrypted(inner, key=NEW).get("k") == b"2", "the first key encrypts"
    assert caplog.records == []
    gone = Encrypted(inner, key=OLD)
    assert [await gone.get("k") for _ in range(3)] == [None] * 3
    assert [record.message for record in caplog.records] == [
        "Encrypted: an entry was encrypted with none of the keys and counts as a miss"
    ]
    assert await gone.add("k", b"3"), "what can't be read holds no lease"
    assert await gone.get("k") == b"3"


async def test_an_entry_moved_to_another_key_is_a_miss(caplog):
    inner = MemoryStore()
    store = Encrypted(inner, key=OLD)
    await store.set("tenant a", b"1")
    kept = await inner.get("tenant a")
    assert kept is not None
    await inner.set("tenant b", kept)
    assert await store.get("tenant b") is None
    assert await store.get("tenant a") == b"1"
    assert "forged" in caplog.text


async def test_every_flipped_bit_and_every_cut_is_a_miss():
    inner = MemoryStore()
    store = Encrypted(inner, key=[OLD, NEW])
    await store.set("k", b"value")
    kept = await inner.get("k")
    assert kept is not None
    for place in range(len(kept)):
        for bit in range(8):
            await inner.set("k", kept[:place] + bytes([kept[place] ^ 1 << bit]) + kept[place + 1 :])
            assert await store.get("k") is None
        await inner.set("k", kept[:place])
        assert await store.get("k") is None


@given(st.binary(max_size=200))
def test_what_was_not_encrypted_is_a_miss(junk):
    import anyio

    async def main():
        inner = MemoryStore()
        await inner.set("k", junk)
        assert await Encrypted(inner, key=OLD).get("k") is None

    anyio.run(main)


async def test_delete_only_holds_when_the_value_changes_in_between():
    inner = MemoryStore()
    store = Encrypted(inner, key=OLD)

    class Changing:
        """Puts another ciphertext in place under the reader's hands, twice."""

        def __init__(self, value: bytes) -> None:
            self.value, self.left = value, 2

        def __getattr__(self, name):
            return getattr(inner, name)

        get = property(lambda self: inner.get)
        set = property(lambda self: inner.set)
        add = property(lambda self: inner.add)
        clear = property(lambda self: inner.clear)
        aclose = property(lambda self: inner.aclose)

        async def delete(self, key, *, only=None):
            if self.left:
                self.left -= 1
                await store.set(key, self.value)
            return await inner.delete(key, only=only)

    await store.set("k", b"1")
    assert await Encrypted(Changing(b"1"), key=OLD).delete("k", only=b"1"), "the same value, encrypted anew"
    await store.set("k", b"1")
    assert not await Encrypted(Changing(b"2"), key=OLD).delete("k", only=b"1")
    assert await store.get("k") == b"2"


async def test_a_store_that_gives_what_it_does_not_have_is_no_endless_work():
    inner = MemoryStore()
    store = Encrypted(inner, key=OLD)
    await store.set("k", b"1")
    behind = await inner.get("k")

    class Replica(MemoryStore):
        """Reads what was there, and writes where it is no more."""

        async def get(self, key):
            return behind

        async def add(self, key, value, *, ttl=None):
            return False

        async def delete(self, key, *, only=None):
            return False

    with pytest.raises(StoreUnavailable):
        await Encrypted(Replica(), key=OLD).delete("k", only=b"1")
    with pytest.raises(StoreUnavailable):
        await Encrypted(Replica(), key=NEW).add("k", b"1")


@pytest.mark.parametrize("key", [b"", b"x" * 15, "x" * 32, [], [OLD, b"short"], [OLD, OLD], ["x" * 32]])
def test_bad_keys_are_named_and_not_shown(key):
    with pytest.raises(InvalidArgument) as caught:
        Encrypted(MemoryStore(), key=key)
    assert caught.value.field == "key"
    assert "xxx" not in str(caught.value)
    assert "ooo" not in str(caught.value)


def test_what_is_no_store_is_named():
    with pytest.raises(InvalidArgument, match="store"):
        Encrypted({}, key=OLD)

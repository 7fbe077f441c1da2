"""What every store has to keep to, as tests: for the stores of this library, and for yours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from llmprod.errors import InvalidArgument
from llmprod.store import KEY_AT_MOST, Store

_KEYS = (
    "", "a", "a b", "a:b/c?d*[e]{f}\\g", "ключ 鍵 🔑", "\x00", "a\nb\x00c", "x" * KEY_AT_MOST, "鍵" * KEY_AT_MOST,
    # None of them is another cut short, folded or in another normal form.
    "x" * (KEY_AT_MOST - 1) + "y", "鍵" * (KEY_AT_MOST - 1) + "x", "a\x00",
    "é", "e\u0301", "É", "Å", "\u212b", "ß", "ss",
)  # fmt: skip
_VALUES = (b"", b"\x00", b"text", bytes(range(256)), b"\xff\xfe" * 700, b"\x80\x04K\x01.", b"big " * 50_000)


@pytest.mark.anyio
class StoreConformance:
    """Tests that a :class:`~llmprod.store.Store` has to pass: derive a test class, and give it a ``store``.

    They run under anyio's pytest plugin, on the event loops of your ``anyio_backend`` fixture. ``other`` is a second
    object that shares what ``store`` keeps, as another process would have it; unless you give one it is the same.
    """

    short: float = 0.3
    """Seconds that an entry lives which is to go; more for a store whose times are coarse."""

    @pytest.fixture
    async def store(self) -> Store:
        """Return an empty store of yours, or yield it and close it."""
        raise NotImplementedError("give the test class a fixture `store` that returns or yields an empty store")

    @pytest.fixture
    def other(self, store: Store) -> Store:
        """Return another object over the same entries."""
        return store

    async def wait(self, seconds: float) -> None:
        """Let time pass; for a store with a clock of its own, move that."""
        await anyio.sleep(seconds)

    async def test_what_is_set_is_got(self, store: Store, other: Store) -> None:
        for number, value in enumerate(_VALUES):
            assert await store.get(f"key {number}") is None
            await store.set(f"key {number}", value)
        for number, value in enumerate(_VALUES):
            got = await other.get(f"key {number}")
            assert type(got) is bytes
            assert got == value

    async def test_keys_are_told_apart(self, store: Store, other: Store) -> None:
        for key in _KEYS:
            assert await store.get(key) is None
            await store.set(key, key.encode())
        assert [await other.get(key) for key in _KEYS] == [key.encode() for key in _KEYS]
        assert await store.get("A") is None
        assert await store.get("a ") is None

    async def test_the_last_value_counts(self, store: Store, other: Store) -> None:
        for value in (b"1", b"22" * 10_000, b"", b"4"):
            await store.set("k", value)
            assert await other.get("k") == value
        await other.set("k", b"5")
        assert await store.get("k") == b"5"

    async def test_entries_go_when_their_time_is_over(self, store: Store, other: Store) -> None:
        await store.set("goes", b"1", ttl=self.short)
        await store.set("stays", b"1", ttl=3600)
        await store.set("stays for ever", b"1")
        await store.set("was to go", b"1", ttl=self.short)
        await store.set("was to go", b"2")
        await store.set("was to stay", b"1")
        await store.set("was to stay", b"2", ttl=self.short)
        assert await store.add("lease", b"1", ttl=self.short)
        await self.wait(self.short * 1.5)
        assert await other.get("goes") is None
        assert await other.get("was to stay") is None
        assert await other.get("lease") is None
        assert await other.get("stays") == b"1"
        assert await other.get("stays for ever") == b"1"
        assert await other.get("was to go") == b"2"
        assert not await other.delete("goes")
        assert await other.add("lease", b"2", ttl=3600)
        assert await store.get("lease") == b"2"

    async def test_add_is_for_the_first_alone(self, store: Store, other: Store) -> None:
        assert await store.add("k", b"1")
        assert not await other.add("k", b"2")
        assert not await store.add("k", b"1")
        assert await other.get("k") == b"1"
        assert await store.delete("k")
        assert await other.add("k", b"3")
        await store.set("empty", b"")
        assert not await other.add("empty", b"1")

    async def test_delete_tells_whether_there_was_something(self, store: Store, other: Store) -> None:
        assert not await store.delete("k")
        await store.set("k", b"1")
        await store.set("another", b"2")
        assert await other.delete("k")
        assert not await store.delete("k")
        assert await store.get("k") is None
        assert await store.get("another") == b"2"

    async def test_delete_only_what_it_was_told(self, store: Store, other: Store) -> None:
        assert not await store.delete("k", only=b"")
        await store.set("k", b"1")
        for wrong in (b"", b"2", b"11"):
            assert not await other.delete("k", only=wrong)
        assert await store.get("k") == b"1"
        assert await other.delete("k", only=b"1")
        assert await store.get("k") is None
        await store.set("empty", b"")
        assert await other.delete("empty", only=b"")

    async def test_clear_goes_by_the_beginning_of_keys(self, store: Store, other: Store) -> None:
        keys = ("a", "a:1", "a:2", "a*", "ab", "b:a:1", "A:1", "ä:1", "ä:2", "a:\x00", "a_1", "a%")
        for key in keys:
            await store.set(key, b"a:" * 100)
        assert await other.clear("a:") == 3
        assert [await store.get(key) is None for key in keys] == [key.startswith("a:") for key in keys]
        for odd, number in (("a*", 1), ("a_", 1), ("a%", 1), ("a?", 0), ("[a]", 0), ("ä", 2), ("nothing", 0)):
            assert await store.clear(odd) == number
        assert await store.clear() == len({"a", "ab", "b:a:1", "A:1"})
        assert [await other.get(key) for key in keys] == [None] * len(keys)
        assert await store.clear() == 0

    async def test_clear_takes_many(self, store: Store) -> None:
        for number in range(1200):
            await store.set(f"{number % 2}:{number}", b"x")
        assert await store.clear("1:") == 600
        assert await store.clear() == 600

    async def test_of_many_at_once_one_adds_and_one_deletes(self, store: Store, other: Store) -> None:
        added: list[bytes] = []
        deleted: list[bytes] = []

        async def add(which: Store, value: bytes) -> None:
            if await which.add("k", value):
                added.append(value)

        async def delete(which: Store, value: bytes) -> None:
            if await which.delete("k", only=value):
                deleted.append(value)

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(add, (store, other)[number % 2], b"%d" % number)
        held = await store.get("k")
        assert added == [held]
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(delete, (store, other)[number % 2], b"%d" % (19 - number))
        assert deleted == [held]
        assert await other.get("k") is None

    async def test_many_at_once_read_whole_values(self, store: Store, other: Store) -> None:
        seen: set[bytes | None] = set()

        async def write(which: Store, letter: bytes) -> None:
            for _ in range(10):
                await which.set("k", letter * 5000)
                seen.add(await which.get("k"))

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(write, (store, other)[number % 2], b"%d" % number)
        assert seen <= {b"%d" % number * 5000 for number in range(8)}

    async def test_cancelled_it_still_answers_rightly(self, store: Store) -> None:
        for number in range(10):
            await store.set(f"{number}", b"%d" % number)
        for steps in range(30):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    for number in range(10):
                        tasks.start_soon(store.get, f"{number}")
                        tasks.start_soon(store.delete, "none")
                    for _ in range(steps % 6):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()
            for number in range(10):
                assert await store.get(f"{number}") == b"%d" % number

    async def test_what_is_no_key_value_or_time_is_named(self, store: Store) -> None:
        wrong: Any
        keeps: tuple[Callable[..., Awaitable[object]], ...] = (store.set, store.add)
        for wrong in ("x" * (KEY_AT_MOST + 1), b"k", 5, None, "\ud800"):
            asks: tuple[Callable[[Any], Awaitable[object]], ...] = (
                store.get, store.delete, lambda key: store.set(key, b""), lambda key: store.add(key, b""),
            )  # fmt: skip
            for ask in asks:
                with pytest.raises(InvalidArgument, match="key"):
                    await ask(wrong)
        for wrong in ("text", 5, None, bytearray(b"x")):
            for keep in keeps:
                with pytest.raises(InvalidArgument, match="value"):
                    await keep("k", wrong)
        for wrong in (0, -1, float("nan"), float("inf"), "1", True):
            for keep in keeps:
                with pytest.raises(InvalidArgument, match="ttl"):
                    await keep("k", b"", ttl=wrong)
        assert await store.get("k") is None

    async def test_closing_twice_is_closing(self, store: Store) -> None:
        await store.set("k", b"1")
        await store.aclose()
        await store.aclose()

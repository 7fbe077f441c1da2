"""StoreConformance in a pytest of its own: a right store passes, and each wrong one fails where it is wrong."""

import pytest

pytest_plugins = ("pytester",)

CODE = '''
import time
import unicodedata

import anyio
import pytest

from llmprod.errors import InvalidArgument
from llmprod.store import check_entry, check_key
from llmprod.testing import StoreConformance


class Right:
    """As short as it can be."""

    def __init__(self):
        self.entries = {}

    def find(self, key):
        value, until = self.entries.get(key, (None, None))
        if until is not None and time.monotonic() >= until:
            del self.entries[key]
            return None
        return value

    async def get(self, key):
        check_key(key)
        return self.find(key)

    async def set(self, key, value, *, ttl=None):
        check_entry(key, value, ttl)
        self.entries[key] = value, None if ttl is None else time.monotonic() + ttl

    async def add(self, key, value, *, ttl=None):
        check_entry(key, value, ttl)
        if self.find(key) is not None:
            return False
        await self.set(key, value, ttl=ttl)
        return True

    async def delete(self, key, *, only=None):
        check_key(key)
        there = self.find(key)
        if there is None or only not in (None, there):
            return False
        del self.entries[key]
        return True

    async def clear(self, prefix=""):
        found = [key for key in self.entries if key.startswith(prefix)]
        for key in found:
            del self.entries[key]
        return len(found)

    async def aclose(self):
        pass


class Eternal(Right):
    async def set(self, key, value, *, ttl=None):
        check_entry(key, value, ttl)
        await super().set(key, value, ttl=None if ttl is None else ttl + 60)


class Racing(Right):
    async def add(self, key, value, *, ttl=None):
        check_entry(key, value, ttl)
        if self.find(key) is not None:
            return False
        await anyio.sleep(0)
        await self.set(key, value, ttl=ttl)
        return True


class Careless(Right):
    async def delete(self, key, *, only=None):
        return await super().delete(key)


class Folding(Right):
    async def get(self, key):
        check_key(key)
        return await super().get(key.strip())

    async def set(self, key, value, *, ttl=None):
        check_entry(key, value, ttl)
        await super().set(key.strip(), value, ttl=ttl)


class Cutting(Right):
    def name(self, key):
        return key[:255]

    def find(self, key):
        return super().find(self.name(key))

    async def set(self, key, value, *, ttl=None):
        check_entry(key, value, ttl)
        await super().set(self.name(key), value, ttl=ttl)


class Normal(Cutting):
    def name(self, key):
        return unicodedata.normalize("NFC", key)


class Globbing(Right):
    async def clear(self, prefix=""):
        import fnmatch
        found = [key for key in self.entries if fnmatch.fnmatchcase(key, prefix + "*")]
        for key in found:
            del self.entries[key]
        return len(found)


class Taken(Right):
    async def add(self, key, value, *, ttl=None):
        return bool(self.find(key)) is False and not await self.set(key, value, ttl=ttl)


class Trusting(Right):
    async def get(self, key):
        return self.find(key)


class Torn(Right):
    async def set(self, key, value, *, ttl=None):
        check_entry(key, value, ttl)
        await super().set(key, value[: len(value) // 2], ttl=ttl)
        await anyio.sleep(0)
        await super().set(key, self.entries.get(key, (b"",))[0] + value[len(value) // 2 :], ttl=ttl)


def over(made):
    class Test(StoreConformance):
        @pytest.fixture
        async def store(self):
            return made()
    return Test


for kind in (Right, Eternal, Racing, Careless, Folding, Cutting, Normal, Globbing, Taken, Trusting, Torn):
    globals()["Test" + kind.__name__] = type("Test" + kind.__name__, (over(kind),), {})


class TestForgotten(StoreConformance):
    pass
'''


@pytest.mark.parametrize("mode", ["", "anyio_mode = auto\n"])
def test_a_right_store_passes_and_wrong_ones_fail(pytester, monkeypatch, mode):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeini(f"[pytest]\nfilterwarnings = error\n{mode}")
    pytester.makepyfile(CODE)
    plugins = ("-p", "no:cacheprovider", "-p", "anyio.pytest_plugin", "-p", "llmprod.testing.plugin")
    result = pytester.runpytest_subprocess("-rfpE", *plugins, timeout=240)
    ends: dict[str, set[str]] = {}
    for line in result.outlines:
        if line.startswith(("PASSED", "FAILED", "ERROR ")) and "::" in line:
            _, name, test = line.split("::")[:3]
            ends.setdefault(f"{line[:6].strip()} {name}", set()).add(test.split("[")[0].split(" ")[0])
    assert len(ends["PASSED TestRight"]) == 14
    assert "FAILED TestRight" not in ends
    assert {name: tests for name, tests in ends.items() if name.startswith("FAILED")} == {
        "FAILED TestEternal": {"test_entries_go_when_their_time_is_over"},
        "FAILED TestRacing": {"test_of_many_at_once_one_adds_and_one_deletes"},
        "FAILED TestCareless": {
            "test_delete_only_what_it_was_told",
            "test_of_many_at_once_one_adds_and_one_deletes",
        },
        "FAILED TestFolding": {"test_keys_are_told_apart"},
        "FAILED TestCutting": {"test_keys_are_told_apart"},
        "FAILED TestNormal": {"test_keys_are_told_apart"},
        "FAILED TestGlobbing": {"test_clear_goes_by_the_beginning_of_keys"},
        "FAILED TestTaken": {"test_add_is_for_the_first_alone"},
        "FAILED TestTrusting": {"test_what_is_no_key_value_or_time_is_named"},
        "FAILED TestTorn": {"test_many_at_once_read_whole_values"},
    }
    assert len(ends["ERROR TestForgotten"]) == 14
    result.stdout.fnmatch_lines(["*NotImplementedError: give the test class a fixture `store`*"])

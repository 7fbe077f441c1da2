"""Virtual time for users: an hour in milliseconds on either backend, and clear words where a package is missing."""

import sys
import time

import anyio
import pytest

from llmprod import AsyncClient, LoopClock, RateLimited
from llmprod.testing import Scripted, run_virtual, virtual_backend

BACKENDS = ["asyncio", "trio"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_hour_takes_no_time(backend):
    async def main(hours):
        began = anyio.current_time()
        await anyio.sleep(3600 * hours)
        return anyio.current_time() - began

    started = time.monotonic()
    assert run_virtual(main, 5, backend=backend) == pytest.approx(18_000)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_client_waits_in_virtual_time(backend):
    async def main():
        async with AsyncClient(Scripted(RateLimited(retry_after=50), "Hello"), clock=LoopClock()) as client:
            return await client.generate("Hi")

    response = run_virtual(main, backend=backend)
    assert response.text == "Hello"
    assert 50 <= response.timing.total <= 55


def test_each_backend_is_of_its_own():
    one, two = virtual_backend("trio")[1]["clock"], virtual_backend("trio")[1]["clock"]
    assert one is not two


@pytest.mark.parametrize(
    ("backend", "module", "package"), [("trio", "trio.testing", "trio"), ("asyncio", "looptime", "looptime")]
)
def test_a_missing_package_is_named(backend, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"needs {package}: pip install {package}"):
        virtual_backend(backend)


def test_there_are_two_backends():
    with pytest.raises(ValueError, match="asyncio and trio"):
        virtual_backend("curio")

"""The pytest plugin: fixtures for the tests of applications, and a guard against real calls.

It is there wherever llmprod is installed (``-p no:llmprod`` turns it off) and imports nothing until a fixture is used.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from llmprod.clock import LoopClock

    from ._network import NetworkGuard
    from ._no_waits import NoWaits
    from ._virtual import Backend
    from .fault_proxy import FaultProxy
    from .fault_server import FaultServer
    from .scripted import Scripted

_NOT_ASYNC = (
    "virtual_time is for async tests that anyio's plugin runs: mark the test `anyio`, or set anyio_mode = auto."
    " In a synchronous test use llmprod.testing.run_virtual; under pytest-asyncio, looptime's own marker."
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    parser.addini(
        "llmprod_backends", "Event loops that virtual_time runs a test on: asyncio, trio", "args", default=["asyncio"]
    )
    parser.addini("llmprod_no_network", "Fail every test that wants to reach another machine", "bool", default=False)
    parser.addini("llmprod_allow_hosts", "Hosts that tests may reach all the same; * is any text", "args", default=[])


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker; put looptime's own plugin to rest where it could only fail."""
    config.addinivalue_line(
        "markers", "llmprod_network: this test may reach other machines, whatever llmprod_no_network"
    )
    plugins = config.pluginmanager
    looptime = plugins.get_plugin("looptime_plugin")
    if looptime is not None and not plugins.has_plugin("asyncio"):
        plugins.unregister(looptime)  # it serves pytest-asyncio alone, and without it breaks every fixture


# ---- what answers in a provider's place ------------------------------------------------------------------------------


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    """Make Scripted providers: ``scripted("Hello")``. After the test nothing of them may be in flight or open."""
    from .scripted import Scripted

    made: list[Scripted] = []

    def make(*steps: Any, **options: Any) -> Scripted:
        provider = Scripted(*steps, **options)
        made.append(provider)
        return provider

    yield make
    for provider in made:
        if provider.in_flight or provider.open_sources:
            pytest.fail(
                f"{provider.name}: {provider.in_flight} calls are in flight and {provider.open_sources} streams open"
                " after the test",
                pytrace=False,
            )


@pytest.fixture
def fault_server() -> Iterator[FaultServer]:
    """A running, healthy FaultServer."""
    from .fault_server import FaultServer

    with FaultServer() as server:
        yield server


@pytest.fixture
def fault_proxy(fault_server: FaultServer) -> Iterator[FaultProxy]:
    """A running FaultProxy in front of ``fault_server``."""
    from .fault_proxy import FaultProxy

    with FaultProxy(fault_server.url) as proxy:
        yield proxy


# ---- time ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_waits() -> NoWaits:
    """A clock whose sleeps are over at once."""
    from ._no_waits import NoWaits

    return NoWaits()


@pytest.fixture
def virtual_time(request: pytest.FixtureRequest) -> LoopClock:
    """Run this async test in virtual time, on each of ``llmprod_backends``; the value is the clock to hand in."""
    if "anyio_backend" not in request.fixturenames:
        pytest.fail(_NOT_ASYNC, pytrace=False)
    from llmprod.clock import LoopClock

    return LoopClock()


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests that ask for virtual_time event loops in virtual time."""
    if not {"virtual_time", "anyio_backend"} <= set(metafunc.fixturenames):
        return
    from ._virtual import virtual_backend

    names: list[Backend] = metafunc.config.getini("llmprod_backends")
    backends = [virtual_backend(name) for name in names]
    # As a mark: pytest then leaves out the parameters that the anyio_backend fixture has itself.
    metafunc.definition.add_marker(pytest.mark.parametrize("anyio_backend", backends, ids=names))


# ---- no real calls ---------------------------------------------------------------------------------------------------

_GUARD = pytest.StashKey["NetworkGuard"]()


@pytest.fixture
def no_network(request: pytest.FixtureRequest) -> NetworkGuard:
    """Fail this test if it, or the application in it, wants to reach another machine."""
    guard: NetworkGuard = request.node.stash[_GUARD]
    return guard


def _guarded(item: pytest.Item) -> bool:
    if "no_network" in getattr(item, "fixturenames", ()):
        return True
    return bool(item.config.getini("llmprod_no_network")) and item.get_closest_marker("llmprod_network") is None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    """Guard the fixtures of a test."""
    if not _guarded(item):
        return (yield)
    from ._network import NetworkGuard

    item.stash[_GUARD] = guard = NetworkGuard(item.config.getini("llmprod_allow_hosts"))
    with guard.active():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Guard a test, and fail it if the application took a refusal for an outage and went on."""
    guard = item.stash.get(_GUARD, None)
    if guard is None:
        return (yield)
    with guard.active():
        result = yield
    if guard.attempts:
        pytest.fail(f"the application wanted to reach {', '.join(sorted(set(guard.attempts)))}", pytrace=False)
    return result

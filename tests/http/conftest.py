"""Every engine on every event loop that it runs on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack

import httpx
import httpx2
import pytest

from llmprod.providers._http import HTTP, HTTPOptions
from tests.http.loopback import Answer, Server

ENGINES = [
    ("asyncio", "httpx"),
    ("trio", "httpx"),
    ("asyncio", "httpx-client"),
    ("trio", "httpx-client"),
    ("asyncio", "httpx2-client"),
    ("trio", "httpx2-client"),
    ("asyncio", "pyreqwest"),
]


@pytest.fixture(params=ENGINES, ids=[f"{engine}-{backend}" for backend, engine in ENGINES], scope="module")
def combination(request: pytest.FixtureRequest) -> tuple[str, str]:
    """An event loop and an engine; a module that uses ``http`` takes its ``anyio_backend`` from here."""
    return request.param


@pytest.fixture(scope="module")
def engine_name(combination: tuple[str, str]) -> str:
    return combination[1]


def at_most(engine: str, connections: int, calls: int) -> int:
    """How many connections so many calls, one after the other, may open where ``connections`` are needed.

    pyreqwest's own threads give a connection back a moment after the body's end was read: a call that comes at once may
    find none, so all that is asked of it is that some are used again.
    """
    return calls - 1 if engine == "pyreqwest" else connections


@pytest.fixture
async def http(engine_name: str) -> AsyncIterator[HTTP]:
    """Pools on one of the engines; nothing may be left open when the test ends."""
    if engine_name in ("httpx", "pyreqwest"):
        pools = HTTP(HTTPOptions(engine=engine_name))
        yield pools
        await pools.aclose()
    else:
        client_type = httpx.AsyncClient if engine_name == "httpx-client" else httpx2.AsyncClient
        async with client_type(trust_env=False) as client:
            yield HTTP(HTTPOptions(client=client))


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Server]]:
    """Start raw servers."""
    with ExitStack() as stack:
        yield lambda answer: stack.enter_context(Server(answer))

"""One set of pools on several event loops, in threads, after a fork, and with loops that end."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable

import anyio
import pytest
import trio

from llmprod.errors import InvalidArgument
from llmprod.providers._http import HTTP, HTTPOptions, read_all
from tests.http.conftest import at_most
from tests.http.loopback import Answer, Server

ENGINES = ["httpx", "pyreqwest"]
Serve = Callable[[Answer], Server]


async def call(http: HTTP, url: str) -> bytes:
    with anyio.fail_after(60):
        return await read_all(await http.engine().post(url, [], b"{}", 5.0), 5.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_loops_one_after_the_other_leave_nothing_open(engine: str, serve: Serve) -> None:
    server = serve(lambda c: c.reply(b"ok"))
    http = HTTP(HTTPOptions(engine=engine))

    async def six() -> list[bytes]:
        return [await call(http, server.url) for _ in range(6)]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(3):
            assert asyncio.run(six()) == [b"ok"] * 6
            assert number + 1 <= server.connections <= at_most(engine, number + 1, 6 * (number + 1))
            server.wait_until_idle()
        if engine == "httpx":
            assert trio.run(six) == [b"ok"] * 6
            server.wait_until_idle()
        gc.collect()
    assert len(http._pools) == 1  # of the last loop; those before are forgotten


@pytest.mark.parametrize("engine", ENGINES)
def test_loops_side_by_side(engine: str, serve: Serve) -> None:
    server = serve(lambda c: c.reply(c.body))
    http = HTTP(HTTPOptions(engine=engine))
    barrier = threading.Barrier(4)
    failures: list[BaseException] = []

    async def some() -> None:
        await anyio.to_thread.run_sync(barrier.wait)
        for _ in range(10):
            assert await call(http, server.url) == b"{}"

    def run(start: Callable[..., None]) -> None:
        try:
            start(some)
        except BaseException as error:
            failures.append(error)

    starts = [anyio.run, anyio.run, anyio.run, trio.run if engine == "httpx" else anyio.run]
    threads = [threading.Thread(target=run, args=(start,)) for start in starts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert 4 <= server.connections <= at_most(engine, 4, 40)
    server.wait_until_idle()


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_dropped_pool_closes_its_connections(engine: str, serve: Serve, anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("trio warns of what is dropped unclosed")
    server = serve(lambda c: c.reply(b"ok"))
    http = HTTP(HTTPOptions(engine=engine))
    assert await call(http, server.url) == b"ok"
    assert server.open == 1
    del http
    gc.collect()
    await anyio.to_thread.run_sync(server.wait_until_idle)


async def test_pyreqwest_is_refused_on_trio(anyio_backend_name: str) -> None:
    http = HTTP(HTTPOptions(engine="pyreqwest"))
    if anyio_backend_name == "trio":
        with pytest.raises(InvalidArgument, match=r"http\.engine"):
            http.engine()
    else:
        http.engine()
        await http.aclose()


async def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, anyio_backend_name: str) -> None:
    if anyio_backend_name == "asyncio":
        monkeypatch.setattr("llmprod.providers._pyreqwest.find_spec", lambda name: None)
        with pytest.raises(InvalidArgument, match=r"llmprod\[fast\]"):
            HTTP(HTTPOptions(engine="pyreqwest")).engine()


FORK = """
import asyncio, os, sys, warnings
from llmprod.errors import ForkedProcess
from llmprod.providers._http import HTTP, HTTPOptions
warnings.simplefilter("ignore")
http = HTTP(HTTPOptions(engine=sys.argv[1]))
async def touch(): http.engine()
asyncio.run(touch())
child = os.fork()
if not child:
    try:
        asyncio.run(touch())
    except ForkedProcess as error:
        os._exit(7 if "after the fork" in str(error) else 8)
    os._exit(9)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_after_a_fork_the_child_is_told(engine: str) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, engine], capture_output=True, timeout=240, check=False)
    assert done.returncode == 7, done.stderr.decode()


async def test_at_most_so_many_connections(serve: Serve, anyio_backend_name: str) -> None:
    engines = ENGINES if anyio_backend_name == "asyncio" else ["httpx"]
    for engine in engines:
        server = serve(lambda c: threading.Event().wait(0.01) or c.reply(b"ok"))
        http = HTTP(HTTPOptions(engine=engine, max_connections=2))
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(call, http, server.url)
        assert server.most_open == 2
        await http.aclose()


async def test_at_most_so_many_idle_connections(serve: Serve) -> None:
    server = serve(lambda c: c.reply(b"ok"))
    http = HTTP(HTTPOptions(max_keepalive=1))
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(call, http, server.url)
    assert await call(http, server.url) == b"ok"
    with anyio.fail_after(60):
        while server.open != 1:  # noqa: ASYNC110 - a server tells no event
            await anyio.sleep(0.005)
    await http.aclose()


async def test_an_idle_connection_expires(serve: Serve) -> None:
    server = serve(lambda c: c.reply(b"ok"))
    http = HTTP(HTTPOptions(keepalive=0.02))
    await call(http, server.url)
    await anyio.sleep(0.05)
    await call(http, server.url)
    assert server.connections == 2
    await http.aclose()


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("engine", {"engine": "curl"}),
        ("client", {"client": "no client"}),
        ("client", {"client": __import__("httpx").Client()}),
        ("client", {"client": __import__("httpx").AsyncClient(), "engine": "pyreqwest"}),
        ("verify", {"verify": "/etc/ca.pem"}),
        ("proxy", {"proxy": "proxy:3128"}),
        ("max_connections", {"max_connections": 0}),
        ("max_keepalive", {"max_keepalive": -1}),
        ("keepalive", {"keepalive": float("nan")}),
    ],
)
def test_options_out_of_range(field: str, options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        HTTPOptions(**options)  # type: ignore[arg-type]
    assert caught.value.field == f"http.{field}"

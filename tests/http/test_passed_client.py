"""A client that the application passes in stays as it was configured."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import Callable
from types import ModuleType

import anyio
import httpx
import httpx2
import pytest

from llmprod.errors import CallError, IdleTimeout
from llmprod.providers._http import HTTP, HTTPOptions, read_all
from tests.http.loopback import Answer, Conversation, Server

Serve = Callable[[Answer], Server]

pytestmark = pytest.mark.parametrize("library", [httpx, httpx2])


async def call(http: HTTP, url: str) -> bytes:
    with anyio.fail_after(60):
        return await read_all(await http.engine().post(url, [("x-ours", "1")], b"{}", 5.0), 10.0)


async def test_auth_hooks_headers_and_redirects_stay(library: ModuleType, serve: Serve) -> None:
    def answer(c: Conversation) -> None:
        moved = c.head.startswith(b"POST /v1/chat")
        c.reply(b"" if moved else b"there", b"location: /moved", status=b"307 Moved" if moved else b"200 OK")

    seen: list[str] = []

    async def hook(request: httpx.Request) -> None:
        seen.append(str(request.url.path))

    server = serve(answer)
    options = {"auth": ("me", "secret"), "headers": {"x-theirs": "2"}, "event_hooks": {"request": [hook]}}
    async with library.AsyncClient(follow_redirects=True, trust_env=False, **options) as client:
        assert await call(HTTP(HTTPOptions(client=client)), server.url) == b"there"
    assert seen == ["/v1/chat", "/moved"]
    for head in server.heads:
        sent = head.lower()
        assert b"x-ours: 1" in sent
        assert b"x-theirs: 2" in sent
        assert b"authorization: basic bwu6c2vjcmv0" in sent


async def test_its_mounts_and_transport_are_used(library: ModuleType) -> None:
    transport = library.MockTransport(lambda request: library.Response(200, content=b"mocked"))
    async with library.AsyncClient(mounts={"all://": transport}) as client:
        assert await call(HTTP(HTTPOptions(client=client)), "http://anywhere.invalid/v1") == b"mocked"


async def test_its_read_timeout_is_lifted(library: ModuleType, serve: Serve) -> None:
    def answer(c: Conversation) -> None:
        threading.Event().wait(0.15)
        c.reply(b"late")

    async with library.AsyncClient(timeout=0.02, trust_env=False) as client:
        assert await call(HTTP(HTTPOptions(client=client)), serve(answer).url) == b"late"


async def test_closing_ours_leaves_it_open(library: ModuleType, serve: Serve) -> None:
    server = serve(lambda c: c.reply(b"ok"))
    async with library.AsyncClient(trust_env=False) as client:
        for _ in range(2):
            http = HTTP(HTTPOptions(client=client))
            assert await call(http, server.url) == b"ok"
            await http.aclose()
        assert not client.is_closed
    assert server.connections == 1


async def test_a_closed_one_is_a_call_error(library: ModuleType) -> None:
    client = library.AsyncClient(trust_env=False)
    await client.aclose()
    with pytest.raises(CallError, match="closed"):
        await call(HTTP(HTTPOptions(client=client)), "http://127.0.0.1:1/")


async def test_an_exception_of_a_hook_goes_to_the_caller(library: ModuleType) -> None:
    async def hook(request: object) -> None:
        raise KeyError("mine")

    async with library.AsyncClient(event_hooks={"request": [hook]}, trust_env=False) as client:
        with pytest.raises(KeyError, match="mine"):
            await call(HTTP(HTTPOptions(client=client)), "http://127.0.0.1:1/")


async def test_a_timeout_of_its_transport_is_ours(library: ModuleType) -> None:
    def late(request: httpx.Request) -> httpx.Response:
        raise library.ReadTimeout("too late", request=request)

    async with library.AsyncClient(transport=library.MockTransport(late)) as client:
        with pytest.raises(IdleTimeout):
            await call(HTTP(HTTPOptions(client=client)), "http://anywhere.invalid/")


def test_one_of_another_event_loop(library: ModuleType, serve: Serve) -> None:
    server = serve(lambda c: c.reply(b"ok"))
    client = library.AsyncClient(trust_env=False)
    http = HTTP(HTTPOptions(client=client))
    assert asyncio.run(call(http, server.url)) == b"ok"
    with pytest.raises(CallError):
        asyncio.run(call(http, server.url))
    with warnings.catch_warnings():  # its connection can't be closed any more
        warnings.simplefilter("ignore", ResourceWarning)
        del client, http
        gc.collect()

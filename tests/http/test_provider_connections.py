"""What a provider does with its connections: whatever the codec says, none is lost and none is left open."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Awaitable, Callable

import anyio
import anyio.to_thread
import pytest

from llmprod.context import Context
from llmprod.errors import CallError, RateLimited, StreamInterrupted
from llmprod.providers._http import HTTP, HTTPOptions
from llmprod.providers.openai import OpenAI
from llmprod.request import GenerateRequest
from llmprod.response import Response
from llmprod.types import Message
from tests.http.conftest import at_most
from tests.http.loopback import Answer, Conversation, Server

Serve = Callable[[Answer], Server]

WORD = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}\n\n'
STOP = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.fixture(scope="module")
def anyio_backend(combination: tuple[str, str]) -> str:
    return combination[0]


@pytest.fixture
async def ask(http: HTTP) -> Callable[[Server], Awaitable[Response]]:
    """Ask for a stream over the engine under test."""
    providers: dict[str, OpenAI] = {}

    async def send(server: Server) -> Response:
        base = server.url.removesuffix("/chat")
        provider = providers.get(base)
        if provider is None:
            provider = providers[base] = OpenAI("m", api="chat", api_key="k", base_url=base, http=HTTPOptions())
            provider._http = http
        with anyio.fail_after(60):
            return await provider.send(GenerateRequest(messages=(Message.user("hi"),), stream=True), Context.new())

    return send


async def gone(server: Server) -> bool:
    return await anyio.to_thread.run_sync(lambda: server.closed.get(timeout=60))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for the end of a body however slow the machine."""
    monkeypatch.setattr("llmprod.providers._http_provider._DRAIN", 60.0)


@pytest.mark.usefixtures("patient")
async def test_a_stream_read_to_its_end_gives_its_connection_back(ask, serve: Serve, engine_name: str) -> None:
    def answer(c: Conversation) -> None:
        c.stream()
        for piece in (WORD, WORD, STOP, DONE, b""):
            c.chunk(piece)

    server = serve(answer)
    for _ in range(6):
        assert (await (await ask(server)).read()).text == "word word "
    assert server.connections <= at_most(engine_name, 1, 6)


@pytest.mark.usefixtures("patient")
async def test_the_end_of_the_body_may_follow_a_moment_later(ask, serve: Serve, engine_name: str) -> None:
    def answer(c: Conversation) -> None:
        c.stream()
        c.chunk(WORD + STOP + DONE)
        threading.Event().wait(0.02)
        c.chunk(b"")

    server = serve(answer)
    for _ in range(10):
        await (await ask(server)).read()
    assert server.connections <= at_most(engine_name, 1, 10)


async def test_a_body_that_never_ends_after_the_last_event(ask, serve: Serve) -> None:
    def answer(c: Conversation) -> None:
        c.stream()
        c.chunk(WORD + STOP + DONE)
        c.server.closed.put(c.wait_for_close())

    server = serve(answer)
    response = await (await ask(server)).read()
    assert response.complete
    assert await gone(server)


def one_word(c: Conversation) -> None:
    c.stream()
    c.chunk(WORD)
    c.server.closed.put(c.wait_for_close())


async def test_cancelled_between_words(ask, serve: Serve) -> None:
    server = serve(one_word)
    response = await ask(server)
    with anyio.CancelScope() as scope:
        async for _ in response:
            if response.text:
                scope.deadline = anyio.current_time() + 0.05
    assert scope.cancelled_caught
    assert response.text == "word "
    assert await gone(server)


async def test_closed_between_words(ask, serve: Serve) -> None:
    server = serve(one_word)
    async with await ask(server) as response:
        await response.__anext__()
    assert await gone(server)


async def test_dropped_between_words(ask, serve: Serve) -> None:
    server = serve(one_word)
    response = await ask(server)
    await response.__anext__()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del response
        gc.collect()
    assert await gone(server)


async def test_broken_between_words(ask, serve: Serve) -> None:
    def answer(c: Conversation) -> bool:
        c.stream()
        c.chunk(WORD)
        return False

    server = serve(answer)
    with pytest.raises(StreamInterrupted) as caught:
        await (await ask(server)).read()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "word "
    await anyio.to_thread.run_sync(server.wait_until_idle)


async def test_an_error_whose_body_breaks_off_keeps_its_status(ask, serve: Serve) -> None:
    def answer(c: Conversation) -> bool:
        c.send(b"HTTP/1.1 429 Too Many\r\nretry-after: 3\r\ncontent-length: 500\r\n\r\n{")
        return False

    with pytest.raises(RateLimited) as caught:
        await ask(serve(answer))
    assert caught.value.retry_after == 3


async def test_an_error_gives_its_connection_back(ask, serve: Serve, engine_name: str) -> None:
    server = serve(lambda c: c.reply(b'{"error": {"message": "no"}}', status=b"500 Oops"))
    for _ in range(6):
        with pytest.raises(CallError):
            await ask(server)
    assert server.connections <= at_most(engine_name, 1, 6)


async def test_html_instead_of_a_stream(ask, serve: Serve) -> None:
    server = serve(lambda c: c.reply(b"<html>hello</html>", b"content-type: text/html"))
    for _ in range(3):
        with pytest.raises(CallError):
            await ask(server)
    with anyio.fail_after(60):
        while server.open > 1:  # closed, or kept by an engine that had read the body  # noqa: ASYNC110
            await anyio.sleep(0.005)

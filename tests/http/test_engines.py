"""What every engine must do, over real sockets."""

from __future__ import annotations

import gc
import gzip
import math
import socket
import threading
import zlib
from collections.abc import Callable

import anyio
import anyio.to_thread
import pytest

from llmprod.errors import (
    CallError,
    ConnectError,
    ConnectTimeout,
    IdleTimeout,
    InvalidArgument,
    ProtocolError,
    ReadError,
)
from llmprod.providers._http import HTTP, Reply, read_all
from tests.http.conftest import at_most
from tests.http.loopback import Answer, Conversation, Server

Serve = Callable[[Answer], Server]
HEADERS = [("content-type", "application/json"), ("authorization", "Bearer k-123"), ("accept-encoding", "identity")]


@pytest.fixture(scope="module")
def anyio_backend(combination: tuple[str, str]) -> str:
    return combination[0]


async def post(http: HTTP, url: str, body: bytes = b"{}", connect: float | None = 5.0) -> Reply:
    with anyio.fail_after(60):
        return await http.engine().post(url, HEADERS, body, connect)


async def whole(http: HTTP, url: str, body: bytes = b"{}", idle: float | None = 10.0, at_most: int = 2**26) -> bytes:
    reply = await post(http, url, body)
    with anyio.fail_after(60):
        return await read_all(reply, idle, at_most)


async def chunk(reply: Reply) -> bytes:
    with anyio.fail_after(60):
        return await reply.chunk()


async def gone(server: Server) -> bool:
    """Wait for what the conversation saw of the client's closing."""
    return await anyio.to_thread.run_sync(lambda: server.closed.get(timeout=60))


async def idle(server: Server) -> None:
    await anyio.to_thread.run_sync(server.wait_until_idle)


# ---- whole answers


async def test_a_whole_answer_and_what_was_sent_for_it(http: HTTP, serve: Serve) -> None:
    server = serve(lambda c: c.reply(b'{"ok": true}', b"X-Request-Id: r1", b"Warning: a", b"warning: b"))
    reply = await post(http, server.url + "?v=1", b'{"a": 1}')
    assert reply.status == 200
    assert reply.headers["x-request-id"] == "r1"
    assert reply.headers["warning"] == "a, b"
    assert await read_all(reply, 5.0) == b'{"ok": true}'
    [head], [body] = server.heads, server.bodies
    first, *lines = head.decode().split("\r\n")
    assert first == "POST /v1/chat?v=1 HTTP/1.1"
    sent = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert sent["host"] == f"127.0.0.1:{server.port}"
    assert sent["content-length"] == "8"
    assert {name: sent[name] for name, _ in HEADERS} == dict(HEADERS)
    assert not {"referer", "cookie"} & sent.keys()
    assert len([line for line in lines if line.lower().startswith("content-type")]) == 1
    assert body == b'{"a": 1}'


async def test_errors_and_redirects_are_answers(http: HTTP, serve: Serve) -> None:
    server = serve(lambda c: c.reply(b"no", b"location: /other", b"set-cookie: a=b", status=b"302 Found"))
    for _ in range(2):
        reply = await post(http, server.url)
        assert reply.status == 302
        assert await read_all(reply, 5.0) == b"no"
    assert len(server.heads) == 2


@pytest.mark.parametrize(
    "engine_sends", [b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"]
)
async def test_an_answer_without_a_body(http: HTTP, serve: Serve, engine_sends: bytes, engine_name: str) -> None:
    server = serve(lambda c: c.send(engine_sends))
    for _ in range(6):
        assert await whole(http, server.url) == b""
    assert server.connections <= at_most(engine_name, 1, 6)


async def test_an_answer_that_ends_with_the_connection(http: HTTP, serve: Serve) -> None:
    def answer(c: Conversation) -> bool:
        c.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nall of it")
        return False

    assert await whole(http, serve(answer).url) == b"all of it"


async def test_interim_answers_are_skipped(http: HTTP, serve: Serve) -> None:
    def answer(c: Conversation) -> None:
        c.send(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
        c.reply(b"final")

    assert await whole(http, serve(answer).url) == b"final"


async def test_megabytes_in_both_directions(http: HTTP, serve: Serve) -> None:
    server = serve(lambda c: c.reply(c.body[::-1]))
    body = bytes(range(256)) * 16_384
    assert await whole(http, server.url, body) == body[::-1]


async def test_a_body_beyond_the_limit_is_refused_and_its_connection_closed(http: HTTP, serve: Serve) -> None:
    server = serve(lambda c: c.reply(b"x" * 2_000_000))
    with pytest.raises(ProtocolError, match="longer than 100000 bytes"):
        await whole(http, server.url, at_most=100_000)
    await idle(server)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "raw"])
async def test_compressed_answers(http: HTTP, serve: Serve, encoding: str) -> None:
    text = b"hello " * 1000
    raw = zlib.compressobj(wbits=-15)
    packed = {"gzip": gzip.compress(text), "deflate": zlib.compress(text), "raw": raw.compress(text) + raw.flush()}
    name = b"content-encoding: " + (b"gzip" if encoding == "gzip" else b"deflate")
    server = serve(lambda c: c.reply(packed[encoding], name))
    assert await whole(http, server.url) == text


@pytest.mark.parametrize(
    ("encoding", "body"), [(b"gzip", gzip.compress(b"hello")[:-9]), (b"gzip", b"plain text"), (b"br", b"plain text")]
)
async def test_what_cannot_be_decompressed(http: HTTP, serve: Serve, encoding: bytes, body: bytes) -> None:
    server = serve(lambda c: c.reply(body, b"content-encoding: " + encoding))
    with pytest.raises(ProtocolError):
        await whole(http, server.url)


# ---- streams


async def test_each_piece_arrives_before_the_next_is_sent(http: HTTP, serve: Serve) -> None:
    arrived = threading.Semaphore(0)

    def answer(c: Conversation) -> None:
        c.stream()
        for number in range(5):
            c.chunk(b"data: %d\n\n" % number)
            arrived.acquire(timeout=60)
        c.chunk(b"")

    reply = await post(http, serve(answer).url)
    for number in range(5):
        assert await chunk(reply) == b"data: %d\n\n" % number
        arrived.release()
    assert await chunk(reply) == b""
    await reply.aclose()


async def test_a_compressed_stream_is_not_held_back(http: HTTP, serve: Serve) -> None:
    arrived = threading.Semaphore(0)

    def answer(c: Conversation) -> None:
        packer = zlib.compressobj(wbits=31)
        c.stream(b"content-encoding: gzip")
        for number in range(3):
            c.chunk(packer.compress(b"data: %d\n\n" % number) + packer.flush(zlib.Z_SYNC_FLUSH))
            arrived.acquire(timeout=60)
        c.chunk(packer.flush())
        c.chunk(b"")

    reply = await post(http, serve(answer).url)
    for number in range(3):
        assert await chunk(reply) == b"data: %d\n\n" % number
        arrived.release()
    assert await chunk(reply) == b""
    await reply.aclose()


# ---- connections


def stream_of_three(c: Conversation) -> None:
    c.stream()
    for number in range(3):
        c.chunk(b"data: %d\n\n" % number)
    c.chunk(b"")


async def test_one_connection_serves_call_after_call(http: HTTP, serve: Serve, engine_name: str) -> None:
    server = serve(lambda c: stream_of_three(c) if c.number % 2 else c.reply(b"whole"))
    for number in range(6):
        assert await whole(http, server.url) == (b"data: 0\n\ndata: 1\n\ndata: 2\n\n" if number % 2 else b"whole")
    assert server.connections <= at_most(engine_name, 1, 6)


async def test_a_body_left_unread_costs_the_connection(http: HTTP, serve: Serve) -> None:
    def answer(c: Conversation) -> None:
        c.stream()
        c.chunk(b"data: 0\n\n")
        c.server.closed.put(c.wait_for_close())

    server = serve(answer)
    reply = await post(http, server.url)
    assert await chunk(reply) == b"data: 0\n\n"
    await reply.aclose()
    await reply.aclose()
    assert await gone(server)


async def test_a_connection_that_the_server_closed_meanwhile_is_not_used(http: HTTP, serve: Serve) -> None:
    def answer(c: Conversation) -> bool:
        c.reply(b"bye")
        return False

    server = serve(answer)
    for _ in range(3):
        assert await whole(http, server.url) == b"bye"
        await idle(server)
        await anyio.sleep(0.02)  # the news has to travel as far as the client
    assert server.connections == 3


async def test_closing_the_pool_closes_idle_connections(http: HTTP, serve: Serve, engine_name: str) -> None:
    server = serve(lambda c: c.reply(b"ok"))
    await whole(http, server.url)
    assert server.open == 1
    await http.aclose()
    if engine_name in ("httpx", "pyreqwest"):
        await idle(server)
    assert await whole(http, server.url) == b"ok"  # a closed pool makes way for a new one


async def test_many_at_once(http: HTTP, serve: Serve) -> None:
    server = serve(lambda c: c.reply(c.body))
    got: list[bytes] = []

    async def call(number: int) -> None:
        got.append(await whole(http, server.url, b"%d" % number))

    async with anyio.create_task_group() as group:
        for number in range(40):
            group.start_soon(call, number)
    assert sorted(map(int, got)) == list(range(40))


# ---- failures


async def test_refused(http: HTTP) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ConnectError) as caught:
        await post(http, f"http://127.0.0.1:{port}/v1")
    assert caught.value.silent


async def test_unknown_host(http: HTTP) -> None:
    with pytest.raises(ConnectError):
        await post(http, "http://nowhere.invalid/v1")


async def test_connecting_takes_too_long(http: HTTP) -> None:
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):  # the queue is full: the next handshake gets no answer
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        with pytest.raises(ConnectTimeout) as caught:
            await post(http, f"http://127.0.0.1:{listener.getsockname()[1]}/", connect=0.1)
    assert caught.value.limit == 0.1
    assert caught.value.silent


async def test_reset_before_the_headers(http: HTTP, serve: Serve) -> None:
    with pytest.raises(ReadError) as caught:
        await whole(http, serve(Conversation.reset).url)
    assert caught.value.silent
    assert not caught.value.in_stream


@pytest.mark.parametrize("how", ["closed", "garbage", "half a head"])
async def test_no_http_answer(http: HTTP, serve: Serve, how: str) -> None:
    def answer(c: Conversation) -> bool:
        if how != "closed":
            c.send(b"\x00\x01 not HTTP at all\r\n\r\n" if how == "garbage" else b"HTTP/1.1 200 OK\r\nconte")
        return False

    with pytest.raises(ReadError):
        await whole(http, serve(answer).url)


@pytest.mark.parametrize("how", ["reset", "chunked body cut", "length not reached", "bad chunk"])
async def test_broken_inside_the_body(http: HTTP, serve: Serve, how: str) -> None:
    def answer(c: Conversation) -> bool:
        if how == "length not reached":
            c.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\ndata: 0\n\n")
        else:
            c.stream()
            c.chunk(b"data: 0\n\n")
        if how == "bad chunk":
            c.send(b"no length\r\n")
        if how == "reset":
            c.server.closed.get(timeout=60)  # a reset overtakes what the client has not read
            return c.reset()
        return False

    server = serve(answer)
    reply = await post(http, server.url)
    got = await chunk(reply)
    assert got == b"data: 0\n\n"
    server.closed.put(True)
    with pytest.raises(ReadError) as caught:
        await read_all(reply, 10.0)
    assert caught.value.in_stream
    await reply.aclose()


async def test_a_body_that_stands_still(http: HTTP, serve: Serve) -> None:
    def answer(c: Conversation) -> None:
        c.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nsome")
        c.server.closed.put(c.wait_for_close())

    server = serve(answer)
    with pytest.raises(IdleTimeout) as caught:
        await whole(http, server.url, idle=0.1)
    assert caught.value.limit == 0.1
    assert await gone(server)


async def test_a_slow_body_that_moves_is_read(http: HTTP, serve: Serve) -> None:
    def answer(c: Conversation) -> None:
        c.stream()
        for _ in range(5):
            threading.Event().wait(0.05)
            c.chunk(b"x")
        c.chunk(b"")

    assert await whole(http, serve(answer).url, idle=1.0) == b"xxxxx"


@pytest.mark.parametrize("url", ["http://", "ftp://127.0.0.1/v1", "http://[::1/v1", "http://127.0.0.1:99999/v1"])
async def test_an_address_that_is_none(http: HTTP, url: str) -> None:
    with pytest.raises((InvalidArgument, ConnectError)):
        await post(http, url)


@pytest.mark.parametrize("value", ["sk-secret\n", "sk-secret\r\nx: y", "“sk-secret”", "sk-\x00secret"])
async def test_a_key_that_cannot_be_sent_is_not_shown(http: HTTP, value: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await http.engine().post("http://127.0.0.1:1/", [("authorization", value)], b"", 1.0)
    error: BaseException | None = caught.value
    while error is not None:
        assert "secret" not in str(error) + repr(error)
        error = error.__cause__ or error.__context__
    assert "authorization" in str(caught.value)


# ---- cancelled, abandoned


async def test_cancelled_while_the_server_thinks(http: HTTP, serve: Serve, engine_name: str) -> None:
    arrived, cancelled = threading.Event(), threading.Event()

    def answer(c: Conversation) -> None:
        arrived.set()
        if engine_name == "pyreqwest":  # it lets go of the connection only when the server begins to answer
            cancelled.wait(60)
            c.stream()
            c.chunk(b"data: 0\n\n")
        c.server.closed.put(c.wait_for_close())

    server = serve(answer)

    async def cancel() -> None:
        await anyio.to_thread.run_sync(arrived.wait, 60)
        scope.cancel()

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            tasks.start_soon(cancel)
            await http.engine().post(server.url, HEADERS, b"{}", 60.0)
    assert scope.cancelled_caught
    cancelled.set()
    assert await gone(server)


async def test_cancelled_inside_a_stream(http: HTTP, serve: Serve) -> None:
    def answer(c: Conversation) -> None:
        c.stream()
        c.chunk(b"data: 0\n\n")
        c.server.closed.put(c.wait_for_close())

    server = serve(answer)
    reply = await post(http, server.url)
    assert await chunk(reply) == b"data: 0\n\n"
    with anyio.move_on_after(0.05) as scope:
        await reply.chunk()
    assert scope.cancelled_caught
    with anyio.CancelScope(shield=True):
        await reply.aclose()
    assert await gone(server)


async def test_cancelled_while_connecting(http: HTTP) -> None:
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        with anyio.move_on_after(0.1) as scope:
            await post(http, f"http://127.0.0.1:{listener.getsockname()[1]}/", connect=None)
        assert scope.cancelled_caught


@pytest.mark.parametrize("where", ["here", "in a thread"])
async def test_an_abandoned_stream_is_closed(http: HTTP, serve: Serve, where: str) -> None:
    def answer(c: Conversation) -> None:
        c.stream()
        c.chunk(b"data: 0\n\n")
        c.server.closed.put(c.wait_for_close())

    server = serve(answer)
    reply = await post(http, server.url)
    assert await chunk(reply) == b"data: 0\n\n"
    if where == "here":
        reply.abandon()
    else:
        await anyio.to_thread.run_sync(reply.abandon)
    del reply
    gc.collect()
    assert await gone(server)


async def test_every_step_can_be_cancelled(http: HTTP, serve: Serve) -> None:
    """Whatever the moment, the next call works and no connection is left behind."""

    def answer(c: Conversation) -> None:
        c.stream()
        for _ in range(4):
            threading.Event().wait(0.002)
            c.chunk(b"data: x\n\n")
        c.chunk(b"")

    server = serve(answer)
    for milliseconds in range(0, 16, 2):
        with anyio.move_on_after(milliseconds / 1000):
            await read_all(await http.engine().post(server.url, HEADERS, b"{}", 5.0), math.inf)
        assert (await whole(http, server.url)).count(b"data") == 4
    with anyio.fail_after(60):
        while server.open > 2:  # noqa: ASYNC110 - a server tells no event
            await anyio.sleep(0.005)


async def test_nothing_but_our_errors(http: HTTP, serve: Serve) -> None:
    """A server that breaks off after any number of bytes."""
    text = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: 0\n\n\r\n9\r\ndata: 1\n\n\r\n0\r\n\r\n"

    def answer(c: Conversation) -> bool:
        c.send(text[: cuts[c.number]])
        return c.reset() if c.number % 2 else False

    cuts = [*range(0, len(text), 5)]
    server = serve(answer)
    for _ in cuts:
        with pytest.raises(CallError):
            await whole(http, server.url)

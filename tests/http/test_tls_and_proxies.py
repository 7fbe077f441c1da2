"""TLS with a certificate of our own, and a forward proxy on a loopback socket."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from llmprod.errors import CallError, ConnectError, InvalidArgument
from llmprod.providers._http import HTTP, HTTPOptions, read_all
from tests.http import certificates
from tests.http.loopback import Answer, Conversation, Server

Serve = Callable[[Answer], Server]


@pytest.fixture(params=["httpx", "pyreqwest"])
def engine(request: pytest.FixtureRequest, anyio_backend_name: str) -> str:
    if request.param == "pyreqwest" and anyio_backend_name == "trio":
        pytest.skip("pyreqwest needs asyncio")
    return request.param


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    return certificates.make(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def secure(tls: tuple[ssl.SSLContext, Path]) -> Iterator[Server]:
    def answer(c: Conversation) -> None:
        c.stream()
        c.chunk(b"data: 0\n\n")
        c.chunk(b"x" * 100_000)
        c.chunk(b"")

    with Server(answer, tls=tls[0]) as server:
        yield server


async def call(options: HTTPOptions, url: str, times: int = 1) -> bytes:
    http = HTTP(options)
    got = b""
    try:
        with anyio.fail_after(60):
            for _ in range(times):
                got = await read_all(
                    await http.engine().post(url, [("authorization", "Bearer k")], b"{}" * 50_000, 5.0), 5.0
                )
    finally:
        await http.aclose()
    return got


# ---- TLS


async def test_an_unknown_certificate_is_refused(engine: str, secure: Server) -> None:
    with pytest.raises(ConnectError) as caught:
        await call(HTTPOptions(engine=engine), secure.url)
    assert caught.value.silent
    assert secure.heads == []


async def test_verification_can_be_turned_off(engine: str, secure: Server) -> None:
    assert len(await call(HTTPOptions(engine=engine, verify=False), secure.url, times=3)) == 100_009
    assert secure.connections == 1


async def test_a_context_of_ones_own(engine: str, secure: Server, tls: tuple[ssl.SSLContext, Path]) -> None:
    context = ssl.create_default_context(cafile=tls[1])
    if engine == "pyreqwest":
        with pytest.raises(InvalidArgument, match=r"http\.verify"):
            await call(HTTPOptions(engine=engine, verify=context), secure.url)
    else:
        assert len(await call(HTTPOptions(verify=context), secure.url, times=2)) == 100_009
        assert secure.connections == 1


async def test_a_certificate_for_another_name(engine: str, secure: Server, tls: tuple[ssl.SSLContext, Path]) -> None:
    options = {"verify": ssl.create_default_context(cafile=tls[1])} if engine == "httpx" else {"engine": engine}
    with pytest.raises(ConnectError):
        await call(HTTPOptions(**options), secure.url.replace("localhost", "127.0.0.2"))


async def test_plain_http_where_tls_is_spoken(engine: str, secure: Server) -> None:
    with pytest.raises(CallError):
        await call(HTTPOptions(engine=engine), secure.url.replace("https", "http"))


async def test_tls_where_plain_http_is_spoken(engine: str, serve: Serve) -> None:
    server = serve(lambda c: c.reply(b"plain"))
    with pytest.raises(ConnectError):
        await call(HTTPOptions(engine=engine, verify=False), server.url.replace("http", "https"))


async def test_the_bundle_of_the_environment(
    secure: Server, tls: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    from llmprod.providers import _httpx

    monkeypatch.setenv("SSL_CERT_FILE", str(tls[1]))
    _httpx._default_tls.cache_clear()
    try:
        assert len(await call(HTTPOptions(engine=engine), secure.url)) == 100_009
    finally:
        _httpx._default_tls.cache_clear()


# ---- proxies


def forward(c: Conversation) -> None:
    """Answer instead of the server, as a proxy's cache would; what was asked for stands in the head."""
    c.reply(b"through the proxy")


async def test_a_proxy(engine: str, serve: Serve) -> None:
    proxy = serve(forward)
    options = HTTPOptions(engine=engine, proxy=f"http://me:pass@127.0.0.1:{proxy.port}")
    assert await call(options, "http://somewhere.invalid/v1", times=2) == b"through the proxy"
    head = proxy.heads[0].lower()
    assert head.startswith(b"post http://somewhere.invalid/v1 http/1.1\r\n")
    assert b"proxy-authorization: basic bwu6cgfzcw==" in head
    assert proxy.connections == 1
    assert "pass" not in repr(options)


async def test_a_proxy_that_refuses_a_tunnel(engine: str, serve: Serve) -> None:
    proxy = serve(lambda c: c.reply(b"no", status=b"407 Proxy Authentication Required"))
    with pytest.raises(CallError) as caught:
        await call(HTTPOptions(engine=engine, proxy=f"http://127.0.0.1:{proxy.port}"), "https://somewhere.invalid/v1")
    assert isinstance(caught.value, ConnectError)
    assert proxy.heads[0].startswith(b"CONNECT somewhere.invalid:443")


async def test_the_proxy_of_the_environment(engine: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, direct = serve(forward), serve(lambda c: c.reply(b"direct"))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    assert await call(HTTPOptions(engine=engine), "http://somewhere.invalid/v1") == b"through the proxy"
    assert await call(HTTPOptions(engine=engine), direct.url) == b"direct"


async def test_a_proxy_that_is_none(engine: str) -> None:
    for proxy in ("http://:secret@", "what://me:secret@127.0.0.1"):
        with pytest.raises((InvalidArgument, CallError)) as caught:
            await call(HTTPOptions(engine=engine, proxy=proxy), "http://127.0.0.1:1/v1")
        error: BaseException | None = caught.value
        while error is not None:
            assert "secret" not in str(error) + repr(error)
            error = error.__cause__

"""All HTTP stands here. The rest of the library sees an engine that posts bytes and a reply that yields bytes.

The seam is narrow so that engines can be exchanged: httpx (the default), a client of httpx or httpx2 that the
application passes in, and pyreqwest. Exceptions of all of them become this library's.
"""

from __future__ import annotations

import os
import ssl
import urllib.request
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NoReturn, Protocol, TypeAlias, cast

import anyio
import httpx
from anyio.lowlevel import RunVar

from llmprod.errors import (
    CallError,
    ConnectError,
    ConnectTimeout,
    ForkedProcess,
    IdleTimeout,
    InvalidArgument,
    ProtocolError,
    ReadError,
)

__all__ = ["Engine", "HTTP", "HTTPOptions", "Reply"]

HeaderList: TypeAlias = Sequence[tuple[str, str]]


class Reply(Protocol):
    """An HTTP response whose body is still to be read."""

    status: int
    headers: dict[str, str]

    async def chunk(self) -> bytes:
        """Return the next bytes of the body, or ``b""`` at its end. Raises :class:`ReadError` if it breaks off."""
        ...

    async def aclose(self) -> None:
        """Release the connection: back to the pool if the body was read to its end, closed otherwise."""
        ...

    def abandon(self) -> None:
        """Release the connection from outside an event loop, as well as that can be done."""
        ...


class Engine(Protocol):
    """Sends requests over pooled connections, on one event loop."""

    async def post(self, url: str, headers: HeaderList, body: bytes, connect_timeout: float | None) -> Reply:
        """Send and return once the response's headers are there."""
        ...

    async def aclose(self) -> None:
        """Close the pool."""
        ...


@dataclass(frozen=True, kw_only=True)
class HTTPOptions:
    """How to reach a server; the options are httpx's own.

    Attributes:
        engine: ``"httpx"``, or ``"pyreqwest"`` (extra ``fast``; asyncio alone).
        client: an ``AsyncClient`` of httpx or httpx2 to use instead, with its own timeouts lifted; it stays the
            caller's to close and belongs to one event loop.
        verify: TLS verification: True, False (insecure) or an ``ssl.SSLContext``.
        proxy: URL of a proxy; without it the usual environment variables count.
        max_connections: at most as many at once (None: no limit).
        max_keepalive: idle connections kept.
        keepalive: seconds that an idle connection is kept.
        http2: speak HTTP/2 where the server can (needs httpx's extra ``http2``).
    """

    engine: str = "httpx"
    client: Any = field(default=None, repr=False)
    verify: bool | ssl.SSLContext = True
    proxy: str | None = field(default=None, repr=False)
    max_connections: int | None = None
    max_keepalive: int = 256
    keepalive: float = 30.0
    http2: bool = False

    def __post_init__(self) -> None:
        if self.engine not in ("httpx", "pyreqwest"):
            raise InvalidArgument("http.engine", repr(self.engine)[:40], "httpx, pyreqwest")
        if self.client is not None and not callable(getattr(self.client, "build_request", None)):
            raise InvalidArgument("http.client", type(self.client).__name__, "an AsyncClient of httpx or httpx2")


class HTTP:
    """Pools for one target: one for each event loop that uses it, made when first needed."""

    def __init__(self, options: HTTPOptions | None = None) -> None:
        self.options = options or HTTPOptions()
        self._engines: RunVar[Engine | None] = RunVar("llmprod.http", None)
        self._pid: int | None = None

    def engine(self) -> Engine:
        """Return the running event loop's engine.

        Raises:
            ForkedProcess: pools were made before a fork.
        """
        engine = self._engines.get()
        if engine is None:
            engine = self._make()
            self._engines.set(engine)
        if self._pid != os.getpid():
            if self._pid is not None:
                raise ForkedProcess("a connection pool")
            self._pid = os.getpid()
        return engine

    def _make(self) -> Engine:
        options = self.options
        if options.client is not None:
            return ClientEngine(options.client, owned=False)
        if options.engine == "pyreqwest":
            from llmprod.providers._pyreqwest import PyreqwestEngine

            return PyreqwestEngine(options)
        limits = httpx.Limits(
            max_connections=options.max_connections,
            max_keepalive_connections=options.max_keepalive,
            keepalive_expiry=options.keepalive,
        )
        if options.proxy is None and urllib.request.getproxies():
            # Which proxy serves which host is httpx's knowledge; only its client applies it.
            client = httpx.AsyncClient(verify=options.verify, limits=limits, http2=options.http2, timeout=None)
            return ClientEngine(client, owned=True)
        verify = _tls() if options.verify is True else options.verify
        return TransportEngine(httpx.AsyncHTTPTransport(verify=verify, limits=limits, proxy=options.proxy, http2=options.http2))

    async def aclose(self) -> None:
        """Close the running loop's pool."""
        engine = self._engines.get()
        if engine is not None:
            self._engines.set(None)
            await engine.aclose()


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    # Loading the certificates costs more than a thousand calls: once a process.
    return httpx.create_ssl_context()


# ---- httpx and httpx2 -----------------------------------------------------------------------------------------------


class TransportEngine:
    """httpx's transport without its client: no cookies, redirects or auth flow to pay for on each call."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport
        self._urls: dict[str, httpx.URL] = {}

    async def post(self, url: str, headers: HeaderList, body: bytes, connect_timeout: float | None) -> Reply:
        parsed = self._urls.get(url)
        if parsed is None:
            parsed = self._urls[url] = httpx.URL(url)
        timeout = {"connect": connect_timeout, "read": None, "write": None, "pool": None}
        request = httpx.Request("POST", parsed, headers=headers, content=body, extensions={"timeout": timeout})
        try:
            response = await self._transport.handle_async_request(request)
        except Exception as error:
            _raise_ours(error, connect_timeout, begun=False)
        return _HTTPXReply(response, response.stream)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    async def aclose(self) -> None:
        await self._transport.aclose()


class ClientEngine:
    """An ``AsyncClient`` of httpx or httpx2 with all that it was configured to do."""

    def __init__(self, client: Any, *, owned: bool) -> None:
        self._client = client
        self._owned = owned

    async def post(self, url: str, headers: HeaderList, body: bytes, connect_timeout: float | None) -> Reply:
        timeout = {"connect": connect_timeout, "read": None, "write": None, "pool": None}
        request = self._client.build_request(
            "POST", url, headers=headers, content=body, timeout=None, extensions={"timeout": timeout}
        )
        try:
            response = await self._client.send(request, stream=True)
        except Exception as error:
            _raise_ours(error, connect_timeout, begun=False)
        return _HTTPXReply(response, response.stream)

    async def aclose(self) -> None:
        if self._owned:
            await self._client.aclose()


class _HTTPXReply:
    __slots__ = ("_body", "_closed", "_inflate", "_response", "headers", "status")

    def __init__(self, response: Any, stream: AsyncIterator[bytes]) -> None:
        self._response = response
        self._body: AsyncIterator[bytes] = stream.__aiter__()
        self._closed = False
        self.status: int = response.status_code
        self.headers: dict[str, str] = dict(response.headers)
        self._inflate = _inflater(self.headers.get("content-encoding"))

    async def chunk(self) -> bytes:
        while True:
            try:
                data = await self._body.__anext__()
            except StopAsyncIteration:
                return self._inflate.flush() if self._inflate and not self._inflate.eof else b""
            except Exception as error:
                _raise_ours(error, None, begun=True)
            if self._inflate is not None:
                data = _inflate(self._inflate, data)
            if data:
                return data

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            try:
                await self._response.aclose()
            except Exception as error:  # a connection that broke is closed, whatever it says of it
                if not _is_transport(error):
                    raise

    def abandon(self) -> None:
        self._closed = True
        _close_later(self._response.aclose)


def _close_later(aclose: Callable[[], Any]) -> None:
    """Close on the running asyncio loop, if there is one; otherwise the pool closes the socket with its loop."""
    import asyncio

    try:
        task = asyncio.get_running_loop().create_task(aclose())
    except RuntimeError:
        return
    _closing.add(task)
    task.add_done_callback(_closing.discard)


_closing: set[Any] = set()


def _inflater(encoding: str | None) -> Any:
    if not encoding or encoding == "identity":
        return None
    if encoding not in ("gzip", "deflate"):
        raise ProtocolError(detail=f"content-encoding {encoding[:20]!r}, though none was accepted")
    return zlib.decompressobj(47 if encoding == "gzip" else 15)


def _inflate(inflater: Any, data: bytes) -> bytes:
    try:
        return cast("bytes", inflater.decompress(data))
    except zlib.error as error:
        raise ProtocolError(detail="the compressed body is corrupt", in_stream=True) from error


# ---- exceptions -----------------------------------------------------------------------------------------------------

_CONNECT = {"ConnectError", "ProxyError", "UnsupportedProtocol", "LocalProtocolError", "WriteError", "WriteTimeout"}


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _is_transport(error: Exception) -> bool:
    names = _names(error)
    return bool(names & {"TransportError", "StreamError"}) or isinstance(
        error, (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)
    )


def _raise_ours(error: Exception, connect_timeout: float | None, *, begun: bool) -> NoReturn:
    """Raise this library's error for one of httpx, httpx2 (same class names), ssl, the OS or anyio."""
    names = _names(error)
    detail = type(error).__name__
    if isinstance(error, CallError):
        raise error
    if "InvalidURL" in names or "UnsupportedProtocol" in names:
        raise InvalidArgument("base_url", "an address that can't be used", "http:// or https:// and a host") from error
    if "ConnectTimeout" in names or "PoolTimeout" in names:
        raise ConnectTimeout(connect_timeout, silent=True) from error
    if not begun and (names & _CONNECT or isinstance(error, ssl.SSLError)):
        raise ConnectError(detail=detail, silent=True) from error
    if "ReadTimeout" in names:
        raise IdleTimeout(detail="the HTTP client's own read timeout", in_stream=begun) from error
    if _is_transport(error) or "RequestError" in names:
        raise ReadError(detail=detail, in_stream=begun, silent=not begun) from error
    raise error


async def read_all(reply: Reply, idle: float | None, at_most: int = 64 * 2**20) -> bytes:
    """Read a body to its end and release the connection.

    Raises:
        IdleTimeout: the body stood still for ``idle`` seconds.
        ReadError: it broke off.
        ProtocolError: it is longer than ``at_most`` bytes.
    """
    pieces: list[bytes] = []
    size = 0
    try:
        while True:
            with anyio.CancelScope(deadline=float("inf") if idle is None else anyio.current_time() + idle) as scope:
                piece = await reply.chunk()
                if not piece:
                    return b"".join(pieces)
                pieces.append(piece)
                size += len(piece)
            if scope.cancelled_caught:
                raise IdleTimeout(idle, in_stream=True)
            if size > at_most:
                raise ProtocolError(detail=f"the body is longer than {at_most} bytes")
    finally:
        with anyio.CancelScope(shield=True):
            await reply.aclose()


def lower(headers: Mapping[str, str] | Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return headers as a dict with lower-case names."""
    items = headers.items() if isinstance(headers, Mapping) else headers
    return {name.lower(): value for name, value in items}

"""The seam to HTTP: an engine posts bytes, its reply yields bytes. Nothing else in the library knows what is behind it.

Behind it stand httpx's transport (the default), a client of httpx or httpx2 that the application passes in, and
pyreqwest. Their exceptions become this library's inside the engines.
"""

from __future__ import annotations

import math
import os
import re
import ssl
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit

import anyio
from anyio.lowlevel import current_token

from llmprod._validate import whole
from llmprod.errors import ForkedProcess, IdleTimeout, InvalidArgument, ProtocolError

__all__ = [
    "HTTP",
    "Engine",
    "HTTPOptions",
    "HeaderList",
    "NetworkEngine",
    "Reply",
    "check_address",
    "check_headers",
    "read_all",
]

HeaderList: TypeAlias = Sequence[tuple[str, str]]


class Reply(Protocol):
    """An HTTP response whose body is still to be read.

    Attributes:
        status: the status code.
        headers: names in lower case; of a repeated header the values are joined by a comma.
    """

    status: int
    headers: dict[str, str]

    async def chunk(self) -> bytes:
        """Return the next bytes of the body, or ``b""`` at its end.

        Raises:
            ReadError: it breaks off.
            ProtocolError: it can't be decompressed.
        """
        ...

    async def aclose(self) -> None:
        """Release the connection: back to the pool if the body was read to its end, closed otherwise."""
        ...

    def abandon(self) -> None:
        """Release the connection soon; for a reply that is garbage-collected, on any thread or on none."""
        ...


class Engine(Protocol):
    """Sends requests over pooled connections, on one event loop."""

    async def post(self, url: str, headers: HeaderList, body: bytes, connect_timeout: float | None) -> Reply:
        """Send and return once the response's headers are there.

        Raises:
            ConnectTimeout: no connection in ``connect_timeout`` seconds.
            ConnectError: no connection at all.
            ReadError: it broke before the headers.
        """
        ...

    async def aclose(self) -> None:
        """Close the pool."""
        ...


class NetworkEngine(Engine, Protocol):
    """An engine that speaks to a server, which may have other methods than POST."""

    async def post(
        self, url: str, headers: HeaderList, body: bytes, connect_timeout: float | None, *, method: str = "POST"
    ) -> Reply:
        """Send by ``method``; as :meth:`Engine.post` otherwise."""
        ...


@dataclass(frozen=True, kw_only=True)
class HTTPOptions:
    """How to reach a server; the options are httpx's own.

    Redirects are not followed and cookies are not kept, except by a ``client`` that was told to.

    Attributes:
        engine: ``"httpx"``, or ``"pyreqwest"`` (extra ``fast``; asyncio alone), in Rust, which takes no less CPU. A
            call that is cancelled there before its headers came keeps its connection until the server answers.
        client: an ``AsyncClient`` of httpx or httpx2 to use instead, with its proxies, TLS, auth, hooks, headers and
            redirects as they are. Its read and write timeouts are lifted, since a stream may be silent for longer
            than they allow and the time limits of :class:`llmprod.AttemptTimeout` tell apart what they mix up. It
            stays the caller's to close, and belongs to one event loop.
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
        if self.client is not None:
            # A synchronous client has the same methods, but not this one.
            if not callable(getattr(self.client, "build_request", None)) or not hasattr(self.client, "aclose"):
                raise InvalidArgument("http.client", type(self.client).__name__, "an AsyncClient of httpx or httpx2")
            if self.engine != "httpx":
                raise InvalidArgument("http.client", f"a client with engine={self.engine!r}", "one of the two")
        if not isinstance(self.verify, (bool, ssl.SSLContext)):
            raise InvalidArgument("http.verify", type(self.verify).__name__, "True, False or an ssl.SSLContext")
        if self.proxy is not None and "://" not in self.proxy:
            raise InvalidArgument("http.proxy", "a value without a scheme", "a URL such as http://proxy:3128")
        whole("http.max_connections", self.max_connections, 1, optional=True)
        whole("http.max_keepalive", self.max_keepalive, 0)
        if not self.keepalive >= 0:  # infinity is allowed: never
            raise InvalidArgument("http.keepalive", str(self.keepalive), "seconds from 0")


class HTTP:
    """The pools of one target: one for each event loop that uses it, made when first needed, closed with its loop."""

    def __init__(self, options: HTTPOptions | None = None) -> None:
        self.options = options or HTTPOptions()
        self._pools: dict[object, tuple[Engine, AsyncGenerator[None] | None]] = {}
        self._making = threading.Lock()
        self._pid: int | None = None

    def engine(self) -> Engine:
        """Return the running event loop's engine.

        Raises:
            ForkedProcess: pools were made before a fork.
            InvalidArgument: an option that the engine can't honour.
        """
        if self._pid != os.getpid():
            if self._pid is not None:
                raise ForkedProcess("a connection pool")
            self._pid = os.getpid()
        loop = current_token().native_token
        pool = self._pools.get(loop)
        return pool[0] if pool is not None else self._make(loop)

    def _make(self, loop: object) -> Engine:
        engine = _engine(self.options)
        keeper = None
        if self.options.client is None:
            keeper = _close_with_loop(engine)
            try:
                keeper.asend(None).send(None)  # run it up to its yield: that makes it known to the loop
            except StopIteration:
                pass
        with self._making:
            for old, (_, ended) in list(self._pools.items()):
                if getattr(ended, "ag_frame", None) is None or getattr(old, "is_closed", bool)():
                    del self._pools[old]
            self._pools[loop] = engine, keeper
        return engine

    async def aclose(self) -> None:
        """Close the running loop's pool."""
        _, keeper = self._pools.pop(current_token().native_token, (None, None))
        if keeper is not None:
            await keeper.aclose()


async def _close_with_loop(engine: Engine) -> AsyncGenerator[None]:
    """Close ``engine`` when the event loop ends, or when the HTTP object that holds this generator is dropped.

    A loop has no hook for its end, but asyncio and trio both close the async generators that are alive then, and
    those that are garbage-collected before.
    """
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await engine.aclose()


def _engine(options: HTTPOptions) -> Engine:
    if options.engine == "pyreqwest":
        from llmprod.providers._pyreqwest import PyreqwestEngine

        return PyreqwestEngine(options)
    from llmprod.providers._httpx import httpx_engine

    return httpx_engine(options)


@lru_cache(maxsize=256)
def check_address(url: str) -> None:
    """Refuse what is no address of an HTTP server.

    Raises:
        InvalidArgument: without the address, which may hold a password.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        credentials = "@" in parts.netloc
    except ValueError:  # a port or an IPv6 address that is none
        usable = credentials = False
    if not usable:
        raise InvalidArgument("base_url", "an address that can't be used", "http:// or https:// and a host")
    if credentials:
        allowed = "an address without it; credentials can be passed as headers"
        raise InvalidArgument("base_url", "an address with a user's name in it", allowed)


_LEGAL = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z")


def check_headers(headers: HeaderList) -> None:
    """Refuse what can't be a header's value, such as a key with a line break, before a library quotes it in an error.

    Raises:
        InvalidArgument: naming the header, not its value.
    """
    for name, value in headers:
        if not _LEGAL.match(value):
            allowed = "one line of printable Latin characters; a key must not have line breaks or quotes around it"
            raise InvalidArgument(f"headers[{name!r}]", "a value with characters that HTTP forbids", allowed)


async def read_all(reply: Reply, idle: float | None, at_most: int = 64 * 2**20) -> bytes:
    """Read a body to its end and release the connection.

    Raises:
        IdleTimeout: the body stood still for ``idle`` seconds.
        ReadError: it broke off.
        ProtocolError: it is longer than ``at_most`` bytes, or can't be decompressed.
    """
    pieces: list[bytes] = []
    size = 0
    seconds = math.inf if idle is None else idle
    try:
        with anyio.CancelScope(deadline=anyio.current_time() + seconds) as scope:
            while piece := await reply.chunk():
                pieces.append(piece)
                size += len(piece)
                if size > at_most:
                    raise ProtocolError(detail=f"the body is longer than {at_most} bytes", in_stream=True)
                scope.deadline = anyio.current_time() + seconds
        if scope.cancelled_caught:
            raise IdleTimeout(idle, in_stream=True)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await reply.aclose()
        raise
    await reply.aclose()
    return b"".join(pieces)

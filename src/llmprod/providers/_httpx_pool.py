"""The default engine: httpx's HTTP/1.1 connections (httpcore) under a pool for each origin.

httpx's client and its pool are left out. The client prepares cookies, redirects and auth for every call; the pool walks
through all its connections at every call. What remains of httpx is what is hard to get right: HTTP/1.1 itself.
"""

from __future__ import annotations

import ssl
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, cast

import anyio
import httpcore
import httpx

from llmprod._loops import running_loop
from llmprod.errors import ConnectTimeout
from llmprod.providers._asyncio_net import AsyncioBackend
from llmprod.providers._http import HeaderList, HTTPOptions, Reply, check_address, check_headers
from llmprod.providers._http_errors import raise_ours
from llmprod.providers._httpx_reply import GeneratorReply

__all__ = ["PoolEngine"]

_Origin = tuple[bytes, bytes, int]
_Connection = httpcore.AsyncHTTP11Connection


class _Address(NamedTuple):
    url: httpcore.URL
    origin: _Origin
    host: bytes


@lru_cache(maxsize=256)
def _address(url: str) -> _Address:
    check_address(url)
    parsed = httpx.URL(url)
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    address = httpcore.URL(scheme=parsed.raw_scheme, host=parsed.raw_host, port=port, target=parsed.raw_path)
    return _Address(address, (parsed.raw_scheme, parsed.raw_host, port), parsed.netloc)


class Body:
    """A request's body as an iterator; httpcore's own is a generator, of which trio complains if it is left unread."""

    __slots__ = ("_left",)

    def __init__(self, body: bytes) -> None:
        self._left: bytes | None = body

    def __aiter__(self) -> Body:
        return self

    async def __anext__(self) -> bytes:
        body, self._left = self._left, None
        if body is None:
            raise StopAsyncIteration
        return body


class PoolEngine:
    """Direct HTTP/1.1 connections, reused.

    Args:
        options: the pool's limits.
        tls: makes or finds the TLS context; called for https alone.
    """

    def __init__(self, options: HTTPOptions, tls: Callable[[], ssl.SSLContext]) -> None:
        self._keepalive = options.keepalive
        self._max_idle = options.max_keepalive
        self._tls = tls
        self._idle: OrderedDict[_Origin, deque[_Connection]] = OrderedDict()
        self._idle_count = 0
        self._slots = None if options.max_connections is None else anyio.Semaphore(options.max_connections)
        self._closed = False
        self.loop = running_loop()
        on_asyncio = hasattr(self.loop, "call_soon_threadsafe")
        network = AsyncioBackend() if on_asyncio else httpcore.TrioBackend()
        self._network = cast("httpcore.AsyncNetworkBackend", network)

    async def post(
        self, url: str, headers: HeaderList, body: bytes, connect_timeout: float | None, *, method: str = "POST"
    ) -> Reply:
        """Send and return once the response's headers are there."""
        check_headers(headers)
        connection = address = None
        if self._slots is not None:
            await self._slots.acquire()
        try:
            address = _address(url)
            request = httpcore.Request(
                method.encode(),
                address.url,
                headers=[
                    (b"host", address.host),
                    *[(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
                    (b"content-length", b"%d" % len(body)),
                ],
                content=Body(body),
            )
            connection = await self._idle_connection(address.origin) or await self._connect(
                address.origin, connect_timeout
            )
            response = await connection.handle_async_request(request)
            return PoolReply(self, connection, address.origin, response)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self.give_back(connection, address.origin if address else None)
            if isinstance(error, Exception):
                raise_ours(error, connect_timeout, begun=False)
            raise

    async def _idle_connection(self, origin: _Origin) -> _Connection | None:
        """Return the connection that was used last: the server is the least likely to have closed that one."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            self._idle_count -= 1
            if not connection.has_expired():  # it was idle for too long, or the server has closed it
                return connection
            await connection.aclose()
        return None

    async def _connect(self, origin: _Origin, timeout: float | None) -> _Connection:
        scheme, host, port = origin
        name = host.decode("ascii")
        with anyio.CancelScope(deadline=float("inf") if timeout is None else anyio.current_time() + timeout):
            stream = await self._network.connect_tcp(name, port)
            if scheme == b"https":
                context = self._tls()
                context.set_alpn_protocols(["http/1.1"])
                stream = await stream.start_tls(context, name)
            return _Connection(httpcore.Origin(*origin), stream, self._keepalive)
        raise ConnectTimeout(timeout, silent=True)

    async def give_back(self, connection: _Connection | None, origin: _Origin | None) -> None:
        """Keep a connection that can be used again, close any other."""
        if self._slots is not None:
            self._slots.release()
        if connection is None or origin is None:
            return
        if not connection.is_idle() or self._closed:
            await connection.aclose()
            return
        self._idle.setdefault(origin, deque()).append(connection)
        self._idle_count += 1
        if self._idle_count > self._max_idle:
            await self._close_oldest()

    async def _close_oldest(self) -> None:
        origin, idle = next((origin, idle) for origin, idle in self._idle.items() if idle)
        connection = idle.popleft()
        self._idle_count -= 1
        if not idle:
            del self._idle[origin]
        await connection.aclose()

    async def aclose(self) -> None:
        """Close idle connections now, and those in use when their replies are closed."""
        self._closed = True
        while self._idle_count:
            await self._close_oldest()


class PoolReply(GeneratorReply):
    """A response on a pooled connection."""

    __slots__ = ("_connection", "_engine", "_origin")

    def __init__(
        self, engine: PoolEngine, connection: _Connection, origin: _Origin, response: httpcore.Response
    ) -> None:
        stream = cast("Any", response.stream)  # both an async iterable and closable
        super().__init__(response.status, _headers(response.headers), stream.__aiter__(), stream.aclose, engine.loop)
        self._engine = engine
        self._connection = connection
        self._origin = origin

    async def aclose(self) -> None:
        """Give the connection back if the body was read to its end, close it otherwise."""
        if not self._closed:
            try:
                await super().aclose()
            finally:
                await self._engine.give_back(self._connection, self._origin)


def _headers(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers

"""The fast engine: pyreqwest, which is Rust's reqwest and hyper (extra ``fast``; asyncio alone).

Two things of pyreqwest 0.15 are worked around. Unless told otherwise it answers only once 64 KiB of a stream are there.
And what it raises when it is cancelled is a CancelledError of its own, which no cancel scope takes for its own.

One can't be: a request that is cancelled before its headers came runs on in the background. It ends with the server's
first byte; a server that never sends one is given up after an hour.
"""

from __future__ import annotations

import os
import ssl
import types
from collections.abc import Coroutine, Generator
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from llmprod._loops import close_later, running_loop
from llmprod.errors import InvalidArgument, ReadError
from llmprod.providers._http import HeaderList, HTTPOptions, Reply, check_address, check_headers
from llmprod.providers._http_errors import is_transport, raise_ours
from llmprod.providers._inflate import Inflater, inflater

if TYPE_CHECKING:
    from pyreqwest.client import Client
    from pyreqwest.request import StreamRequest
    from pyreqwest.response import Response

__all__ = ["PyreqwestEngine"]

_T = TypeVar("_T")
_ORPHAN = timedelta(hours=1)


class PyreqwestEngine:
    """Clients of pyreqwest; one for each connect limit, since that belongs to a client there.

    Raises:
        InvalidArgument: pyreqwest is not installed, the event loop is not asyncio's, or an option is not for it.
    """

    def __init__(self, options: HTTPOptions) -> None:
        self.loop = running_loop()
        if not hasattr(self.loop, "call_soon_threadsafe"):
            raise InvalidArgument("http.engine", "'pyreqwest' on trio", "'httpx', which runs on trio, or asyncio")
        if isinstance(options.verify, ssl.SSLContext):
            raise InvalidArgument(
                "http.verify", "an ssl.SSLContext with engine='pyreqwest'", "True, False, or engine='httpx'"
            )
        if find_spec("pyreqwest") is None:
            given = "'pyreqwest', which is not installed"
            raise InvalidArgument("http.engine", given, "'httpx', or install llmprod[fast]")
        self._options = options
        self._clients: dict[float | None, Client] = {}

    async def post(
        self, url: str, headers: HeaderList, body: bytes, connect_timeout: float | None, *, method: str = "POST"
    ) -> Reply:
        """Send and return once the response's headers are there."""
        check_address(url)
        check_headers(headers)
        client = self._clients.get(connect_timeout)
        if client is None:
            client = self._clients[connect_timeout] = self._client(connect_timeout)
        builder = client.request(method, url).headers(headers).body_bytes(body)
        request = builder.streamed_read_buffer_limit(0).build_streamed()
        try:
            return PyreqwestReply(request, await _run(request.__aenter__()), self.loop)
        except Exception as error:
            if _was_connected(error):
                raise ReadError(detail=type(error).__name__, silent=True) from error
            raise_ours(error, connect_timeout, begun=False)

    def _client(self, connect_timeout: float | None) -> Client:
        from pyreqwest.client import ClientBuilder
        from pyreqwest.proxy import ProxyBuilder

        options = self._options
        builder = (
            ClientBuilder()
            .follow_redirects(False)
            .referer(False)
            # Decompressing is left to us, as with httpx: an event must not wait in a decoder that has more to come.
            .gzip(False)
            .brotli(False)
            .zstd(False)
            .deflate(False)
            .http1_lower_case_headers()
            .max_connections(options.max_connections)
            .pool_max_idle_per_host(options.max_keepalive)
            .read_timeout(_ORPHAN)
            .pool_idle_timeout(timedelta(seconds=options.keepalive))
            .http2(options.http2)
        )
        if connect_timeout is not None:
            builder = builder.connect_timeout(timedelta(seconds=connect_timeout))
        if options.verify is False:
            builder = builder.danger_accept_invalid_certs(True)
        elif bundle := os.environ.get("SSL_CERT_FILE"):
            builder = builder.add_root_certificate_pem(Path(bundle).read_bytes())
        try:
            if options.proxy is not None:
                builder = builder.proxy(ProxyBuilder.all(options.proxy))
            return builder.build()
        except ValueError:
            # Its message may hold the proxy's password.
            raise InvalidArgument(
                "http.proxy", "an address that can't be used", "a URL such as http://proxy:3128"
            ) from None

    async def aclose(self) -> None:
        """Close the clients, and with them the replies that are still open."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()


@types.coroutine
def _run(rust: Coroutine[Any, Any, _T]) -> Generator[Any, Any, _T]:
    """Await ``rust``; when cancelled, raise what cancelled it."""
    send: Any = None
    while True:
        try:
            waiting = rust.send(send)
        except StopIteration as stop:
            return cast("_T", stop.value)
        try:
            send = yield waiting
        except BaseException as error:
            try:
                rust.throw(error)
            except BaseException:  # noqa: BLE001, S110 - its own word for the same
                pass
            raise


def _was_connected(error: Exception) -> bool:
    """Tell a connection that broke from one that was not made; pyreqwest calls both a ConnectError."""
    details: Any = getattr(error, "details", None) or {}
    return any("SendRequest" in cause["message"] for cause in details.get("causes") or ())


class PyreqwestReply:
    """A response whose body pyreqwest still reads."""

    __slots__ = ("_closed", "_inflater", "_loop", "_read", "_request", "headers", "status")

    def __init__(self, request: StreamRequest, response: Response, loop: object) -> None:
        self._request = request
        self._read = response.body_reader.read_chunk
        self._loop = loop
        self._closed = False
        self.status = response.status
        self.headers = headers = dict[str, str]()
        for name, value in response.headers.items():
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        self._inflater: Inflater | None = inflater(headers.get("content-encoding"))

    async def chunk(self) -> bytes:
        """Return the next bytes of the body."""
        while True:
            try:
                piece = await _run(self._read())
            except Exception as error:  # noqa: BLE001 - re-raised as ours, or as it is
                raise_ours(error, begun=True)
            if piece is None:
                return self._inflater.end() if self._inflater else b""
            data = piece.to_bytes()
            if self._inflater is not None:
                data = self._inflater.feed(data)
            if data:
                return data

    async def aclose(self) -> None:
        """Give the connection back if the body was read to its end, close it otherwise."""
        if self._closed:
            return
        self._closed = True
        try:
            await _run(self._request.__aexit__(None, None, None))
        except Exception as error:  # what a connection that broke says of it
            if not is_transport(error):
                raise

    def abandon(self) -> None:
        """Close the response soon."""
        close_later(self._loop, self.aclose)

"""Sockets for httpcore on asyncio, with less between the event loop and HTTP than httpcore's own.

httpcore reads through anyio, which pauses and resumes the socket and opens a cancel scope at every read: most of what
a stream of many small pieces costs. Here a read is one future at most. Time limits are the callers' cancel scopes.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore
from anyio.lowlevel import cancel_shielded_checkpoint

__all__ = ["AsyncioBackend"]

_READ_AHEAD = 2**19
"""Bytes that may wait unread before the socket is paused."""
_CORK = 2**16
"""Bytes that may wait unwritten, so that a request's head and body go out together."""


class AsyncioBackend(httpcore.AsyncNetworkBackend):
    """Opens connections on the running asyncio loop."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect, to several addresses at once where the first is slow (RFC 8305)."""
        loop = asyncio.get_running_loop()
        racing: dict[str, Any] = {"happy_eyeballs_delay": 0.25} if isinstance(loop, asyncio.BaseEventLoop) else {}
        try:
            _, stream = await loop.create_connection(AsyncioStream, host, port, **racing)
        except (OSError, IndexError) as error:  # asyncio's own IndexError: no address failed in a way that it counts
            raise httpcore.ConnectError(type(error).__name__) from error
        return stream

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class AsyncioStream(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """One connection."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._incoming: list[bytes] = []
        self._waiting = 0
        self._outgoing: list[bytes] = []
        self._held = 0
        self._ended = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._reading = True
        self._writable = True

    # ---- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = transport  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]

    def data_received(self, data: bytes) -> None:
        """Keep what came for the next read."""
        self._incoming.append(data)
        self._waiting += len(data)
        if self._waiting > _READ_AHEAD and self._reading:
            self._reading = False
            self._transport.pause_reading()
        _wake(self._reader)

    def eof_received(self) -> None:
        """The server has closed its side."""
        self._ended = True
        _wake(self._reader)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._ended = True
        self._error = exc
        _wake(self._reader)
        _wake(self._writer)

    def pause_writing(self) -> None:
        """The server reads slower than we write."""
        self._writable = False

    def resume_writing(self) -> None:
        """It has caught up."""
        self._writable = True
        _wake(self._writer)

    # ---- called by httpcore

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return all that has come, and wait for something if nothing has; ``b""`` at the end."""
        if self._outgoing:
            self._flush()
        if not self._incoming and not self._ended:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if not self._incoming:
            if self._error is not None:
                raise httpcore.ReadError(type(self._error).__name__) from self._error
            return b""
        data = self._incoming[0] if len(self._incoming) == 1 else b"".join(self._incoming)
        self._incoming.clear()
        self._waiting = 0
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send ``buffer``, soon: at the latest with the next read."""
        if self._ended and self._transport.is_closing():
            raise httpcore.WriteError("the connection is closed")
        self._outgoing.append(buffer)
        self._held += len(buffer)
        if self._held > _CORK:
            self._flush()
            if not self._writable:
                self._writer = asyncio.get_running_loop().create_future()
                try:
                    await self._writer
                finally:
                    self._writer = None

    def _flush(self) -> None:
        data = self._outgoing[0] if len(self._outgoing) == 1 else b"".join(self._outgoing)
        self._outgoing.clear()
        self._held = 0
        if not self._transport.is_closing():
            self._transport.write(data)

    async def aclose(self) -> None:
        """Close at once; nothing that matters is unsent."""
        self._transport.abort()
        await cancel_shielded_checkpoint()  # asyncio closes the socket in its next round, which may be the loop's last

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Begin TLS."""
        loop = asyncio.get_running_loop()
        try:
            transport = await loop.start_tls(self._transport, self, ssl_context, server_hostname=server_hostname)
        except (OSError, EOFError) as error:  # ssl.SSLError is an OSError
            await self.aclose()
            raise httpcore.ConnectError(type(error).__name__) from error
        except BaseException:
            self._transport.abort()
            raise
        assert transport is not None
        self._transport = transport
        return self

    def get_extra_info(self, info: str) -> Any:
        """Answer what httpcore asks of a connection that has been idle: would a read return at once?"""
        if info == "is_readable":
            return self._ended or bool(self._incoming) or self._transport.is_closing() or self._has_news()
        names = {"server_addr": "peername", "client_addr": "sockname"}
        return self._transport.get_extra_info(names.get(info, info))

    def _has_news(self) -> bool:
        """Ask the socket itself: a busy loop may not have come round to it."""
        number: int = self._transport.get_extra_info("socket").fileno()
        if number < 0 or not hasattr(select, "poll"):
            return number < 0
        poll = select.poll()
        poll.register(number, select.POLLIN)
        return bool(poll.poll(0))


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)

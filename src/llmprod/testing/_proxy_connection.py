"""One connection through the fault proxy: two ways, each with a reader, a queue of what is under way, and a writer."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections import deque
from typing import Literal, Protocol

import anyio
import anyio.abc

from ._toxics import HEALTHY, Toxics

_PIECE = 65536
_UNDER_WAY = 64
"""Pieces read ahead of the writer; what a slow direction holds beyond that, the sender notices."""
_SMOOTH = 0.05
"""Seconds of data written at once under a limited bandwidth."""
_BEFORE_RESET = 0.02
"""Seconds for the peer to read what was sent: a reset takes away what it has not."""
_LINGER = 5.0
"""Seconds in which a client may read the end of what was sent to it, before its connection is closed."""

Direction = Literal["upstream", "downstream"]


class Host(Protocol):
    """What a connection asks of the proxy."""

    @property
    def upstream(self) -> Toxics:
        """What happens on the way to the server."""
        ...

    @property
    def downstream(self) -> Toxics:
        """What happens on the way to the client."""
        ...

    @property
    def target(self) -> tuple[str, int]:
        """Host and port of the server."""
        ...

    async def change(self, seconds: float) -> None:
        """Return when something was set anew, at the latest after ``seconds``."""
        ...


class ProxiedConnection:
    """A client's socket and the server's, and what passes between them."""

    def __init__(self, client: socket.socket, host: Host, seed: str) -> None:
        client.setblocking(False)
        with contextlib.suppress(OSError):  # it may be gone already
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client = client
        self._server: socket.socket | None = None
        self._host = host
        self._seed = seed
        self.closing = False
        self._tasks: anyio.abc.TaskGroup | None = None

    async def run(self) -> None:
        """Serve until both sides are closed."""
        try:
            self._server = server = await _connected(*self._host.target)
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(_Way(self, "upstream", self._client, server).run)
                tasks.start_soon(_Way(self, "downstream", server, self._client).run)
        except (OSError, anyio.ClosedResourceError):
            self.reset()  # the server can't be reached
        finally:
            self._close()

    def toxics(self, direction: Direction) -> Toxics:
        """What happens in ``direction`` now."""
        return self._host.upstream if direction == "upstream" else self._host.downstream

    async def change(self, seconds: float) -> None:
        """Return when the toxics may have changed, at the latest after ``seconds``."""
        await self._host.change(seconds)

    def chance(self, direction: Direction) -> random.Random:
        """The chance of one direction of this connection."""
        return random.Random(f"{self._seed}/{direction}")

    def reset(self) -> None:
        """Close both sides with RST: linger on, for no time."""
        for sock in (self._client, self._server):
            if sock is not None and sock.fileno() != -1:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._close()
        self.end()

    async def close_when_read(self, sock: socket.socket) -> None:
        """End what is sent on ``sock``, give its peer time to read it all, and close both sides."""
        self.closing = True  # the other direction reads on, so that no RST overtakes the data, and passes nothing on
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        await anyio.sleep(_LINGER)
        self.end()

    def end(self) -> None:
        """Stop serving."""
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    def _close(self) -> None:
        for sock in (self._client, self._server):
            if sock is not None and sock.fileno() != -1:
                anyio.notify_closing(sock)
                sock.close()


class _Way:
    """One direction of a connection."""

    def __init__(
        self, connection: ProxiedConnection, direction: Direction, source: socket.socket, sink: socket.socket
    ) -> None:
        self._connection = connection
        self._direction: Direction = direction
        self._source = source
        self._sink = sink
        self._chance = connection.chance(direction)
        self._spared = self._chance.random()
        self._queue: deque[tuple[float, bytes]] = deque()
        self._moved = anyio.Event()
        self._passed = 0
        self._stalled = False
        self._cut_off = False

    @property
    def _toxics(self) -> Toxics:
        toxics = self._connection.toxics(self._direction)
        return toxics if self._spared < toxics.toxicity else HEALTHY

    async def run(self) -> None:
        """Pass on until the source ends."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._read)
            tasks.start_soon(self._write)

    async def _read(self) -> None:
        """Take what comes, with the time it came. An empty piece is the end."""
        while True:
            try:
                await anyio.wait_readable(self._source)
                data = self._source.recv(_PIECE)
            except BlockingIOError:
                continue
            except (anyio.ClosedResourceError, ValueError):  # closed here
                return
            except OSError:
                self._connection.reset()  # a reset on one side is one on the other
                return
            self._queue.append((anyio.current_time(), data))
            self._wake()
            if not data:
                return
            while len(self._queue) >= _UNDER_WAY:
                await self._moved.wait()

    async def _write(self) -> None:
        while True:
            while not self._queue:
                await self._moved.wait()
            came, data = self._queue[0]
            toxics = self._toxics
            late = toxics.latency + (self._chance.uniform(-1, 1) * toxics.jitter if toxics.jitter else 0)
            if late > 0:
                await anyio.sleep_until(came + late)
            self._queue.popleft()
            self._wake()
            if not data:
                await self._ended()
                return
            await self._pass_on(data)

    async def _pass_on(self, data: bytes) -> None:
        while data:
            await self._stall()
            toxics = self._toxics
            limit = self._limit(toxics)
            if limit == 0:
                await self._cut(toxics)
                return
            size = self._size(toxics, len(data))
            piece = data[: size if limit is None else min(size, limit)]
            data = data[len(piece) :]
            if toxics.bandwidth is not None:
                await anyio.sleep(len(piece) / toxics.bandwidth)
            await self._send(piece)
            self._passed += len(piece)
            if toxics.slice is not None and toxics.slice_gap:
                await anyio.sleep(toxics.slice_gap)
            if not data and self._limit(self._toxics) == 0:
                await self._cut(self._toxics)  # now, not with the next bytes, which may never come

    def _size(self, toxics: Toxics, most: int) -> int:
        if toxics.bandwidth is not None:
            most = min(most, max(1, int(toxics.bandwidth * _SMOOTH)))
        if toxics.slice is None:
            return most
        spread = self._chance.randint(-toxics.slice_variation, toxics.slice_variation)
        return min(most, max(1, toxics.slice + spread))

    def _limit(self, toxics: Toxics) -> int | None:
        """Bytes until something happens; None where nothing does."""
        limits = [toxics.reset_after, toxics.close_after, toxics.half_close_after]
        if not self._stalled:
            limits.append(toxics.stall_after)
        left = [max(0, limit - self._passed) for limit in limits if limit is not None]
        return min(left) if left else None

    async def _stall(self) -> None:
        """Wait while nothing passes."""
        toxics = self._toxics
        if self._stalled or toxics.stall_after is None or self._passed < toxics.stall_after:
            return
        end = anyio.current_time() + toxics.stall_for
        while (left := end - anyio.current_time()) > 0:
            await self._connection.change(left)
            now = self._toxics
            if now.stall_after is None or self._passed < now.stall_after:
                return  # lifted, not over: it may be set again
        self._stalled = True

    async def _cut(self, toxics: Toxics) -> None:
        if toxics.reset_after is not None and self._passed >= toxics.reset_after:
            await anyio.sleep(_BEFORE_RESET)
            self._connection.reset()
        elif toxics.close_after is not None and self._passed >= toxics.close_after:
            await self._connection.close_when_read(self._sink)
        elif toxics.half_close_after is not None and self._passed >= toxics.half_close_after and not self._cut_off:
            self._cut_off = True
            with contextlib.suppress(OSError):
                self._sink.shutdown(socket.SHUT_WR)

    async def _send(self, piece: bytes) -> None:
        if self._connection.closing or self._cut_off:
            return
        rest = memoryview(piece)
        while rest:
            try:
                rest = rest[self._sink.send(rest) :]
            except BlockingIOError:
                try:
                    await anyio.wait_writable(self._sink)
                except (anyio.ClosedResourceError, ValueError):  # closed here
                    return
            except OSError:
                self._connection.reset()
                return

    async def _ended(self) -> None:
        """The source has said all."""
        if self._toxics.slow_close:
            await anyio.sleep(self._toxics.slow_close)
        if self._connection.closing:
            self._connection.end()
        with contextlib.suppress(OSError):
            self._sink.shutdown(socket.SHUT_WR)

    def _wake(self) -> None:
        self._moved.set()
        self._moved = anyio.Event()


async def _connected(host: str, port: int) -> socket.socket:
    """Open a connection without blocking the event loop."""
    failure: OSError | None = None
    for family, kind, protocol, _, address in await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(BlockingIOError):
                sock.connect(address)
            await anyio.wait_writable(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, "connect")
        except OSError as raised:
            sock.close()
            failure = raised
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure or OSError("no address")

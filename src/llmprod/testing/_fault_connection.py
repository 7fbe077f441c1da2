"""One connection of the fault server: reads requests, plays plans.

A plan is played by a generator that writes and yields how long to wait; the connection resumes it from a
timer. So an exchange costs no task, and nothing at all is scheduled when a plan asks for no wait.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
import struct
from collections.abc import Generator, Iterator
from typing import Literal, Protocol, TypeAlias

from ._fault_plan import Plan, Step
from ._wire.http import HttpError, HttpRequest, RequestReader
from .behaviour import Delay, Lognormal

Outcome: TypeAlias = Literal["client_gone", "completed", "cut", "open"]

_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_GIVE_WAY = 0.0
_FOREVER = math.inf


class Exchange(Protocol):
    """One request and what came of it, as the connection sees it."""

    plan: Plan
    request_id: str
    events: int

    def random(self) -> random.Random:
        """The source of this exchange's delays."""
        ...

    def end(self, outcome: Outcome) -> None:
        """Record how it ended."""
        ...


class Host(Protocol):
    """What a connection asks of the server."""

    def opened(self, connection: Connection) -> int:
        """Count a new connection and number it."""
        ...

    def closed(self, connection: Connection) -> None:
        """The connection is gone."""
        ...

    def begin(self, request: HttpRequest, connection: int) -> Exchange:
        """Record a request and decide what to do with it."""
        ...


class Connection(asyncio.Protocol):
    """One accepted connection; requests on it are answered one after the other."""

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop, *, flush_each: bool) -> None:
        self._host = host
        self._loop = loop
        self._flush_each = flush_each
        self._reader = RequestReader()
        self._transport: asyncio.Transport | None = None
        self._number = 0
        self._exchange: Exchange | None = None
        self._play: Iterator[float] = iter(())
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._due = 0.0
        self._keep_alive = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._number = self._host.opened(self)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._reader.feed(data)
        if self._exchange is None:
            self._serve()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._settle("client_gone")
        self._host.closed(self)

    def abort(self) -> None:
        """Close at once; for the server's own end."""
        if self._transport is not None:
            self._transport.abort()

    def _serve(self) -> None:
        """Answer requests that have arrived, until one takes time."""
        while self._exchange is None and self._transport is not None and not self._transport.is_closing():
            try:
                request = self._reader.next_request()
            except HttpError:
                self._transport.write(_BAD_REQUEST)
                self._transport.close()
                return
            if request is None:
                if self._reader.expects_continue:
                    self._transport.write(_CONTINUE)
                return
            self._answer(request, self._transport)

    def _answer(self, request: HttpRequest, transport: asyncio.Transport) -> None:
        self._keep_alive = request.keep_alive
        exchange = self._exchange = self._host.begin(request, self._number)
        plan = exchange.plan
        if plan.immediate and plan.head is not None:
            payload = plan.head.encode(exchange.request_id)
            for step in plan.steps:
                payload += step.payload
                exchange.events += step.events
            self._finish(plan)
            transport.write(payload)
            self._complete(plan, transport)
            return
        self._due = self._loop.time()
        self._play = self._play_plan(exchange, transport)
        self._resume()

    def _resume(self) -> None:
        """Play on until the plan asks to wait; a wait counts from when the last one was due."""
        self._timer = None
        for wait in self._play:
            if wait == _FOREVER:
                return
            if wait == _GIVE_WAY:
                self._timer = self._loop.call_soon(self._resume)
                return
            self._due += wait
            if self._due > self._loop.time():
                self._timer = self._loop.call_at(self._due, self._resume)
                return
        self._serve()

    def _play_plan(self, exchange: Exchange, transport: asyncio.Transport) -> Iterator[float]:
        plan = exchange.plan
        for delay in plan.before:
            yield _seconds(delay, exchange)
        if plan.head is not None:
            if not plan.steps and plan.end == "clean":
                self._finish(plan)
            transport.write(plan.head.encode(exchange.request_id))
        last = len(plan.steps) - 1
        for number, step in enumerate(plan.steps):
            yield from self._play_step(step, exchange, transport, is_end=number == last and plan.end == "clean")
        if plan.end == "open":
            yield from self._hold(plan, transport)
        elif plan.end == "reset":
            yield from self._until_written(transport)
        self._complete(plan, transport)

    def _play_step(
        self, step: Step, exchange: Exchange, transport: asyncio.Transport, *, is_end: bool
    ) -> Generator[float, None, None]:
        plan = exchange.plan
        seconds = _seconds(step.wait, exchange)
        if seconds > 0:
            yield from self._wait(seconds, plan, transport)
        elif self._flush_each:
            yield _GIVE_WAY
        payload = step.payload
        if plan.drip is not None:
            size = plan.drip.size
            while len(payload) > size:
                transport.write(payload[:size])
                payload = payload[size:]
                yield plan.drip.gap
        exchange.events += step.events
        if is_end:
            self._finish(plan)  # before the client can see the end, so that it finds the record complete
        transport.write(payload)
        if plan.drip is not None and not is_end:
            yield plan.drip.gap

    def _wait(self, seconds: float, plan: Plan, transport: asyncio.Transport) -> Generator[float, None, None]:
        """Wait, with signs of life in between where the plan has them."""
        if plan.keepalive is not None:
            gap, ping = plan.keepalive
            while seconds > gap:
                yield gap
                transport.write(ping)
                seconds -= gap
        yield seconds

    def _hold(self, plan: Plan, transport: asyncio.Transport) -> Generator[float, None, None]:
        yield from self._wait(_FOREVER, plan, transport)

    def _until_written(self, transport: asyncio.Transport) -> Generator[float, None, None]:
        """A reset throws away what the kernel has not been given yet."""
        while transport.get_write_buffer_size():
            self._due = self._loop.time()
            yield 0.001

    def _complete(self, plan: Plan, transport: asyncio.Transport) -> None:
        """The plan is played to its end: end the exchange, and the connection if that is its fate."""
        self._finish(plan)
        if plan.end == "reset":
            _reset(transport)
        elif plan.end == "close" or not self._keep_alive:
            transport.close()

    def _finish(self, plan: Plan) -> None:
        self._settle("cut" if plan.broken else "completed")

    def _settle(self, outcome: Outcome) -> None:
        """Record how the exchange ended, if that was not done."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.end(outcome)


def _seconds(delay: Delay, exchange: Exchange) -> float:
    return delay.sample(exchange.random()) if isinstance(delay, Lognormal) else delay


def _reset(transport: asyncio.Transport) -> None:
    """Close with RST: linger on, for no time."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()

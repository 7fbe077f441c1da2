"""A TCP proxy that spoils connections, to be put in front of any real server. Toxiproxy's faults, without its binary.

    with FaultServer() as server, FaultProxy(server.url) as proxy:
        client = Client(f"openai:m@{proxy.url}/v1")
        proxy.downstream = Toxics(latency=0.2, jitter=0.05)
        proxy.down()

``with`` runs it in a thread of its own, for tests of any kind; ``async with`` in the running event loop, asyncio or
trio. It knows bytes alone: with TLS it passes on what it can't read.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlsplit

import anyio
from anyio.abc import TaskGroup

from ._fault_thread import LoopThread
from ._proxy_connection import ProxiedConnection
from ._toxics import HEALTHY, Toxics

__all__ = ["FaultProxy", "Toxics"]

T = TypeVar("T")
_BACKLOG = 1024


class FaultProxy:
    """A proxy on ``127.0.0.1`` in front of ``target``.

    `target` is a URL, ``host:port``, or a pair of host and port. `port` 0 takes a free one. `upstream` is what happens
    on the way to the server, `downstream` on the way to the client; both may be set while connections run, and hold for
    the bytes that come then. All chance comes from `seed`. Entered with ``with``, everything may be used from any
    thread; entered with ``async with``, from its event loop.
    """

    def __init__(
        self,
        target: str | tuple[str, int],
        *,
        upstream: Toxics = HEALTHY,
        downstream: Toxics = HEALTHY,
        port: int = 0,
        seed: int = 0,
    ) -> None:
        self._scheme, self._host, self._target_port, self._path = _parsed(target)
        self._port = port
        self._seed = seed
        self._upstream = upstream
        self._downstream = downstream
        self._changed = anyio.Event()
        self._listener: socket.socket | None = None
        self._listening = anyio.Event()
        self._running = False
        self._live: set[ProxiedConnection] = set()
        self._opened = 0
        self._tasks: TaskGroup | None = None
        self._stack: contextlib.AsyncExitStack | None = None
        self._thread: LoopThread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # What happened

    @property
    def url(self) -> str:
        """The target's URL with the proxy in place of its host and port; ``http`` where none was given."""
        return f"{self._scheme}://127.0.0.1:{self.port}{self._path}"

    @property
    def port(self) -> int:
        """Where it listens."""
        if not self._running:
            raise RuntimeError("the fault proxy is not running: enter it with `with` or `async with`")
        return self._port

    @property
    def connections(self) -> int:
        """How many connections were accepted."""
        return self._opened

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._live)

    # What shall happen

    @property
    def upstream(self) -> Toxics:
        """What happens on the way to the server."""
        return self._upstream

    @upstream.setter
    def upstream(self, toxics: Toxics) -> None:
        self._set("_upstream", toxics)

    @property
    def downstream(self) -> Toxics:
        """What happens on the way to the client."""
        return self._downstream

    @downstream.setter
    def downstream(self, toxics: Toxics) -> None:
        self._set("_downstream", toxics)

    def healthy(self) -> None:
        """Spoil nothing from now on, and be up."""
        self.upstream = self.downstream = HEALTHY
        self.up()

    def down(self) -> None:
        """Refuse connections from now on, and reset those that are open."""
        self._in_loop(self._go_down)

    def up(self) -> None:
        """Accept connections again."""
        self._in_loop(self._go_up)

    def reset_connections(self) -> None:
        """Reset all connections that are open (RST on both sides); new ones are accepted."""
        self._in_loop(self._reset_all)

    def _set(self, which: str, toxics: Toxics) -> None:
        if not isinstance(toxics, Toxics):
            raise ValueError(f"{which.lstrip('_')}: got {type(toxics).__name__}; allowed: Toxics")
        setattr(self, which, toxics)
        if self._running:
            self._in_loop(self._wake)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _go_down(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            anyio.notify_closing(listener)
            listener.close()
        self._reset_all()

    def _go_up(self) -> None:
        if self._listener is None:
            self._listen()
            self._listening.set()
            self._listening = anyio.Event()

    def _reset_all(self) -> None:
        for connection in list(self._live):
            connection.reset()

    def _in_loop(self, function: Callable[[], T]) -> T:
        """Run ``function`` where the connections are, and wait for it."""
        if not self._running:
            raise RuntimeError("the fault proxy is not running: enter it with `with` or `async with`")
        if self._loop is None or _running_loop() is self._loop:
            return function()

        async def call() -> T:
            return function()

        # In a context of its own: the caller's may say that trio is running.
        empty = contextvars.Context()
        return empty.run(asyncio.run_coroutine_threadsafe, call(), self._loop).result()

    # Running

    def __enter__(self) -> Self:
        """Run in a thread of its own."""
        self._refuse_second_start()
        thread = LoopThread(_InThread(self), "llmprod-fault-proxy")
        thread.start_and_wait()
        self._thread = thread
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections and end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()

    async def __aenter__(self) -> Self:
        """Run in the running event loop."""
        self._refuse_second_start()
        self._opened = 0
        self._changed, self._listening = anyio.Event(), anyio.Event()
        self._listen()
        async with contextlib.AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            tasks.start_soon(self._accept, tasks)
            self._tasks = tasks
            self._stack = stack.pop_all()
        self._running = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        tasks, stack = self._tasks, self._stack
        assert tasks is not None
        assert stack is not None
        self._go_down()
        self._running = False
        tasks.cancel_scope.cancel()
        await stack.aclose()  # not told of what went wrong outside, which a task group would wrap into a group
        for connection in self._live:
            connection.reset()  # accepted, and its task never began
        self._live.clear()

    def _refuse_second_start(self) -> None:
        if self._running:
            raise RuntimeError("the fault proxy is running already")

    def _listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", self._port), backlog=_BACKLOG)
        listener.setblocking(False)
        self._port = listener.getsockname()[1]
        self._listener = listener

    async def _accept(self, tasks: TaskGroup) -> None:
        while True:
            listener = self._listener
            if listener is None:
                await self._listening.wait()
                continue
            try:
                await anyio.wait_readable(listener)
                client, _ = listener.accept()
            except (anyio.ClosedResourceError, OSError, ValueError):  # taken down, or the client has gone already
                await anyio.lowlevel.checkpoint()
                continue
            self._opened += 1
            connection = ProxiedConnection(client, self, f"{self._seed}/{self._opened}")
            self._live.add(connection)
            tasks.start_soon(self._serve, connection)

    async def _serve(self, connection: ProxiedConnection) -> None:
        try:
            await connection.run()
        finally:
            self._live.discard(connection)

    # What connections ask

    @property
    def target(self) -> tuple[str, int]:
        """Host and port of the server behind."""
        return self._host, self._target_port

    async def change(self, seconds: float) -> None:
        """Return once the toxics are set anew, at the latest after ``seconds``."""
        with anyio.move_on_after(seconds):
            await self._changed.wait()

    def __repr__(self) -> str:
        where = f"127.0.0.1:{self._port}" if self._running else "not running"
        return f"<FaultProxy {where} → {self._host}:{self._target_port}>"


class _InThread:
    """The proxy as the thread enters it: it remembers the thread's event loop."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy

    async def __aenter__(self) -> object:
        self._proxy._loop = asyncio.get_running_loop()
        return await self._proxy.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._proxy.__aexit__(kind, error, trace)
        self._proxy._loop = None


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _parsed(target: str | tuple[str, int]) -> tuple[str, str, int, str]:
    if isinstance(target, tuple):
        return "http", target[0], target[1], ""
    parts = urlsplit(target if "//" in target else f"//{target}")
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    if not parts.hostname or port is None:
        raise ValueError(f"target: got {target!r}; allowed: a URL, host:port, or a pair of host and port")
    return parts.scheme or "http", parts.hostname, port, parts.path.rstrip("/")

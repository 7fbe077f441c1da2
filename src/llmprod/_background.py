"""One event loop in a daemon thread, shared by all synchronous clients and decorated functions of the process."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from llmprod._loops import close_later, running_loop
from llmprod.errors import ForkedProcess

__all__ = ["Background", "background"]

T = TypeVar("T")


class Background:
    """A running event loop that other threads hand coroutines to."""

    def __init__(self) -> None:
        self.pid: int = os.getpid()
        self._portal: BlockingPortal | None = None
        self._loop: Any = None
        self._ready = threading.Event()
        self._closers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run_loop, name="llmprod", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise RuntimeError("llmprod's background event loop did not start") from self._failure
        atexit.register(self._stop)

    def _run_loop(self) -> None:
        try:
            anyio.run(self._serve)
        except BaseException as error:  # noqa: BLE001 - told to the thread that waits for the start
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        async with BlockingPortal() as portal:
            self._portal, self._loop = portal, running_loop()
            self._ready.set()
            await portal.sleep_until_stopped()

    def run(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run ``function(*args)`` on the loop and wait for its result; context variables follow.

        An interruption of the waiting thread (Ctrl-C) cancels it.

        Raises:
            ForkedProcess: this process is a fork of the one that owns the loop.
            RuntimeError: called on the loop's own thread, which would wait for itself.
        """
        if os.getpid() != self.pid:
            raise ForkedProcess("a Client")
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "a synchronous call inside llmprod's own event loop would wait for itself; use AsyncClient there"
            )
        assert self._portal is not None
        future = self._portal.start_task_soon(function, *args)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close_later(self, aclose: Callable[[], Awaitable[None]]) -> None:
        """Run ``aclose`` on the loop soon; does nothing once the loop is gone.

        For finalisers: those run in any thread at any moment, the loop's own included, and must wait for nothing.
        """
        if os.getpid() == self.pid and self._loop is not None:
            close_later(self._loop, aclose)

    def close_at_exit(self, owner: Any) -> None:
        """Await ``owner.aclose()`` on the loop when the interpreter exits, if ``owner`` still lives then."""
        self._closers.add(owner)

    def _stop(self) -> None:
        if os.getpid() != self.pid or self._portal is None:
            return
        with contextlib.suppress(Exception):
            for owner in list(self._closers):
                self.run(owner.aclose)
        with contextlib.suppress(Exception):
            self._portal.start_task_soon(self._portal.stop, True)
            self._thread.join(2)


_lock = threading.Lock()
_current: Background | None = None


def background() -> Background:
    """Return this process's background loop, starting it at first use (and again in a forked child)."""
    global _current  # noqa: PLW0603 - one loop a process is the point
    with _lock:
        if _current is None or _current.pid != os.getpid():
            _current = Background()
        return _current


def _forget() -> None:
    # A fork may happen while another thread holds the lock; the child starts with a fresh one.
    global _lock, _current  # noqa: PLW0603
    _lock = threading.Lock()
    _current = None


os.register_at_fork(after_in_child=_forget)

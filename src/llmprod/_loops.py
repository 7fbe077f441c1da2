"""Event loops, asyncio's and trio's alike: finding one again, calling on it, and tasks that are nobody's child."""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable
from typing import Any

from anyio.lowlevel import current_token

__all__ = ["close_later", "post", "running_loop", "spawn"]

_running: set[Any] = set()


def running_loop() -> Any:
    """Return what the others here need to find the running event loop again."""
    return current_token().native_token


def post(loop: Any, function: Callable[..., object], *args: Any) -> bool:
    """Call ``function(*args)`` on ``loop`` soon, from any thread; False if that has ended."""
    try:
        (getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon)(function, *args)
    except RuntimeError:  # asyncio and trio both say so of a loop that has ended
        return False
    return True


def spawn(loop: Any, function: Callable[[], Awaitable[None]], ended: Callable[[], object] | None = None) -> None:
    """Run ``function`` as a task that is nobody's child; called on ``loop`` itself.

    asyncio calls ``ended`` when the task has ended, be it that it was cancelled before it began and ``function`` never
    ran; trio begins every task.
    """
    if hasattr(loop, "create_task"):
        task = loop.create_task(function())
        _running.add(task)  # the loop alone would not keep it alive
        task.add_done_callback(_running.discard)
        if ended is not None:

            def over(_: object) -> None:
                ended()

            task.add_done_callback(over)
    else:
        import trio

        trio.lowlevel.spawn_system_task(function, context=contextvars.copy_context())


def close_later(loop: Any, aclose: Callable[[], Awaitable[None]]) -> None:
    """Run ``aclose`` on ``loop`` soon, from a place that can't await, such as a finaliser.

    There is nothing to do if the loop has ended, since its sockets went with it.
    """

    async def close() -> None:
        try:
            await aclose()
        except Exception:  # noqa: BLE001, S110 - there is nobody to tell, and trio would end the run
            pass

    post(loop, spawn, loop, close)

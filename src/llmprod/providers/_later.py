"""Closing something on the event loop that it belongs to, from a place that can't await, such as a finaliser."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from anyio.lowlevel import current_token

__all__ = ["close_later", "running_loop"]

_closing: set[Any] = set()


def running_loop() -> Any:
    """Return what :func:`close_later` needs to find the running event loop again."""
    return current_token().native_token


def close_later(loop: Any, aclose: Callable[[], Awaitable[None]]) -> None:
    """Run ``aclose`` on ``loop`` soon; nothing to do if that has ended, since its sockets went with it."""

    async def close() -> None:
        try:
            await aclose()
        except Exception:  # noqa: BLE001, S110 - there is nobody to tell, and trio would end the run
            pass

    def on_asyncio() -> None:
        task = loop.create_task(close())
        _closing.add(task)  # the loop alone would not keep it alive
        task.add_done_callback(_closing.discard)

    try:
        if hasattr(loop, "call_soon_threadsafe"):
            loop.call_soon_threadsafe(on_asyncio)
        else:
            import trio

            loop.run_sync_soon(trio.lowlevel.spawn_system_task, close)
    except RuntimeError:  # both say so of a loop that has ended
        pass

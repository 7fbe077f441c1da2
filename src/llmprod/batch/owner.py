"""A task that is nobody's child, on asyncio and trio."""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable
from typing import Any, cast

import anyio
import sniffio

__all__ = ["leaf", "spawn"]

_running: set[Any] = set()


def spawn(function: Callable[[], Awaitable[None]]) -> None:
    """Run ``function`` as a task of the running event loop that is nobody's child."""
    if sniffio.current_async_library() == "trio":
        import trio

        trio.lowlevel.spawn_system_task(function, context=contextvars.copy_context())
        return
    import asyncio

    task = asyncio.get_running_loop().create_task(cast("Any", function()))
    _running.add(task)  # the loop alone would not keep it alive
    task.add_done_callback(_running.discard)


def leaf(error: BaseException) -> BaseException | None:
    """Return the first exception that is no cancellation, in a group or not; None where there is none."""
    if isinstance(error, BaseExceptionGroup):
        several = cast("BaseExceptionGroup[BaseException]", error).exceptions
        return next((found for found in map(leaf, several) if found is not None), None)
    return None if isinstance(error, anyio.get_cancelled_exc_class()) else error

"""Virtual time: event loops whose clock jumps to the next wake-up as soon as every task waits.

trio has it built in (``trio.testing.MockClock``), asyncio through looptime; both pass through anyio. The library
follows where its clock is the loop's: ``LoopClock()``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

__all__ = ["Backend", "run_virtual", "virtual_backend"]

T = TypeVar("T")
Backend = Literal["asyncio", "trio"]


def virtual_backend(name: Backend = "asyncio") -> tuple[str, dict[str, Any]]:
    """Return an event loop in virtual time, as anyio takes it: the value of an ``anyio_backend`` fixture.

    On asyncio time starts at 0. Each call returns a loop of its own.

    Raises:
        ImportError: looptime (for asyncio) or trio is not installed.
        ValueError: another name.
    """
    if name == "trio":
        try:
            from trio.testing import MockClock
        except ImportError as error:
            raise ImportError("virtual time on trio needs trio: pip install trio") from error
        return "trio", {"clock": MockClock(autojump_threshold=0)}
    if name == "asyncio":
        try:
            from looptime import new_event_loop
        except ImportError as error:
            raise ImportError("virtual time on asyncio needs looptime: pip install looptime") from error
        return "asyncio", {"loop_factory": lambda: new_event_loop(start=0)}
    raise ValueError(f"virtual time on {name!r}: there is asyncio and trio")


def run_virtual(function: Callable[..., Awaitable[T]], *args: Any, backend: Backend = "asyncio") -> T:
    """Run ``await function(*args)`` in virtual time and return its result; for synchronous tests and programs.

    Raises:
        ImportError: looptime (for asyncio) or trio is not installed.
    """
    import anyio

    name, options = virtual_backend(backend)
    return anyio.run(function, *args, backend=name, backend_options=options)

"""The thread and event loop that an engine lives in. ``AsyncLLM`` dies with the loop that it was made in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading

from llmprod.errors import ForkedProcess
from llmprod.providers._vllm.crossing import Crossing

__all__ = ["Home"]


class Home:
    """A daemon thread with a running event loop.

    Args:
        name: the thread's name.
    """

    def __init__(self, name: str) -> None:
        self.pid: int = os.getpid()
        self.loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()
        self.crossing: Crossing = Crossing(self.loop)
        self.thread: threading.Thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    def close(self) -> None:
        """End the loop and with it the thread; from any thread, when nothing runs there any more."""
        if not self.is_forked:
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self.loop.stop)

    @property
    def is_forked(self) -> bool:
        """This process is a fork of the one that the thread runs in."""
        return os.getpid() != self.pid

    def check(self) -> None:
        """Refuse use in a process that was forked from the engine's.

        Raises:
            ForkedProcess: it is such a process.
        """
        if self.is_forked:
            raise ForkedProcess("an embedded engine")

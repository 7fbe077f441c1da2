"""The processes of one engine: who they are, how they ended, and that they are gone."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing.process
import os
import signal
import time
from typing import Any

__all__ = ["Processes", "kill_starting"]


class Processes:
    """The processes that an engine has started, as far as it tells.

    Attributes:
        pids: their ids.
    """

    def __init__(self, engine: Any) -> None:
        manager = getattr(getattr(getattr(engine, "engine_core", None), "resources", None), "engine_manager", None)
        self._handles = tuple(process for process in getattr(manager, "processes", ()) if process.pid)
        self.pids: tuple[int, ...] = tuple(process.pid for process in self._handles)

    def end(self) -> str | None:
        """Say how the first that has failed ended, or None if none has."""
        for process in self._handles:
            with contextlib.suppress(AssertionError, ValueError):  # not this process's child; closed
                code = process.exitcode
                if code is not None and code < 0:
                    return f"killed by {signal.Signals(-code).name}"
                if code:
                    return f"exit status {code}"
        return None

    def disown(self) -> None:
        """Forget them, in a process that was forked from theirs; multiprocessing would wait for them at its exit."""
        children: Any = getattr(multiprocessing.process, "_children", None)
        if hasattr(children, "difference_update"):
            children.difference_update(self._handles)

    async def gone(self, patience: float = 5.0) -> None:
        """Wait until they have ended, and end those that don't."""
        end = time.monotonic() + patience
        try:
            while any(map(_runs, self.pids)) and time.monotonic() < end:  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(0.02)
        finally:
            for pid in filter(_runs, self.pids):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[:1] != [b"Z"]
    except OSError:
        return False


def kill_starting() -> None:
    """End the processes of an engine that is still being started: multiprocessing would wait for them at exit."""
    for process in multiprocessing.active_children():
        if process.name.startswith(("EngineCore", "VLLM_")):
            process.kill()

"""Imported by the engine's processes as they start: they end with the process that started them, however that ends.

Spawned processes import this in the place of the application's main module, so that no ``if __name__ == "__main__"``
is needed and nothing of the application runs twice; forked ones call :func:`settle`. Linux sends the signal when the
starting *thread* ends; that thread is the engine's own and lives as long as its process. Imports nothing that is slow.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

from llmprod.providers._vllm.output import PATH, divert

__all__ = ["PARENT", "settle"]

PARENT = "LLMPROD_ENGINE_PARENT"
_PR_SET_PDEATHSIG = 1


def settle(parent: int | None, *, forked: bool = False) -> None:
    """Make this process the engine's own: it ends with its parent, is not interrupted with it, and prints elsewhere.

    Ctrl-C, in a terminal or a notebook, signals the whole process group; an engine in it would die of an interrupt
    that the application survives. A session of its own keeps it out.
    """
    end_with_parent(parent)
    with contextlib.suppress(OSError, AttributeError):
        os.setsid()
    if path := os.environ.get(PATH):
        divert(path, forked=forked)
    os.environ[PARENT] = str(os.getpid())  # what its own processes have to expect


def end_with_parent(parent: int | None) -> None:
    """Have the kernel kill this process when the one that started it is gone."""
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):  # not Linux
        return
    if parent is not None and os.getppid() != parent:  # it went before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__mp_main__":
    _told = os.environ.get(PARENT, "")
    settle(int(_told) if _told.isdigit() else None)

"""Imported by the engine's processes as they start: they end with the process that started them, however that ends.

Spawned processes import this in the place of the application's main module, so that no ``if __name__ == "__main__"``
is needed and nothing of the application runs twice. Linux sends the signal when the starting *thread* ends; that thread
is the engine's own and lives as long as its process. Imports nothing that is slow.
"""

from __future__ import annotations

import ctypes
import os
import signal

__all__ = ["end_with_parent"]

_PR_SET_PDEATHSIG = 1
_EXPECTED = "LLMPROD_ENGINE_PARENT"


def end_with_parent(parent: int | None) -> None:
    """Have the kernel kill this process when the one that started it is gone."""
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):  # not Linux
        return
    if parent is not None and os.getppid() != parent:  # it went before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__mp_main__":
    _told = os.environ.get(_EXPECTED, "")
    end_with_parent(int(_told) if _told.isdigit() else None)

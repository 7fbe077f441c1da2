"""Engines at the end of their process, and in a process that was forked from theirs."""

from __future__ import annotations

import atexit
import importlib
import os
from typing import Protocol

__all__ = ["Living", "living", "watch_exit"]


class Living(Protocol):
    """What has processes, or is about to."""

    def stop_at_exit(self) -> None:
        """Stop from the main thread as the interpreter exits."""
        ...

    def disown(self) -> None:
        """Leave all to the process that this one was forked from."""
        ...


living: set[Living] = set()
"""Engines that have processes, or are about to; kept alive by being here."""
_inherited: list[Living] = []
_watching = False


def watch_exit() -> None:
    """Stop what is alive at the interpreter's exit."""
    global _watching  # noqa: PLW0603
    if not _watching:
        _watching = True
        # multiprocessing's own handler waits for every process that it has started. The one registered last runs first.
        importlib.import_module("multiprocessing.util")
        atexit.register(_stop_all)


def _stop_all() -> None:
    for one in list(living):
        one.stop_at_exit()


def _after_fork() -> None:
    for one in living:
        one.disown()
    _inherited.extend(living)  # never collected here: what vLLM does at an engine's end is for its own process
    living.clear()


os.register_at_fork(after_in_child=_after_fork)

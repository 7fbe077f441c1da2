"""SQLite, where several processes open one file at one moment."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

__all__ = ["patiently"]

_PAUSE = 0.002


def patiently(do: Callable[[], object], timeout: float) -> None:
    """Call ``do`` until nobody is in its way, for ``timeout`` seconds and one second at least.

    SQLite does not wait by itself where another process changes to WAL mode, or recovers its log, at this moment.

    Raises:
        sqlite3.OperationalError: somebody still is, or it is about something else.
    """
    end = time.monotonic() + max(timeout, 1.0)
    while True:
        try:
            do()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            if time.monotonic() > end:
                raise
            time.sleep(_PAUSE)

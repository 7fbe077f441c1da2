"""Warnings that can't flood a log: one of a kind a minute, with the number of those left out."""

from __future__ import annotations

import logging
import threading
import time

_log = logging.getLogger("llmprod")
_EVERY = 60.0


class Warner:
    """Warns for one store."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said: dict[str, tuple[float, int]] = {}

    def __call__(self, kind: str, message: str, *parts: object) -> None:
        """Log ``message``, unless one of this ``kind`` was logged in the last minute."""
        now = time.monotonic()
        with self._lock:
            at, left_out = self._said.get(kind, (-_EVERY, 0))
            if now - at < _EVERY:
                self._said[kind] = at, left_out + 1
                return
            self._said[kind] = now, 0
        if left_out:
            message, parts = f"{message} (and %d times since the last warning)", (*parts, left_out)
        _log.warning(message, *parts)  # the message is a constant of this library

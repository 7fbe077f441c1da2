"""One line on the terminal while an engine starts: it takes from seconds to minutes, and silence looks like a hang."""

from __future__ import annotations

import logging
import sys
import threading
import time

from llmprod.providers._vllm.incarnation import StartTimes

__all__ = ["StartLine"]

_log = logging.getLogger("llmprod")


class StartLine:
    """The line of one start; on a terminal it is written over, elsewhere it is two lines, and a log gets them too.

    Args:
        model: what is started.
        shown: write to stderr.
        again: it is a restart.
    """

    def __init__(self, model: str, *, shown: bool, again: bool = False) -> None:
        self._began = time.monotonic()
        self._what = f"llmprod: {'re' if again else ''}starting vLLM with {model}"
        self._step = ""
        self._shown = shown
        self._live = shown and _terminal()
        self._over = threading.Event()
        self._writing = threading.Lock()  # no tick may come after the end
        _log.info("%s", self._what)
        if self._live:
            threading.Thread(target=self._tick, name="llmprod-vllm-start", daemon=True).start()
        elif shown:
            _write(f"{self._what} …\n")

    def step(self, what: str) -> None:
        """Name the step that begins."""
        self._step = what

    def ready(self, times: StartTimes) -> None:
        """The engine is there."""
        self._end(f"ready in {times.total:.1f} s")

    def failed(self) -> None:
        """It is not; the error tells why."""
        self._end(f"failed after {time.monotonic() - self._began:.1f} s ({self._step})")

    def _end(self, how: str) -> None:
        with self._writing:
            self._over.set()
        _log.info("%s: %s", self._what, how)
        if self._live:
            _write(f"\r\x1b[K{self._what}: {how}\n")
        elif self._shown:
            _write(f"{self._what}: {how}\n")

    def _tick(self) -> None:
        while not self._over.wait(0.5):
            with self._writing:
                if not self._over.is_set():
                    _write(f"\r\x1b[K{self._what}: {self._step} … {time.monotonic() - self._began:.0f} s")


def _terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


def _write(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (AttributeError, ValueError, OSError):
        pass

"""What an engine's processes print: kept from the application's terminal, and read when one of them fails.

vLLM tells the application only that its process failed, and the reason on that process's stderr, among hundreds of
lines. Whoever sets ``VLLM_LOGGING_LEVEL`` wants to see those: then nothing is kept.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile

__all__ = ["PATH", "Output", "divert"]

PATH = "LLMPROD_ENGINE_OUTPUT"
_MOST = 1 << 20
_LAST = 1 << 16
_EXCEPTION = re.compile(
    r"(?:\([^)]*\) )?(?:[A-Z]+ \d\d-\d\d [\d:]+ \[[^\]]*\] )?((?:\w+\.)*\w*(?:Error|Exception)): (.+)"
)
_SAYS_NOTHING = re.compile(r"initialization failed|See (?:root cause|stack trace)|failed to start|cancelled")


def divert(path: str, *, forked: bool) -> None:
    """Have this process print into the file; called in an engine's process as it starts.

    A forked one has also inherited Python's own streams, which in a notebook or under a test runner are no files 1 and
    2, and the loggers that write to them.
    """
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
    except OSError:
        return
    os.dup2(file, 1)
    os.dup2(file, 2)
    if not forked:
        os.close(file)
        return
    old = (sys.stdout, sys.stderr)
    sys.stdout = sys.stderr = os.fdopen(file, "w", buffering=1, encoding="utf-8", errors="replace")
    for handler in logging.getLogger("vllm").handlers:
        if getattr(handler, "stream", None) in old:
            vars(handler)["stream"] = sys.stderr  # setStream would flush the other


class Output:
    """A file that an engine's processes print into. It has a name until :meth:`started`, and no more after."""

    def __init__(self) -> None:
        self._file, self.path = tempfile.mkstemp(prefix="llmprod-vllm-")
        self._named = True

    def started(self) -> None:
        """Every process of the engine has opened it."""
        if self._named:
            self._named = False
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    def trim(self) -> None:
        """Empty it if it has grown long."""
        if self._file >= 0 and os.fstat(self._file).st_size > _MOST:
            os.ftruncate(self._file, 0)  # they append: the next line is the first

    def exception(self) -> tuple[str, str] | None:
        """Return the type and message of the last exception in it that says something."""
        if self._file < 0:
            return None
        size = os.fstat(self._file).st_size
        text = os.pread(self._file, _LAST, max(0, size - _LAST)).decode("utf-8", "replace")
        for line in reversed(text.splitlines()):
            found = _EXCEPTION.fullmatch(line.strip())
            if found and not _SAYS_NOTHING.search(found[2]):
                return found[1].rpartition(".")[2], found[2].strip()
        return None

    def close(self) -> None:
        """Drop it."""
        self.started()
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def __del__(self) -> None:
        self.close()

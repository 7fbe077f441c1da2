"""Thinking that a server leaves in the text, between ``<think>`` and ``</think>``, told apart from the answer."""

from __future__ import annotations

__all__ = ["ThinkTags"]

_OPEN, _CLOSE = "<think>", "</think>"


class ThinkTags:
    """Feed it the text in pieces; it returns them as ``(is_thinking, text)``.

    Only an answer that *begins* with the tag (white space aside) is taken apart: anywhere else the tag is the
    model's own text. White space around the thinking is not part of it.

    Attributes:
        settled: all further text is the answer, so feeding may stop.
    """

    __slots__ = ("_begun", "_buffer", "_in_answer", "_inside", "settled")

    def __init__(self) -> None:
        self._buffer = ""
        self._inside = False
        self._begun = False
        self._in_answer = False
        self.settled = False

    def feed(self, text: str) -> list[tuple[bool, str]]:
        """Return what ``text`` completes."""
        self._buffer += text
        pieces: list[tuple[bool, str]] = []
        if not self._inside and not self._in_answer and not self._opened():
            return self._flush(pieces) if self.settled else pieces
        if self._inside:
            if not self._begun:
                self._buffer = self._buffer.lstrip()
            before, tag, after = self._buffer.partition(_CLOSE)
            if not tag:
                self._hold_back(pieces)
                return pieces
            if before.rstrip():
                pieces.append((True, before.rstrip()))
            self._inside, self._in_answer, self._buffer = False, True, after
        self._buffer = self._buffer.lstrip()
        if self._buffer:
            self.settled = True
            return self._flush(pieces)
        return pieces

    def end(self) -> list[tuple[bool, str]]:
        """Return what is held back once the text is over."""
        rest, self._buffer = self._buffer, ""
        rest = rest.rstrip() if self._inside else rest
        return [(self._inside, rest)] if rest and not self._in_answer else []

    def _opened(self) -> bool:
        """True once the opening tag is read; False while that is open or ``settled`` says that there is none."""
        start = self._buffer.lstrip()
        if start.startswith(_OPEN):
            self._inside = True
            self._buffer = start[len(_OPEN) :]
            return True
        self.settled = not _OPEN.startswith(start)
        return False

    def _hold_back(self, pieces: list[tuple[bool, str]]) -> None:
        """Hand out the thinking but for an end that may be half of the closing tag, and white space before one."""
        buffer = self._buffer
        most = min(len(_CLOSE) - 1, len(buffer))
        keep = next((size for size in range(most, 0, -1) if _CLOSE.startswith(buffer[-size:])), 0)
        ready = buffer[: len(buffer) - keep].rstrip()
        if ready:
            self._begun = True
            pieces.append((True, ready))
        self._buffer = buffer[len(ready) :]

    def _flush(self, pieces: list[tuple[bool, str]]) -> list[tuple[bool, str]]:
        if self._buffer:
            pieces.append((False, self._buffer))
        self._buffer = ""
        return pieces

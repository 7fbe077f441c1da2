"""Server-sent events from bytes, cut anywhere.

Follows the WHATWG HTML standard, section 9.2.6, and tolerates what servers of models do: no space after ``data:``, a byte
order mark, CRLF or CR, comments, several data lines, and a last event without its blank line.
"""

from __future__ import annotations

__all__ = ["SSEParser"]

_BOM = b"\xef\xbb\xbf"


class SSEParser:
    """Feed it chunks of bytes; it returns the events completed by each, as ``(name, data)``."""

    __slots__ = ("_buffer", "_data", "_name", "_started")

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[bytes] = []
        self._name = b""
        self._started = False

    def feed(self, chunk: bytes) -> list[tuple[bytes, bytes]]:
        """Return the events that ``chunk`` completes."""
        if not self._started:
            chunk = self._buffer + chunk
            if len(chunk) < 3 and _BOM.startswith(chunk):
                self._buffer = chunk
                return []
            self._buffer = b""
            self._started = True
            chunk = chunk.removeprefix(_BOM)
        if not self._buffer and not self._data and not self._name and b"\r" not in chunk:
            # The usual case: one whole event of one data line.
            if chunk.startswith(b"data: ") and chunk.find(b"\n") == len(chunk) - 2 and chunk.endswith(b"\n\n"):
                return [(b"", chunk[6:-2])]
        buffer = self._buffer + chunk if self._buffer else chunk
        events: list[tuple[bytes, bytes]] = []
        if b"\r" in buffer:
            # A trailing CR may be half of a CRLF: keep it for the next chunk.
            held = buffer.endswith(b"\r")
            body = buffer[:-1] if held else buffer
            lines = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
            self._buffer = lines.pop() + (b"\r" if held else b"")
        else:
            lines = buffer.split(b"\n")
            self._buffer = lines.pop()
        for line in lines:
            self._line(line, events)
        return events

    def end(self) -> list[tuple[bytes, bytes]]:
        """Return an event that the body's end left without its blank line."""
        events: list[tuple[bytes, bytes]] = []
        rest, self._buffer = self._buffer.rstrip(b"\r"), b""
        if rest:
            self._line(rest, events)
        self._line(b"", events)
        return events

    def _line(self, line: bytes, events: list[tuple[bytes, bytes]]) -> None:
        if not line:
            if self._data:
                events.append((self._name, b"\n".join(self._data)))
                self._data = []
            self._name = b""
            return
        field, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value

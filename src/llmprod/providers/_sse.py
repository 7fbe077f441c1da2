"""Server-sent events from bytes, cut anywhere.

Follows the WHATWG HTML standard, section 9.2.6, and tolerates what servers of models do: no space after ``data:``, a
byte order mark, CRLF or CR, comments, several data lines, and a last event without its blank line.
"""

from __future__ import annotations

__all__ = ["SSEParser"]

_BOM = b"\xef\xbb\xbf"


class SSEParser:
    """Feed it chunks of bytes; it returns the events completed by each, as ``(name, data)``."""

    __slots__ = ("_after_cr", "_data", "_name", "_pieces", "_start")

    def __init__(self) -> None:
        self._start: bytes | None = b""  # the first bytes, until they are known to be no byte order mark; then None
        self._after_cr = False  # the last byte was a CR: a LF that follows belongs to it
        self._pieces: list[bytes] = []  # of a line without its end
        self._data: list[bytes] = []  # lines of an event without its end
        self._name = b""

    def feed(self, chunk: bytes) -> list[tuple[bytes, bytes]]:
        """Return the events that ``chunk`` completes."""
        if self._start is not None:
            chunk = self._start + chunk
            if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
                self._start = chunk
                return []
            self._start = None
            chunk = chunk.removeprefix(_BOM)
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._pieces:
            if b"\n" not in chunk:  # a long line: joining it once for all takes no quadratic time
                self._pieces.append(chunk)
                return []
            chunk = b"".join((*self._pieces, chunk))
            self._pieces.clear()
        return self._read(chunk)

    def end(self) -> list[tuple[bytes, bytes]]:
        """Return an event that the body's end left without its blank line."""
        rest = b"".join((self._start or b"", *self._pieces))
        self._pieces.clear()
        return self._read(rest + b"\n\n")

    def _read(self, text: bytes) -> list[tuple[bytes, bytes]]:
        *lines, rest = text.split(b"\n")
        if rest:
            self._pieces.append(rest)
        events: list[tuple[bytes, bytes]] = []
        for line in lines:
            if not line:
                if self._data:
                    events.append((self._name, self._data[0] if len(self._data) == 1 else b"\n".join(self._data)))
                    self._data = []
                self._name = b""
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b" ", 5) else line[5:])
            elif line.startswith(b"event:"):
                self._name = line[7:] if line.startswith(b" ", 6) else line[6:]
            elif line == b"data":  # a field without a colon has an empty value
                self._data.append(b"")
            elif line == b"event":
                self._name = b""
        return events

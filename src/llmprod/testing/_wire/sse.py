"""Server-sent events and chunked transfer coding, written down."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ..behaviour import SseStyle

BOM = b"\xef\xbb\xbf"
LAST_CHUNK = b"0\r\n\r\n"
COMMENT = b": keep-alive\n\n"


class Event(NamedTuple):
    """One server-sent event: its data, and its name where the API names events."""

    data: str
    name: str | None = None


@dataclass(slots=True)
class StreamEvents:
    """A whole healthy stream in order. Each content unit ends in one content event.

    A unit is preceded by the frames that open its block, so cutting between units is a cut that a real
    server could make.
    """

    opening: list[Event] = field(default_factory=list[Event])
    content: list[list[Event]] = field(default_factory=list[list[Event]])
    finish: list[Event] = field(default_factory=list[Event])
    done: list[Event] = field(default_factory=list[Event])
    _pending: list[Event] = field(default_factory=list[Event])

    def add_frame(self, event: Event) -> None:
        """A frame that goes out with the content event that follows it."""
        self._pending.append(event)

    def add_content(self, event: Event) -> None:
        """A content event, and the frames before it."""
        self.content.append([*self._pending, event])
        self._pending.clear()

    def add_finish(self, events: Iterable[Event]) -> None:
        """What closes the answer; frames still waiting go first."""
        self.finish.extend(self._pending)
        self._pending.clear()
        self.finish.extend(events)


def encode_event(event: Event, style: SseStyle) -> bytes:
    """One event as bytes."""
    space = " " if style.space else ""
    lines: list[str] = [": still here"] if style.comments else []
    if event.name is not None:
        lines.append(f"event:{space}{event.name}")
    lines += [f"data:{space}{part}" for part in _data_lines(event.data, style)]
    newline = "\r\n" if style.crlf else "\n"
    return (newline.join(lines) + newline + newline).encode()


def drop_last_blank_line(payload: bytes, style: SseStyle) -> bytes:
    """An encoded event without the blank line that should close it."""
    return payload[: -len(b"\r\n" if style.crlf else b"\n")]


def encode_chunk(payload: bytes) -> bytes:
    """Bytes as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def _data_lines(data: str, style: SseStyle) -> Iterator[str]:
    """JSON may break after its first brace: a newline there is white space."""
    if style.multiline and data.startswith("{"):
        yield data[:1]
        yield data[1:]
    else:
        yield data

"""What a wire format must do: turn a request into bytes, and bytes into events. Pure: no I/O, no clock."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from llmprod.errors import CallError
from llmprod.events import Event
from llmprod.request import Request

__all__ = ["Codec", "Decoded", "StreamDecoder", "Wire"]


@dataclass(frozen=True, slots=True)
class Wire:
    """A request as it goes out.

    Attributes:
        path: appended to the base URL.
        body: the JSON body, before it is made bytes.
        headers: headers that this request adds.
    """

    path: str
    body: dict[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Decoded:
    """A whole answer: its events, which end with Finish; or vectors."""

    events: Sequence[Event] = ()
    embeddings: Sequence[Sequence[float]] | None = None


class StreamDecoder(ABC):
    """Turns one stream's server-sent events into events.

    Attributes:
        finished: the answer's end is known, though more (usage, a closing event) may follow. From here on the end of
            the body is a proper end.
        done: the API's last event has come; nothing more is read.
    """

    finished: bool = False
    done: bool = False

    @abstractmethod
    def feed(self, name: bytes, data: bytes) -> Sequence[Event]:
        """Decode one server-sent event.

        Raises:
            CallError: the provider reports an error inside the stream (``in_stream=True``).
            ProtocolError: malformed; never skipped, since text may be lost with it.
        """

    @abstractmethod
    def end(self) -> Sequence[Event]:
        """Return what remains once ``done``, or once the body ended after ``finished``; the last event is Finish.

        Raises:
            TruncatedAnswer: the answer is not complete.
        """


class Codec(ABC):
    """One wire format for one target.

    Attributes:
        format: the key of this format's data in the parts' ``meta``.
    """

    format: ClassVar[str]

    @abstractmethod
    def encode(self, request: Request) -> Wire:
        """Return the request on the wire."""

    @abstractmethod
    def decode(self, request: Request, body: Any) -> Decoded:
        """Decode the JSON of a whole answer.

        Raises:
            CallError: it is an error in spite of a status of 200.
            ProtocolError: it is no answer.
            TruncatedAnswer: it lacks its terminal mark.
        """

    @abstractmethod
    def decoder(self, request: Request) -> StreamDecoder:
        """Return a decoder for one streamed answer."""

    @abstractmethod
    def error(self, status: int, headers: Mapping[str, str], body: Any) -> CallError:
        """Return the error for a status that is no success; ``body`` is parsed JSON, or None if it is none."""

"""Where a prompt can be cut so that another may begin alike, and a digest of everything up to there.

A provider's prompt cache matches from the first token on: tools, then messages, as they are rendered. The digests are
chained, so two prompts with the same digest at a cut are the same up to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from pydantic_core import to_json

from llmprod.request import GenerateRequest
from llmprod.types import Audio, File, Image, Opaque, Part, Refusal, Text, Thinking, ToolCall, ToolResult

__all__ = ["Cut", "StableMessages", "leading_system", "part_tokens", "prefix_chain", "prefix_order"]

StableMessages = Callable[[GenerateRequest], int]
"""Tells how many of a request's leading messages stay the same from call to call."""

_BYTES_A_TOKEN = 4.0
_A_MESSAGE = 4
_IMAGE = 800.0
_UNSEEN = 1000.0  # behind a URL
_FILE_BYTES = 40.0  # a page of a PDF: 60 kB, 1,500 tokens


@dataclass(frozen=True, slots=True)
class Cut:
    """A place between two messages.

    Attributes:
        digest: of tools and messages up to here.
        tokens: about how many they are (bytes of UTF-8 by four; media by rules of thumb).
    """

    digest: str
    tokens: float


def leading_system(request: GenerateRequest) -> int:
    """Return the number of system messages before any other: what stays the same if nothing else is known."""
    count = 0
    for message in request.messages:
        if message.role != "system":
            break
        count += 1
    return count


def prefix_chain(request: GenerateRequest) -> tuple[Cut, ...]:
    """Return the cut after the tools and then one after each message."""
    digest = blake2b(digest_size=16)
    tokens = 0.0
    for tool in request.tools:
        # As they are: another order of tools or of a schema's keys is another prompt.
        told = b"\0".join((tool.name.encode(), _bytes(tool.description or ""), to_json(tool.parameters)))
        digest.update(b"tool%d\0" % len(told) + told)
        tokens += len(told) / _BYTES_A_TOKEN
    cuts = [Cut(digest.hexdigest(), tokens)]
    for message in request.messages:
        digest.update(b"message\0" + message.role.encode())
        tokens += _A_MESSAGE
        for part in message.parts:
            for piece in _pieces(part):
                digest.update(b"%d\0" % len(piece))
                digest.update(piece)
            tokens += part_tokens(part)
        cuts.append(Cut(digest.hexdigest(), tokens))
    return tuple(cuts)


def part_tokens(part: Part) -> float:
    """Return about how many tokens a part is."""
    if isinstance(part, (Text, Thinking, Refusal)):
        return len(_bytes(part.text)) / _BYTES_A_TOKEN
    if isinstance(part, ToolCall):
        return len(_bytes(part.name + part.arguments)) / _BYTES_A_TOKEN
    if isinstance(part, ToolResult):
        images = () if isinstance(part.content, str) else part.content
        return len(_bytes(part.text)) / _BYTES_A_TOKEN + _IMAGE * sum(isinstance(item, Image) for item in images)
    if isinstance(part, Image):
        return _IMAGE
    if isinstance(part, (Audio, File)):
        return _UNSEEN if part.data is None else len(part.data) / _FILE_BYTES
    return 0.0


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _pieces(part: Part) -> Sequence[bytes]:
    if isinstance(part, (Text, Thinking, Refusal)):
        return type(part).__name__.encode(), _bytes(part.text)
    if isinstance(part, ToolCall):
        return b"call", part.id.encode(), part.name.encode(), _bytes(part.arguments)
    if isinstance(part, ToolResult):
        inner = (Text(part.content),) if isinstance(part.content, str) else part.content
        pieces: list[Any] = [b"result", part.call_id.encode(), b"error" if part.is_error else b""]
        return [*pieces, *(piece for item in inner for piece in _pieces(item))]
    if isinstance(part, (Image, Audio, File)):
        return type(part).__name__.encode(), part.data if part.data is not None else _bytes(part.url or "")
    assert isinstance(part, Opaque)
    return b"opaque", part.kind.encode(), to_json(part.meta, serialize_unknown=True)


def prefix_order(requests: Sequence[GenerateRequest]) -> list[int]:
    """Return the requests' places so that those with a common beginning follow one another.

    For an engine with automatic prefix caching (vLLM): what was computed for one is still there for the next. Groups
    come in the order of their first request, and the order within a group is kept, so a list without anything in
    common stays as it is.
    """
    first: dict[str, int] = {}
    chains = [[cut.digest for cut in prefix_chain(request)] for request in requests]
    for place, chain in enumerate(chains):
        for digest in chain:
            first.setdefault(digest, place)
    return sorted(range(len(requests)), key=lambda place: ([first[digest] for digest in chains[place]], place))

"""Drives a codec without I/O: bytes in any pieces to a response, and a provider over a scripted transport."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

import httpx

from llmprod.context import Context
from llmprod.errors import CallError
from llmprod.events import Event
from llmprod.providers._codec import Codec
from llmprod.providers._sse import SSEParser
from llmprod.request import GenerateRequest, Request
from llmprod.response import Response
from llmprod.types import Message

ASK = GenerateRequest(messages=(Message.user("Hello"),))


def frames(events: Iterable[dict[str, Any]], *, named: bool) -> bytes:
    """Events as server-sent events, with their type as name where the API gives one."""
    out = []
    for event in events:
        name = f"event: {event['type']}\n" if named and "type" in event else ""
        out.append(f"{name}data: {json.dumps(event, ensure_ascii=False)}\n\n".encode())
    return b"".join(out)


def decode_stream(codec: Codec, pieces: Iterable[bytes], request: Request = ASK) -> list[Event]:
    """Feed a body's pieces as the provider does, and end it."""
    parser, decoder, events = SSEParser(), codec.decoder(request), []
    for piece in pieces:
        for name, data in parser.feed(piece):
            events.extend(decoder.feed(name, data))
    for name, data in parser.end():
        events.extend(decoder.feed(name, data))
    events.extend(decoder.end())
    return events


def as_response(events: Sequence[Event], request: Request = ASK) -> Response:
    """Put events together as a response does."""
    return Response(provider="test", context=Context.new(), request=request, events=events)


def streamed(codec: Codec, body: bytes, request: Request = ASK) -> Response:
    """The response to a stream that comes in one piece."""
    return as_response(decode_stream(codec, [body], request), request)


def whole(codec: Codec, body: Any, request: Request = ASK) -> Response:
    """The response to a body that comes whole."""
    return as_response(codec.decode(request, body).events, request)


def every_split(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The body in two, cut at every byte."""
    for cut in range(1, len(body)):
        yield body[:cut], body[cut:]


def facts(response: Response) -> dict[str, Any]:
    """What a whole answer and a streamed one must agree on; arguments are compared as JSON."""
    parts = [
        (part.id, part.name, json.loads(part.arguments or "{}"), part.meta) if hasattr(part, "arguments") else part
        for part in response.parts
    ]
    return {
        "parts": parts,
        "text": response.text,
        "thinking": response.thinking,
        "usage": response.usage,
        "finish": (response.finish_reason, response.raw_finish),
        "model": response.model,
        "id": response.response_id,
        "logprobs": response.logprobs,
    }


class Scripted(httpx.AsyncBaseTransport):
    """Answers every request with the same pieces, and remembers what was asked."""

    def __init__(self, pieces: Sequence[bytes], *, kind: str = "text/event-stream", status: int = 200) -> None:
        self.pieces, self.kind, self.status = pieces, kind, status
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        headers = {"content-type": self.kind, "request-id": "req_1"}
        return httpx.Response(self.status, headers=headers, stream=_Pieces(self.pieces))


class _Pieces(httpx.AsyncByteStream):
    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece


def raised(call: Callable[[], object]) -> CallError:
    """The call error that ``call`` raises."""
    try:
        call()
    except CallError as error:
        return error
    raise AssertionError("nothing was raised")

"""HTTP/1.1 as far as the server needs it: requests read from a buffer, response heads written down."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import NamedTuple

from .routes import Family


class HttpError(Exception):
    """The bytes received are not an HTTP/1.1 request."""


class HttpRequest(NamedTuple):
    """A request as it was received; header names are lower-case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    keep_alive: bool


_RATE_LIMITS: dict[Family, tuple[tuple[str, str], ...]] = {
    "openai": (
        ("openai-version", "2020-10-01"),
        ("openai-processing-ms", "12"),
        ("x-ratelimit-limit-requests", "10000"),
        ("x-ratelimit-limit-tokens", "2000000"),
        ("x-ratelimit-remaining-requests", "9999"),
        ("x-ratelimit-remaining-tokens", "1999900"),
        ("x-ratelimit-reset-requests", "6ms"),
        ("x-ratelimit-reset-tokens", "3ms"),
    ),
    "anthropic": (
        ("anthropic-organization-id", "org_fault"),
        ("anthropic-ratelimit-requests-limit", "4000"),
        ("anthropic-ratelimit-requests-remaining", "3999"),
        ("anthropic-ratelimit-requests-reset", "2030-01-01T00:00:00Z"),
        ("anthropic-ratelimit-tokens-limit", "400000"),
        ("anthropic-ratelimit-tokens-remaining", "399000"),
        ("anthropic-ratelimit-tokens-reset", "2030-01-01T00:00:00Z"),
    ),
    "google": (("server", "scaffolding on HTTPServer2"),),
}

_REQUEST_ID: dict[Family, str] = {
    "openai": "x-request-id",
    "anthropic": "request-id",
    "google": "x-request-id",
}


class Head(NamedTuple):
    """A response head up to where the request id is filled in."""

    prefix: bytes

    def encode(self, request_id: str) -> bytes:
        """The head for one response."""
        return self.prefix + request_id.encode() + b"\r\n\r\n"


def make_head(
    family: Family,
    status: int,
    content_type: str,
    *,
    length: int | None,
    headers: Iterable[tuple[str, str]] = (),
    limits: bool = True,
) -> Head:
    """A response head; a `length` of None announces a chunked body."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Overloaded" if status == 529 else "Unknown"
    lines = [f"HTTP/1.1 {status} {phrase}", f"content-type: {content_type}"]
    lines.append("transfer-encoding: chunked" if length is None else f"content-length: {length}")
    lines += [f"{name}: {value}" for name, value in (*(_RATE_LIMITS[family] if limits else ()), *headers)]
    lines.append(f"{_REQUEST_ID[family]}: ")
    return Head("\r\n".join(lines).encode("latin-1"))


class RequestReader:
    """Cuts requests out of the bytes that arrive on one connection."""

    __slots__ = ("_buffer", "_head")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: tuple[str, str, dict[str, str], bool] | None = None

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        self._buffer += data

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for ``100 Continue`` before it sends the body."""
        return self._head is not None and self._head[2].get("expect", "").lower() == "100-continue"

    def next_request(self) -> HttpRequest | None:
        """The next request, None if it hasn't arrived whole."""
        if self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return None
            self._head = _parse_head(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
        method, target, headers, keep_alive = self._head
        body = self._take_body(headers)
        if body is None:
            return None
        self._head = None
        return HttpRequest(method, target, headers, body, keep_alive)

    def _take_body(self, headers: dict[str, str]) -> bytes | None:
        if "chunked" in headers.get("transfer-encoding", "").lower():
            return self._take_chunked()
        try:
            length = int(headers.get("content-length", "0"))
        except ValueError:
            raise HttpError("bad content-length") from None
        if len(self._buffer) < length:
            return None
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        return body

    def _take_chunked(self) -> bytes | None:
        parts: list[bytes] = []
        at = 0
        while True:
            end = self._buffer.find(b"\r\n", at)
            if end < 0:
                return None
            try:
                size = int(self._buffer[at:end].split(b";")[0], 16)
            except ValueError:
                raise HttpError("bad chunk size") from None
            start, at = end + 2, end + 2 + size + 2
            if len(self._buffer) < at:
                return None
            if size == 0:
                del self._buffer[:at]
                return b"".join(parts)
            parts.append(bytes(self._buffer[start : start + size]))


def _parse_head(head: bytes) -> tuple[str, str, dict[str, str], bool]:
    first, *rest = head.decode("latin-1").split("\r\n")
    try:
        method, target, version = first.split(" ")
    except ValueError:
        raise HttpError("bad request line") from None
    headers: dict[str, str] = {}
    for line in rest:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    keep_alive = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    return method, target, headers, keep_alive

"""A provider reached over HTTP: a codec, an address, a key, and the reading of its answers."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from hashlib import blake2b
from typing import Any, cast

import anyio
from pydantic_core import from_json, to_json

from llmprod.context import Context
from llmprod.errors import CallError, InvalidArgument, MissingKey, ProtocolError, TruncatedAnswer
from llmprod.events import CONTENT, Event
from llmprod.provider import BaseProvider, Capabilities
from llmprod.providers._codec import Codec, StreamDecoder
from llmprod.providers._http import HTTP, HTTPOptions, NetworkEngine, Reply, read_all
from llmprod.providers._sse import SSEParser
from llmprod.request import Request
from llmprod.response import Response

__all__ = ["HTTPProvider", "Key", "find_key"]

Key = str | Callable[[], str]
"""An API key, or a function that returns the current one."""

_GRACE = 2.0
"""Seconds to wait for usage or the closing event once the answer is known to be complete."""
_EXCHANGE = 30.0
"""Seconds that the body of such a side request may stand still."""
_DRAIN = 0.25
"""Seconds to wait for the body's end, so that the connection can be used again."""


def find_key(given: Key | None, *variables: str, needed: bool = True) -> Key | None:
    """Return the key that was passed, or the first of the environment variables that is set.

    Raises:
        MissingKey: there is none and one is needed.
    """
    if given is not None:
        if not callable(given) and (not isinstance(given, str) or not given.strip()):
            raise MissingKey("api_key", "an empty value", "a non-empty string")
        return given
    for name in variables:
        if os.environ.get(name):
            return os.environ[name]
    if needed:
        raise MissingKey("api_key", "none", f"a key, passed as api_key or set in {' or '.join(variables)}")
    return None


_CREDENTIALS = frozenset(
    {"authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie"}
    | {"openai-organization", "openai-project"}
)


def _told(headers: Mapping[str, str]) -> str | None:
    """Tell headers apart that a server or a gateway may answer differently to, such as one that names a tenant."""
    told = sorted((name.lower(), value) for name, value in headers.items() if name.lower() not in _CREDENTIALS)
    return blake2b(to_json(told), digest_size=16).hexdigest() if told else None


class HTTPProvider(BaseProvider):
    """Sends what its codec encodes and hands out what its codec decodes.

    Args:
        kind: the provider's name in traces, errors and ``extra``, such as ``openai``.
        model: the model's id.
        codec: the wire format.
        base_url: address that the codec's paths are appended to.
        headers: headers of every request, the key excepted.
        key: the API key; never shown.
        authorize: turns the key into a header.
        capabilities: what the target can do.
        http: how to reach it.
        prompt_cache: how its prompt cache is told what to keep; see :mod:`llmprod.mechanisms.cache_rules`.
    """

    def __init__(
        self,
        *,
        kind: str,
        model: str,
        codec: Codec,
        base_url: str,
        capabilities: Capabilities,
        headers: Mapping[str, str] | None = None,
        key: Key | None = None,
        authorize: Callable[[str], tuple[str, str]] | None = None,
        http: HTTPOptions | None = None,
        prompt_cache: str = "none",
    ) -> None:
        if not isinstance(model, str) or not model.strip():
            raise InvalidArgument("model", repr(model)[:40], "the id of a model")
        if not isinstance(base_url, str) or not base_url.startswith(("http://", "https://")):
            raise InvalidArgument("base_url", repr(base_url)[:80], "an address that starts with http:// or https://")
        self.kind = kind
        self.model = model
        self.prompt_cache = prompt_cache
        self.base_url: str = base_url.rstrip("/")
        self._name = f"{kind}:{model}"
        self._codec = codec
        self._capabilities = capabilities
        self._key = key
        # A function may return another key each time: the function is what can be told apart.
        self._credential = blake2b(key.encode(), digest_size=8).hexdigest() if isinstance(key, str) else id(key)
        self._authorize = authorize or _bearer
        self._headers = [
            ("content-type", "application/json"),
            ("accept-encoding", "identity"),
            ("user-agent", "llmprod"),
            *((name.lower(), value) for name, value in (headers or {}).items()),
        ]
        self._told = _told(headers or {})
        self._http = HTTP(http)

    @property
    def name(self) -> str:
        """``kind:model``."""
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        """What the target can do."""
        return self._capabilities

    @property
    def wire_format(self) -> str:
        """The key of its data in the parts' ``meta``, such as ``openai-chat``."""
        return self._codec.format

    @property
    def identity(self) -> Hashable:
        """Provider, address, model and credential; the credential only as a digest."""
        return (self.kind, self.base_url, self.model, self._credential)

    @property
    def cache_identity(self) -> object:
        """What a cached answer depends on beside model and address: a digest of the headers, credentials left out."""
        return self._told

    @property
    def priced_as(self) -> tuple[str | None, str | None, str | None]:
        """Kind, model and address."""
        return self.kind, self.model, self.base_url

    async def aclose(self) -> None:
        """Close the running event loop's connections."""
        await self._http.aclose()

    async def _send(self, request: Request, context: Context, dropped: tuple[str, ...]) -> Response:
        wire = self._codec.encode(request)
        headers = [*self._headers, ("accept", "text/event-stream" if request.stream else "application/json")]
        if self._key is not None:
            headers.append(self._authorize(self._key if isinstance(self._key, str) else self._key()))
        headers.extend(wire.headers.items())
        try:
            reply = await self._http.engine().post(
                self.base_url + wire.path, headers, to_json(wire.body), context.connect_timeout
            )
            return await self._answer(reply, request, context, dropped)
        except CallError as error:
            self._sign(error)
            raise

    async def _exchange(self, method: str, path: str, body: Any, connect_timeout: float | None = None) -> Any:
        """Ask for something that is no answer of the model; return its JSON, None for an empty body.

        Raises:
            CallError: as for a call.
        """
        headers = [*self._headers, ("accept", "application/json")]
        if self._key is not None:
            headers.append(self._authorize(self._key if isinstance(self._key, str) else self._key()))
        engine = cast("NetworkEngine", self._http.engine())
        told = b"" if body is None else to_json(body)
        try:
            reply = await engine.post(self.base_url + path, headers, told, connect_timeout, method=method)
            read = _json_or_none(await read_all(reply, _EXCHANGE, 2**20))
            if not 200 <= reply.status < 300:
                raise self._codec.error(reply.status, reply.headers, read)
        except CallError as error:
            self._sign(error)
            raise
        return read

    def _sign(self, error: CallError, request_id: str | None = None) -> None:
        error.provider = error.provider or self.kind
        error.model = error.model or self.model
        error.request_id = error.request_id or request_id

    async def _answer(self, reply: Reply, request: Request, context: Context, dropped: tuple[str, ...]) -> Response:
        headers = reply.headers
        request_id = headers.get("x-request-id") or headers.get("request-id")
        kind = headers.get("content-type", "")
        if not 200 <= reply.status < 300:
            try:
                body = await read_all(reply, context.idle_timeout, 2**20)
            except CallError:  # the status says enough
                body = b""
            raise self._codec.error(reply.status, headers, _json_or_none(body))
        if request.stream and "json" not in kind:
            source = HTTPSource(reply, self._codec.decoder(request), lambda error: self._sign(error, request_id))
            if "text/html" in kind:
                await source.aclose()
                raise ProtocolError(status=reply.status, detail="HTML instead of a stream", request_id=request_id)
            await source.commit()
            return Response(
                provider=self.name, context=context, request=request, model=self.model, source=source,
                request_id=request_id, dropped=dropped, headers=headers,
            )  # fmt: skip
        body = await read_all(reply, context.idle_timeout)
        parsed = _json_or_none(body)
        if parsed is None:
            what = (
                "an empty body"
                if not body.strip()
                else "HTML"
                if body.lstrip()[:1] == b"<"
                else "a body that is no JSON"
            )
            raise ProtocolError(status=reply.status, detail=what, request_id=request_id)
        decoded = self._codec.decode(request, parsed)
        return Response(
            provider=self.name, context=context, request=request, model=self.model, events=decoded.events,
            embeddings=decoded.embeddings, request_id=request_id, dropped=dropped, raw=parsed, headers=headers,
        )  # fmt: skip


def _bearer(key: str) -> tuple[str, str]:
    return "authorization", f"Bearer {key}"


def _json_or_none(body: bytes) -> Any:
    try:
        return from_json(body)
    except ValueError:
        return None


class HTTPSource:
    """A stream's events, read from the reply as they are asked for."""

    __slots__ = ("_broken", "_closed", "_committed", "_decoder", "_parser", "_ready", "_reply", "_sign")

    def __init__(self, reply: Reply, decoder: StreamDecoder, sign: Callable[[CallError], None]) -> None:
        self._reply = reply
        self._decoder = decoder
        self._parser = SSEParser()
        self._ready: deque[Event] = deque()
        self._sign = sign
        self._closed = False
        self._committed = False
        self._broken: CallError | None = None

    async def commit(self) -> None:
        """Read up to the first content; what was read is handed out later.

        Content that came in one chunk with a failure has not been shown: the failure is raised, and can be retried.
        """
        try:
            while not any(type(event) in CONTENT for event in self._ready):
                if not await self._fill():
                    raise TruncatedAnswer(detail="the stream ended before any content")
            self._committed = True
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise

    def poll(self) -> Event | None:
        """Return the next event if it has been read already."""
        return self._ready.popleft() if self._ready else None

    async def __anext__(self) -> Event:
        ready = self._ready
        while not ready:
            if self._broken is not None:
                raise self._broken
            if not await self._fill():
                raise StopAsyncIteration
        return ready.popleft()

    async def _fill(self) -> bool:
        """Read one chunk and decode it; False once all is read."""
        if self._closed:
            return False
        try:
            await (self._finish() if self._decoder.finished else self._read())
        except CallError as error:
            self._sign(error)
            if not self._committed or not self._ready:
                raise
            self._broken = error  # what came before it is shown first
        return True

    async def _read(self) -> None:
        decoder = self._decoder
        chunk = await self._reply.chunk()
        for name, data in self._parser.feed(chunk) if chunk else self._parser.end():
            self._ready.extend(decoder.feed(name, data))
            if decoder.done:
                break
        if decoder.done:
            self._ready.extend(decoder.end())
            await self._drain()
        elif not chunk:
            self._ready.extend(decoder.end())
            await self.aclose()

    async def _finish(self) -> None:
        """The answer is complete: wait a little for usage and the closing event, but not for ever."""
        decoder = self._decoder
        with anyio.CancelScope(deadline=anyio.current_time() + _GRACE):
            try:
                while not decoder.done:
                    chunk = await self._reply.chunk()
                    for name, data in self._parser.feed(chunk) if chunk else self._parser.end():
                        self._ready.extend(decoder.feed(name, data))
                    if not chunk:
                        break
            except CallError as error:
                # The text is whole; a connection that breaks after it takes nothing away. An error event does.
                if not error.in_stream or error.status is not None or isinstance(error, ProtocolError):
                    raise
        self._ready.extend(decoder.end())
        await self._drain()

    async def _drain(self) -> None:
        with anyio.CancelScope(deadline=anyio.current_time() + _DRAIN):
            try:
                while await self._reply.chunk():
                    pass
            except CallError:
                pass
        await self.aclose()

    async def aclose(self) -> None:
        """Release the connection."""
        if not self._closed:
            self._closed = True
            await self._reply.aclose()

    def abandon(self) -> None:
        """Release the connection without awaiting."""
        if not self._closed:
            self._closed = True
            self._reply.abandon()

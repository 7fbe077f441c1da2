"""Google's Gemini API: ``generateContent`` and embeddings."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar
from urllib.parse import quote

from llmprod.errors import CallError, InvalidArgument, ProtocolError
from llmprod.events import Event, UsageUpdate
from llmprod.provider import Capabilities
from llmprod.providers._codec import Codec, Decoded, StreamDecoder, Wire
from llmprod.providers._google_answer import ChunkDecoder, decode_answer
from llmprod.providers._google_errors import error_from
from llmprod.providers._google_request import FORMAT, encode_cached_content, encode_embedding, encode_request
from llmprod.providers._google_usage import usage_of
from llmprod.providers._http import HTTPOptions
from llmprod.providers._http_provider import HTTPProvider, Key, find_key
from llmprod.providers._json import as_dict
from llmprod.request import EmbedRequest, GenerateRequest, Request

__all__ = ["Google", "GoogleCodec"]

_URL = "https://generativelanguage.googleapis.com/v1beta"
_CONTENT = re.compile(r"cachedContents/[\w.~-]+\Z")
_ENCODED = Capabilities().parameters - {"parallel_tool_calls"}


class GoogleCodec(Codec):
    """The wire format of the Gemini API for one model."""

    format: ClassVar[str] = FORMAT

    def __init__(self, model: str) -> None:
        self.model = model
        resource = model if "/" in str(model) else f"models/{model}"
        self._resource = resource
        self._path = f"/{quote(resource)}"

    def encode(self, request: Request) -> Wire:
        """Return the request on the wire."""
        if isinstance(request, EmbedRequest):
            return Wire(f"{self._path}:batchEmbedContents", encode_embedding(request, self._resource))
        verb = ":streamGenerateContent?alt=sse" if request.stream else ":generateContent"
        return Wire(self._path + verb, encode_request(request, self.model))

    def decode(self, request: Request, body: Any) -> Decoded:
        """Decode a whole answer, or vectors."""
        if isinstance(request, EmbedRequest):
            return _vectors(body, len(request.inputs))
        return Decoded(decode_answer(body))

    def decoder(self, request: Request) -> StreamDecoder:
        """Return a decoder for one stream."""
        return ChunkDecoder()

    def error(self, status: int, headers: Mapping[str, str], body: Any) -> CallError:
        """Return the error for a status that is no success."""
        return error_from(status, headers, body)


def _vectors(body: Any, count: int) -> Decoded:
    try:
        if "embeddings" not in body and "error" in body:
            raise error_from(None, {}, body)
        vectors = [item["values"] for item in body["embeddings"]]
        counts = as_dict(body.get("usageMetadata"))
        events: list[Event] = [UsageUpdate(usage_of(counts))] if counts else []
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ProtocolError(detail="JSON that holds no embeddings") from None
    if len(vectors) != count:
        raise ProtocolError(detail=f"{len(vectors)} embeddings for {count} inputs")
    return Decoded(events, embeddings=vectors)


class Google(HTTPProvider):
    """A model over the Gemini API.

    ``reasoning_effort`` becomes ``thinkingLevel`` from Gemini 3 on and ``thinkingBudget`` before, with summaries of the
    thinking. Thought signatures go back on the parts that they came on; calls that another provider's model made carry
    the API's mark for that. ``extra["google"]`` is merged into the body, ``generationConfig`` key by key.

    Args:
        model: the model's id, such as ``gemini-3-flash``; one with ``embedding`` in it embeds, any other generates.
        api_key: the key, or a function that returns it (default: GEMINI_API_KEY or GOOGLE_API_KEY).
        base_url: another server, with the version (default: GOOGLE_BASE_URL, else Google's). It needs no key.
        headers: added to every request.
        capabilities: what the model can do, instead of what its name tells.
        http: how to reach the server.

    Raises:
        InvalidArgument: an argument is wrong.
        MissingKey: no key, and the server is Google's.
    """

    def __init__(
        self,
        model: str,
        *,
        api_key: Key | None = None,
        base_url: str | None = None,
        headers: Mapping[str, str] | None = None,
        capabilities: Capabilities | None = None,
        http: HTTPOptions | None = None,
    ) -> None:
        url = base_url or os.environ.get("GOOGLE_BASE_URL") or _URL
        own = any(name.lower() in ("authorization", "x-goog-api-key") for name in headers or {})
        if api_key is not None or not own:
            api_key = find_key(api_key, "GEMINI_API_KEY", "GOOGLE_API_KEY", needed=url == _URL)
        super().__init__(
            kind="google",
            model=model,
            codec=GoogleCodec(model),
            base_url=url,
            capabilities=_capabilities(model, capabilities),
            headers=headers,
            key=api_key,
            authorize=lambda key: ("x-goog-api-key", key),
            http=http,
            prompt_cache="google",
        )
        self._resource = model if "/" in model else f"models/{model}"

    async def keep_content(self, request: GenerateRequest, stable: int, seconds: float) -> tuple[str, int]:
        """Let the API keep a request's tools and its first messages, for other requests to refer to.

        Keeping it is billed by the hour and million tokens. :class:`llmprod.PromptCaching` does this by itself where
        it was asked to.

        Args:
            request: the request.
            stable: how many of its messages, from the first on.
            seconds: for how long.

        Returns:
            The content's name, for ``extra["google"]["cachedContent"]`` of requests without these messages and without
            tools, and how many tokens it has.

        Raises:
            CallError: the API refused, such as for content below its minimum.
            ProtocolError: it did not say the content's name.
        """
        body = encode_cached_content(request, stable, self.model, self._resource, seconds)
        told = await self._exchange("POST", "/cachedContents", body)
        try:
            name = told["name"]
            tokens = int(told.get("usageMetadata", {}).get("totalTokenCount") or 0)
        except (KeyError, TypeError, AttributeError, ValueError):
            name, tokens = None, 0
        if not isinstance(name, str) or not _CONTENT.match(name):
            raise ProtocolError(detail="no name of the cached content", provider=self.kind, model=self.model)
        return name, tokens

    async def drop_content(self, name: str) -> None:
        """Delete what :meth:`keep_content` made, which ends its bill.

        Raises:
            InvalidArgument: ``name`` is none that it gave.
            CallError: the API refused, or could not be reached.
        """
        if not _CONTENT.match(name):
            raise InvalidArgument("name", repr(name)[:60], "a name such as cachedContents/abc")
        await self._exchange("DELETE", f"/{name}", None)


def _capabilities(model: str, given: Capabilities | None) -> Capabilities:
    if given is not None:
        # What the codec can't write must stay an error, whatever the model could do with it.
        return replace(given, parameters=given.parameters & _ENCODED)
    embeds = "embedding" in str(model)
    return Capabilities(parameters=_ENCODED, generate=not embeds, embeddings=embeds)

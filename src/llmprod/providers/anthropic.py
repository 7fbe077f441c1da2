"""Anthropic's Messages API, and servers that speak it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from llmprod._validate import whole
from llmprod.errors import CallError
from llmprod.provider import Capabilities
from llmprod.providers._anthropic_answer import MessageDecoder, decode_message
from llmprod.providers._anthropic_errors import error_from
from llmprod.providers._anthropic_models import rules_for
from llmprod.providers._anthropic_request import FORMAT, encode_request
from llmprod.providers._codec import Codec, Decoded, StreamDecoder, Wire
from llmprod.providers._http import HTTPOptions
from llmprod.providers._http_provider import HTTPProvider, Key, find_key
from llmprod.request import GenerateRequest, Request

__all__ = ["Anthropic", "AnthropicCodec"]

_URL = "https://api.anthropic.com"
_VERSION = "2023-06-01"
_SAMPLING = frozenset({"temperature", "top_p", "top_k"})
_ENCODED = _SAMPLING | {
    "stream", "tools", "tool_choice", "parallel_tool_calls", "output", "max_tokens", "stop", "reasoning_effort",
}  # fmt: skip


class AnthropicCodec(Codec):
    """The wire format of ``POST /v1/messages`` for one model.

    Args:
        model: the model's id.
        beta: names for the ``anthropic-beta`` header.
        max_tokens: sent where a request names no limit (None: by model).
    """

    format: ClassVar[str] = FORMAT

    def __init__(self, model: str, *, beta: Sequence[str] = (), max_tokens: int | None = None) -> None:
        self.model = model
        self._rules = rules_for(str(model))
        self._beta = tuple(beta)
        self._max_tokens = max_tokens

    def encode(self, request: Request) -> Wire:
        """Return the request on the wire; ``extra["anthropic"]["betas"]`` joins the header."""
        assert isinstance(request, GenerateRequest)
        body = encode_request(request, self.model, self._rules, self._max_tokens)
        betas = (*self._beta, *request.extra.get(FORMAT, {}).get("betas", ()))
        return Wire("/v1/messages", body, {"anthropic-beta": ",".join(betas)} if betas else {})

    def decode(self, request: Request, body: Any) -> Decoded:
        """Decode a whole message."""
        return Decoded(decode_message(body))

    def decoder(self, request: Request) -> StreamDecoder:
        """Return a decoder for one stream."""
        return MessageDecoder()

    def error(self, status: int, headers: Mapping[str, str], body: Any) -> CallError:
        """Return the error for a status that is no success."""
        return error_from(status, headers, body)


class Anthropic(HTTPProvider):
    """A model over Anthropic's Messages API.

    ``reasoning_effort`` becomes ``output_config.effort`` with adaptive thinking from Claude 4.6 on, and a thinking
    budget before. Thinking goes back byte for byte to the model it came from, and is left out for any other.
    Keys of a part's ``meta["anthropic"]``, such as ``cache_control``, go into its block.

    Args:
        model: the model's id, such as ``claude-sonnet-5-5``.
        api_key: the key, or a function that returns it (default: ANTHROPIC_API_KEY).
        base_url: another server (default: ANTHROPIC_BASE_URL, else Anthropic's). It needs no key.
        beta: beta features to ask for, by name.
        max_tokens: limit of an answer whose request names none, which the API wants; in tokens, thinking included
            (default: 16384, or 4096 for Claude 3.5 and older and other makers' models).
        headers: added to every request.
        capabilities: what the model can do, instead of what its name tells.
        http: how to reach the server.

    Raises:
        InvalidArgument: an argument is wrong.
        MissingKey: no key, and the server is Anthropic's.
    """

    def __init__(
        self,
        model: str,
        *,
        api_key: Key | None = None,
        base_url: str | None = None,
        beta: Sequence[str] = (),
        max_tokens: int | None = None,
        headers: Mapping[str, str] | None = None,
        capabilities: Capabilities | None = None,
        http: HTTPOptions | None = None,
    ) -> None:
        whole("max_tokens", max_tokens, 1, optional=True)
        url = base_url or os.environ.get("ANTHROPIC_BASE_URL") or _URL
        own = any(name.lower() in ("authorization", "x-api-key") for name in headers or {})
        if api_key is not None or not own:
            api_key = find_key(api_key, "ANTHROPIC_API_KEY", needed=url == _URL)
        super().__init__(
            kind="anthropic",
            model=model,
            codec=AnthropicCodec(model, beta=(beta,) if isinstance(beta, str) else beta, max_tokens=max_tokens),
            base_url=url.rstrip("/").removesuffix("/v1") if isinstance(url, str) else url,
            capabilities=_capabilities(model, capabilities),
            headers={"anthropic-version": _VERSION, **(headers or {})},
            key=api_key,
            authorize=lambda key: ("x-api-key", key),
            http=http,
            prompt_cache="anthropic",
        )
        self._answers_depend_on = [self._told, max_tokens, [beta] if isinstance(beta, str) else list(beta)]

    @property
    def cache_identity(self) -> object:
        """What a cached answer depends on beside model and address: the options that are sent with each request."""
        return self._answers_depend_on


def _capabilities(model: str, given: Capabilities | None) -> Capabilities:
    if given is not None:
        # What the codec can't write must stay an error, whatever the model could do with it.
        return replace(given, parameters=given.parameters & _ENCODED, audio=False, embeddings=False)
    rules = rules_for(str(model))
    parameters = _ENCODED if rules.sampling else _ENCODED - _SAMPLING
    if rules.thinking == "none":
        parameters -= {"reasoning_effort"}
    return Capabilities(parameters=parameters, audio=False, prefill=rules.prefill)

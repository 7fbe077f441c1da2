"""The wire format of OpenAI's Responses API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from llmprod.errors import CallError
from llmprod.providers._codec import Codec, Decoded, StreamDecoder, Wire
from llmprod.providers._openai_encode import add_extra, decode_embeddings, embed_body, function_of, output_of
from llmprod.providers._openai_errors import openai_error
from llmprod.providers._openai_responses_decode import ResponsesDecoder
from llmprod.providers._openai_responses_items import FORMAT, encode_items
from llmprod.request import EmbedRequest, GenerateRequest, Request

__all__ = ["UNSUPPORTED", "ResponsesCodec"]

UNSUPPORTED = frozenset({"top_k", "seed", "stop", "frequency_penalty", "presence_penalty"})
"""Request parameters that the API has no place for."""


class ResponsesCodec(Codec):
    """Responses for one model.

    Every request carries the whole conversation, so nothing has to be kept at the provider: ``store`` is false unless
    ``extra`` says otherwise. Reasoning then has to travel with it encrypted; the API adds that by itself, and where
    ``reasoning_effort`` is given it is asked for by name too, for servers that don't (models that can't reason refuse
    the wish, so it is not made otherwise).

    An answer is complete with ``completed`` or ``incomplete``; ``failed`` raises the error. ``completed`` with tool
    calls counts as ``tool_calls``, with a refusal as ``refusal``.

    Args:
        model: the model's id.
        kind: the provider's name in ``extra`` and errors.
    """

    format: ClassVar[str] = FORMAT

    def __init__(self, model: str, kind: str = "openai") -> None:
        self._model = model
        self._kind = kind

    def encode(self, request: Request) -> Wire:
        """Return the request on the wire.

        Raises:
            InvalidArgument: a message can't be expressed.
            UnsupportedParameter: the API can't take a part of it, such as sound.
        """
        if isinstance(request, EmbedRequest):
            return Wire("/embeddings", embed_body(request, self._model, self._kind))
        return Wire("/responses", self._body(request))

    def _body(self, request: GenerateRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "input": encode_items(request.messages, f"{self._kind}:{self._model}"),
            "store": False,
        }
        for ours, theirs in (("temperature", "temperature"), ("top_p", "top_p"), ("max_tokens", "max_output_tokens")):
            value = getattr(request, ours)
            if value is not None:
                body[theirs] = value
        include: list[str] = []
        if request.reasoning_effort is not None:
            body["reasoning"] = {"effort": request.reasoning_effort}
            include.append("reasoning.encrypted_content")
        if request.logprobs is not None:
            include.append("message.output_text.logprobs")
            body["top_logprobs"] = request.logprobs
        if include:
            body["include"] = include
        if request.tools:
            # The API takes a missing `strict` for true; Chat Completions for false. It is false in both here.
            body["tools"] = [
                {"type": "function", **function_of(tool, adapt=True, default=False)} for tool in request.tools
            ]
            if request.tool_choice in ("auto", "none", "required"):
                body["tool_choice"] = request.tool_choice
            elif request.tool_choice is not None:
                body["tool_choice"] = {"type": "function", "name": request.tool_choice}
            if request.parallel_tool_calls is not None:
                body["parallel_tool_calls"] = request.parallel_tool_calls
        if request.output is not None:
            body["text"] = {"format": {"type": "json_schema", **output_of(request.output, adapt=True)}}
        if request.stream:
            body["stream"] = True
        add_extra(body, request, self._kind)
        return body

    def decode(self, request: Request, body: Any) -> Decoded:
        """Decode the JSON of a whole answer."""
        if isinstance(request, EmbedRequest):
            return decode_embeddings(request, body)
        return Decoded(ResponsesDecoder().whole(body))

    def decoder(self, request: Request) -> StreamDecoder:
        """Return a decoder for one stream."""
        return ResponsesDecoder()

    def error(self, status: int, headers: Mapping[str, str], body: Any) -> CallError:
        """Return the error for a status that is no success."""
        return openai_error(status, headers, body)

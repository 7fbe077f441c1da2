"""The wire format of OpenAI's Chat Completions API, which most servers speak."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from llmprod.errors import CallError
from llmprod.providers._codec import Codec, Decoded, StreamDecoder, Wire
from llmprod.providers._json import as_dict
from llmprod.providers._openai_chat_decode import ChatDecoder
from llmprod.providers._openai_chat_messages import FORMAT, encode_messages
from llmprod.providers._openai_encode import add_extra, decode_embeddings, embed_body, function_of, output_of
from llmprod.providers._openai_errors import openai_error
from llmprod.providers._openai_profile import OPENAI, Profile
from llmprod.request import EmbedRequest, GenerateRequest, Request
from llmprod.types import ToolCall

__all__ = ["ChatCodec"]

_SAME = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed", "reasoning_effort")
"""Request fields that are called the same in the body."""


class ChatCodec(Codec):
    """Chat Completions for one model.

    An answer is complete once a chunk has told its finish reason; ``[DONE]`` alone ends none, but for profiles that
    say so. ``stop`` beside tool calls counts as ``tool_calls``, and beside a refusal as ``refusal``; the server's own
    word stays in ``raw_finish``. A finish reason that tells of a failure (``error``, ``abort``,
    ``insufficient_system_resource``) raises the error: the answer was cut.

    Args:
        model: the model's id.
        profile: the server's ways (default: OpenAI's).
        path: where to post, ``{}`` standing for the endpoint.
    """

    format: ClassVar[str] = FORMAT

    def __init__(self, model: str, profile: Profile = OPENAI, *, path: str = "/{}") -> None:
        self._model = model
        self._profile = profile
        self._chat_path = path.format("chat/completions")
        self._embeddings_path = path.format("embeddings")

    def encode(self, request: Request) -> Wire:
        """Return the request on the wire.

        Raises:
            InvalidArgument: ``extra`` asks for several choices, or a message can't be expressed.
            UnsupportedParameter: the server can't take a part of it.
        """
        if isinstance(request, EmbedRequest):
            return Wire(self._embeddings_path, embed_body(request, self._model, self._profile.kind))
        return Wire(self._chat_path, self._body(request))

    def _body(self, request: GenerateRequest) -> dict[str, Any]:
        profile = self._profile
        body: dict[str, Any] = {"model": self._model, "messages": encode_messages(request, profile)}
        for name in _SAME:
            value = getattr(request, name)
            if value is not None:
                body[name] = value
        if request.max_tokens is not None:
            body[profile.max_tokens_field] = request.max_tokens
        if request.stop:
            body["stop"] = list(request.stop)
        if request.logprobs is not None:
            body["logprobs"] = True
            if request.logprobs:
                body["top_logprobs"] = request.logprobs
        if request.tools:
            self._add_tools(body, request)
        if request.output is not None:
            self._add_output(body, request)
        if request.stream:
            body["stream"] = True
            if profile.stream_options is not None:
                body["stream_options"] = dict(profile.stream_options)
        if profile.prefill_body and request.messages[-1].role == "assistant":
            body.update(profile.prefill_body)
        add_extra(body, request, profile.kind)
        return body

    def _add_tools(self, body: dict[str, Any], request: GenerateRequest) -> None:
        profile = self._profile
        body["tools"] = [
            {
                "type": "function",
                "function": function_of(tool, adapt=profile.strict_schemas, default=profile.strict_tools),
            }
            for tool in request.tools
        ]
        choice = request.tool_choice or ("auto" if profile.auto_tool_choice else None)
        if choice in ("auto", "none", "required"):
            body["tool_choice"] = choice
        elif choice is not None:
            body["tool_choice"] = {"type": "function", "function": {"name": choice}}
        if request.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = request.parallel_tool_calls

    def _add_output(self, body: dict[str, Any], request: GenerateRequest) -> None:
        assert request.output is not None
        output = output_of(request.output, adapt=self._profile.strict_schemas)
        style = self._profile.schema_style
        if style == "structured_outputs":
            body["structured_outputs"] = {"json": output["schema"]}
        elif style == "tgi":
            body["response_format"] = {"type": "json_object", "value": output["schema"]}
        elif style in ("json", "json_object"):
            body["response_format"] = {"type": style, "schema": output["schema"]}
        else:
            body["response_format"] = {"type": "json_schema", "json_schema": output}

    def decode(self, request: Request, body: Any) -> Decoded:
        """Decode the JSON of a whole answer."""
        if isinstance(request, EmbedRequest):
            return decode_embeddings(request, body)
        return Decoded(self._decoder(request).whole(body))

    def decoder(self, request: Request) -> StreamDecoder:
        """Return a decoder for one stream."""
        assert isinstance(request, GenerateRequest)
        return self._decoder(request)

    def _decoder(self, request: GenerateRequest) -> ChatDecoder:
        earlier = sum(isinstance(part, ToolCall) for message in request.messages for part in message.parts)
        audio = as_dict(request.extra.get(self._profile.kind, {}).get("audio"))
        return ChatDecoder(
            self._profile,
            earlier_calls=earlier,
            logprobs=request.logprobs is not None,
            sound=str(audio.get("format", "wav")),
        )

    def error(self, status: int, headers: Mapping[str, str], body: Any) -> CallError:
        """Return the error for a status that is no success."""
        return openai_error(status, headers, body)

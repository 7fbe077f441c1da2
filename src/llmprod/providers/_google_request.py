"""From a request to the bodies of Gemini's ``generateContent`` and ``batchEmbedContents``."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterable
from typing import Any

from pydantic_core import from_json

from llmprod.errors import InvalidArgument, UnsupportedParameter
from llmprod.providers._merge import merge
from llmprod.request import EmbedRequest, GenerateRequest
from llmprod.schema import Tool
from llmprod.types import Audio, File, Image, Message, Opaque, Part, Refusal, Text, Thinking, ToolCall, ToolResult

__all__ = ["FORMAT", "MADE_UP", "encode_cached_content", "encode_embedding", "encode_request"]

FORMAT = "google"
MADE_UP = "llmprod_"
"""How the ids begin that we give to calls without one; they are not sent back."""

_CONFIG = {
    "max_tokens": "maxOutputTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "frequency_penalty": "frequencyPenalty",
    "presence_penalty": "presencePenalty",
    "seed": "seed",
}
_LEVEL = {"minimal": "MINIMAL", "low": "LOW", "medium": "MEDIUM", "high": "HIGH", "xhigh": "XHIGH", "max": "XHIGH"}
_BUDGET = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24_576, "xhigh": 24_576, "max": 24_576}
_BY_BUDGET = re.compile(r"gemini-(?:1|2)\b")
_NO_SIGNATURE = "skip_thought_signature_validator"
"""The API's own word for a call that another model made; Gemini 3 refuses a call without a signature."""


def encode_request(request: GenerateRequest, model: str) -> dict[str, Any]:
    """Return the body of ``generateContent``.

    Raises:
        InvalidArgument: there is nothing to send.
        UnsupportedParameter: the model can't honour a value: Gemini 3 can't stop thinking.
    """
    system, contents = _conversation(request.messages, model)
    body: dict[str, Any] = {"contents": contents}
    if system:
        body["systemInstruction"] = {"parts": system}
    config = {wire: value for name, wire in _CONFIG.items() if (value := getattr(request, name)) is not None}
    if request.stop:
        config["stopSequences"] = list(request.stop)
    if request.logprobs is not None:
        config["responseLogprobs"] = True
        if request.logprobs:
            config["logprobs"] = request.logprobs
    if request.output is not None:
        config["responseMimeType"] = "application/json"
        config["responseJsonSchema"] = request.output.schema
    if request.reasoning_effort is not None:
        thinking = _thinking(request, model)
        if thinking:
            config["thinkingConfig"] = thinking
    if config:
        body["generationConfig"] = config
    if request.tools:
        body["tools"] = [{"functionDeclarations": [_declaration(tool) for tool in request.tools]}]
        calling = _calling(request)
        if calling:
            body["toolConfig"] = {"functionCallingConfig": calling}
    merge(body, request.extra.get(FORMAT, {}))
    return body


def encode_embedding(request: EmbedRequest, model: str) -> dict[str, Any]:
    """Return the body of ``batchEmbedContents``; ``extra`` (``taskType`` …) goes into each of its requests."""
    requests: list[dict[str, Any]] = []
    for text in request.inputs:
        item: dict[str, Any] = {"model": model, "content": {"parts": [{"text": text}]}}
        if request.dimensions is not None:
            item["outputDimensionality"] = request.dimensions
        merge(item, request.extra.get(FORMAT, {}))
        requests.append(item)
    return {"requests": requests}


def encode_cached_content(
    request: GenerateRequest, stable: int, model: str, resource: str, seconds: float
) -> dict[str, Any]:
    """Return the body that makes cached content of a request's tools and its first ``stable`` messages."""
    system, contents = _conversation(request.messages[:stable], model, empty=True)
    body: dict[str, Any] = {"model": resource, "ttl": f"{seconds:.9g}s"}
    if system:
        body["systemInstruction"] = {"parts": system}
    if contents:
        body["contents"] = contents
    if request.tools:
        body["tools"] = [{"functionDeclarations": [_declaration(tool) for tool in request.tools]}]
    return body


# ---- parameters -----------------------------------------------------------------------------------------------------


def _thinking(request: GenerateRequest, model: str) -> dict[str, Any]:
    effort = request.reasoning_effort or "none"
    if _BY_BUDGET.search(model):
        return {"thinkingBudget": _BUDGET[effort], **({} if effort == "none" else {"includeThoughts": True})}
    if effort == "none":
        if not request.drop_unsupported:
            raise UnsupportedParameter(f"{FORMAT}:{model}", ("reasoning_effort",))
        return {}
    # With summaries the stream moves while the model thinks.
    return {"thinkingLevel": _LEVEL[effort], "includeThoughts": True}


def _declaration(tool: Tool) -> dict[str, Any]:
    declaration: dict[str, Any] = {"name": tool.name}
    if tool.description:
        declaration["description"] = tool.description
    if tool.parameters.get("properties"):
        declaration["parametersJsonSchema"] = tool.parameters
    return declaration


def _calling(request: GenerateRequest) -> dict[str, Any] | None:
    choice = request.tool_choice
    if choice in (None, "auto"):
        if any(tool.strict for tool in request.tools):
            return {"mode": "VALIDATED"}  # calls are held to their schemas; text stays possible
        return {"mode": "AUTO"} if choice else None
    if choice == "none":
        return {"mode": "NONE"}
    return {"mode": "ANY"} if choice == "required" else {"mode": "ANY", "allowedFunctionNames": [choice]}


# ---- messages -------------------------------------------------------------------------------------------------------


def _conversation(
    messages: Iterable[Message], model: str, *, empty: bool = False
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the system parts, and contents whose roles alternate."""
    system: list[dict[str, Any]] = []
    contents: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of the calls so far, by id: results need them
    for message in messages:
        parts: list[dict[str, Any]] = []
        called = False
        for part in message.parts:
            if isinstance(part, ToolCall):
                names[part.id] = part.name
                # The first of a turn's calls carries the signature for all.
                parts.append(_call(part, signed=called or bool(_BY_BUDGET.search(model))))
                called = True
            elif isinstance(part, ToolResult):
                parts.append(_tool_result(part, part.name or names.get(part.call_id)))
            elif (encoded := _part(part)) is not None:
                parts.append(encoded)
        role = "model" if message.role == "assistant" else "user"
        if message.role == "system":
            system.extend(parts)
        elif contents and contents[-1]["role"] == role:
            contents[-1]["parts"].extend(parts)
        elif parts:
            contents.append({"role": role, "parts": parts})
    if not contents and not empty:
        given = "nothing but system messages or empty text"
        raise InvalidArgument("messages", given, "at least one message with content")
    return system, contents


def _part(part: Part) -> dict[str, Any] | None:
    """Return a part as it goes out; None for empty text and for other formats' own parts."""
    own = part.meta.get(FORMAT) if not isinstance(part, Refusal) else None
    if isinstance(part, Text):
        return {"text": part.text, **(own or {})} if part.text or own else None
    if isinstance(part, Thinking):
        return {"text": part.text, **own} if own else None
    if isinstance(part, Opaque):
        return dict(own) if own else None
    if isinstance(part, Refusal):
        return {"text": part.text} if part.text else None
    assert isinstance(part, (Image, Audio, File))
    return {**_media(part), **(own or {})}


def _media(media: Image | Audio | File) -> dict[str, Any]:
    if media.url is None:
        return {"inlineData": {"mimeType": media.media_type, "data": media.base64}}
    kind = media.media_type or mimetypes.guess_type(media.url.partition("?")[0])[0]
    return {"fileData": {"fileUri": media.url, **({"mimeType": kind} if kind else {})}}


def _call(call: ToolCall, *, signed: bool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": call.name, "args": _arguments(call)}
    if call.id and not call.id.startswith(MADE_UP):
        function["id"] = call.id
    own = call.meta.get(FORMAT)
    if own is not None:
        return {"functionCall": function, **own}
    return {"functionCall": function} if signed else {"functionCall": function, "thoughtSignature": _NO_SIGNATURE}


def _arguments(call: ToolCall) -> dict[str, Any]:
    try:
        return call.input
    except InvalidArgument:
        return {"INVALID_JSON": call.arguments}


def _tool_result(result: ToolResult, name: str | None) -> dict[str, Any]:
    if name is None:
        given = "a result whose call is not among the messages"
        raise InvalidArgument("tool result.name", given, "the tool's name, which Gemini wants with each result")
    function: dict[str, Any] = {
        "name": name,
        "response": {"error" if result.is_error else "output": _value(result.text)},
    }
    if result.call_id and not result.call_id.startswith(MADE_UP):
        function["id"] = result.call_id
    if not isinstance(result.content, str):
        media = [_media(part) for part in result.content if isinstance(part, Image)]
        if media:
            function["parts"] = media
    return {"functionResponse": function, **result.meta.get(FORMAT, {})}


def _value(text: str) -> Any:
    """A result that is a JSON object or array goes as one: the model needs no quotes inside quotes."""
    if text[:1] in ("{", "["):
        try:
            return from_json(text)
        except ValueError:
            pass
    return text

"""From a request to the body of Anthropic's ``POST /v1/messages``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from llmprod.errors import InvalidArgument, UnsupportedParameter
from llmprod.providers._anthropic_models import ModelRules, base_model
from llmprod.providers._anthropic_schema import closed_schema
from llmprod.providers._merge import merge
from llmprod.request import GenerateRequest
from llmprod.schema import Tool
from llmprod.types import Audio, File, Image, Message, Opaque, Part, Refusal, Text, Thinking, ToolCall, ToolResult

__all__ = ["FORMAT", "MODEL", "encode_request"]

FORMAT = "anthropic"
MODEL = "anthropic.model"
"""The key of a thinking part's ``meta`` that tells which model thought: its signature holds for that model alone."""

_EFFORT = {"minimal": "low"}  # the others are called the same
_BUDGET = {"minimal": 1024, "low": 4096, "medium": 8192, "high": 16_384, "xhigh": 32_768, "max": 32_768}
_LEAST_BUDGET = 1024


def encode_request(request: GenerateRequest, model: str, rules: ModelRules, max_tokens: int | None) -> dict[str, Any]:
    """Return the body; ``max_tokens`` is sent where the request has none, instead of the rules' default.

    Raises:
        InvalidArgument: a message holds nothing to send, or a document of a kind that the API does not take.
        UnsupportedParameter: the model can't honour a value, such as a forced tool choice.
    """
    system, turns = _conversation(request.messages, model)
    limit = request.max_tokens or max_tokens or rules.max_tokens
    body: dict[str, Any] = {"model": model, "max_tokens": limit, "messages": turns}
    if system:
        body["system"] = system
    if request.stream:
        body["stream"] = True
    for name in ("temperature", "top_p", "top_k"):
        value = getattr(request, name)
        if value is not None:
            body[name] = value
    if request.stop:
        body["stop_sequences"] = list(request.stop)
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        choice = _tool_choice(request, model, rules)
        if choice is not None:
            body["tool_choice"] = choice
    if request.output is not None:
        schema = closed_schema(request.output.schema) if request.output.strict else request.output.schema
        body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    if request.reasoning_effort is not None:
        _think(body, request, model, rules)
    extra = request.extra.get(FORMAT)
    if extra:
        merge(body, {name: value for name, value in extra.items() if name != "betas"})
    return body


# ---- parameters -----------------------------------------------------------------------------------------------------


def _tool(tool: Tool) -> dict[str, Any]:
    parameters = tool.parameters if "type" in tool.parameters else {"type": "object", **tool.parameters}
    encoded: dict[str, Any] = {"name": tool.name, "input_schema": parameters}
    if tool.description:
        encoded["description"] = tool.description
    if tool.strict is not None:
        encoded["strict"] = tool.strict
        if tool.strict:
            encoded["input_schema"] = closed_schema(parameters)
    encoded.update(tool.meta.get(FORMAT, {}))
    return encoded


def _tool_choice(request: GenerateRequest, model: str, rules: ModelRules) -> dict[str, Any] | None:
    choice = request.tool_choice
    if choice is None and request.parallel_tool_calls is None:
        return None
    if choice == "none":
        return {"type": "none"}
    if choice in (None, "auto"):
        encoded: dict[str, Any] = {"type": "auto"}
    elif not rules.forced_tools:
        raise UnsupportedParameter(f"{FORMAT}:{model}", ("tool_choice",))
    else:
        encoded = {"type": "any"} if choice == "required" else {"type": "tool", "name": choice}
    if request.parallel_tool_calls is not None:
        encoded["disable_parallel_tool_use"] = not request.parallel_tool_calls
    return encoded


def _think(body: dict[str, Any], request: GenerateRequest, model: str, rules: ModelRules) -> None:
    effort = request.reasoning_effort or "none"
    if effort == "none":
        if not rules.always_thinks:
            body["thinking"] = {"type": "disabled"}
        elif not request.drop_unsupported:
            raise UnsupportedParameter(f"{FORMAT}:{model}", ("reasoning_effort",))
        return
    if rules.thinking == "adaptive":
        # Newer models leave thinking out of the answer unless asked; then nothing moves until it is over.
        body["thinking"] = {"type": "adaptive", "display": "summarized"}
        body.setdefault("output_config", {})["effort"] = _EFFORT.get(effort, effort)
        return
    budget = _BUDGET[effort]
    if request.max_tokens is None:
        body["max_tokens"] += budget
    elif request.max_tokens <= _LEAST_BUDGET:
        allowed = f"more than {_LEAST_BUDGET} together with reasoning_effort, since {model} counts thinking in it"
        raise InvalidArgument("max_tokens", str(request.max_tokens), allowed)
    else:
        budget = min(budget, max(_LEAST_BUDGET, request.max_tokens * 3 // 4))
    body["thinking"] = {"type": "enabled", "budget_tokens": budget}


# ---- messages -------------------------------------------------------------------------------------------------------


def _conversation(messages: Iterable[Message], model: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the system blocks, and turns whose roles alternate."""
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        blocks = [block for part in message.parts if (block := _block(part, model)) is not None]
        role = "assistant" if message.role == "assistant" else "user"
        if message.role == "system":
            system.extend(blocks)
        elif turns and turns[-1]["role"] == role:
            turns[-1]["content"].extend(blocks)
        elif blocks:
            turns.append({"role": role, "content": blocks})
    if not turns:
        given = "nothing but system messages or empty text"
        raise InvalidArgument("messages", given, "at least one message with content")
    for turn in turns:
        # Results have to come first in the turn that answers tool calls.
        turn["content"].sort(key=_after_results)
    return system, turns


def _after_results(block: dict[str, Any]) -> bool:
    return block.get("type") != "tool_result"


def _block(part: Part, model: str) -> dict[str, Any] | None:
    """Return a part's block; None for what the API does not take: empty text, and other formats' own parts."""
    if isinstance(part, Text):
        return {"type": "text", "text": part.text, **part.meta.get(FORMAT, {})} if part.text else None
    if isinstance(part, ToolCall):
        call = {"type": "tool_use", "id": _id(part.id), "name": part.name, "input": _input(part)}
        return {**call, **part.meta.get(FORMAT, {})}
    if isinstance(part, ToolResult):
        return _tool_result(part, model)
    if isinstance(part, Thinking):
        maker = part.meta.get(MODEL, {}).get("id", model)
        return _verbatim(part) if base_model(maker) == base_model(model) else None
    if isinstance(part, Opaque):
        return _verbatim(part)
    if isinstance(part, Refusal):
        return {"type": "text", "text": part.text} if part.text else None
    if isinstance(part, Image):
        return {"type": "image", "source": _source(part), **part.meta.get(FORMAT, {})}
    if isinstance(part, File):
        return _document(part)
    assert isinstance(part, Audio)
    raise UnsupportedParameter(f"{FORMAT}:{model}", ("audio",))


def _verbatim(part: Thinking | Opaque) -> dict[str, Any] | None:
    block = part.meta.get(FORMAT)
    return None if block is None else dict(block)


def _id(call_id: str) -> str:
    """Other providers' ids may hold characters that this API refuses."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", call_id)


def _input(call: ToolCall) -> dict[str, Any]:
    try:
        return call.input
    except InvalidArgument:
        # The way that the API's documentation names for giving broken arguments back to the model.
        return {"INVALID_JSON": call.arguments}


def _tool_result(result: ToolResult, model: str) -> dict[str, Any]:
    content: Any = result.content
    if not isinstance(content, str):
        content = [block for part in content if (block := _block(part, model)) is not None]
    encoded: dict[str, Any] = {"type": "tool_result", "tool_use_id": _id(result.call_id), "content": content}
    if result.is_error:
        encoded["is_error"] = True
    encoded.update(result.meta.get(FORMAT, {}))
    return encoded


def _source(media: Image | File) -> Mapping[str, Any]:
    if media.url is not None:
        return {"type": "url", "url": media.url}
    return {"type": "base64", "media_type": media.media_type, "data": media.base64}


def _document(file: File) -> dict[str, Any]:
    kind = file.media_type or ""
    if file.url is not None or kind == "application/pdf":
        source = _source(file)
    elif kind.startswith("text/") or kind == "application/json":
        try:
            text = (file.data or b"").decode()
        except UnicodeDecodeError:
            raise InvalidArgument("file.data", "text that is not UTF-8", "UTF-8 text, or a PDF") from None
        source = {"type": "text", "media_type": "text/plain", "data": text}
    else:
        raise InvalidArgument("file.media_type", repr(kind)[:60], "application/pdf, text/*, application/json")
    encoded: dict[str, Any] = {"type": "document", "source": source}
    if file.name:
        encoded["title"] = file.name
    encoded.update(file.meta.get(FORMAT, {}))
    return encoded

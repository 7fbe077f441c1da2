"""Text, usage and finish of what functions return: the vendors' SDK objects, their JSON as dicts, and strings.

By the shape of the object alone: no SDK is imported, and what has no known shape is passed on unread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, cast

from llmprod.errors import CallError
from llmprod.events import Event, Finish, RefusalDelta, Start, TextDelta, ThinkingDelta, ToolCallDone, UsageUpdate
from llmprod.providers import _anthropic_answer, _google_answer, _google_usage, _openai_usage
from llmprod.providers._openai_errors import openai_error
from llmprod.response import Response
from llmprod.types import ToolCall
from llmprod.usage import FinishReason, Usage

__all__ = [
    "REFUSAL", "TEXT", "THINKING", "Shape", "anthropic_finish", "chat_finish", "chat_text", "failure", "get",
    "items_of", "plain", "read_google", "read_whole", "request_id_of", "responses_finish", "shape_of", "string",
    "usage_of",
]  # fmt: skip

THINKING, TEXT, REFUSAL, TOOLS = range(4)
"""Numbers of an answer's parts: what is read here needs no finer order."""


# ---- looking at objects ----------------------------------------------------------------------------------------------


def get(value: Any, *names: str) -> Any:
    """Return the first of the attributes, or keys of a mapping, that is there and not None."""
    for name in names:
        if isinstance(value, Mapping):
            found = cast("Mapping[str, Any]", value).get(name)
        else:
            try:
                found = getattr(value, name, None)
            except Exception:  # noqa: BLE001 - a stranger's property may fail in any way
                found = None
        if found is not None:
            return found
    return None


def string(value: Any) -> str:
    """Return ``value`` if it is text (an enum's value too), else an empty string."""
    if isinstance(value, Enum):
        value = value.value
    return value if isinstance(value, str) else ""


def items_of(value: Any) -> list[Any]:
    """Return ``value`` if it is a list, else an empty one."""
    return list(cast("list[Any]", value)) if isinstance(value, (list, tuple)) else []


def plain(value: Any) -> dict[str, Any]:
    """Return an SDK's object as the JSON that it was made from."""
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    dump = get(value, "model_dump")
    if not callable(dump):
        return {}
    try:
        plain = dump(mode="json", by_alias=True, exclude_none=True)
    except Exception:  # noqa: BLE001 - usage that can't be read must not cost the answer
        return {}
    return cast("dict[str, Any]", plain) if isinstance(plain, dict) else {}


class Shape(Enum):
    """Which API an object belongs to."""

    CHAT = "OpenAI Chat Completions"
    RESPONSES = "OpenAI Responses"
    ANTHROPIC = "Anthropic Messages"
    GOOGLE = "Google generateContent"
    VECTORS = "embeddings"


def shape_of(value: Any) -> Shape | None:
    """Return the API that a whole answer comes from."""
    if isinstance(value, (str, bytes, list, tuple)) or value is None:
        return None
    if isinstance(get(value, "choices"), list) or get(value, "object") == "chat.completion":
        return Shape.CHAT
    if get(value, "object") == "response":
        return Shape.RESPONSES
    if get(value, "type") == "message" and isinstance(get(value, "content"), list):
        return Shape.ANTHROPIC
    if isinstance(get(value, "candidates"), list) or _google_extra(value):
        return Shape.GOOGLE
    if isinstance(get(value, "data", "embeddings"), list) and get(value, "object") == "list":
        return Shape.VECTORS
    return None


def _google_extra(value: Any) -> bool:
    counts = get(value, "usage_metadata", "usageMetadata")
    return isinstance(get(counts, "prompt_token_count", "promptTokenCount"), int)


# ---- usage -----------------------------------------------------------------------------------------------------------


def usage_of(shape: Shape | None, value: Any) -> Usage | None:
    """Return the tokens that an answer, or a chunk of one, reports."""
    try:
        if shape is Shape.GOOGLE:
            counts = plain(get(value, "usage_metadata", "usageMetadata"))
            return _google_usage.usage_of(counts, _searches(value)) if counts else None
        usage = get(value, "usage")
        if isinstance(usage, Usage):
            return usage
        counts = plain(usage)
        if shape is Shape.ANTHROPIC:
            return _anthropic_answer.usage_of(counts) if counts else None
        items = [get(item, "type") for item in items_of(get(value, "output"))]
        return _openai_usage.usage_of(counts, plain(get(value, "tool_usage")), get(value, "service_tier"), items)
    except (TypeError, ValueError, AttributeError):  # numbers that are none
        return None


def _searches(value: Any) -> int:
    candidates = items_of(get(value, "candidates"))
    grounding = get(candidates[0], "grounding_metadata", "groundingMetadata") if candidates else None
    queries = get(grounding, "web_search_queries", "webSearchQueries")
    return _google_usage.searches_of(queries, get(value, "model_version", "modelVersion"))


def request_id_of(value: Any) -> str | None:
    """Return the provider's id of the HTTP request, where the SDK keeps it."""
    headers = get(get(value, "response"), "headers")
    return string(get(value, "_request_id")) or string(get(headers, "x-request-id", "request-id")) or None


# ---- whole answers ---------------------------------------------------------------------------------------------------


def read_whole(value: Any, *, check: bool) -> list[Event]:
    """Return what ``value`` says as events; the last is Finish, with the reason ``unknown`` where nothing tells.

    Raises:
        CallError: an SDK handed out, as if it were an answer, that the provider failed (only with ``check``).
    """
    if isinstance(value, str):
        return [TextDelta(value, TEXT), Finish("unknown")]
    if isinstance(value, Response):
        return _read_ours(value)
    shape = shape_of(value)
    if shape is None:
        return _read_unknown(value)
    if check:
        _refuse_failure(shape, value)
    events: list[Event] = [
        Start(
            string(get(value, "model", "model_version", "modelVersion")) or None,
            string(get(value, "id", "response_id", "responseId")) or None,
        )
    ]
    finish = _READERS[shape](value, events)
    usage = usage_of(shape, value)
    if usage is not None:
        events.append(UsageUpdate(usage))
    return [*events, finish]


def _read_ours(response: Response) -> list[Event]:
    events: list[Event] = [Start(response.model, response.response_id), TextDelta(response.text, TEXT)]
    if response.usage is not None:
        events.append(UsageUpdate(response.usage))
    return [*events, Finish(response.finish_reason or "unknown", response.raw_finish)]


def _read_unknown(value: Any) -> list[Event]:
    events: list[Event] = []
    if isinstance(value, Mapping):
        for name in ("text", "output_text", "content", "answer"):
            text = string(get(value, name))
            if text:
                events.append(TextDelta(text, TEXT))
                break
    usage = usage_of(None, value)
    return [*events, *([UsageUpdate(usage)] if usage is not None else []), Finish("unknown")]


def _refuse_failure(shape: Shape, value: Any) -> None:
    failed = shape is Shape.RESPONSES and get(value, "status") == "failed"
    empty = shape is Shape.CHAT and not items_of(get(value, "choices")) and get(value, "error") is not None
    if failed or empty:
        raise failure(get(value, "error"), in_stream=False)


def failure(error: Any, *, in_stream: bool) -> CallError:
    """Return the error that an answer with status 200 reports inside."""
    return openai_error(None, {}, {"error": plain(error) or {"message": string(error)}}, in_stream=in_stream)


def _read_chat(value: Any, events: list[Event]) -> Finish:
    choices = items_of(get(value, "choices"))
    first = choices[0] if choices else None
    message = get(first, "message")
    thinking = string(get(message, "reasoning_content", "reasoning"))
    if thinking:
        events.append(ThinkingDelta(thinking, THINKING))
    text = chat_text(get(message, "content"))
    if text:
        events.append(TextDelta(text, TEXT))
    refusal = string(get(message, "refusal"))
    if refusal:
        events.append(RefusalDelta(refusal, REFUSAL))
    for place, call in enumerate(items_of(get(message, "tool_calls"))):
        function = get(call, "function")
        _tool(events, place, get(call, "id"), get(function, "name"), get(function, "arguments"))
    return chat_finish(get(first, "finish_reason"))


def chat_text(content: Any) -> str:
    """Return the text of a message or delta, which may be in parts."""
    return string(content) or "".join(string(get(part, "text")) for part in items_of(content))


def chat_finish(raw: Any) -> Finish:
    """Return why a chat answer ended; compatible servers leave it null on whole answers that are complete."""
    word = string(raw)
    return Finish(_openai_usage.FINISH_REASONS.get(word.lower(), "unknown"), word or None)


def _read_responses(value: Any, events: list[Event]) -> Finish:
    calls = 0
    for item in items_of(get(value, "output")):
        if get(item, "type") == "function_call":
            _tool(events, calls, get(item, "call_id"), get(item, "name"), get(item, "arguments"))
            calls += 1
        for part in items_of(get(item, "content")):
            kind = get(part, "type")
            if kind == "output_text":
                events.append(TextDelta(string(get(part, "text")), TEXT))
            elif kind == "refusal":
                events.append(RefusalDelta(string(get(part, "refusal")), REFUSAL))
    return responses_finish(value)


def responses_finish(value: Any) -> Finish:
    """Return why a Responses answer ended."""
    status = string(get(value, "status"))
    if status == "incomplete":
        raw = string(get(get(value, "incomplete_details"), "reason"))
        return Finish(_openai_usage.FINISH_REASONS.get(raw, "unknown"), raw or status)
    called = any(get(item, "type") == "function_call" for item in items_of(get(value, "output")))
    reason: FinishReason = "unknown" if status != "completed" else "tool_calls" if called else "stop"
    return Finish(reason, status or None)


def _read_anthropic(value: Any, events: list[Event]) -> Finish:
    calls = 0
    for block in items_of(get(value, "content")):
        kind = get(block, "type")
        if kind == "text":
            events.append(TextDelta(string(get(block, "text")), TEXT))
        elif kind == "thinking":
            events.append(ThinkingDelta(string(get(block, "thinking")), THINKING))
        elif kind == "tool_use":
            _tool(events, calls, get(block, "id"), get(block, "name"), None)
            calls += 1
    return anthropic_finish(get(value, "stop_reason"))


def anthropic_finish(raw: Any) -> Finish:
    """Return why a message ended."""
    word = string(raw)
    return Finish(_anthropic_answer._REASONS.get(word, "unknown"), word or None)


def _read_google(value: Any, events: list[Event]) -> Finish:
    return read_google(value, events) or Finish("unknown")


def read_google(value: Any, events: list[Event]) -> Finish | None:
    """Append the text of an answer or chunk, and return why the answer ended if this says so."""
    candidates = items_of(get(value, "candidates"))
    first = candidates[0] if candidates else None
    called = False
    for part in items_of(get(get(first, "content"), "parts")):
        text = string(get(part, "text"))
        if text:
            events.append(ThinkingDelta(text, THINKING) if get(part, "thought") is True else TextDelta(text, TEXT))
        called = called or get(part, "function_call", "functionCall") is not None
    raw = string(get(first, "finish_reason", "finishReason"))
    if not raw:
        blocked = string(get(get(value, "prompt_feedback", "promptFeedback"), "block_reason", "blockReason"))
        return Finish("content_filter", blocked) if blocked else None
    reason = _google_answer._REASONS.get(raw, "unknown")
    return Finish("tool_calls" if called and reason == "stop" else reason, raw)


def _read_vectors(value: Any, events: list[Event]) -> Finish:
    return Finish("stop")


def _tool(events: list[Event], place: int, id: Any, name: Any, arguments: Any) -> None:  # noqa: A002
    call = ToolCall(string(id), string(name), string(arguments) or "{}")
    events.append(ToolCallDone(call, TOOLS + place))


_READERS: dict[Shape, Callable[[Any, list[Event]], Finish]] = {
    Shape.CHAT: _read_chat,
    Shape.RESPONSES: _read_responses,
    Shape.ANTHROPIC: _read_anthropic,
    Shape.GOOGLE: _read_google,
    Shape.VECTORS: _read_vectors,
}

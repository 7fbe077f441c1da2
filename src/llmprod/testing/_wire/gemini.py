"""Google Gemini ``generateContent`` and ``streamGenerateContent``."""

from __future__ import annotations

from .call import JsonObject, Reply, compact
from .sse import Event, StreamEvents

_FINISH_REASONS = {
    "stop": "STOP",
    "length": "MAX_TOKENS",
    "tool_calls": "STOP",
    "content_filter": "SAFETY",
}


def whole(reply: Reply) -> JsonObject:
    """The body of an answer that is not streamed."""
    answer = reply.answer
    parts: list[JsonObject] = []
    if answer.reasoning_pieces:
        parts.append({"text": "".join(answer.reasoning_pieces), "thought": True})
    if answer.text_pieces:
        parts.append({"text": "".join(answer.text_pieces)})
    return _response(reply, [*parts, *_tool_parts(reply)], finish=True, usage=_usage(reply))


def stream(reply: Reply) -> StreamEvents:
    """The events of a streamed answer: each is a response, there is no mark after the last."""
    events = StreamEvents()
    parts: list[JsonObject] = [{"text": piece, "thought": True} for piece in reply.answer.reasoning_pieces]
    parts.extend({"text": piece} for piece in reply.answer.text_pieces)
    for number, part in enumerate([*parts, *_tool_parts(reply)], start=1):
        body = _response(reply, [part], finish=False, usage=_usage(reply, number))
        events.add_content(Event(compact(body)))
    last = _response(reply, [{"text": ""}], finish=True, usage=_usage(reply))
    events.add_finish([Event(compact(last))])
    return events


def _tool_parts(reply: Reply) -> list[JsonObject]:
    """Calls come whole, and without an id unless one was given."""
    parts: list[JsonObject] = []
    for call in reply.answer.tool_calls:
        function: JsonObject = {"name": call.name, "args": call.arguments_object}
        if call.id is not None:
            function["id"] = call.id
        parts.append({"functionCall": function})
    return parts


def _response(reply: Reply, parts: list[JsonObject], *, finish: bool, usage: JsonObject | None) -> JsonObject:
    candidate: JsonObject = {"content": {"parts": parts, "role": "model"}, "index": 0}
    word = reply.answer.finish_word
    if finish and word is not None:
        candidate["finishReason"] = _FINISH_REASONS.get(word, word)
    response: JsonObject = {"candidates": [candidate]}
    if usage is not None:
        response["usageMetadata"] = usage
    response["modelVersion"] = reply.model
    response["responseId"] = "fault-response"
    return response


def _usage(reply: Reply, so_far: int | None = None) -> JsonObject | None:
    found = reply.usage(so_far)
    if found is None:
        return None
    counts, output = found
    thoughts = min(counts.reasoning, output)
    usage: JsonObject = {
        "promptTokenCount": counts.input,
        "candidatesTokenCount": output - thoughts,
        "totalTokenCount": counts.input + output,
    }
    if counts.cache_read:
        usage["cachedContentTokenCount"] = counts.cache_read
    if thoughts:
        usage["thoughtsTokenCount"] = thoughts
    return usage

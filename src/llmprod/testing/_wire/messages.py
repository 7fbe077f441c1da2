"""Anthropic Messages."""

from __future__ import annotations

from ..behaviour import ToolCall
from .call import JsonObject, Reply, argument_pieces, compact
from .sse import Event, StreamEvents

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}

_SIGNATURE = "c2lnbmVkIGJ5IHRoZSBmYXVsdCBzZXJ2ZXI="

PING = b'event: ping\ndata: {"type":"ping"}\n\n'


def whole(reply: Reply) -> JsonObject:
    """The body of an answer that is not streamed."""
    answer = reply.answer
    content: list[JsonObject] = []
    if answer.reasoning_pieces:
        thinking = "".join(answer.reasoning_pieces)
        content.append({"type": "thinking", "thinking": thinking, "signature": _SIGNATURE})
    if answer.text_pieces:
        content.append({"type": "text", "text": "".join(answer.text_pieces)})
    for number, call in enumerate(answer.tool_calls):
        content.append({**_tool_block(number, call), "input": call.arguments_object})
    return _message(reply, content, stop_reason=_stop_reason(reply), usage=_usage(reply))


def stream(reply: Reply) -> StreamEvents:
    """The events of a streamed answer."""
    events = StreamEvents()
    start = _message(reply, [], stop_reason=None, usage=_usage(reply, 1))
    events.opening += [_event("message_start", message=start), _event("ping")]
    for index, (block, deltas) in enumerate(_blocks(reply)):
        events.add_frame(_event("content_block_start", index=index, content_block=block))
        for delta in deltas:
            event = _event("content_block_delta", index=index, delta=delta)
            framing = delta["type"] == "signature_delta"
            (events.add_frame if framing else events.add_content)(event)
        events.add_frame(_event("content_block_stop", index=index))
    end: JsonObject = {"delta": {"stop_reason": _stop_reason(reply), "stop_sequence": None}}
    if (usage := _usage(reply)) is not None:
        end["usage"] = usage
    events.add_finish([_event("message_delta", **end)])
    events.done.append(_event("message_stop"))
    return events


def _blocks(reply: Reply) -> list[tuple[JsonObject, list[JsonObject]]]:
    """Each content block as its start and its deltas."""
    answer = reply.answer
    blocks: list[tuple[JsonObject, list[JsonObject]]] = []
    if answer.reasoning_pieces:
        deltas: list[JsonObject] = [{"type": "thinking_delta", "thinking": p} for p in answer.reasoning_pieces]
        deltas.append({"type": "signature_delta", "signature": _SIGNATURE})
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, deltas))
    if answer.text_pieces:
        blocks.append(({"type": "text", "text": ""}, [{"type": "text_delta", "text": p} for p in answer.text_pieces]))
    for number, call in enumerate(answer.tool_calls):
        pieces = argument_pieces(call.arguments_json) if call.arguments_json != "{}" else [""]
        inputs: list[JsonObject] = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        blocks.append(({**_tool_block(number, call), "input": {}}, inputs))
    return blocks


def _tool_block(number: int, call: ToolCall) -> JsonObject:
    return {"type": "tool_use", "id": call.id or f"toolu_{number}", "name": call.name}


def _message(
    reply: Reply, content: list[JsonObject], *, stop_reason: str | None, usage: JsonObject | None
) -> JsonObject:
    message: JsonObject = {
        "id": "msg_fault",
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
    }
    if usage is not None:
        message["usage"] = usage
    return message


def _stop_reason(reply: Reply) -> str | None:
    word = reply.answer.finish_word
    return None if word is None else _STOP_REASONS.get(word, word)


def _usage(reply: Reply, so_far: int | None = None) -> JsonObject | None:
    found = reply.usage(so_far)
    if found is None:
        return None
    counts, output = found
    return {
        "input_tokens": counts.input - counts.cache_read - counts.cache_write,
        "cache_creation_input_tokens": counts.cache_write,
        "cache_read_input_tokens": counts.cache_read,
        "output_tokens": output,
        "service_tier": "standard",
    }


def _event(kind: str, **fields: object) -> Event:
    return Event(compact({"type": kind, **fields}), kind)

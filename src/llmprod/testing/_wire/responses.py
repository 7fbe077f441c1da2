"""OpenAI Responses: items, named and numbered events."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from ..behaviour import ToolCall
from .call import CREATED, JsonObject, Reply, argument_pieces, compact
from .sse import Event, StreamEvents

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def whole(reply: Reply) -> JsonObject:
    """The body of an answer that is not streamed."""
    reason = _INCOMPLETE.get(reply.answer.finish_word or "")
    status = "incomplete" if reason else "completed"
    return _response(reply, status, _items(reply, "completed"), reason)


def stream(reply: Reply) -> StreamEvents:
    """The events of a streamed answer; the last one says how it ended, there is no ``[DONE]``."""
    events = StreamEvents()
    numbers = count()

    def event(kind: str, **fields: object) -> Event:
        return Event(compact({"type": kind, "sequence_number": next(numbers), **fields}), kind)

    started = _response(reply, "in_progress", [], None)
    events.opening.append(event("response.created", response=started))
    events.opening.append(event("response.in_progress", response=started))
    for index, item in enumerate(_items(reply, "completed")):
        for kind, is_content, fields in _item_events(reply, item, index):
            made = event(kind, output_index=index, **fields)
            (events.add_content if is_content else events.add_frame)(made)
    ended = whole(reply)
    events.add_finish([event(f"response.{ended['status']}", response=ended)])
    return events


_ItemEvent = tuple[str, bool, JsonObject]
"""Type, whether it is content, and its fields."""


def _item_events(reply: Reply, item: JsonObject, index: int) -> Iterator[_ItemEvent]:
    start = {**item, "status": "in_progress"}
    at: JsonObject = {"item_id": item["id"]}
    if item["type"] == "message":
        yield "response.output_item.added", False, {"item": {**start, "content": []}}
        yield from _text_events(reply, {**at, "content_index": 0})
    elif item["type"] == "reasoning":
        yield "response.output_item.added", False, {"item": {**start, "summary": []}}
        yield from _reasoning_events(reply, {**at, "summary_index": 0})
    else:
        yield "response.output_item.added", False, {"item": {**start, "arguments": ""}}
        arguments = str(item["arguments"])
        for piece in argument_pieces(arguments):
            yield "response.function_call_arguments.delta", True, {**at, "delta": piece}
        done: JsonObject = {**at, "arguments": arguments, "name": item["name"]}
        yield "response.function_call_arguments.done", False, done
    yield "response.output_item.done", False, {"item": item}


def _text_events(reply: Reply, at: JsonObject) -> Iterator[_ItemEvent]:
    pieces = reply.answer.text_pieces
    yield "response.content_part.added", False, {**at, "part": _text_part("")}
    for piece in pieces:
        yield "response.output_text.delta", True, {**at, "delta": piece, "logprobs": []}
    text = "".join(pieces)
    yield "response.output_text.done", False, {**at, "text": text, "logprobs": []}
    yield "response.content_part.done", False, {**at, "part": _text_part(text)}


def _reasoning_events(reply: Reply, at: JsonObject) -> Iterator[_ItemEvent]:
    pieces = reply.answer.reasoning_pieces
    yield "response.reasoning_summary_part.added", False, {**at, "part": _summary("")}
    for piece in pieces:
        yield "response.reasoning_summary_text.delta", True, {**at, "delta": piece}
    text = "".join(pieces)
    yield "response.reasoning_summary_text.done", False, {**at, "text": text}
    yield "response.reasoning_summary_part.done", False, {**at, "part": _summary(text)}


def _items(reply: Reply, status: str) -> list[JsonObject]:
    answer = reply.answer
    items: list[JsonObject] = []
    if answer.reasoning_pieces:
        summary = [_summary("".join(answer.reasoning_pieces))]
        items.append({"id": "rs_fault", "type": "reasoning", "summary": summary})
    if answer.text_pieces:
        content = [_text_part("".join(answer.text_pieces))]
        message = {"id": "msg_fault", "type": "message", "role": "assistant"}
        items.append({**message, "status": status, "content": content})
    items += [_call_item(number, call, status) for number, call in enumerate(answer.tool_calls)]
    return items


def _call_item(number: int, call: ToolCall, status: str) -> JsonObject:
    return {
        "id": f"fc_{number}",
        "type": "function_call",
        "status": status,
        "call_id": call.id or f"call_{number}",
        "name": call.name,
        "arguments": call.arguments_json,
    }


def _text_part(text: str) -> JsonObject:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _summary(text: str) -> JsonObject:
    return {"type": "summary_text", "text": text}


def _response(reply: Reply, status: str, items: list[JsonObject], reason: str | None) -> JsonObject:
    ended = status != "in_progress"
    return {
        "id": "resp_fault",
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": reason} if reason else None,
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "model": reply.model,
        "output": items,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": _usage(reply) if ended else None,
    }


def _usage(reply: Reply) -> JsonObject | None:
    found = reply.usage()
    if found is None:
        return None
    counts, output = found
    return {
        "input_tokens": counts.input,
        "input_tokens_details": {"cached_tokens": counts.cache_read, "cache_write_tokens": counts.cache_write},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning},
        "total_tokens": counts.input + output,
    }

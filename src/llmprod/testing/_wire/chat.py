"""OpenAI Chat Completions, with the quirks of its imitators."""

from __future__ import annotations

from ..behaviour import ToolCall
from .call import CREATED, JsonObject, Reply, argument_pieces, compact
from .sse import Event, StreamEvents


def whole(reply: Reply) -> JsonObject:
    """The body of an answer that is not streamed."""
    answer, quirks = reply.answer, reply.quirks
    message: JsonObject = {"role": "assistant", "content": _content(reply, "".join(answer.text_pieces) or None)}
    if answer.reasoning_pieces:
        message[quirks.reasoning_field] = "".join(answer.reasoning_pieces)
    if answer.tool_calls:
        message["tool_calls"] = [_whole_tool(reply, *item) for item in enumerate(answer.tool_calls)]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_word}
    body = _envelope(reply, "chat.completion")
    body["choices"] = None if quirks.null_choices else [choice]
    if (usage := _usage(reply)) is not None:
        body["usage"] = usage
    return body


def stream(reply: Reply) -> StreamEvents:
    """The events of a streamed answer."""
    events = StreamEvents()
    answer, quirks = reply.answer, reply.quirks
    events.opening.append(_chunk(reply, {"role": "assistant", "content": ""}))
    if quirks.null_choices:
        events.opening.append(Event(compact({**_envelope(reply, "chat.completion.chunk"), "choices": None})))

    def content(delta: JsonObject) -> None:
        events.add_content(_chunk(reply, delta, so_far=len(events.content) + 1))

    for piece in answer.reasoning_pieces:
        content({quirks.reasoning_field: piece})
    for piece in answer.text_pieces:
        content({"content": _content(reply, piece)})
    for number, call in enumerate(answer.tool_calls):
        for delta in _tool_deltas(reply, number, call):
            content({"tool_calls": [delta]})
    events.add_finish(_finish(reply))
    events.done.append(Event("[DONE]"))
    return events


def _finish(reply: Reply) -> list[Event]:
    delta: JsonObject | None = None if reply.quirks.null_delta else {}
    usage = _usage(reply) if reply.quirks.usage_in_finish else None
    finish = [_chunk(reply, delta, finish=reply.answer.finish_word, usage=usage)]
    final = _usage(reply)
    if reply.call.include_usage and final is not None:
        body = _envelope(reply, "chat.completion.chunk")
        finish.append(Event(compact({**body, "choices": [], "usage": final})))
    return finish


def _chunk(
    reply: Reply,
    delta: JsonObject | None,
    *,
    finish: str | None = None,
    usage: JsonObject | None = None,
    so_far: int | None = None,
) -> Event:
    body = _envelope(reply, "chat.completion.chunk")
    body["choices"] = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    if so_far is not None and reply.quirks.continuous_usage:
        usage = _usage(reply, so_far)
    if usage is not None or reply.call.include_usage:
        body["usage"] = usage
    return Event(compact(body))


def _envelope(reply: Reply, kind: str) -> JsonObject:
    if reply.quirks.bare:
        return {"object": kind}
    return {
        "id": "chatcmpl-fault",
        "object": kind,
        "created": CREATED,
        "model": reply.model,
        "service_tier": "default",
        "system_fingerprint": "fp_fault",
    }


def _content(reply: Reply, text: str | None) -> object:
    if text is not None and reply.quirks.content_parts:
        return [{"type": "text", "text": text}]
    return text


def _whole_tool(reply: Reply, number: int, call: ToolCall) -> JsonObject:
    return {key: value for key, value in _tool(reply, number, call).items() if key != "index"}


def _tool(reply: Reply, number: int, call: ToolCall) -> JsonObject:
    quirks = reply.quirks
    arguments = call.arguments_object if quirks.tool_arguments_object else call.arguments_json
    tool: JsonObject = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
    if not quirks.tool_id_missing:
        tool["id"] = call.id or f"call_{number}"
    if not quirks.tool_index_missing:
        tool["index"] = 0 if quirks.tool_index_zero else number
    return tool


def _tool_deltas(reply: Reply, number: int, call: ToolCall) -> list[JsonObject]:
    """Name first, arguments in pieces; the imitators send each call whole, in one delta."""
    whole_call = _tool(reply, number, call)
    quirks = reply.quirks
    if quirks.tool_index_zero or quirks.tool_index_missing or quirks.tool_arguments_object:
        return [whole_call]
    first: JsonObject = {**whole_call, "function": {"name": call.name, "arguments": ""}}
    rest: list[JsonObject] = [
        {"index": number, "function": {"arguments": piece}} for piece in argument_pieces(call.arguments_json)
    ]
    return [first, *rest]


def _usage(reply: Reply, so_far: int | None = None) -> JsonObject | None:
    found = reply.usage(so_far)
    if found is None:
        return None
    counts, output = found
    return {
        "prompt_tokens": counts.input,
        "completion_tokens": output,
        "total_tokens": counts.input + output,
        "prompt_tokens_details": {"cached_tokens": counts.cache_read, "cache_write_tokens": counts.cache_write},
        "completion_tokens_details": {"reasoning_tokens": counts.reasoning},
    }

"""From messages to the Responses API's ``input`` items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from llmprod.errors import InvalidArgument, UnsupportedParameter
from llmprod.providers._openai_encode import cache_mark, file_name
from llmprod.types import Audio, File, Image, Message, Opaque, Part, Refusal, Text, Thinking, ToolCall, ToolResult

__all__ = ["FORMAT", "encode_items"]

FORMAT = "openai-responses"
"""The key of this format's data in the parts' ``meta``."""

_Json = dict[str, Any]


def encode_items(messages: Sequence[Message], target: str) -> list[_Json]:
    """Return the conversation as items, in the order in which it happened.

    What came from this API goes back as it came: reasoning and unknown items whole, byte for byte, messages with
    their id and phase. Thinking and blocks of other formats are left out.

    Raises:
        InvalidArgument: a part stands in a message of a role that can't hold it, or nothing is left to send.
        UnsupportedParameter: a part can't be expressed.
    """
    custom = {
        part.id
        for message in messages
        for part in message.parts
        if isinstance(part, ToolCall) and part.meta.get(FORMAT, {}).get("type") == "custom_tool_call"
    }
    items: list[_Json] = []
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if message.role == "assistant":
            items.extend(_assistant(message.parts, where, target))
            continue
        items.extend(_result(part, custom) for part in message.parts if isinstance(part, ToolResult))
        others = [part for part in message.parts if not isinstance(part, ToolResult)]
        if others:
            role = "system" if message.role == "system" else "user"
            items.append({"type": "message", "role": role, "content": _content(others, where, target)})
    if not items:
        raise InvalidArgument("messages", "nothing that this API can hold", "at least one message with content")
    return items


def _content(parts: Iterable[Part], where: str, target: str) -> list[_Json]:
    content: list[_Json] = []
    for part in parts:
        if isinstance(part, Text):
            content.append({"type": "input_text", "text": part.text, **cache_mark(part, FORMAT)})
        elif isinstance(part, Image):
            content.append({**_image(part), **cache_mark(part, FORMAT)})
        elif isinstance(part, File):
            where_it_is = (
                {"file_url": part.url} if part.url else {"filename": file_name(part), "file_data": part.data_url}
            )
            content.append({"type": "input_file", **where_it_is, **cache_mark(part, FORMAT)})
        elif isinstance(part, Audio):
            raise UnsupportedParameter(target, ("audio",))
        elif isinstance(part, ToolCall):
            raise InvalidArgument(where, "a ToolCall outside an assistant message", "Message.assistant(…) around it")
    if not content:
        raise InvalidArgument(where, "nothing that this API can hold", "text, images or files")
    return content


def _image(part: Image) -> _Json:
    return {"type": "input_image", "image_url": part.data_url, "detail": part.detail or "auto"}


def _result(result: ToolResult, custom: set[str]) -> _Json:
    output: str | list[_Json] = result.text
    if not isinstance(result.content, str) and any(isinstance(part, Image) for part in result.content):
        output = [
            _image(part) if isinstance(part, Image) else {"type": "input_text", "text": part.text}
            for part in result.content
        ]
    mark = cache_mark(result, FORMAT)
    if mark and output:
        output = [{"type": "input_text", "text": output}] if isinstance(output, str) else output
        output[-1] = {**output[-1], **mark}
    kind = "custom_tool_call_output" if result.call_id in custom else "function_call_output"
    return {"type": kind, "call_id": result.call_id, "output": output}


def _assistant(parts: Sequence[Part], where: str, target: str) -> list[_Json]:
    items: list[_Json] = []
    for part in parts:
        if isinstance(part, (Thinking, Opaque)):
            item = part.meta.get(FORMAT, {}).get("item")
            if item is not None:
                items.append(item)
        elif isinstance(part, Text):
            _said(part, items)
        elif isinstance(part, ToolCall):
            items.append(_call(part))
        elif isinstance(part, Refusal):
            items.append({"role": "assistant", "content": part.text})
        elif isinstance(part, Audio) and part.transcript:
            items.append({"role": "assistant", "content": part.transcript})
        elif isinstance(part, (Image, Audio)):
            raise UnsupportedParameter(target, (f"{type(part).__name__.lower()} of the assistant",))
        else:
            raise InvalidArgument(where, f"a {type(part).__name__} in an assistant message", "a user or tool message")
    return items


def _said(part: Text, items: list[_Json]) -> None:
    ours = part.meta.get(FORMAT)
    if ours is None:  # another format's words
        if part.text:
            items.append({"role": "assistant", "content": part.text})
        return
    content = {"type": "output_text", "text": part.text, "annotations": ours.get("annotations", [])}
    item = ours.get("item", {})
    last = items[-1] if items else {}
    if last.get("type") == "message" and item.get("id") and last.get("id") == item["id"]:
        last["content"].append(content)  # the second text of one message
    else:
        items.append({**item, "type": "message", "role": "assistant", "content": [content]})


def _call(part: ToolCall) -> _Json:
    ours = part.meta.get(FORMAT, {})
    if ours.get("type") == "custom_tool_call":
        return {**ours, "call_id": part.id, "name": part.name, "input": part.arguments}
    return {**ours, "type": "function_call", "call_id": part.id, "name": part.name, "arguments": part.arguments or "{}"}

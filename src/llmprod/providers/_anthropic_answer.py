"""From Anthropic's messages, whole or streamed, to events. A whole message is read as the stream that it would be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from pydantic_core import from_json, to_json

from llmprod.errors import ProtocolError, TruncatedAnswer
from llmprod.events import (
    Event,
    Finish,
    PartDone,
    RefusalDelta,
    Start,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallDone,
    UsageUpdate,
)
from llmprod.providers._anthropic_errors import error_from
from llmprod.providers._anthropic_request import FORMAT, MODEL
from llmprod.providers._codec import StreamDecoder
from llmprod.providers._json import as_dict, as_list
from llmprod.types import Opaque, Text, Thinking, ToolCall
from llmprod.usage import FinishReason, Usage, count_of, special_tier

__all__ = ["MessageDecoder", "add_counts", "decode_message", "usage_of"]

_REASONS: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "pause_turn": "pause",
    "refusal": "refusal",
    "model_context_window_exceeded": "context_overflow",
}


class _Block:
    """A content block that is being written."""

    __slots__ = ("kind", "part", "pieces", "wire")

    def __init__(self, wire: dict[str, Any], part: int) -> None:
        self.wire = wire
        self.part = part
        self.kind: str = wire["type"]
        self.pieces: list[str] = []


class MessageDecoder(StreamDecoder):
    """Decodes one message. Each content block is a part, in the order in which they begin.

    ``raw_finish`` is the API's ``stop_reason``; a refusal whose policy category is told reads ``refusal:<category>``.
    """

    def __init__(self) -> None:
        self._open: dict[int, _Block] = {}
        self._blocks = 0
        self._counts: dict[str, Any] = {}
        self._model: str | None = None
        self._stop: str | None = None
        self._details: Mapping[str, Any] = {}

    def feed(self, name: bytes, data: bytes) -> Sequence[Event]:
        """Decode one server-sent event."""
        try:
            event = from_json(data)
        except ValueError:
            if data.strip() == b"[DONE]":  # compatible servers close with OpenAI's mark
                return ()
            raise ProtocolError(detail="an event that is no JSON", in_stream=True) from None
        try:
            kind = event.get("type")
            if kind == "content_block_delta":
                return self._delta(event["index"], event["delta"])
            return self._other(kind if kind is not None else name.decode(), event)
        except (KeyError, TypeError, AttributeError, ValueError):
            raise ProtocolError(detail="a malformed event", in_stream=True) from None

    def _delta(self, index: int, delta: dict[str, Any]) -> Sequence[Event]:
        block = self._open[index]
        kind = delta["type"]
        if kind == "text_delta":
            block.pieces.append(text := _string(delta["text"]))
            return (TextDelta(text, block.part),) if text else ()
        if kind == "input_json_delta":
            block.pieces.append(text := _string(delta["partial_json"]))
            return (ToolCallDelta(block.part, arguments=text),) if text and block.kind == "tool_use" else ()
        if kind == "thinking_delta":
            block.pieces.append(text := _string(delta["thinking"]))
            return (ThinkingDelta(text, block.part),) if text else ()
        if kind == "signature_delta":
            block.wire["signature"] = delta["signature"]
        elif kind == "citations_delta":
            block.wire["citations"] = [*(block.wire.get("citations") or ()), delta["citation"]]
        elif block.kind not in ("text", "thinking", "tool_use"):
            # Blocks that are kept unread, such as compaction: their deltas bring whole fields.
            block.wire.update({key: value for key, value in delta.items() if key != "type"})
        return ()

    def _other(self, kind: str, event: dict[str, Any]) -> Sequence[Event]:
        if kind == "content_block_start":
            return self.start(event["index"], event["content_block"])
        if kind == "content_block_stop":
            return self.stop(event["index"])
        if kind == "message_start":
            return self.begin(event["message"])
        if kind == "message_delta":
            delta = event["delta"]
            return self.change(delta.get("stop_reason"), delta.get("stop_details"), event.get("usage"))
        if kind == "message_stop":
            self.finished = self.done = True
        elif kind == "error" or ("error" in event and "type" not in event):
            raise error_from(None, {}, event, in_stream=True)
        return ()  # pings, events yet to be invented, and the chunks without a type that some clouds add

    def begin(self, message: Mapping[str, Any]) -> Sequence[Event]:
        """Take the message without its content."""
        self._model = message.get("model")
        return [Start(self._model, message.get("id")), *self._count(message.get("usage"))]

    def start(self, index: int, wire: Mapping[str, Any]) -> Sequence[Event]:
        """Open a content block; it may be whole already."""
        part = self._blocks
        events = list(self.stop(index)) if index in self._open else []
        block = self._open[index] = _Block(dict(wire), part)
        self._blocks += 1
        if block.kind == "text":
            block.pieces.append(text := _string(wire.get("text") or ""))
            if text:
                events.append(TextDelta(text, part))
        elif block.kind == "thinking":
            block.pieces.append(text := _string(wire.get("thinking") or ""))
            if text:
                events.append(ThinkingDelta(text, part))
        elif block.kind == "tool_use":
            events.append(ToolCallDelta(part, _string(wire["id"]), _string(wire["name"])))
        return events

    def stop(self, index: int) -> Sequence[Event]:
        """Close a content block."""
        block = self._open.pop(index)
        wire, part, text = block.wire, block.part, "".join(block.pieces)
        if block.kind == "text":
            more = _more(wire, "type", "text")
            return (PartDone(Text(text, meta={FORMAT: more}), part),) if more else ()
        if block.kind == "thinking":
            wire["thinking"] = text
            return (PartDone(Thinking(text, meta=self._signed(wire)), part),)
        if block.kind == "redacted_thinking":
            return (PartDone(Thinking("", meta=self._signed(wire)), part),)
        if block.kind == "tool_use":
            whole = wire.get("input")
            arguments = text or (to_json(whole).decode() if whole else "{}")
            more = _more(wire, "type", "id", "name", "input")
            call = ToolCall(wire["id"], wire["name"], arguments, meta={FORMAT: more} if more else {})
            return (ToolCallDone(call, part),)
        if text:
            wire["input"] = from_json(text)
        return (PartDone(Opaque(block.kind, {FORMAT: wire}), part),)

    def _signed(self, wire: dict[str, Any]) -> dict[str, Mapping[str, Any]]:
        return {FORMAT: wire, MODEL: {"id": self._model}} if self._model else {FORMAT: wire}

    def change(self, stop: str | None, details: Mapping[str, Any] | None, counts: Any) -> Sequence[Event]:
        """Take why the message ended and what it used."""
        if stop is not None:
            self._stop = _string(stop)
            self._details = details or {}
            self.finished = True
        return self._count(counts)

    def _count(self, told: Any) -> list[Event]:
        if not isinstance(told, dict) or not told:
            return []
        add_counts(self._counts, cast("dict[str, Any]", told))
        return [UsageUpdate(usage_of(self._counts))]

    def end(self) -> Sequence[Event]:
        """Return what remains, with Finish last."""
        if not self.finished:
            raise TruncatedAnswer(in_stream=True)
        events: list[Event] = []
        for index in sorted(self._open):
            try:
                events.extend(self.stop(index))
            except (KeyError, ValueError):
                raise ProtocolError(detail="a malformed event", in_stream=True) from None
        raw = self._stop
        if raw == "refusal":
            if self._details.get("explanation"):
                events.append(RefusalDelta(str(self._details["explanation"]), self._blocks))
            if self._details.get("category"):
                raw = f"refusal:{self._details['category']}"
        events.append(Finish(_REASONS.get(self._stop or "", "unknown"), raw))
        return events


def decode_message(body: Any) -> Sequence[Event]:
    """Decode a whole message.

    Raises:
        CallError: it is an error.
        ProtocolError: it is no message.
        TruncatedAnswer: it does not say why it ended.
    """
    if not isinstance(body, dict):
        raise ProtocolError(detail="JSON that is no message")
    message = cast("dict[str, Any]", body)
    if "content" not in message and ("error" in message or message.get("type") == "error"):
        raise error_from(None, {}, message)
    decoder = MessageDecoder()
    try:
        events = list(decoder.begin(message))
        for index, block in enumerate(message["content"]):
            events += decoder.start(index, block)
            events += decoder.stop(index)
        decoder.change(message.get("stop_reason"), message.get("stop_details"), None)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ProtocolError(detail="JSON that is no message") from None
    if not decoder.finished:
        raise TruncatedAnswer(detail="no stop reason")
    return [*events, *decoder.end()]


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _more(wire: Mapping[str, Any], *known: str) -> dict[str, Any]:
    return {key: value for key, value in wire.items() if key not in known and value not in (None, [])}


# ---- usage ----------------------------------------------------------------------------------------------------------


def usage_of(counts: Mapping[str, Any]) -> Usage:
    """Return usage in disjoint buckets.

    ``input_tokens`` leaves out what the cache read and wrote; ``output_tokens`` holds the thinking. What a compaction
    used stands in ``iterations`` alone and is added. What an advisor used is another model's and not added; that it was
    asked counts as a use of a tool, which has no price, so that such a call's cost is unknown rather than too low.
    """
    lifetimes = as_dict(counts.get("cache_creation"))
    short, long = _int(lifetimes, "ephemeral_5m_input_tokens"), _int(lifetimes, "ephemeral_1h_input_tokens")
    written = _int(counts, "cache_creation_input_tokens")
    if "cache_creation_input_tokens" in counts and short + long > written:
        short = long = 0  # the split is older than the total
    output = _int(counts, "output_tokens")
    thinking = min(output, _int(as_dict(counts.get("output_tokens_details")), "thinking_tokens"))
    steps = [as_dict(step) for step in as_list(counts.get("iterations"))]
    tools = {
        name.removesuffix("_requests"): uses
        for name, value in as_dict(counts.get("server_tool_use")).items()
        if (uses := count_of(value))
    }
    if asked := sum(step.get("type") == "advisor_message" for step in steps):
        tools["advisor"] = asked
    usage = Usage(
        input=_int(counts, "input_tokens"),
        cache_read=_int(counts, "cache_read_input_tokens"),
        cache_write=max(0, written - short - long),
        cache_write_5m=short,
        cache_write_1h=long,
        output=output - thinking,
        reasoning=thinking,
        server_tools=tools,
        tier=special_tier(counts.get("speed")) or special_tier(counts.get("service_tier")),
    )
    for step in steps:
        if step.get("type") == "compaction":
            usage = replace(usage + usage_of(step), tier=usage.tier)
    return usage


_PROMPT = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def add_counts(counts: dict[str, Any], told: Mapping[str, Any]) -> None:
    """Take a stream's later report into ``counts``.

    It holds totals so far, which replace; what it leaves out, as the lifetimes of cache writes, stands. So does the
    prompt that was told first where a gateway closes with a prompt of nothing.
    """
    prompt = any(told.get(name) for name in _PROMPT)
    for key, value in told.items():
        if value is not None and (prompt or key not in _PROMPT or key not in counts):
            counts[key] = value


def _int(counts: Mapping[str, Any], name: str) -> int:
    return count_of(counts.get(name)) or 0

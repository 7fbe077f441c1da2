"""From the Responses API's events, and from its whole answers, to events.

Both end in the same finished items, so both give the same parts. A part is an item, or one content of a message item;
parts are numbered as they begin, which is the items' order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from llmprod.errors import CallError, ProtocolError, TruncatedAnswer
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
from llmprod.providers._codec import StreamDecoder
from llmprod.providers._json import as_dict, as_list
from llmprod.providers._openai_errors import is_error, openai_error, unexpected
from llmprod.providers._openai_responses_items import FORMAT
from llmprod.providers._openai_usage import logprobs_of, usage_of
from llmprod.types import Opaque, Refusal, Text, Thinking, ToolCall
from llmprod.usage import FinishReason

__all__ = ["ResponsesDecoder"]

_INCOMPLETE: dict[str, FinishReason] = {
    "max_output_tokens": "length", "max_messages": "length", "content_filter": "content_filter", "steered": "pause",
}  # fmt: skip
_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
"""Items that ask the caller to run a tool, and their field with the arguments."""


class ResponsesDecoder(StreamDecoder):
    """One answer."""

    def __init__(self) -> None:
        self._in_stream = True
        self._started = False
        self._numbers: dict[tuple[Any, Any], int] = {}
        self._told: set[int] = set()
        """Parts of which a piece was handed out."""
        self._items: dict[Any, dict[str, Any]] = {}
        """Items that have begun, by place."""
        self._places: dict[Any, Any] = {}
        """Their places by id."""
        self._ended: set[Any] = set()
        """Places of finished items."""
        self._summary: dict[int, Any] = {}
        """Which paragraph of the thinking was told last."""
        self._arguments: dict[Any, list[str]] = {}
        self._has_calls = False
        self._refused = False
        self._finish: Finish | None = None

    # ---- reading ----------------------------------------------------------------------------------------------------

    def feed(self, name: bytes, data: bytes) -> Sequence[Event]:
        """Decode one event. Unknown types are skipped: the API adds some, and the finished items tell it all."""
        if self.done:
            return ()
        try:
            event = from_json(data)
        except ValueError:
            return self._marker(data)
        try:
            kind = event.get("type") or name.decode()
            if kind == "response.output_text.delta":
                return self._text(event)
            events: list[Event] = []
            handler = _HANDLERS.get(kind)
            if handler is not None:
                handler(self, event, events)
            elif is_error(event) or kind == "error":
                raise openai_error(None, {}, event, in_stream=True)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise unexpected("an event of an unexpected form", in_stream=True) from error
        return events

    def _marker(self, data: bytes) -> Sequence[Event]:
        stripped = data.strip()
        if stripped.startswith(b"[DONE]"):  # not this API's, but its imitators send it
            self.done = True
        elif stripped:
            raise ProtocolError(detail="an event that is no JSON", in_stream=True)
        return ()

    def whole(self, body: Any) -> list[Event]:
        """Decode a whole answer; the last event is Finish."""
        self._in_stream = False
        events: list[Event] = []
        try:
            if not is_error(body) and not isinstance(body.get("output"), list):
                raise unexpected("an answer without output", in_stream=False)
            self._start({"response": body}, events)
            self._end(body, body.get("status"), events)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise unexpected("an answer of an unexpected form", in_stream=False) from error
        return [*events, *self.end()]

    def end(self) -> Sequence[Event]:
        """Return Finish."""
        if self._finish is None:
            raise TruncatedAnswer(detail="no terminal event", in_stream=self._in_stream)
        return (self._finish,)

    # ---- the answer as a whole --------------------------------------------------------------------------------------

    def _start(self, event: Any, events: list[Event]) -> None:
        response = as_dict(event.get("response"))
        if not self._started:
            self._started = True
            events.append(Start(response.get("model") or None, response.get("id") or None))

    def _terminal(self, event: Any, events: list[Event]) -> None:
        response = as_dict(event.get("response"))
        self._start(event, events)
        self._end(response, event["type"].rpartition(".")[2], events)

    def _end(self, response: dict[str, Any], status: Any, events: list[Event]) -> None:
        usage = usage_of(
            response.get("usage"),
            response.get("tool_usage"),
            response.get("service_tier"),
            [as_dict(item).get("type") for item in as_list(response.get("output"))],
        )
        if status in ("failed", "cancelled") or is_error(response):
            raise self._failed(response, status, usage)
        for place, item in enumerate(as_list(response.get("output"))):
            self._item_done({"output_index": place, "item": item}, events)
        for place in sorted(self._items.keys() - self._ended):
            self._left_open(place, events)
        if usage is not None:
            events.append(UsageUpdate(usage))
        reason = self._reason(response, status)
        if reason is not None:
            self._finish = reason
            self.finished = self.done = True

    def _reason(self, response: dict[str, Any], status: Any) -> Finish | None:
        if status == "completed":
            return Finish("tool_calls" if self._has_calls else "refusal" if self._refused else "stop", "completed")
        if status == "incomplete":
            raw = as_dict(response.get("incomplete_details")).get("reason")
            return Finish(_INCOMPLETE.get(raw or "", "unknown"), raw or "incomplete")
        return None

    def _failed(self, response: dict[str, Any], status: Any, usage: Any) -> CallError:
        told = response if is_error(response) else {"code": str(status)}
        error = openai_error(None, {}, told, in_stream=self._in_stream)
        error.usage = usage
        return error

    # ---- pieces -----------------------------------------------------------------------------------------------------

    def _number(self, place: Any, content: Any = None) -> int:
        number = self._numbers.get((place, content))
        if number is None:
            number = self._numbers[place, content] = len(self._numbers)
        return number

    def _place(self, event: Any) -> Any:
        place = event.get("output_index")
        return place if place is not None else self._places.get(event.get("item_id"), 0)

    def _text(self, event: Any) -> Sequence[Event]:
        text = event["delta"]
        told = event.get("logprobs")
        if not text and not told:
            return ()
        part = self._numbers.get((event.get("output_index"), event.get("content_index")))
        if part is None:
            part = self._number(self._place(event), event.get("content_index", 0))
        self._told.add(part)
        return (TextDelta(text, part, logprobs_of(told) if told else ()),)

    def _refusal(self, event: Any, events: list[Event]) -> None:
        part = self._number(self._place(event), event.get("content_index", 0))
        self._told.add(part)
        self._refused = True
        events.append(RefusalDelta(event["delta"], part))

    def _thinking(self, event: Any, events: list[Event]) -> None:
        part = self._number(self._place(event))
        paragraph = ("summary_index" in event, event.get("summary_index", event.get("content_index")))
        text = event["delta"]
        if part in self._told and self._summary.get(part) != paragraph:
            text = "\n\n" + text
        self._summary[part] = paragraph
        self._told.add(part)
        if text:
            events.append(ThinkingDelta(text, part))

    def _argument(self, event: Any, events: list[Event]) -> None:
        place = self._place(event)
        self._arguments.setdefault(place, []).append(event["delta"])
        events.append(ToolCallDelta(self._number(place), arguments=event["delta"]))

    # ---- items ------------------------------------------------------------------------------------------------------

    def _item_added(self, event: Any, events: list[Event]) -> None:
        item, place = event["item"], event.get("output_index", len(self._items))
        self._items[place] = item
        self._places[item.get("id")] = place
        if item.get("type") != "message":
            part = self._number(place)
            if item.get("type") in _CALLS:
                self._has_calls = True
                events.append(ToolCallDelta(part, item.get("call_id"), item.get("name")))
                self._told.add(part)

    def _content_added(self, event: Any, events: list[Event]) -> None:
        item = self._items.get(self._place(event), {})
        if item.get("type", "message") == "message":
            self._number(self._place(event), event.get("content_index", 0))

    def _item_done(self, event: Any, events: list[Event]) -> None:
        item = event["item"]
        place = event.get("output_index", self._places.get(item.get("id"), len(self._items)))
        if place in self._ended:
            return
        self._ended.add(place)
        self._items[place] = item
        kind = item.get("type")
        if kind == "message":
            for index, content in enumerate(item.get("content") or ()):
                self._content_done(item, content, self._number(place, index), events)
            return
        part = self._number(place)
        if kind == "reasoning":
            text = "\n\n".join(
                piece["text"] for piece in [*as_list(item.get("summary")), *as_list(item.get("content"))]
            )
            if text and part not in self._told:
                events.append(ThinkingDelta(text, part))
            events.append(PartDone(Thinking(text, meta={FORMAT: {"item": item}}), part))
        elif kind in _CALLS:
            self._call_done(item, part, events)
        else:
            events.append(PartDone(Opaque(str(kind), meta={FORMAT: {"item": item}}), part))

    def _content_done(self, item: dict[str, Any], content: Any, part: int, events: list[Event]) -> None:
        if content.get("type") == "refusal":
            self._refused = True
            refusal = content.get("refusal") or ""
            if part not in self._told and refusal:
                events.append(RefusalDelta(refusal, part))
            events.append(PartDone(Refusal(refusal), part))
            return
        text = content.get("text") or ""
        if part not in self._told and text:
            events.append(TextDelta(text, part, logprobs_of(content.get("logprobs"))))
        about = {key: value for key, value in item.items() if key not in ("content", "role", "type")}
        meta = {FORMAT: {"item": about, "annotations": as_list(content.get("annotations"))}}
        events.append(PartDone(Text(text, meta=meta), part))

    def _call_done(self, item: dict[str, Any], part: int, events: list[Event]) -> None:
        self._has_calls = True
        field = _CALLS[item["type"]]
        about = {key: value for key, value in item.items() if key not in ("call_id", "name", field)}
        arguments = item.get(field) or ("{}" if field == "arguments" else "")
        call = ToolCall(
            item.get("call_id") or item.get("id") or f"call_{part}", item["name"], arguments, meta={FORMAT: about}
        )
        events.append(ToolCallDone(call, part))

    def _left_open(self, place: Any, events: list[Event]) -> None:
        """Finish a call that the server neither finished nor listed at the end, as some imitators leave it."""
        item = self._items[place]
        field = _CALLS.get(item.get("type", ""))
        if field is not None:
            self._call_done({**item, field: "".join(self._arguments.get(place, ()))}, self._number(place), events)


_HANDLERS = {
    "response.created": ResponsesDecoder._start,
    "response.queued": ResponsesDecoder._start,
    "response.in_progress": ResponsesDecoder._start,
    "response.completed": ResponsesDecoder._terminal,
    "response.incomplete": ResponsesDecoder._terminal,
    "response.failed": ResponsesDecoder._terminal,
    "response.cancelled": ResponsesDecoder._terminal,
    "response.output_item.added": ResponsesDecoder._item_added,
    "response.output_item.done": ResponsesDecoder._item_done,
    "response.content_part.added": ResponsesDecoder._content_added,
    "response.refusal.delta": ResponsesDecoder._refusal,
    "response.reasoning_summary_text.delta": ResponsesDecoder._thinking,
    "response.reasoning_text.delta": ResponsesDecoder._thinking,
    "response.function_call_arguments.delta": ResponsesDecoder._argument,
    "response.custom_tool_call_input.delta": ResponsesDecoder._argument,
}

"""Text, usage and the proper end of a stream, read from the chunks of the vendors' SDKs as they pass by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmprod._functions.sdk import (
    REFUSAL,
    TEXT,
    THINKING,
    Shape,
    anthropic_finish,
    chat_finish,
    chat_text,
    failure,
    get,
    items_of,
    plain,
    read_google,
    responses_finish,
    shape_of,
    string,
    usage_of,
)
from llmprod.events import (
    CONTENT,
    Event,
    Finish,
    RefusalDelta,
    Reset,
    Seam,
    Start,
    TextDelta,
    ThinkingDelta,
    UsageUpdate,
)
from llmprod.providers import _anthropic_answer

__all__ = ["StreamReader", "from_sdk"]

_SDKS = ("openai", "anthropic", "google")
_EVENTS = frozenset({Start, UsageUpdate, Seam, Reset, *CONTENT})
_ANTHROPIC = frozenset({
    "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
    "message_stop",
})  # fmt: skip
_HELPERS = frozenset({"text", "thinking", "input_json", "citation", "signature"})
"""What Anthropic's and OpenAI's stream helpers make of the chunk before, beside the chunk itself."""


def from_sdk(value: Any) -> bool:
    """True for a stream of a vendor's SDK, known even where it yields nothing."""
    module = type(value).__module__
    for frame in ("gi_frame", "ag_frame"):  # Google's streams are plain generators
        globals_: Any = getattr(getattr(value, frame, None), "f_globals", None)
        if globals_ is not None:
            module = globals_.get("__name__", module)
    return str(module).partition(".")[0] in _SDKS


class StreamReader:
    """Reads one stream.

    Attributes:
        recognised: it is one of an API that marks its end.
        finished: that mark has come.
        committed: something has come that the caller can't be shown twice.
    """

    def __init__(self, *, recognised: bool = False, check: bool = True) -> None:
        self.recognised = recognised
        self.finished = False
        self.committed = False
        self._check = check
        self._counts: dict[str, Any] = {}
        self._started = False
        self._called = False

    def feed(self, item: Any) -> list[Event]:
        """Return what ``item`` says.

        Raises:
            CallError: the provider reports a failure inside the stream.
        """
        events = self._read(item)
        if events:
            self.finished = self.finished or any(type(event) is Finish for event in events)
            self.committed = self.committed or any(_shows(event) for event in events)
        return events

    def _read(self, item: Any) -> list[Event]:
        if isinstance(item, str):
            return [TextDelta(item, TEXT)] if item else []
        if item is None:
            return []
        if type(item) in _EVENTS:
            self.recognised = True  # the function passes on events of this library
            return [item]
        read = self._reader_of(item)
        if read is None:
            self.committed = True  # unknown: it may mean anything to the caller
            return []
        self.recognised = True
        return read(item)

    def _reader_of(self, item: Any) -> Callable[[Any], list[Event]] | None:
        kind = get(item, "type")
        if isinstance(kind, str):
            if kind in _ANTHROPIC:
                return self._anthropic
            if kind.startswith("response.") or (kind == "error" and get(item, "sequence_number") is not None):
                return self._responses
            if kind == "chunk" and get(item, "chunk") is not None:
                return self._chunk_within
            if self.recognised and (kind in _HELPERS or "." in kind or kind == "ping"):
                return _nothing
        shape = shape_of(item)
        if shape is Shape.CHAT or get(item, "object") == "chat.completion.chunk":
            return self._chat
        return self._google if shape is Shape.GOOGLE else None

    def _start(self, model: Any, answer_id: Any) -> list[Event]:
        if self._started:
            return []
        self._started = True
        return [Start(string(model) or None, string(answer_id) or None)]

    def _usage(self, shape: Shape, value: Any) -> list[Event]:
        usage = usage_of(shape, value)
        return [] if usage is None else [UsageUpdate(usage)]

    def _chunk_within(self, item: Any) -> list[Event]:
        return self._chat(get(item, "chunk"))

    def _chat(self, chunk: Any) -> list[Event]:
        choices = items_of(get(chunk, "choices"))
        if self._check and not choices and get(chunk, "error") is not None:
            raise failure(get(chunk, "error"), in_stream=True)
        events = self._start(get(chunk, "model"), get(chunk, "id")) if choices else []
        for choice in choices:
            delta = get(choice, "delta")
            thinking, text = string(get(delta, "reasoning_content", "reasoning")), chat_text(get(delta, "content"))
            if get(choice, "index") in (0, None):
                events += [ThinkingDelta(thinking, THINKING)] if thinking else []
                events += [TextDelta(text, TEXT)] if text else []
                refusal = string(get(delta, "refusal"))
                events += [RefusalDelta(refusal, REFUSAL)] if refusal else []
                if string(get(choice, "finish_reason")):
                    events.append(chat_finish(get(choice, "finish_reason")))
            elif text:
                self.committed = True
            if get(delta, "tool_calls", "function_call", "audio"):
                self.committed = True
        return events + self._usage(Shape.CHAT, chunk)

    def _responses(self, event: Any) -> list[Event]:
        kind = string(get(event, "type"))
        response = get(event, "response")
        if kind in ("response.failed", "error"):
            if self._check:
                raise failure(get(response, "error") or event, in_stream=True)
            return [*self._usage(Shape.RESPONSES, response), Finish("error", kind)]
        if kind in ("response.completed", "response.incomplete"):
            return [*self._usage(Shape.RESPONSES, response), responses_finish(response)]
        if kind == "response.created":
            return self._start(get(response, "model"), get(response, "id"))
        delta = string(get(event, "delta"))
        if not delta:
            return []
        if kind == "response.output_text.delta":
            return [TextDelta(delta, TEXT)]
        if kind == "response.refusal.delta":
            return [RefusalDelta(delta, REFUSAL)]
        if kind.startswith("response.reasoning"):
            return [ThinkingDelta(delta, THINKING)]
        self.committed = True
        return []

    def _anthropic(self, event: Any) -> list[Event]:
        kind = get(event, "type")
        if kind == "message_start":
            message = get(event, "message")
            return [*self._start(get(message, "model"), get(message, "id")), *self._count(message)]
        if kind == "content_block_delta":
            return self._delta(get(event, "delta"))
        if kind == "content_block_start":
            block = get(event, "content_block")
            text = string(get(block, "text"))
            if get(block, "type") not in ("text", "thinking"):
                self.committed = True
            return [TextDelta(text, TEXT)] if text else []
        if kind == "message_delta":
            raw = get(get(event, "delta"), "stop_reason")
            return [*self._count(event), *([anthropic_finish(raw)] if raw else [])]
        # The stop of a message that gave no reason is still its proper end.
        return [Finish("unknown")] if kind == "message_stop" and not self.finished else []

    def _delta(self, delta: Any) -> list[Event]:
        text, thinking = string(get(delta, "text")), string(get(delta, "thinking"))
        if text:
            return [TextDelta(text, TEXT)]
        if thinking:
            return [ThinkingDelta(thinking, THINKING)]
        self.committed = True
        return []

    def _count(self, carrier: Any) -> list[Event]:
        _anthropic_answer.add_counts(self._counts, plain(get(carrier, "usage")))
        return [UsageUpdate(_anthropic_answer.usage_of(self._counts))] if self._counts else []

    def _google(self, chunk: Any) -> list[Event]:
        events = self._start(get(chunk, "model_version", "modelVersion"), get(chunk, "response_id", "responseId"))
        finish = read_google(chunk, events)
        for candidate in items_of(get(chunk, "candidates")):
            for part in items_of(get(get(candidate, "content"), "parts")):
                self._called = self._called or get(part, "function_call", "functionCall") is not None
                if get(part, "text") is None and get(part, "thought_signature", "thoughtSignature") is None:
                    self.committed = True
        events += self._usage(Shape.GOOGLE, chunk)
        if finish is None:
            return events
        # The calls may have come in an earlier chunk, and the finish is STOP all the same.
        return [*events, Finish("tool_calls", finish.raw) if self._called and finish.reason == "stop" else finish]


def _nothing(_: Any) -> list[Event]:
    return []


def _shows(event: Event) -> bool:
    return type(event) in CONTENT

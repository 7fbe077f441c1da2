"""From Gemini's answers, whole or streamed, to events. A whole answer is read as a stream of one chunk."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic_core import from_json, to_json

from llmprod.errors import ProtocolError, TruncatedAnswer
from llmprod.events import (
    Event,
    Finish,
    PartDone,
    Start,
    TextDelta,
    ThinkingDelta,
    TokenLogprob,
    ToolCallDone,
    UsageUpdate,
)
from llmprod.providers._codec import StreamDecoder
from llmprod.providers._google_errors import error_from
from llmprod.providers._google_request import FORMAT, MADE_UP
from llmprod.providers._google_usage import searches_of, usage_of
from llmprod.providers._json import as_dict, as_list
from llmprod.types import Audio, File, Image, Meta, Opaque, Text, Thinking, ToolCall
from llmprod.usage import FinishReason

__all__ = ["ChunkDecoder", "decode_answer"]

_REASONS: dict[str, FinishReason] = {
    "STOP": "stop",  # also after function calls
    "MAX_TOKENS": "length",
    "CONTINUATION": "pause",
    **dict.fromkeys(
        (
            "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR", "ESCALATION",
            "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "PUP_LIMITED_DISABLED",
        ),
        "content_filter",
    ),
    **dict.fromkeys(
        (
            "LANGUAGE", "OTHER", "MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS",
            "MISSING_THOUGHT_SIGNATURE", "MALFORMED_RESPONSE", "IMAGE_OTHER", "NO_IMAGE",
        ),
        "error",
    ),
}  # fmt: skip
_KNOWN = {"candidates", "promptFeedback", "usageMetadata", "modelVersion", "responseId", "modelStatus", "createTime"}
_URL_SAFE = str.maketrans("-_", "+/")
_SIDE = {"thought", "thoughtSignature", "partMetadata"}
"""Keys of a part that say something about it rather than being its content."""


class ChunkDecoder(StreamDecoder):
    """Decodes one answer: its first candidate.

    Consecutive pieces of text are one part, and so are those of thinking; a piece with a signature, which goes back on
    the very part that it came on, stands alone. ``raw_finish`` is ``finishReason``, or ``blockReason`` of a prompt
    that was refused.
    """

    def __init__(self) -> None:
        self._part = -1
        self._kind: type[TextDelta | ThinkingDelta] | None = None
        self._calls = 0
        self._id: str | None = None
        self._started = False
        self._finish: tuple[FinishReason, str] | None = None
        self._queries: list[Any] = []

    def feed(self, name: bytes, data: bytes) -> Sequence[Event]:
        """Decode one server-sent event."""
        try:
            chunk = from_json(data)
        except ValueError:
            if data.strip() == b"[DONE]":  # gateways close with OpenAI's mark
                return ()
            raise ProtocolError(detail="an event that is no JSON", in_stream=True) from None
        return self.take(chunk, in_stream=True)

    def take(self, chunk: Any, *, in_stream: bool) -> Sequence[Event]:
        """Decode one chunk.

        Raises:
            CallError: it is an error.
            ProtocolError: it is no chunk.
        """
        try:
            events: list[Event] = []
            candidates = chunk.get("candidates")
            if "error" in chunk:
                raise error_from(None, {}, chunk, in_stream=in_stream)
            if candidates is None and _KNOWN.isdisjoint(chunk):
                raise KeyError("candidates")
            if not self._started:
                self._started = True
                self._id = chunk.get("responseId")
                events.append(Start(chunk.get("modelVersion"), self._id))
            if candidates:
                candidate = candidates[0]
                if candidate.get("index") or len(candidates) > 1:
                    candidate = next((item for item in candidates if not item.get("index")), None)
                if candidate is not None:
                    self._candidate(candidate, events)
            feedback = chunk.get("promptFeedback")
            if feedback and feedback.get("blockReason"):
                self._finish = ("content_filter", _string(feedback["blockReason"]))
                self.finished = True
            counts = as_dict(chunk.get("usageMetadata"))
            if counts:  # totals so far: the last counts
                searches = searches_of(self._queries, chunk.get("modelVersion"))
                events.append(UsageUpdate(usage_of(counts, searches)))
            return events
        except (KeyError, TypeError, AttributeError, ValueError, IndexError):
            what = "a malformed event" if in_stream else "JSON that is no answer"
            raise ProtocolError(detail=what, in_stream=in_stream) from None

    def _candidate(self, candidate: Mapping[str, Any], events: list[Event]) -> None:
        grounding = candidate.get("groundingMetadata")
        if grounding:
            self._queries += as_list(as_dict(grounding).get("webSearchQueries"))
        content = candidate.get("content")
        if content:
            for part in content.get("parts") or ():
                text = part.get("text")
                if text is None:
                    if part:
                        self._other(part, events)
                elif len(part) == 1:
                    self._text(TextDelta, _string(text), events)
                else:
                    self._marked(_string(text), part, events)
        scores = candidate.get("logprobsResult")
        if scores:
            delta = next((event for event in events if type(event) is TextDelta), None)
            if delta is not None:
                delta.logprobs = _logprobs(scores)
        reason = candidate.get("finishReason")
        if reason:
            self._finish = (_REASONS.get(reason, "unknown"), _string(reason))
            self.finished = True

    def _text(self, kind: type[TextDelta | ThinkingDelta], text: str, events: list[Event]) -> None:
        if text:
            if self._kind is not kind:
                self._kind = kind
                self._part += 1
            events.append(kind(text, self._part))

    def _marked(self, text: str, part: Mapping[str, Any], events: list[Event]) -> None:
        """Take text that is thinking, is signed, or carries what later versions of the API may add."""
        kind = ThinkingDelta if part.get("thought") else TextDelta
        own = {key: value for key, value in part.items() if key != "text"}
        if own.keys() <= {"thought"}:
            self._text(kind, text, events)
            return
        number = self._next()
        if text:
            events.append(kind(text, number))
        make = Thinking if kind is ThinkingDelta else Text
        events.append(PartDone(make(text, meta={FORMAT: own}), number))

    def _other(self, part: Mapping[str, Any], events: list[Event]) -> None:
        number = self._next()
        call = part.get("functionCall")
        if call is not None:
            call_id = call.get("id") or f"{MADE_UP}{self._id or 'call'}_{self._calls}"
            self._calls += 1
            arguments = to_json(call.get("args") or {}).decode()
            own = {key: value for key, value in part.items() if key != "functionCall"}
            done = ToolCall(_string(call_id), _string(call["name"]), arguments, meta={FORMAT: own})
            events.append(ToolCallDone(done, number))
            return
        data = part.get("inlineData")
        if data is not None and not part.get("thought"):
            own = {key: value for key, value in part.items() if key != "inlineData"}
            events.append(PartDone(_media(data, {FORMAT: own} if own else {}), number))
            return
        content = next((key for key in part if key not in _SIDE), None)
        events.append(PartDone(Opaque(content or next(iter(part)), {FORMAT: part}), number))

    def _next(self) -> int:
        self._kind = None
        self._part += 1
        return self._part

    def end(self) -> Sequence[Event]:
        """Return Finish."""
        if self._finish is None:
            raise TruncatedAnswer(in_stream=True)
        reason, raw = self._finish
        return (Finish("tool_calls" if reason == "stop" and self._calls else reason, raw),)


def decode_answer(body: Any) -> Sequence[Event]:
    """Decode a whole answer; a list is the chunks of a stream that came as one JSON.

    Raises:
        CallError: it is an error.
        ProtocolError: it is no answer.
        TruncatedAnswer: it does not say why it ended.
    """
    decoder = ChunkDecoder()
    events: list[Event] = []
    for chunk in cast("Sequence[Any]", body) if isinstance(body, list) else (body,):
        events += decoder.take(chunk, in_stream=False)
    if not decoder.finished:
        raise TruncatedAnswer(detail="no finish reason")
    return [*events, *decoder.end()]


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _media(blob: Mapping[str, Any], meta: Meta) -> Image | Audio | File:
    kind = _string(blob["mimeType"])
    data = base64.b64decode(_string(blob["data"]).translate(_URL_SAFE), validate=True)
    if kind.startswith("image/"):
        return Image(data=data, media_type=kind, meta=meta)
    if kind.startswith("audio/"):
        return Audio(data=data, media_type=kind, meta=meta)
    return File(data=data, media_type=kind, meta=meta)


def _logprobs(scores: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
    tops = scores.get("topCandidates") or ()
    tokens: list[TokenLogprob] = []
    for place, chosen in enumerate(scores.get("chosenCandidates") or ()):
        top = (tops[place].get("candidates") or ()) if place < len(tops) else ()
        best = tuple((item.get("token", ""), item["logProbability"]) for item in top)
        tokens.append(TokenLogprob(chosen.get("token", ""), chosen["logProbability"], best))
    return tuple(tokens)

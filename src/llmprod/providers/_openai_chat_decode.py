"""From Chat Completions' chunks, and from its whole answers, to events.

A whole answer is decoded as a stream of one chunk, so that both give the same parts. Parts are numbered as they
begin; within one chunk thinking comes first, then text, refusal, sound, images and tool calls, which is also the order
in which servers stream them.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
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
    TokenLogprob,
    UsageUpdate,
)
from llmprod.providers._codec import StreamDecoder
from llmprod.providers._json import as_dict, as_list
from llmprod.providers._openai_chat_messages import FORMAT
from llmprod.providers._openai_errors import is_error, openai_error, unexpected
from llmprod.providers._openai_profile import Profile
from llmprod.providers._openai_tool_calls import ToolCalls
from llmprod.providers._openai_usage import FINISH_REASONS, logprobs_of, usage_of
from llmprod.providers._think_tags import ThinkTags
from llmprod.types import Audio, Image, Text, Thinking
from llmprod.usage import FinishReason, Usage

__all__ = ["ChatDecoder"]


class ChatDecoder(StreamDecoder):
    """One answer.

    Args:
        profile: the server's ways.
        earlier_calls: tool calls in the conversation so far, to number made-up ids from.
        logprobs: they were asked for.
        sound: format of spoken answers, for their media type.
    """

    def __init__(self, profile: Profile, *, earlier_calls: int = 0, logprobs: bool = False, sound: str = "wav") -> None:
        self._profile = profile
        self._in_stream = True
        self._logprobs = logprobs
        self._sound = sound
        self._next_part = 0
        self._model: str | None = None
        self._begun = False
        self._plain = False
        """A chunk of nothing but text may take the short way."""
        self._text_part: int | None = None
        self._texts: list[str] = []
        self._held: list[TokenLogprob] = []
        self._annotations: list[Any] = []
        self._tags = ThinkTags() if profile.think_tags else None
        self._thinking_part: int | None = None
        self._thoughts: list[str] = []
        self._thought_field: str | None = None
        self._thought_details: list[dict[str, Any]] = []
        self._refusal_part: int | None = None
        self._audio_part: int | None = None
        self._audio: dict[str, Any] = {}
        self._audio_data: list[str] = []
        self._calls = ToolCalls(FORMAT, earlier_calls)
        self._usage: Usage | None = None
        self._finish: tuple[FinishReason, str | None] | None = None

    # ---- reading ----------------------------------------------------------------------------------------------------

    def feed(self, name: bytes, data: bytes) -> Sequence[Event]:
        """Decode one chunk."""
        if self.done:
            return ()
        try:
            chunk = from_json(data)
        except ValueError:
            return self._marker(data)
        try:
            if (
                self._plain
                and not isinstance(chunk, list)
                and "error" not in chunk
                and (choices := chunk.get("choices"))
            ):
                choice = choices[0]
                delta = choice.get("delta")
                if delta and choice.get("finish_reason") is None and len(delta) <= 1 + ("role" in delta):
                    text = delta.get("content")
                    if type(text) is str and text:
                        self._texts.append(text)
                        said = TextDelta(text, self._text_part or 0)
                        told = chunk.get("usage")
                        if told is None or (usage := usage_of(told, tier=chunk.get("service_tier"))) is None:
                            return (said,)
                        self._usage = usage
                        return said, UsageUpdate(usage)
            events: list[Event] = []
            told_by_name = name == b"error" and not is_error(chunk)
            self._chunk({"error": chunk} if told_by_name else chunk, "delta", events)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise unexpected("a chunk of an unexpected form", in_stream=self._in_stream) from error
        return events

    def _marker(self, data: bytes) -> Sequence[Event]:
        stripped = data.strip()
        if stripped.startswith(b"[DONE]"):
            self.done = True
        elif stripped:
            raise ProtocolError(detail="a chunk that is no JSON", in_stream=True)
        return ()

    def whole(self, body: Any) -> list[Event]:
        """Decode a whole answer; the last event is Finish."""
        self._in_stream = False
        events: list[Event] = []
        try:
            if not is_error(body) and not as_list(body.get("choices")):
                raise unexpected("an answer without choices", in_stream=False)
            self._chunk(body, "message", events)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise unexpected("an answer of an unexpected form", in_stream=False) from error
        self.done = True
        return [*events, *self.end()]

    def end(self) -> Sequence[Event]:
        """Return what is left, and Finish."""
        reason, raw = self._finish or self._assumed()
        events: list[Event] = []
        if self._tags is not None and not self._tags.settled:
            self._tagged(self._tags.end(), events)
        if self._held:
            self._say("", events)
        self._close(events)
        events.extend(self._calls.done())
        if reason == "stop" and self._calls:
            reason = "tool_calls"  # Ollama, and OpenAI where one function was forced
        elif reason == "stop" and self._refusal_part is not None:
            reason = "refusal"
        events.append(Finish(reason, raw))
        return events

    def _assumed(self) -> tuple[FinishReason, None]:
        """Return the end that ``[DONE]`` alone stands for, where it does."""
        if self.done and self._profile.done_ends and self._next_part:
            return "stop", None
        raise TruncatedAnswer(detail="no finish reason", in_stream=self._in_stream)

    # ---- one chunk --------------------------------------------------------------------------------------------------

    def _chunk(self, chunk: Any, field: str, events: list[Event]) -> None:
        if is_error(chunk):
            raise self._with_usage(openai_error(None, {}, chunk, in_stream=self._in_stream))
        if self._model is None:
            self._start(chunk, events)
        usage = usage_of(chunk.get("usage"), tier=chunk.get("service_tier"))
        if usage is not None:
            self._usage = usage
        choices = chunk.get("choices")
        if choices:
            choice = choices[0]
            told = choice.get("logprobs")
            if told and self._logprobs:
                self._held.extend(logprobs_of(told.get("content")))
            delta = choice.get(field)
            if delta:
                self._delta(delta, events)
            reason = choice.get("finish_reason")
            if reason:
                self._ended(reason, events)
        if usage is not None:
            events.append(UsageUpdate(usage))

    def _start(self, chunk: Any, events: list[Event]) -> None:
        model = chunk.get("model") or None
        if model or not self._begun:
            events.append(Start(model, chunk.get("id") or None))
        self._model, self._begun = model, True

    def _ended(self, raw: Any, events: list[Event]) -> None:
        word = str(raw)
        reason = self._profile.finish_reasons.get(word) or FINISH_REASONS.get(word.lower(), "unknown")
        if reason == "error":
            raise self._with_usage(openai_error(None, {}, {"code": word}, in_stream=self._in_stream))
        self._finish = (reason, word)
        self.finished = True
        events.extend(self._calls.done())

    def _with_usage(self, error: CallError) -> CallError:
        error.usage = self._usage
        return error

    def _new_part(self) -> int:
        part = self._next_part
        self._next_part += 1
        return part

    # ---- a message, or a piece of one -------------------------------------------------------------------------------

    def _delta(self, delta: Any, events: list[Event]) -> None:
        thought = next((field for field in self._profile.reasoning_fields if delta.get(field)), None)
        if thought is not None:
            self._thought_field = thought
            self._think(_plain_text(delta[thought]), events)
        if delta.get("reasoning_details"):
            self._details(delta["reasoning_details"], events)
        content = delta.get("content")
        if content:
            for kind, text in [("text", content)] if isinstance(content, str) else _content_parts(content):
                if kind == "thinking":
                    self._think(text, events)
                elif self._tags is not None and not self._tags.settled:
                    self._tagged(self._tags.feed(text), events)
                else:
                    self._say(text, events)
        if delta.get("refusal"):
            if self._refusal_part is None:
                self._refusal_part = self._new_part()
            events.append(RefusalDelta(delta["refusal"], self._refusal_part))
        if delta.get("annotations"):
            self._annotations.extend(delta["annotations"])
        if delta.get("audio"):
            self._hear(delta["audio"])
        events.extend(PartDone(_drawn(image), self._new_part()) for image in as_list(delta.get("images")))
        calls: list[Any] = delta.get("tool_calls") or []
        if delta.get("function_call"):  # before there were several
            calls = [{"index": 0, "function": delta["function_call"]}]
        for place, call in enumerate(calls):
            event = self._calls.feed(call, place, self._new_part)
            if event is not None:
                events.append(event)

    def _say(self, text: str, events: list[Event]) -> None:
        if not text and not self._held:
            return
        if self._text_part is None:
            self._text_part = self._new_part()
            self._plain = not self._logprobs
        held, self._held = tuple(self._held), []
        self._texts.append(text)
        events.append(TextDelta(text, self._text_part, held))

    def _tagged(self, pieces: list[tuple[bool, str]], events: list[Event]) -> None:
        for is_thinking, text in pieces:
            (self._think if is_thinking else self._say)(text, events)

    def _think(self, text: str, events: list[Event]) -> None:
        if self._thinking_part is None:
            self._thinking_part = self._new_part()
        if text:
            self._thoughts.append(text)
            events.append(ThinkingDelta(text, self._thinking_part))

    def _details(self, details: list[Any], events: list[Event]) -> None:
        """Put OpenRouter's blocks together: pieces of one block follow each other and share type and index."""
        self._think("", events)
        for piece in details:
            last = self._thought_details[-1] if self._thought_details else {}
            if piece.get("index") is None or any(piece.get(key) != last.get(key) for key in ("type", "index")):
                self._thought_details.append(dict(piece))
                continue
            for key, value in piece.items():
                grows = key in ("text", "summary", "data") and isinstance(value, str) and isinstance(last.get(key), str)
                if grows:
                    last[key] += value
                elif value is not None:
                    last[key] = value

    def _hear(self, audio: Any) -> None:
        if self._audio_part is None:
            self._audio_part = self._new_part()
        if audio.get("data"):
            self._audio_data.append(audio["data"])
        for key, value in audio.items():
            if key == "transcript":
                self._audio[key] = self._audio.get(key, "") + (value or "")
            elif key != "data" and value is not None:
                self._audio[key] = value

    # ---- parts whose whole says more than their pieces --------------------------------------------------------------

    def _close(self, events: list[Event]) -> None:
        if self._thinking_part is not None:
            ours: dict[str, Any] = {}
            if self._thought_field is not None:
                ours["field"] = self._thought_field
            if self._thought_details:
                ours["reasoning_details"] = self._thought_details
            if ours:
                thinking = Thinking("".join(self._thoughts), meta={FORMAT: ours})
                events.append(PartDone(thinking, self._thinking_part))
        if self._annotations and self._text_part is not None:
            text = Text("".join(self._texts), meta={FORMAT: {"annotations": self._annotations}})
            events.append(PartDone(text, self._text_part))
        if self._audio_part is not None:
            events.append(PartDone(self._spoken(), self._audio_part))

    def _spoken(self) -> Audio | Text:
        pieces = self._audio_data
        if any(len(piece) % 4 for piece in pieces):
            pieces = ["".join(pieces)]
        try:
            data = b"".join(b64decode(piece, validate=True) for piece in pieces)
        except binascii.Error as error:
            raise unexpected("sound that is no base64", in_stream=self._in_stream) from error
        transcript = self._audio.get("transcript")
        if not data:
            return Text(transcript or "")
        meta = {FORMAT: {key: value for key, value in self._audio.items() if key != "transcript"}}
        return Audio(data, media_type=f"audio/{self._sound}", transcript=transcript, meta=meta)


def _plain_text(value: Any) -> str:
    return value if isinstance(value, str) else "".join(text for _, text in _content_parts(value))


def _content_parts(content: Any) -> list[tuple[str, str]]:
    """Return content written as a list, as Mistral's and others' servers do: kind and text of each part."""
    if not isinstance(content, list):
        raise TypeError("content is neither text nor a list")
    found: list[tuple[str, str]] = []
    for part in as_list(content):
        if isinstance(part, str):
            found.append(("text", part))
        elif part.get("type") == "thinking":
            found.append(("thinking", _plain_text(part.get("thinking") or "")))
        elif part.get("text"):
            found.append(("text", part["text"]))
    return found


def _drawn(image: Any) -> Image:
    """Return an image of the answer, as OpenRouter sends it."""
    url = as_dict(image.get("image_url")).get("url", "")
    head, mark, data = url.partition(";base64,")
    if mark and head.startswith("data:"):
        return Image(b64decode(data), media_type=head[5:])
    return Image(url=url)

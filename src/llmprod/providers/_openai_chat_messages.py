"""From messages to Chat Completions' ``messages``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic_core import to_json

from llmprod.errors import InvalidArgument, UnsupportedParameter
from llmprod.providers._openai_encode import cache_mark, file_name, sound_of
from llmprod.providers._openai_profile import Profile
from llmprod.request import GenerateRequest
from llmprod.types import Audio, File, Image, Message, Part, Refusal, Text, Thinking, ToolCall, ToolResult

__all__ = ["FORMAT", "encode_messages"]

FORMAT = "openai-chat"
"""The key of this format's data in the parts' ``meta``."""

_Json = dict[str, Any]


def encode_messages(request: GenerateRequest, profile: Profile) -> list[_Json]:
    """Return the conversation as the server of ``profile`` takes it.

    Thinking of other formats is left out, and so are other formats' opaque blocks. Images that a tool returned, for
    which the API's tool messages have no place, follow in a user message that names the call.

    Raises:
        InvalidArgument: a part stands in a message of a role that can't hold it, or nothing is left to send.
        UnsupportedParameter: a part can't be expressed.
    """
    encoder = _Encoder(profile)
    for place, message in enumerate(request.messages):
        encoder.add(message, f"messages[{place}]")
    encoder.flush_images()
    messages = encoder.messages
    if not messages:
        raise InvalidArgument("messages", "nothing that this API can hold", "at least one message with content")
    if request.output is not None and profile.schema_in_prompt:
        _tell_schema(messages, request.output.schema, profile.system_role)
    if profile.merge_system:
        _merge_system(messages, profile.system_role)
    return messages


class _Encoder:
    def __init__(self, profile: Profile) -> None:
        self.messages: list[_Json] = []
        self._profile = profile
        self._images: list[tuple[str, tuple[Image, ...]]] = []

    def add(self, message: Message, where: str) -> None:
        if message.role == "assistant":
            self.flush_images()
            self._assistant(message, where)
            return
        results = [part for part in message.parts if isinstance(part, ToolResult)]
        others = [part for part in message.parts if not isinstance(part, ToolResult)]
        for result in results:
            self._result(result)
        if others:
            self.flush_images()
            role = self._profile.system_role if message.role == "system" else "user"
            self.messages.append({"role": role, "content": self._content(others, where, guard=role == "user")})

    def flush_images(self) -> None:
        """Append what tools returned as images, once the last result of a turn is written."""
        waiting, self._images = self._images, []
        content: list[_Json] = []
        for call_id, images in waiting:
            content.append({"type": "text", "text": f"Images returned by tool call {call_id}:"})
            content.extend(_image(image) for image in images)
        if content:
            self.messages.append({"role": "user", "content": content})

    def _result(self, result: ToolResult) -> None:
        text = self._guarded(result.text)
        mark = cache_mark(result, FORMAT)
        content = [{"type": "text", "text": text, **mark}] if mark and text else text
        self.messages.append({"role": "tool", "tool_call_id": result.call_id, "content": content})
        if not isinstance(result.content, str):
            images = tuple(part for part in result.content if isinstance(part, Image))
            if images:
                self._images.append((result.call_id, images))

    def _content(self, parts: Iterable[Part], where: str, *, guard: bool) -> str | list[_Json]:
        content: list[_Json] = []
        for part in parts:
            if isinstance(part, Text):
                text = self._guarded(part.text) if guard else part.text
                content.append({"type": "text", "text": text, **cache_mark(part, FORMAT)})
            elif isinstance(part, Image):
                content.append({**_image(part), **cache_mark(part, FORMAT)})
            elif isinstance(part, Audio):
                content.append(self._sound(part))
            elif isinstance(part, File):
                content.append(self._file(part))
            elif isinstance(part, ToolCall):
                raise InvalidArgument(
                    where, "a ToolCall outside an assistant message", "Message.assistant(…) around it"
                )
        if len(content) == 1 and content[0].keys() == {"type", "text"}:
            return str(content[0]["text"])
        if not content:
            raise InvalidArgument(where, "nothing that this API can hold", "text, images, audio or files")
        return content

    def _sound(self, part: Audio) -> _Json:
        if part.url is not None and self._profile.audio_urls:
            return {"type": "audio_url", "audio_url": {"url": part.url}}
        return {"type": "input_audio", "input_audio": sound_of(part, self._profile.kind)}

    def _file(self, part: File) -> _Json:
        if part.url is not None and not self._profile.file_urls:
            raise UnsupportedParameter(self._profile.kind, ("file url",))
        file = {"filename": file_name(part), "file_data": part.data_url}
        return {"type": "file", "file": file, **cache_mark(part, FORMAT)}

    def _guarded(self, text: str) -> str:
        return text.replace("<|", "<\u200d|") if self._profile.break_special_tokens else text

    # ---- what the model said ----------------------------------------------------------------------------------------

    def _assistant(self, message: Message, where: str) -> None:
        profile = self._profile
        texts: list[str] = []
        images: list[_Json] = []
        refusals: list[str] = []
        calls: list[_Json] = []
        thinking: list[Thinking] = []
        encoded: _Json = {"role": "assistant", "content": None}
        for part in message.parts:
            if isinstance(part, Text):
                texts.append(part.text)
            elif isinstance(part, ToolCall):
                calls.append(_call(part))
            elif isinstance(part, Thinking):
                thinking.append(part)
            elif isinstance(part, Refusal):
                (refusals if profile.refusal_field else texts).append(part.text)
            elif isinstance(part, Image):
                images.append(_image(part))
            elif isinstance(part, Audio):
                self._spoken(part, encoded, texts)
            elif isinstance(part, (File, ToolResult)):
                raise InvalidArgument(
                    where, f"a {type(part).__name__} in an assistant message", "a user or tool message"
                )
        text = "".join(texts)
        if images:  # OpenAI refuses them; servers whose models draw take them back
            encoded["content"] = [*([{"type": "text", "text": text}] if text else []), *images]
        elif text:
            encoded["content"] = text
        if refusals:
            encoded["refusal"] = "".join(refusals)
        if calls:
            encoded["tool_calls"] = calls
        if profile.echo_reasoning == "always" or (profile.echo_reasoning == "tool_calls" and calls):
            for part in thinking:
                _echo(part, encoded)
        if encoded["content"] is not None or len(encoded) > 2:
            self.messages.append(encoded)

    def _spoken(self, part: Audio, encoded: _Json, texts: list[str]) -> None:
        """Refer to an answer that the provider keeps, or say it in words."""
        kept = part.meta.get(FORMAT, {}).get("id")
        if kept is not None and self._profile.refusal_field:
            encoded["audio"] = {"id": kept}
        elif part.transcript:
            texts.append(part.transcript)
        else:
            raise UnsupportedParameter(self._profile.kind, ("audio of the assistant without a transcript",))


def _image(part: Image) -> _Json:
    image: _Json = {"url": part.data_url}
    if part.detail is not None:
        image["detail"] = part.detail
    return {"type": "image_url", "image_url": image}


def _call(part: ToolCall) -> _Json:
    ours = part.meta.get(FORMAT, {})
    if ours.get("type") == "custom":
        return {"id": part.id, "type": "custom", "custom": {"name": part.name, "input": part.arguments}}
    call: _Json = {
        "id": part.id,
        "type": "function",
        "function": {"name": part.name, "arguments": part.arguments or "{}"},
    }
    if "extra_content" in ours:
        call["extra_content"] = ours["extra_content"]
    return call


def _echo(part: Thinking, encoded: _Json) -> None:
    """Put thinking back into the field that it came in."""
    ours = part.meta.get(FORMAT, {})
    if "reasoning_details" in ours:
        encoded["reasoning_details"] = ours["reasoning_details"]
    if "field" in ours and part.text:
        encoded[ours["field"]] = encoded.get(ours["field"], "") + part.text


# ---- system messages ------------------------------------------------------------------------------------------------


def _tell_schema(messages: list[_Json], schema: _Json, role: str) -> None:
    told = f"Answer with JSON alone, of this JSON Schema:\n{to_json(schema).decode()}"
    if messages and messages[0]["role"] == role and isinstance(messages[0]["content"], str):
        messages[0] = {**messages[0], "content": f"{messages[0]['content']}\n\n{told}"}
    else:
        messages.insert(0, {"role": role, "content": told})


def _merge_system(messages: list[_Json], role: str) -> None:
    """Make one of the leading system messages. A later one stays: moving it would change what it refers to."""
    count = 0
    while count < len(messages) and messages[count]["role"] == role and isinstance(messages[count]["content"], str):
        count += 1
    if count > 1:
        messages[:count] = [{"role": role, "content": "\n\n".join(message["content"] for message in messages[:count])}]

"""Messages and their parts, the same for every provider.

``repr()`` of a part or message tells its kind and size, never its text, so that logging a request leaks no prompt.
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from pydantic_core import from_json, to_json

from llmprod.errors import InvalidArgument

__all__ = [
    "Audio", "File", "Image", "Message", "Meta", "Opaque", "Part", "Refusal", "Role", "Text", "Thinking", "ToolCall",
    "ToolResult", "coerce_messages",
]  # fmt: skip

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = ("system", "user", "assistant", "tool")

Meta: TypeAlias = Mapping[str, Mapping[str, Any]]
"""What one wire format alone knows of a part, by the format's name, replayed only to that format."""

_NO_META: Meta = {}


def _size(text: str) -> str:
    return f"{len(text)} chars"


@dataclass(frozen=True, slots=True)
class Text:
    """Text, in a prompt or an answer."""

    text: str
    meta: Meta = field(default_factory=lambda: _NO_META, kw_only=True)

    def __repr__(self) -> str:
        return f"Text({_size(self.text)})"


@dataclass(frozen=True, slots=True)
class _Media:
    """Bytes or a URL, never both."""

    data: bytes | None = None
    url: str | None = None
    media_type: str | None = None

    def __post_init__(self) -> None:
        kind = type(self).__name__.lower()
        if (self.data is None) == (self.url is None):
            raise InvalidArgument(kind, "both or neither of data and url", "exactly one of data (bytes) and url")
        if self.data is not None and not isinstance(self.data, bytes):
            raise InvalidArgument(f"{kind}.data", type(self.data).__name__, "bytes")
        if self.data is not None and self.media_type is None:
            raise InvalidArgument(f"{kind}.media_type", "None", "a media type such as image/png, needed with data")

    @property
    def base64(self) -> str:
        """The bytes in base64; empty for a URL."""
        return base64.b64encode(self.data or b"").decode()

    @property
    def data_url(self) -> str:
        """A ``data:`` URL of the bytes, or the URL itself."""
        return self.url if self.url is not None else f"data:{self.media_type};base64,{self.base64}"

    def __repr__(self) -> str:
        size = f"{len(self.data)} bytes" if self.data is not None else "url"
        return f"{type(self).__name__}({self.media_type or 'unknown type'}, {size})"


def _read(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    return {"data": path.read_bytes(), "media_type": mimetypes.guess_type(path.name)[0] or "application/octet-stream"}


@dataclass(frozen=True, slots=True, repr=False)
class Image(_Media):
    """An image, as bytes with a media type or as a URL that the provider fetches.

    Attributes:
        data: the bytes; either these or ``url``.
        url: an address that the provider can reach.
        media_type: such as ``image/png``; needed with ``data``.
        detail: how closely to look, where the API has it: ``low``, ``high`` or ``auto``.
        meta: what one format adds, such as a cache mark or a signature.
    """

    detail: Literal["low", "high", "auto"] | None = None
    meta: Meta = field(default_factory=lambda: _NO_META, kw_only=True)

    @classmethod
    def from_file(cls, path: str | Path) -> Image:
        """Read an image; its media type comes from the file's name."""
        return cls(**_read(path))


@dataclass(frozen=True, slots=True, repr=False)
class Audio(_Media):
    """Recorded sound.

    Attributes:
        data: the bytes; either these or ``url``.
        url: an address that the provider can reach, where the API takes one.
        media_type: such as ``audio/wav``; needed with ``data``.
        transcript: the words, where the provider gave them with its spoken answer.
    """

    transcript: str | None = None
    meta: Meta = field(default_factory=lambda: _NO_META)

    @classmethod
    def from_file(cls, path: str | Path) -> Audio:
        """Read a recording; its media type comes from the file's name."""
        return cls(**_read(path))


@dataclass(frozen=True, slots=True, repr=False)
class File(_Media):
    """A document, such as a PDF.

    Attributes:
        data: the bytes; either these or ``url``.
        url: an address that the provider can reach, where the API takes one.
        media_type: such as ``application/pdf``; needed with ``data``.
        name: its file name or title.
        meta: what one format adds, such as a cache mark.
    """

    name: str | None = None
    meta: Meta = field(default_factory=lambda: _NO_META, kw_only=True)

    @classmethod
    def from_file(cls, path: str | Path) -> File:
        """Read a document; its media type comes from the file's name."""
        return cls(**_read(path), name=Path(path).name)


@dataclass(frozen=True, slots=True)
class Thinking:
    """The model's reasoning, as far as the provider shows it.

    Attributes:
        text: the readable part; empty where it is hidden or encrypted.
        meta: the provider's own block, which it wants back byte for byte in the next turn.
    """

    text: str
    meta: Meta = field(default_factory=lambda: _NO_META, kw_only=True)

    def __repr__(self) -> str:
        return f"Thinking({_size(self.text)})"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model asks for a tool to be run.

    Attributes:
        id: ties the result to the call; made up where the provider gives none.
        name: the tool's name.
        arguments: the arguments as JSON text, exactly as the model wrote them.
    """

    id: str
    name: str
    arguments: str = "{}"
    meta: Meta = field(default_factory=lambda: _NO_META, kw_only=True)

    @property
    def input(self) -> dict[str, Any]:
        """The arguments parsed.

        Raises:
            InvalidArgument: they are not a JSON object; models do write such.
        """
        try:
            value = from_json(self.arguments or "{}")
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise InvalidArgument(f"arguments of tool call {self.name!r}", _size(self.arguments), "a JSON object")
        return cast("dict[str, Any]", value)

    def __repr__(self) -> str:
        return f"ToolCall({self.name!r}, id={self.id!r}, {_size(self.arguments)})"


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gave, sent back to the model.

    Attributes:
        call_id: the :class:`ToolCall`'s id.
        content: the result as text, or as parts where images belong to it.
        name: the tool's name (Gemini wants it).
        is_error: the tool failed, and ``content`` tells how.
        meta: what one format adds, such as a cache mark.
    """

    call_id: str
    content: str | tuple[Text | Image, ...]
    name: str | None = None
    is_error: bool = False
    meta: Meta = field(default_factory=lambda: _NO_META, kw_only=True)

    @property
    def text(self) -> str:
        """The result's text, without images."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, Text))

    def __repr__(self) -> str:
        return f"ToolResult({self.call_id!r}, {_size(self.text)}{', error' if self.is_error else ''})"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The model declines to answer, in the provider's own refusal field."""

    text: str

    def __repr__(self) -> str:
        return f"Refusal({_size(self.text)})"


@dataclass(frozen=True, slots=True)
class Opaque:
    """A block that only its provider understands (server-side tools, citations …), kept to be replayed to it."""

    kind: str
    meta: Meta

    def __repr__(self) -> str:
        return f"Opaque({self.kind!r})"


Part: TypeAlias = Text | Image | Audio | File | Thinking | ToolCall | ToolResult | Refusal | Opaque
_PARTS = (Text, Image, Audio, File, Thinking, ToolCall, ToolResult, Refusal, Opaque)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Build with :meth:`system`, :meth:`user`, :meth:`assistant` and :meth:`tool`, or pass a role and parts.
    """

    role: Role
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidArgument("role", repr(self.role)[:40], ", ".join(ROLES))
        if not isinstance(self.parts, tuple):
            object.__setattr__(self, "parts", _parts(self.parts))
        for part in self.parts:
            if not isinstance(part, _PARTS):
                raise InvalidArgument("parts", type(part).__name__, "Text, Image, Audio, File and the other parts")

    @classmethod
    def system(cls, text: str) -> Message:
        """Instructions from the application."""
        return cls("system", _parts(text))

    @classmethod
    def user(cls, *content: str | Part) -> Message:
        """What the user says: strings and parts, in order."""
        return cls("user", _parts(content))

    @classmethod
    def assistant(cls, *content: str | Part) -> Message:
        """What the model said; ``*response.parts`` replays an answer."""
        return cls("assistant", _parts(content))

    @classmethod
    def tool(
        cls, call: ToolCall | str, content: str | tuple[Text | Image, ...] | object, *, is_error: bool = False
    ) -> Message:
        """Give the result of a tool call; anything but text and parts is sent as JSON."""
        if not isinstance(content, (str, tuple)):
            content = to_json(content).decode()
        call_id, name = (call.id, call.name) if isinstance(call, ToolCall) else (call, None)
        return cls("tool", (ToolResult(call_id, cast("str | tuple[Text | Image, ...]", content), name, is_error),))

    @property
    def text(self) -> str:
        """All text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    def __repr__(self) -> str:
        return f"Message({self.role}, {', '.join(map(repr, self.parts)) or 'empty'})"


def _parts(content: object) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Text(content),)
    if isinstance(content, _PARTS):
        return (content,)
    given = type(content).__name__
    if not isinstance(content, Iterable) or isinstance(content, (bytes, Mapping)):
        raise InvalidArgument("content", given, "a string, a part, or a sequence of them")
    return tuple(
        Text(item) if isinstance(item, str) else cast("Part", item) for item in cast("Iterable[object]", content)
    )


# ---- what callers pass ----------------------------------------------------------------------------------------------


def coerce_messages(messages: object, *, system: str | None = None) -> tuple[Message, ...]:
    """Turn what callers pass into messages: a string, a message, or a sequence of messages and OpenAI-style dicts.

    Raises:
        InvalidArgument: nothing to send, or something that is no message.
    """
    if isinstance(messages, str):
        items: Sequence[object] = (Message.user(messages),) if messages else ()
    elif isinstance(messages, (Message, Mapping)):
        items = (cast("object", messages),)
    elif isinstance(messages, Sequence) and not isinstance(messages, (bytes, bytearray)):
        items = cast("Sequence[object]", messages)
    else:
        raise InvalidArgument("messages", type(messages).__name__, "a string, a Message or a sequence of messages")
    if not items:
        raise InvalidArgument("messages", "nothing", "at least one message with content")
    result = tuple(item if isinstance(item, Message) else _from_openai(item, place) for place, item in enumerate(items))
    if system is not None:
        if not isinstance(system, str):
            raise InvalidArgument("system", type(system).__name__, "a string")
        result = (Message.system(system), *result)
    return result


def _from_openai(item: object, place: int) -> Message:
    where = f"messages[{place}]"
    if not isinstance(item, Mapping):
        raise InvalidArgument(where, type(item).__name__, "a Message or a dict with role and content")
    message = cast("Mapping[str, Any]", item)
    role = message.get("role")
    role = {"developer": "system", "model": "assistant"}.get(role, role) if isinstance(role, str) else None
    if role not in ROLES:
        raise InvalidArgument(f"{where}.role", repr(message.get("role"))[:40], ", ".join(ROLES))
    content = message.get("content")
    parts: list[Part] = []
    if isinstance(content, (list, tuple)):
        try:
            parts = [_openai_part(part, where) for part in cast("Sequence[object]", content)]
        except (KeyError, TypeError, binascii.Error) as error:
            told = f"a part that is not as OpenAI's are ({type(error).__name__})"
            raise InvalidArgument(
                f"{where}.content", told, "text, image_url, input_audio, or llmprod's parts"
            ) from None
    if role == "tool":
        return _tool_message(message.get("tool_call_id"), parts or cast("object", content), where)
    if isinstance(content, str) and content:
        parts = [Text(content)]
    elif content is not None and not isinstance(content, (str, list, tuple)):
        raise InvalidArgument(f"{where}.content", type(content).__name__, "a string or a list of parts")
    parts.extend(_openai_calls(message.get("tool_calls") or (), f"{where}.tool_calls"))
    if not parts:
        raise InvalidArgument(f"{where}.content", "nothing", "text, parts or tool calls")
    return Message(cast("Role", role), tuple(parts))


def _tool_message(call_id: object, content: object, where: str) -> Message:
    if not isinstance(call_id, str) or not call_id:
        raise InvalidArgument(f"{where}.tool_call_id", type(call_id).__name__, "the id of the tool call")
    if isinstance(content, list):
        items = cast("list[object]", content)
        if not all(isinstance(item, (Text, Image)) for item in items):
            raise InvalidArgument(f"{where}.content", "other parts", "text and images, in a tool's result")
        return Message.tool(call_id, tuple(items))
    return Message.tool(call_id, content if content is not None else "")


def _openai_calls(calls: object, where: str) -> Iterator[ToolCall]:
    if not isinstance(calls, (list, tuple)):
        raise InvalidArgument(where, type(calls).__name__, "a list of tool calls")
    for call in cast("Sequence[object]", calls):
        fields = cast("Mapping[str, Any]", call if isinstance(call, Mapping) else {})
        function = cast("Mapping[str, Any]", fields.get("function"))
        if not isinstance(cast("object", function), Mapping):
            raise InvalidArgument(where, "something else", "dicts with id and function")
        yield ToolCall(str(fields.get("id", "")), str(function.get("name", "")), str(function.get("arguments", "{}")))


def _openai_part(part: object, where: str) -> Part:
    if isinstance(part, _PARTS):
        return part
    if isinstance(part, str):
        return Text(part)
    if isinstance(part, Mapping):
        part = cast("Mapping[str, Any]", part)
        kind = part.get("type")
        if kind in ("text", "input_text", "output_text"):
            return Text(str(part["text"]))
        if kind == "image_url":
            image = part["image_url"]
            return _image_url(
                image if isinstance(image, str) else image["url"],
                None if isinstance(image, str) else image.get("detail"),
            )
        if kind == "input_audio":
            sound = part["input_audio"]
            return Audio(data=base64.b64decode(sound["data"]), media_type=f"audio/{sound['format']}")
        raise InvalidArgument(
            f"{where}.content", f"a part of type {kind!r}"[:60], "text, image_url, input_audio, or llmprod's parts"
        )
    raise InvalidArgument(f"{where}.content", type(part).__name__, "strings, parts, or OpenAI-style part dicts")


def _image_url(url: str, detail: Any) -> Image:
    if url.startswith("data:") and ";base64," in url:
        head, _, data = url.partition(";base64,")
        return Image(data=base64.b64decode(data), media_type=head[5:], detail=detail)
    return Image(url=url, detail=detail)

"""A stored answer: its events, neighbours joined, as JSON with a checksum."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, Literal, cast

from pydantic_core import from_json, to_json

from llmprod import errors
from llmprod._parts import decoded_part, encoded_part
from llmprod.errors import AllTargetsFailed, BadRequest, CallError
from llmprod.events import (
    Event,
    Finish,
    PartDone,
    RefusalDelta,
    Reset,
    Start,
    TextDelta,
    ThinkingDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallDone,
    UsageUpdate,
)
from llmprod.types import ToolCall
from llmprod.usage import Usage
from llmprod.verdict import Action, Verdict

__all__ = ["NO_USAGE", "Entry", "NotStorable", "decode", "encode"]

NO_USAGE = Usage()
"""What a call took that was answered with what others had paid for."""
_FORMAT = b"LPC\x01"  # the last byte is the version of what follows
_HEAD = len(_FORMAT) + 4


class NotStorable(ValueError):
    """The answer can't be stored; says why, in fixed words."""


@dataclass(slots=True)
class Entry:
    """What is stored under a key.

    Attributes:
        created: when it was stored, in seconds since 1970.
        ttl: seconds from then that it counts as fresh.
        took: seconds that making it took.
        provider: who answered.
        events: the answer, its neighbouring deltas joined.
        model: exact id of the model.
        request_id: the provider's id of the request that made it.
        dropped: request fields that its target could not honour.
        usage: tokens that it took.
        cost: US dollars that it cost, where known.
        embeddings: of an embedding request.
        error: the provider's refusal, in place of an answer.
        streamed: the request that was refused asked for a stream.
    """

    created: float
    ttl: float
    took: float
    provider: str
    events: list[Event]
    model: str | None = None
    request_id: str | None = None
    dropped: tuple[str, ...] = ()
    usage: Usage | None = None
    cost: Decimal | None = None
    embeddings: Sequence[Sequence[float]] | None = None
    error: CallError | None = None
    streamed: bool | None = None


# ---- to bytes --------------------------------------------------------------------------------------------------------


def encode(entry: Entry, key: str) -> bytes:
    """Return ``entry`` as bytes that only ``key`` reads.

    Raises:
        NotStorable: the answer was interrupted, or holds what JSON can't.
    """
    try:
        body = _body(entry)
    except NotStorable:
        raise
    except Exception as error:  # a part of a kind of its own, JSON too deep: the answer stands all the same
        raise NotStorable("not JSON") from error
    return _FORMAT + _checksum(body, key) + body


def _body(entry: Entry) -> bytes:
    told: dict[str, Any] = {"at": entry.created, "ttl": entry.ttl, "took": round(entry.took, 6), "by": entry.provider}
    named = {"model": entry.model, "id": entry.request_id, "dropped": entry.dropped}
    told.update({name: value for name, value in named.items() if value})
    if entry.usage is not None:
        told["usage"] = _usage(entry.usage)
    if entry.cost is not None:
        told["cost"] = str(entry.cost)
    if entry.error is not None:
        told["error"], told["streamed"] = _error(entry.error), entry.streamed
    else:
        told["events"] = _joined(entry.events)
    if entry.embeddings is not None:
        told["embeddings"] = entry.embeddings
    try:
        return to_json(told, fallback=_listed)
    except ValueError:  # lone surrogates, which UTF-8 can't hold but JSON's escapes can
        return json.dumps(told, default=_listed, separators=(",", ":")).encode()


def _checksum(body: bytes, key: str) -> bytes:
    # With the key in it, a value that a store gives under another key is damaged as well.
    return zlib.crc32(body, zlib.crc32(key.encode("utf-8", "surrogatepass"))).to_bytes(4, "big")


def _listed(value: Any) -> Any:
    if hasattr(value, "tolist"):  # a library's own arrays and numbers
        return value.tolist()
    raise TypeError(type(value).__name__)


def _usage(usage: Usage) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for item in fields(Usage):
        value = getattr(usage, item.name)
        if value is None or value is item.default or value in (0, {}):
            continue
        told[item.name] = {"decimal": str(value)} if isinstance(value, Decimal) else value
    return told


_ERROR = ("provider", "model", "status", "code", "param", "request_id", "provider_message", "detail")


def _error(error: Any) -> dict[str, Any]:
    if isinstance(error, AllTargetsFailed):
        attempts = [[target, _error(each)] for target, each in error.attempts]
        return {"type": "all", "attempts": attempts, "action": error.verdict.action.value}
    return {"type": type(error).__name__, **{name: getattr(error, name) for name in _ERROR}}


def _joined(events: Sequence[Event]) -> list[list[Any]]:
    told: list[list[Any]] = []
    usage: Literal["before", "after"] | None = None  # the end: where the last word on usage came
    for event in events:
        kind = type(event)
        if kind is UsageUpdate:  # some servers send one with each piece
            usage = "after" if told and told[-1][0] == "f" else "before"
            continue
        if kind is Reset:
            told.clear()  # nothing before it stands
            continue
        letter = _LETTERS.get(kind)
        if letter is None:
            raise NotStorable("interrupted" if kind.__name__ == "Seam" else f"event {kind.__name__}")
        item = [letter, *_TELL[kind](event)]
        last = told[-1] if told else None
        if kind not in _GROWS:
            told.append(item)
        elif last is not None and last[0] == letter and last[1] == item[1] and _goes_on(kind, item):
            last[2].append(item[2])
            if kind is TextDelta:
                last[3] += item[3]
        else:
            item[2] = [item[2]]
            told.append(item)
    for item in told:
        if item[0] in _GROWING:
            item[2] = "".join(item[2])
    if usage is not None:
        told.insert(len(told) - (usage == "before" and bool(told) and told[-1][0] == "f"), ["u"])
    return told


def _goes_on(kind: type, item: list[Any]) -> bool:
    return kind is not ToolCallDelta or (item[3] is None and item[4] is None)


_LETTERS: dict[type, str] = {
    Start: "s", TextDelta: "t", ThinkingDelta: "k", RefusalDelta: "r", ToolCallDelta: "c", ToolCallDone: "d",
    PartDone: "p", Finish: "f",
}  # fmt: skip
_GROWS = frozenset({TextDelta, ThinkingDelta, RefusalDelta, ToolCallDelta})
_GROWING = frozenset(_LETTERS[kind] for kind in _GROWS)
_TELL: dict[type, Callable[[Any], list[Any]]] = {
    Start: lambda event: [event.model, event.response_id],
    TextDelta: lambda event: [
        event.part, event.text, [[each.token, each.logprob, each.top] for each in event.logprobs],
    ],
    ThinkingDelta: lambda event: [event.part, event.text],
    RefusalDelta: lambda event: [event.part, event.text],
    ToolCallDelta: lambda event: [event.part, event.arguments, event.id, event.name],
    ToolCallDone: lambda event: [event.part, encoded_part(event.call)],
    PartDone: lambda event: [event.part, encoded_part(event.value)],
    Finish: lambda event: [event.reason, event.raw],
}  # fmt: skip


# ---- from bytes ------------------------------------------------------------------------------------------------------


def decode(value: bytes, key: str) -> Entry | None:
    """Return the entry, or None for what is damaged, of another version, or was stored under another key."""
    if type(value) is not bytes or value[: len(_FORMAT)] != _FORMAT:
        return None
    body = value[_HEAD:]
    if _checksum(body, key) != value[len(_FORMAT) : _HEAD]:
        return None
    try:
        try:
            told = from_json(body)
        except ValueError:
            told = json.loads(body)  # takes lone surrogates
        return _entry(told)
    except (ArithmeticError, AttributeError, KeyError, IndexError, RecursionError, TypeError, ValueError):
        return None


def _entry(told: dict[str, Any]) -> Entry:
    usage, cost, error = told.get("usage"), told.get("cost"), told.get("error")
    events = [] if error is not None else [_MAKE[item[0]](item) for item in told["events"]]
    if error is None and not any(type(event) is Finish for event in events) and "embeddings" not in told:
        raise ValueError("no end")
    return Entry(
        told["at"],
        told["ttl"],
        told["took"],
        told["by"],
        events,
        told.get("model"),
        told.get("id"),
        tuple(told.get("dropped", ())),
        None if usage is None else Usage(**{name: _number(value) for name, value in usage.items()}),
        None if cost is None else Decimal(cost),
        told.get("embeddings"),
        None if error is None else _refusal(error),
        told.get("streamed"),
    )


def _number(value: Any) -> Any:
    if type(value) is dict and "decimal" in value:
        return Decimal(cast("dict[str, str]", value)["decimal"])
    return value  # pyright: ignore[reportUnknownVariableType]


def _refusal(told: dict[str, Any]) -> CallError:
    if told["type"] == "all":
        attempts = tuple((str(target), _refusal(each)) for target, each in told["attempts"])
        return AllTargetsFailed(attempts, Verdict(action=Action(told["action"])))
    kind = getattr(errors, told["type"])
    if not issubclass(kind, BadRequest):
        raise ValueError("another error")
    return cast("CallError", kind(**{name: told[name] for name in _ERROR}))


def _logprobs(told: list[Any]) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(token, logprob, tuple(map(tuple, top))) for token, logprob, top in told) if told else ()


_MAKE: dict[str, Callable[[list[Any]], Event]] = {
    "s": lambda item: Start(item[1], item[2]),
    "t": lambda item: TextDelta(item[2], item[1], _logprobs(item[3])),
    "k": lambda item: ThinkingDelta(item[2], item[1]),
    "r": lambda item: RefusalDelta(item[2], item[1]),
    "c": lambda item: ToolCallDelta(item[1], item[3], item[4], item[2]),
    "d": lambda item: ToolCallDone(cast("ToolCall", decoded_part(item[2])), item[1]),
    "p": lambda item: PartDone(decoded_part(item[2]), item[1]),
    "u": lambda item: UsageUpdate(NO_USAGE),
    "f": lambda item: Finish(item[1], item[2]),
}

"""Turns a behaviour and a request into a plan: the bytes to write, when, and how to end.

Plans are made once for each behaviour and form of request, so that a healthy answer costs the server a
look-up and a write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

from ._wire import chat, gemini, messages, responses
from ._wire.call import Call, JsonObject, Reply, compact
from ._wire.embeddings import embed
from ._wire.errors import error_body, error_event, error_headers, error_status
from ._wire.http import Head, make_head
from ._wire.routes import Api, Family
from ._wire.sse import (
    BOM,
    COMMENT,
    LAST_CHUNK,
    Event,
    StreamEvents,
    drop_last_blank_line,
    encode_chunk,
    encode_event,
)
from .behaviour import Behaviour, Delay, Drip, End, ErrorReply, RawReply, SseStyle

_WRITERS: Mapping[Api, ModuleType] = {
    Api.CHAT: chat,
    Api.RESPONSES: responses,
    Api.MESSAGES: messages,
    Api.GEMINI: gemini,
}

_JSON = "application/json"
_SSE = "text/event-stream; charset=utf-8"


class Step(NamedTuple):
    """Wait, then write."""

    wait: Delay
    payload: bytes
    events: int = 0
    """How many content events the payload holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All that the server does to answer one request."""

    before: tuple[Delay, ...]
    """Waits before the head."""
    head: Head | None
    """None: nothing is ever written."""
    status: int | None
    steps: tuple[Step, ...]
    end: End
    broken: bool
    """The answer does not end as a complete one does."""
    drip: Drip | None = None
    keepalive: tuple[float, bytes] | None = None

    @property
    def immediate(self) -> bool:
        """Whether all of it can be written at once."""
        return (
            not self.before
            and self.drip is None
            and self.end == "clean"
            and (not self.steps or (len(self.steps) == 1 and self.steps[0].wait == 0))
        )


def make_plan(behaviour: Behaviour, call: Call, body: Mapping[str, object], *, merge: bool) -> Plan:
    """The plan for one form of request. `merge` joins writes that nothing separates in time."""
    if behaviour.connection != "answer":
        return _refusal(behaviour)
    if behaviour.error is not None:
        return _error(behaviour, call, behaviour.error)
    if behaviour.reply is not None:
        return _raw(behaviour, call, behaviour.reply)
    if call.stream:
        return _stream(behaviour, call, merge=merge)
    return _whole(behaviour, call, body)


def json_plan(family: Family, status: int, value: JsonObject) -> Plan:
    """Answer with a JSON value at once."""
    body = compact(value).encode()
    head = make_head(family, status, _JSON, length=len(body))
    return _plain(Behaviour(), head, status, body)


def _refusal(behaviour: Behaviour) -> Plan:
    ends: dict[str, End] = {"close": "close", "reset": "reset", "silence": "open"}
    end = ends[behaviour.connection]
    before = (behaviour.header_delay,)
    return Plan(before=before, head=None, status=None, steps=(), end=end, broken=True)


def _error(behaviour: Behaviour, call: Call, error: ErrorReply) -> Plan:
    body = error_body(call.family, error)
    status = error_status(call.family, error)
    headers = error_headers(call.family, error)
    head = make_head(call.family, status, error.content_type, length=len(body), headers=headers)
    return _plain(behaviour, head, status, body)


def _raw(behaviour: Behaviour, call: Call, reply: RawReply) -> Plan:
    length = len(reply.body)
    head = make_head(call.family, reply.status, reply.content_type, length=length, headers=reply.headers, limits=False)
    return _plain(behaviour, head, reply.status, reply.body)


def _plain(behaviour: Behaviour, head: Head, status: int, body: bytes) -> Plan:
    steps = (Step(0.0, body),) if body else ()
    before = _waits(behaviour.header_delay)
    return Plan(before=before, head=head, status=status, steps=steps, end="clean", broken=False, drip=behaviour.drip)


def _whole(behaviour: Behaviour, call: Call, request_body: Mapping[str, object]) -> Plan:
    body, events = _whole_body(behaviour, call, request_body)
    end: End = "clean"
    length = len(body)
    if behaviour.malformed is not None:
        body = body[: length // 2]
        length = len(body)
    if (cut := behaviour.cut) is not None:
        body = body[: int(length * cut.fraction)]
        end = cut.how
        length = len(body) if end == "clean" else length
    steps: tuple[Step, ...] = (Step(0.0, body, events),)
    if behaviour.stall is not None:
        middle = len(body) // 2
        steps = (Step(0.0, body[:middle]), Step(behaviour.stall.seconds, body[middle:], events))
    return Plan(
        before=_whole_waits(behaviour, events),
        head=make_head(call.family, 200, _JSON, length=length),
        status=200,
        steps=steps,
        end=end,
        broken=behaviour.cut is not None,
        drip=behaviour.drip,
    )


def _whole_body(behaviour: Behaviour, call: Call, request_body: Mapping[str, object]) -> tuple[bytes, int]:
    """The body and how many events a stream of it would have."""
    if behaviour.stream_error is not None:
        return error_body(call.family, behaviour.stream_error.error), 0
    writer = _WRITERS.get(call.api)
    if writer is None:
        return compact(embed(call.api, request_body, behaviour.answer, call.model)).encode(), 0
    reply = Reply(behaviour.answer, behaviour.quirks, call)
    answer = behaviour.answer
    events = len(answer.text_pieces) + len(answer.reasoning_pieces) + len(answer.tool_calls)
    return compact(writer.whole(reply)).encode(), events


def _whole_waits(behaviour: Behaviour, events: int) -> tuple[Delay, ...]:
    """A whole answer is sent when its last token is there."""
    delay = behaviour.token_delay
    further = max(0, events - 1)
    tokens = (delay * further,) if isinstance(delay, float | int) else (delay,) * further
    return _waits(behaviour.header_delay, behaviour.first_token_delay, *tokens)


def _stream(behaviour: Behaviour, call: Call, *, merge: bool) -> Plan:
    reply = Reply(behaviour.answer, behaviour.quirks, call)
    events: StreamEvents = _WRITERS[call.api].stream(reply)
    stop = _stop(behaviour, len(events.content))
    end = behaviour.end if stop is None or stop.end is None else stop.end
    steps = list(_stream_steps(behaviour, call, events, stop))
    if steps and behaviour.sse.bom:
        steps[0] = steps[0]._replace(payload=BOM + steps[0].payload)
    if steps and not behaviour.sse.last_blank_line:
        steps[-1] = steps[-1]._replace(payload=drop_last_blank_line(steps[-1].payload, behaviour.sse))
    steps = [step._replace(payload=encode_chunk(step.payload)) for step in steps]
    if end == "clean":
        steps.append(Step(0.0, LAST_CHUNK))
    comment = messages.PING if call.family == "anthropic" else COMMENT
    gap = behaviour.keepalive
    return Plan(
        before=_waits(behaviour.header_delay),
        head=make_head(call.family, 200, _SSE, length=None),
        status=200,
        steps=tuple(_merged(steps)) if merge else _last_joined(steps),
        end=end,
        broken=end in ("close", "reset") or (stop is not None and stop.error is None),
        drip=behaviour.drip,
        keepalive=None if gap is None else (gap, encode_chunk(comment)),
    )


class _Stop(NamedTuple):
    """Where a stream stops short: after `at` events, with an error event or none."""

    at: int
    error: ErrorReply | None
    end: End | None


def _stop(behaviour: Behaviour, count: int) -> _Stop | None:
    """The first of the error event and the cut."""
    cut, failure = behaviour.cut, behaviour.stream_error
    if failure is not None and (cut is None or failure.at <= cut.after):
        return _Stop(min(failure.at, count), failure.error, None)
    return None if cut is None else _Stop(min(cut.after, count), None, cut.how)


def _stream_steps(behaviour: Behaviour, call: Call, events: StreamEvents, stop: _Stop | None) -> Iterator[Step]:
    """The events with their waits, as far as the behaviour lets them come."""
    style, stall = behaviour.sse, behaviour.stall
    units = events.content if stop is None else events.content[: stop.at]
    if stop is not None and stop.error is not None and stop.at == 0:
        yield Step(behaviour.first_token_delay, encode_event(error_event(call, stop.error), style))
        return
    waiting: list[Event] = []
    if behaviour.opening_first:
        yield from _steps(events.opening, 0.0, style)
    else:
        waiting = events.opening
    for number, unit in enumerate(units):
        wait = behaviour.token_delay if number else behaviour.first_token_delay
        if stall is not None and number == stall.after:
            wait = stall.seconds
        unit = _with_malformed(behaviour, unit, number, len(events.content))
        yield from _steps([*waiting, *unit], wait, style, content=True)
        waiting = []
    wait = stall.seconds if stall is not None and stall.after >= len(units) else 0.0
    if stop is None:
        ending = [*waiting, *events.finish, *(events.done if behaviour.done else ())]
    else:
        ending = [] if stop.error is None else [error_event(call, stop.error)]
    yield from _steps(ending, wait, style)


def _steps(events: list[Event], wait: Delay, style: SseStyle, *, content: bool = False) -> Iterator[Step]:
    """A step an event; the first one waits, the last one is the content."""
    for number, event in enumerate(events):
        is_content = content and number == len(events) - 1
        yield Step(0.0 if number else wait, encode_event(event, style), int(is_content))


def _with_malformed(behaviour: Behaviour, unit: list[Event], number: int, count: int) -> list[Event]:
    """The unit with its content event broken, or a broken one before it."""
    malformed = behaviour.malformed
    if malformed is None or number != min(malformed.at, count - 1):
        return unit
    *frames, content = unit
    broken = content._replace(data=content.data[: len(content.data) // 2])
    return [*frames, broken] if malformed.replace else [*frames, broken, content]


def _merged(steps: list[Step]) -> Iterator[Step]:
    """Steps that follow at once joined with the one before."""
    held: Step | None = None
    for step in steps:
        if held is not None and step.wait == 0:
            held = Step(held.wait, held.payload + step.payload, held.events + step.events)
            continue
        if held is not None:
            yield held
        held = step
    if held is not None:
        yield held


def _last_joined(steps: list[Step]) -> tuple[Step, ...]:
    """The last chunk goes with the last event: it is nothing of its own to a client."""
    if len(steps) > 1 and steps[-1].payload == LAST_CHUNK:
        last = steps[-2]
        return (*steps[:-2], last._replace(payload=last.payload + LAST_CHUNK))
    return tuple(steps)


def _waits(*delays: Delay) -> tuple[Delay, ...]:
    return tuple(delay for delay in delays if delay != 0)

"""What a caller got, and whether that is right, safe or wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from llmprod.testing.fault_server import RequestRecord
from llmprod.testing.scenarios import FALLBACK_TEXT, PRIMARY_TEXT, TOOL_CALLS, Scenario

Grade = Literal["pass", "safe", "fail"]
Kind = Literal["answer", "error", "interrupted", "cancelled"]

MODELS = {"primary-model": PRIMARY_TEXT, "fallback-model": FALLBACK_TEXT}
"""The models of the two routes, and what each says."""

RAW_ERRORS = (
    "JSONDecodeError",
    "UnicodeDecodeError",
    "KeyError",
    "IndexError",
    "AttributeError",
    "TypeError",
    "RuntimeError",
)
"""Errors that tell a caller nothing about what happened to the call."""


@dataclass(frozen=True)
class Ended:
    """How one call ended, as its caller saw it.

    Attributes:
        kind: a whole answer; an error before anything was shown; an error after; or the caller's own cancellation.
        text: the answer's text, or what was shown before it broke.
        seconds: until the end.
        error: the error's class name.
        model: the model that the response names.
        tokens: answer tokens that the response reports; None if it reports none.
        tools: ``(name, arguments as JSON text)`` of the tool calls.
    """

    kind: Kind
    text: str = ""
    seconds: float = 0.0
    error: str | None = None
    model: str | None = None
    tokens: int | None = None
    tools: Sequence[tuple[str, str]] = field(default=())


@dataclass(frozen=True)
class Judgement:
    """A grade and why."""

    grade: Grade
    why: str = ""


def judge(
    scenario: Scenario,
    stream: bool,
    calls: Sequence[Ended],
    primary: Sequence[RequestRecord],
    fallback: Sequence[RequestRecord],
) -> Judgement:
    """Grade a run: ``pass`` as the best clients do, ``safe`` where no harm was done, ``fail`` otherwise."""
    for call in calls:
        if wrong := _silently_wrong(scenario, call):
            return Judgement("fail", wrong)
        if scenario.bound is not None and call.seconds > scenario.bound:
            return Judgement("fail", f"took {call.seconds:.0f} s, bound {scenario.bound:.0f} s")
        if call.error == "no end":
            return Judgement("fail", f"no end within {call.seconds:.0f} s")
        if call.error in RAW_ERRORS:
            return Judgement("fail", f"raw {call.error}")
    if scenario.primary_attempts is not None and len(primary) > scenario.primary_attempts * scenario.requests:
        return Judgement("safe", f"{len(primary)} requests to the primary")
    if scenario.attempts is not None and len(primary) + len(fallback) > scenario.attempts * scenario.requests:
        return Judgement("fail", f"{len(primary) + len(fallback)} requests")
    allowed = scenario.stream if stream else scenario.whole
    best = allowed if scenario.deadline is not None else allowed[:1]  # at a deadline, ending is what is asked for
    unserved = [call for call in calls if call.kind not in (*best, "cancelled")]
    if unserved:
        worst = unserved[0]
        shown = f" after {len(worst.text.split())} words" if worst.kind == "interrupted" else ""
        return Judgement("safe", f"{worst.error}{shown}")
    return _finer(scenario, calls, primary)


def _silently_wrong(scenario: Scenario, call: Ended) -> str | None:
    if call.kind != "answer":
        return None
    if scenario.id == "X08":
        wanted = [(tool.name, _parsed(tool.arguments)) for tool in TOOL_CALLS]
        return None if [(name, _parsed(text)) for name, text in call.tools] == wanted else "tool calls merged or lost"
    if call.text.strip() not in MODELS.values():
        words = len(call.text.split())
        return "an empty answer as success" if not words else f"{words} of 60 words as success"
    return None


def _parsed(arguments: object) -> object:
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return None


def _finer(scenario: Scenario, calls: Sequence[Ended], primary: Sequence[RequestRecord]) -> Judgement:
    """The demands that a single scenario makes beyond a right ending."""
    if scenario.id == "S01" and len(primary) > 1 and primary[1].time - primary[0].time < 2.0:
        return Judgement("safe", "asked again before Retry-After")
    if scenario.id == "S15":
        during = sum(1 for record in primary if record.status == 503)
        back = [record.time for record in primary if record.status == 200]
        if during > 12:
            return Judgement("safe", f"{during} requests to the broken route")
        if not back or back[0] > 90:
            return Judgement("safe", "not back to the primary within 30 s")
    if scenario.id in ("S11", "S16"):
        (call,) = calls
        if call.tokens is None:
            return Judgement("safe", "no usage")
        if scenario.id == "S16" and call.model != "fallback-model":
            return Judgement("safe", f"names {call.model}")
    if scenario.id == "X11" and any(record.outcome == "open" for record in primary):
        return Judgement("fail", "the connection was not let go")
    return Judgement("pass")

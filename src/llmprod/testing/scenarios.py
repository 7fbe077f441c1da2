"""A catalogue of failures: what two routes do, and what a caller must see.

S01 to S16 have the names and the times of failoverbench's published scenarios (github.com/failoverbench), built
anew on `FaultServer`; X01 and up are failures it leaves out. Each gives a script for a primary and for a
fallback route:

    primary, fallback = scenario("reset-in-the-middle").routes(time_scale=0.05)
    with FaultServer(primary) as first, FaultServer(fallback) as second:
        ...

A primary says `PRIMARY_TEXT`, a fallback `FALLBACK_TEXT`, so that a mixed or truncated answer shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias, cast

from ._fault_script import ModelScript, RequestRecord
from .behaviour import (
    Answer,
    Behaviour,
    Cut,
    Drip,
    ErrorReply,
    Malformed,
    Quirks,
    RawReply,
    Stall,
    StreamError,
    TokenCounts,
    ToolCall,
    words,
)

__all__ = [
    "FALLBACK_TEXT",
    "PRIMARY_TEXT",
    "SCENARIOS",
    "TOOL_CALLS",
    "Ending",
    "Routes",
    "Scenario",
    "scenario",
]

PRIMARY_TEXT = words(60, "primary")
"""The whole answer of a primary route."""
FALLBACK_TEXT = words(60, "fallback")
"""The whole answer of a fallback route."""
TOOL_CALLS = (
    ToolCall(id="call_a", name="lookup", arguments={"x": 1}),
    ToolCall(id="call_b", name="lookup", arguments={"x": 2}),
)
"""What the model calls in the scenario with tools."""

_HALF = 40
"""Words seen before a stream breaks."""

Ending: TypeAlias = Literal["answer", "error", "interrupted"]
"""How a call may end: a whole answer; a clear error before anything was shown; or the error of an
interrupted stream, with what was shown and its usage. A truncated answer that looks whole is none of them."""


class Routes(NamedTuple):
    """The scripts of the two routes; they hold state, so make new ones for each run."""

    primary: ModelScript
    fallback: ModelScript


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One failure, and what a client must make of it. Times are seconds at scale 1."""

    id: str
    name: str
    """Its short name: ``reset-in-the-middle``."""
    title: str
    safe: str
    """The least that is demanded."""
    passes: str
    """What the best clients do."""
    build: Callable[[float], Routes]
    whole: tuple[Ending, ...] = ("answer",)
    """How a call that doesn't stream may end."""
    stream: tuple[Ending, ...] = ("answer",)
    """How a streamed call may end."""
    bound: float | None = None
    """A call must have ended by then."""
    primary_attempts: int | None = None
    """At most so many requests of one call to the primary."""
    attempts: int | None = None
    """At most so many requests of one call to both."""
    requests: int = 1
    """How many calls make the scenario."""
    interval: float = 0.0
    """From the start of one call to the next."""
    deadline: float | None = None
    """The total deadline to give the call, where the scenario is about that."""

    def routes(self, time_scale: float = 1.0) -> Routes:
        """New scripts, all their times multiplied by `time_scale`."""
        if not time_scale > 0:
            raise ValueError(f"time_scale must be above 0, got {time_scale!r}")
        return self.build(time_scale)

    @property
    def primary(self) -> ModelScript:
        """A new script of the primary route, at scale 1."""
        return self.build(1.0).primary

    @property
    def fallback(self) -> ModelScript:
        """A new script of the fallback route, at scale 1."""
        return self.build(1.0).fallback


class OutageFromFirstCall:
    """A script function: out of order for `seconds` from the first request on, then healthy."""

    def __init__(self, seconds: float, failing: Behaviour, healthy: Behaviour) -> None:
        self._seconds = seconds
        self._failing = failing
        self._healthy = healthy
        self._first: float | None = None

    def __call__(self, record: RequestRecord) -> Behaviour:
        """The behaviour for a request."""
        if self._first is None:
            self._first = record.time
        return self._failing if record.time - self._first < self._seconds else self._healthy


class RejectPrefill:
    """A script function: an error if the conversation ends with the assistant, else healthy."""

    def __init__(self, healthy: Behaviour) -> None:
        self._healthy = healthy
        self._rejecting = Behaviour(error=ErrorReply(kind="prefill_rejected"))

    def __call__(self, record: RequestRecord) -> Behaviour:
        """The behaviour for a request."""
        return self._rejecting if _ends_with_assistant(record.body) else self._healthy


def _ends_with_assistant(body: Mapping[str, object]) -> bool:
    turns = body.get("messages") or body.get("input") or body.get("contents")
    if not isinstance(turns, list) or not turns:
        return False
    last = cast("list[object]", turns)[-1]
    return isinstance(last, dict) and cast("dict[str, object]", last).get("role") in ("assistant", "model")


def _answer(text: str) -> Answer:
    return Answer(text=text, usage=TokenCounts(input=20, output=60))


_PRIMARY = Behaviour(answer=_answer(PRIMARY_TEXT))
_FALLBACK = Behaviour(answer=_answer(FALLBACK_TEXT))


_PACE = 0.01
"""Between the words of a stream that is going to break."""


def _fails(error: ErrorReply) -> Behaviour:
    return replace(_PRIMARY, error=error)


def _breaks(scale: float, cut: Cut) -> Behaviour:
    return replace(_PRIMARY, cut=cut, token_delay=_PACE * scale)


def _constant(primary: ModelScript, fallback: ModelScript = _FALLBACK) -> Callable[[float], Routes]:
    """Scripts without times and without state."""
    return lambda _scale: Routes(primary, fallback)


def _outage(scale: float) -> Routes:
    return Routes(OutageFromFirstCall(60 * scale, _fails(ErrorReply(status=503)), _PRIMARY), _FALLBACK)


def _tools(text: str, quirks: Quirks) -> Behaviour:
    return Behaviour(answer=Answer(text=text, tool_calls=TOOL_CALLS), quirks=quirks)


_PUBLISHED = (
    Scenario(
        id="S01",
        name="rate-limited-once",
        title="429 with Retry-After 2, once",
        safe="The call ends with the whole answer of either route or a clear rate limit error.",
        passes="The primary is not asked again before 2 s; the call is answered.",
        build=lambda s: Routes([_fails(ErrorReply(kind="rate_limit", retry_after=2 * s)), _PRIMARY], _FALLBACK),
        primary_attempts=2,
    ),
    Scenario(
        id="S02",
        name="rate-limited",
        title="429 always",
        safe="A clear error or the fallback's answer; no storm of requests.",
        passes="The fallback answers; at most 4 requests within 3 s and 6 in all.",
        build=_constant(_fails(ErrorReply(kind="rate_limit"))),
        attempts=6,
    ),
    Scenario(
        id="S03",
        name="server-error-once",
        title="500 once",
        safe="The call is answered by either route.",
        passes="The same route is tried again and answers.",
        build=_constant([_fails(ErrorReply(status=500)), _PRIMARY]),
        primary_attempts=2,
    ),
    Scenario(
        id="S04",
        name="unavailable",
        title="503 always",
        safe="A clear error or the fallback's answer.",
        passes="The fallback answers.",
        build=_constant(_fails(ErrorReply(status=503))),
        attempts=6,
    ),
    Scenario(
        id="S05",
        name="reset-before-headers",
        title="Connection reset before headers",
        safe="A clear connection error.",
        passes="The call is answered by either route.",
        build=_constant([replace(_PRIMARY, connection="reset"), _PRIMARY]),
    ),
    Scenario(
        id="S06",
        name="silence",
        title="No response at all",
        safe="The call ends within 100 s.",
        passes="The fallback answers, and the silent route is not asked twice.",
        build=_constant(replace(_PRIMARY, connection="silence")),
        bound=100.0,
        primary_attempts=1,
    ),
    Scenario(
        id="S07",
        name="slow-first-token",
        title="First token after 20 s",
        safe="The call ends with a whole answer or a clear timeout.",
        passes="The fallback answers within 15 s.",
        build=lambda s: Routes(replace(_PRIMARY, first_token_delay=20.0 * s), _FALLBACK),
        bound=45.0,
        primary_attempts=1,
    ),
    Scenario(
        id="S08",
        name="reset-in-the-middle",
        title="Cut by a reset in the middle of the answer",
        safe="An error that carries what was shown; never a truncated answer that looks whole.",
        passes="The whole answer of one route.",
        build=lambda s: Routes(_breaks(s, Cut(after=_HALF, how="reset")), _FALLBACK),
        stream=("answer", "interrupted"),
    ),
    Scenario(
        id="S09",
        name="stall-in-the-middle",
        title="Stall of 30 s in the middle of the answer, once",
        safe="The call ends within 45 s, whole or with an error; the next call is healthy.",
        passes="The whole answer of one route.",
        build=lambda s: Routes(
            [replace(_PRIMARY, stall=Stall(after=_HALF, seconds=30 * s), token_delay=_PACE * s), _PRIMARY],
            _FALLBACK,
        ),
        stream=("answer", "interrupted"),
        bound=45.0,
        requests=2,
    ),
    Scenario(
        id="S10",
        name="malformed-in-the-middle",
        title="An event of malformed JSON in the middle of the answer",
        safe="A clear error; the event is not skipped in silence, since text may be lost with it.",
        passes="The whole answer of one route.",
        build=lambda s: Routes(replace(_PRIMARY, malformed=Malformed(at=_HALF), token_delay=_PACE * s), _FALLBACK),
        stream=("answer", "interrupted"),
    ),
    Scenario(
        id="S11",
        name="no-done",
        title="Finish reason, but no [DONE] and the connection left open",
        safe="The call ends.",
        passes="The whole answer with its usage within 8 s.",
        build=_constant(replace(_PRIMARY, done=False, end="open")),
        bound=8.0,
    ),
    Scenario(
        id="S12",
        name="context-too-long",
        title="400: the prompt is longer than the context window",
        safe="A clear error that says so.",
        passes="One request, not repeated as it was.",
        build=_constant(
            _fails(ErrorReply(kind="context_length")),
            replace(_FALLBACK, error=ErrorReply(kind="context_length")),
        ),
        whole=("error",),
        stream=("error",),
        primary_attempts=1,
    ),
    Scenario(
        id="S13",
        name="content-filtered",
        title="400: content filter",
        safe="The refusal reaches the caller.",
        passes="One request; the prompt is not shopped around.",
        build=_constant(_fails(ErrorReply(kind="content_filter"))),
        whole=("error",),
        stream=("error",),
        attempts=1,
    ),
    Scenario(
        id="S14",
        name="prefill-rejected",
        title="Cut in the middle, and a fallback that rejects prefill",
        safe="The interruption reaches the caller, not the fallback's 400.",
        passes="The whole answer of one route.",
        build=lambda s: Routes(_breaks(s, Cut(after=_HALF, how="reset")), RejectPrefill(_FALLBACK)),
        stream=("answer", "interrupted"),
    ),
    Scenario(
        id="S15",
        name="outage",
        title="Outage of 60 s under traffic",
        safe="All calls are answered.",
        passes="Few requests to the broken route, and back to it within 30 s of its recovery.",
        build=_outage,
        requests=20,
        interval=4.0,
    ),
    Scenario(
        id="S16",
        name="failover-accounting",
        title="Accounting of a failover",
        safe="The call is answered by the fallback.",
        passes="The response names the model that answered, with its usage.",
        build=_constant(_fails(ErrorReply(status=503))),
    ),
)

_EXTRA = (
    Scenario(
        id="X01",
        name="clean-cut",
        title="Clean end of the stream without a finish",
        safe="An error; never a truncated answer that looks whole.",
        passes="The whole answer of one route.",
        build=lambda s: Routes(_breaks(s, Cut(after=_HALF, how="clean")), _FALLBACK),
        stream=("answer", "interrupted"),
    ),
    Scenario(
        id="X02",
        name="html",
        title="200 with a page of HTML",
        safe="A clear error; never an empty answer.",
        passes="The fallback answers.",
        build=_constant(replace(_PRIMARY, reply=RawReply())),
    ),
    Scenario(
        id="X03",
        name="error-first",
        title="200 whose first event is an error",
        safe="The provider's error.",
        passes="The fallback answers.",
        build=_constant(replace(_PRIMARY, stream_error=StreamError(at=0))),
    ),
    Scenario(
        id="X04",
        name="error-in-the-middle",
        title="200 with an error event in the middle",
        safe="The provider's error with what was shown.",
        passes="The whole answer of one route.",
        build=lambda s: Routes(replace(_PRIMARY, stream_error=StreamError(at=_HALF), token_delay=_PACE * s), _FALLBACK),
        stream=("answer", "interrupted"),
    ),
    Scenario(
        id="X05",
        name="quota-exhausted",
        title="429: the quota is used up",
        safe="A clear error.",
        passes="One request to the primary; the fallback answers.",
        build=_constant(_fails(ErrorReply(kind="quota"))),
        primary_attempts=1,
    ),
    Scenario(
        id="X06",
        name="long-retry-after",
        title="429 with Retry-After 3600",
        safe="No sleep: an error at once.",
        passes="The fallback answers at once.",
        build=_constant(_fails(ErrorReply(kind="rate_limit", retry_after=3600))),
        bound=10.0,
        primary_attempts=1,
    ),
    Scenario(
        id="X07",
        name="drip",
        title="A drip that keeps the connection busy past the deadline of 10 s",
        safe="The call ends at its deadline.",
        passes="The call ends at its deadline, with what was shown.",
        build=lambda s: Routes(replace(_PRIMARY, drip=Drip(gap=0.2 * s)), _FALLBACK),
        whole=("answer", "error"),
        stream=("answer", "error", "interrupted"),
        bound=12.0,
        deadline=10.0,
    ),
    Scenario(
        id="X08",
        name="tool-index-zero",
        title="Two tool calls whose deltas all say index 0",
        safe="Two calls or a clear error; never one call of merged arguments.",
        passes="Two calls.",
        build=_constant(
            _tools("", Quirks(tool_index_zero=True)),
            _tools("", Quirks()),
        ),
    ),
    Scenario(
        id="X09",
        name="malformed-first",
        title="A first event of malformed JSON",
        safe="A clear error, not a JSONDecodeError.",
        passes="The fallback answers.",
        build=_constant(replace(_PRIMARY, malformed=Malformed(at=0))),
    ),
    Scenario(
        id="X10",
        name="empty-body",
        title="200 with an empty body",
        safe="A clear error; never an empty answer.",
        passes="The fallback answers.",
        build=_constant(replace(_PRIMARY, reply=RawReply(body=b"", content_type="text/event-stream"))),
    ),
    Scenario(
        id="X11",
        name="cancelled",
        title="The caller cancels in the middle",
        safe="The connection is let go at once.",
        passes="The usage of what was shown is kept.",
        build=lambda s: Routes(replace(_PRIMARY, token_delay=0.5 * s), _FALLBACK),
        stream=("answer", "interrupted"),
    ),
)

SCENARIOS: Mapping[str, Scenario] = MappingProxyType({scenario.id: scenario for scenario in (*_PUBLISHED, *_EXTRA)})
"""All scenarios by id, in order."""

_BY_NAME = {scenario.name: scenario for scenario in SCENARIOS.values()}


def scenario(name: str) -> Scenario:
    """Return a scenario by its name (``reset-in-the-middle``) or its id (``S08``).

    Raises:
        ValueError: there is none; the message lists all.
    """
    found = _BY_NAME.get(name) or SCENARIOS.get(name)
    if found is None:
        raise ValueError(f"no scenario {name!r}; there are " + ", ".join(_BY_NAME))
    return found

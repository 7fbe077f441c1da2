"""What a `FaultServer` does with one request: immutable descriptions, composed by fields.

A `Behaviour` with no arguments is a healthy answer. Each field adds one departure from health, and
fields combine: ``Behaviour(first_token_delay=0.2, cut=Cut(after=40))`` is a slow start and then a reset.

Times are seconds. An *event* is one content event of a stream: a text, reasoning or tool-call delta. The
frames that an API puts around content (role chunk, ``message_start``, ``ping``, block starts) don't count.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = [
    "Answer",
    "Behaviour",
    "Cut",
    "Delay",
    "Drip",
    "End",
    "ErrorKind",
    "ErrorReply",
    "Lognormal",
    "Malformed",
    "Quirks",
    "RawReply",
    "SseStyle",
    "Stall",
    "StreamError",
    "TokenCounts",
    "ToolCall",
    "words",
]

ErrorKind: TypeAlias = Literal[
    "authentication",
    "content_filter",
    "context_length",
    "invalid_request",
    "not_found",
    "overloaded",
    "permission",
    "prefill_rejected",
    "quota",
    "rate_limit",
    "server_error",
    "timeout",
]
"""What went wrong, in words common to all APIs; each API has its own status, type and code for it."""

End: TypeAlias = Literal["clean", "close", "open", "reset"]
"""How a body ends: properly; by FIN without the last chunk; not at all (left open); by RST."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lognormal:
    """A random delay: `median` seconds, `sigma` its spread in log space, never above `cap`."""

    median: float
    sigma: float = 0.5
    cap: float = math.inf

    def sample(self, source: random.Random) -> float:
        """One delay, drawn from `source`."""
        return min(self.cap, self.median * math.exp(source.gauss(0.0, self.sigma)))


Delay: TypeAlias = float | Lognormal
"""Seconds: fixed, or drawn for each use from the server's seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenCounts:
    """The usage that an answer reports. `input` includes the cached part, `output` the reasoning.

    `output` None: the number of events of the answer.
    """

    input: int = 12
    output: int | None = None
    cache_read: int = 0
    cache_write: int = 0
    reasoning: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A tool call of the model. `arguments` may be given as a mapping; it is kept as JSON text."""

    name: str
    arguments: str | Mapping[str, object] = "{}"
    id: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.arguments, str):
            object.__setattr__(self, "arguments", json.dumps(self.arguments))

    @property
    def arguments_json(self) -> str:
        """The arguments as JSON text."""
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments)

    @property
    def arguments_object(self) -> object:
        """The arguments parsed."""
        parsed: object = json.loads(self.arguments_json or "{}")
        return parsed


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the model says. A `text` or `reasoning` given as one string is streamed word by word."""

    text: str | Sequence[str] = "All quiet on the loopback front."
    reasoning: str | Sequence[str] = ()
    tool_calls: Sequence[ToolCall] = ()
    finish: str | None = "auto"
    """``stop``, ``length``, ``tool_calls`` and ``content_filter`` are translated for each API, anything
    else is sent as it is; ``auto`` is ``tool_calls`` if there are any, else ``stop``; None is null."""
    usage: TokenCounts | None = TokenCounts()
    model: str | None = None
    """The model id that the answer names; None: the one asked for."""
    dimensions: int = 8
    """The length of embedding vectors, unless the request asks for a length."""

    @property
    def text_pieces(self) -> Sequence[str]:
        """The text, one piece an event."""
        return _pieces(self.text)

    @property
    def reasoning_pieces(self) -> Sequence[str]:
        """The reasoning, one piece an event."""
        return _pieces(self.reasoning)

    @property
    def finish_word(self) -> str | None:
        """`finish` with ``auto`` resolved."""
        if self.finish == "auto":
            return "tool_calls" if self.tool_calls else "stop"
        return self.finish


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorReply:
    """An error, in the form of whichever API was asked.

    Give a `kind`, a `status` or both; whatever is None comes from the API's own table. `body` replaces
    the API's form altogether. A Gemini answer carries `retry_after` as ``RetryInfo``, as Gemini does;
    the others as headers.
    """

    kind: ErrorKind | None = None
    status: int | None = None
    type: str | None = None
    code: str | None = None
    message: str | None = None
    retry_after: float | str | None = None
    retry_after_ms: float | None = None
    headers: Sequence[tuple[str, str]] = ()
    body: bytes | None = None
    content_type: str = "application/json"


@dataclass(frozen=True, kw_only=True, slots=True)
class RawReply:
    """Any bytes in place of an answer: a proxy's HTML page, an empty body."""

    body: bytes = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Sign in</body></html>"
    content_type: str = "text/html; charset=utf-8"
    status: int = 200
    headers: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """End the answer after `after` events; a whole answer, after `fraction` of its bytes.

    ``clean`` is the treacherous one: the HTTP body ends as it should, but the finish never came.
    """

    after: int
    how: End = "reset"
    fraction: float = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Stall:
    """Say nothing for `seconds` after `after` events (a whole answer: half way through its bytes)."""

    after: int
    seconds: float = math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class Drip:
    """Write the body `size` bytes at a time, `gap` seconds apart."""

    gap: float
    size: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamError:
    """An error event after `at` events of a stream that began with status 200.

    At 0 it is the very first event. A whole answer is a 200 whose body is the error.
    """

    at: int = 0
    error: ErrorReply = ErrorReply(kind="overloaded")


@dataclass(frozen=True, kw_only=True, slots=True)
class Malformed:
    """Event number `at` (from 0) is JSON cut in half; with `replace` False it is an extra event."""

    at: int = 0
    replace: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Quirks:
    """Departures from the Chat Completions form that compatible servers are known for."""

    tool_index_zero: bool = False
    """All tool deltas say ``index: 0``, with different ids (Ollama)."""
    tool_index_missing: bool = False
    tool_id_missing: bool = False
    tool_arguments_object: bool = False
    """Arguments are a JSON object rather than text."""
    null_choices: bool = False
    """A whole answer has ``choices: null``; a stream has one such chunk before its content."""
    null_delta: bool = False
    """The finish chunk has ``delta: null`` (Azure)."""
    bare: bool = False
    """No ``id``, ``created`` and ``model``."""
    content_parts: bool = False
    """Content is a list of parts rather than a string."""
    reasoning_field: str = "reasoning_content"
    """``reasoning_content`` or ``reasoning``."""
    usage_in_finish: bool = False
    """The finish chunk reports usage too, even if it was not asked for."""
    continuous_usage: bool = False
    """Each chunk reports the usage so far (vLLM's ``continuous_usage_stats``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SseStyle:
    """How server-sent events are written down; all of it is legal."""

    bom: bool = False
    crlf: bool = False
    comments: bool = False
    """A comment line before each event."""
    multiline: bool = False
    """JSON data spread over two ``data:`` lines."""
    space: bool = True
    """A space after the colon."""
    last_blank_line: bool = True
    """The last event is closed by a blank line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Behaviour:
    """What the server does with one request. The default is a healthy, immediate answer."""

    answer: Answer = Answer()
    error: ErrorReply | None = None
    """Answer with this error status instead."""
    reply: RawReply | None = None
    """Answer with these bytes instead."""
    connection: Literal["answer", "close", "reset", "silence"] = "answer"
    """``close`` and ``reset`` end the connection before any header (after `header_delay`);
    ``silence`` never answers."""

    header_delay: Delay = 0.0
    """Before the status line."""
    first_token_delay: Delay = 0.0
    """Between headers and first event. A whole answer takes as long, before its status line."""
    token_delay: Delay = 0.0
    """Before each further event: 1 / tokens per second."""
    keepalive: float | None = None
    """While waiting, a ping (Anthropic) or comment (others) each so many seconds."""
    opening_first: bool = True
    """The frames that open a stream are sent with the headers rather than with the first event."""

    cut: Cut | None = None
    stall: Stall | None = None
    drip: Drip | None = None
    stream_error: StreamError | None = None
    malformed: Malformed | None = None
    done: bool = True
    """False: without the API's closing mark (``[DONE]``, ``message_stop``); the finish reason is sent."""
    end: End = "clean"
    """How the body of a stream ends after its last event."""

    capacity: int | None = None
    """Refuse with `over_capacity` when more than this many requests are in flight on the server."""
    over_capacity: ErrorReply = ErrorReply(kind="rate_limit")

    quirks: Quirks = Quirks()
    sse: SseStyle = SseStyle()

    def __post_init__(self) -> None:
        for name in ("header_delay", "first_token_delay", "token_delay"):
            value: Delay = getattr(self, name)
            if not isinstance(value, Lognormal) and not value >= 0:
                raise ValueError(f"{name} must be a number of seconds from 0, got {value!r}")
        if self.keepalive is not None and not self.keepalive > 0:
            raise ValueError(f"keepalive must be above 0 seconds, got {self.keepalive!r}")
        if self.drip is not None and self.drip.size < 1:
            raise ValueError(f"drip.size must be at least 1 byte, got {self.drip.size!r}")
        if self.cut is not None and not 0 <= self.cut.fraction <= 1:
            raise ValueError(f"cut.fraction must be between 0 and 1, got {self.cut.fraction!r}")


def words(count: int, word: str = "word") -> str:
    """`count` different words in one string: ``word1 word2 …``. Streamed, each is one event."""
    return " ".join(f"{word}{number}" for number in range(1, count + 1))


def _pieces(text: str | Sequence[str]) -> Sequence[str]:
    """A string in words, each with the space after it; a sequence as it is."""
    return re.findall(r"^\s+|\S+\s*", text) if isinstance(text, str) else text

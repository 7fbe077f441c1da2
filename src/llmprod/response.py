"""The answer: whole, or still open as an async iterator of events. It settles exactly once, however it ends."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Protocol, cast

import anyio

from llmprod.context import Context
from llmprod.errors import CallError, InvalidArgument, InvalidOutput, StreamInterrupted, TruncatedAnswer
from llmprod.events import (
    Event,
    Finish,
    PartDone,
    RefusalDelta,
    Reset,
    Seam,
    Start,
    TextDelta,
    ThinkingDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallDone,
    UsageUpdate,
)
from llmprod.request import GenerateRequest, Request
from llmprod.trace import Trace
from llmprod.types import Part, Refusal, Text, Thinking, ToolCall
from llmprod.usage import FinishReason, Usage

__all__ = ["Cached", "EngineTiming", "EventSource", "Outcome", "Response", "Timing", "WrappedSource"]


class EventSource(Protocol):
    """Where a stream's events come from. Not an async generator, so that closing it has an owner.

    A source may also have ``poll() -> Event | None``: the next event if it is there already. It spares an event that
    came in one piece with others the way through every ``__anext__`` and its time limit.
    """

    async def __anext__(self) -> Event:
        """Return the next event; raise StopAsyncIteration after Finish and what may follow it."""
        ...

    async def aclose(self) -> None:
        """Release what is held; may be called at any time and more than once."""
        ...


def nothing_ready() -> Event | None:
    """The ``poll`` of a source that has none: ask ``__anext__``."""
    return None


class WrappedSource:
    """A source around a source: passes closing through. Override ``__anext__`` and call ``self._next()`` in it.

    A subclass that leaves events as they are may set ``self.poll = self._poll``; without that every event passes
    through its ``__anext__``.
    """

    __slots__ = ("_next", "_poll", "_source", "poll")

    def __init__(self, source: EventSource) -> None:
        self._source = source
        self._next = source.__anext__
        self._poll: Callable[[], Event | None] = getattr(source, "poll", nothing_ready)
        self.poll: Callable[[], Event | None] = nothing_ready

    async def __anext__(self) -> Event:
        return await self._next()

    async def aclose(self) -> None:
        """Close the source within."""
        await self._source.aclose()

    def abandon(self) -> None:
        """Release what can be released without awaiting; for a response that was garbage-collected unread."""
        abandon = getattr(self._source, "abandon", None)
        if abandon is not None:
            abandon()


async def close(source: EventSource) -> None:
    """Close ``source`` in spite of a cancellation, which would leave its connection checked out."""
    try:
        with anyio.CancelScope(shield=True):
            await source.aclose()
    except BaseException:
        # asyncio's own cancellation passes a shield.
        abandon = getattr(source, "abandon", None)
        if abandon is not None:
            abandon()
        raise


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a response ended, given once to every ``on_close`` callback.

    Attributes:
        kind: ``ok`` (complete), ``error`` (it broke), ``cancelled`` (the caller's task was), ``closed`` (the caller
            stopped reading), or ``abandoned`` (the caller dropped it unread).
        error: what broke it.
        usage: tokens as far as the provider told.
        finish_reason: why a complete answer ended.
    """

    kind: Literal["ok", "error", "cancelled", "closed", "abandoned"]
    error: BaseException | None = None
    usage: Usage | None = None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a call went, in seconds.

    Attributes:
        total: from the call's start to its end, or until now while it is open.
        ttft: from the call's start to the first content (time to first token); None where the answer came whole.
        tokens_per_second: answer tokens over the time they took after the first, or over ``total`` for a whole one.
        queue: waiting in the engine until its scheduler took the request; None where the target doesn't tell.
        prefill: from there to the first token; None likewise.
        decode: from the first token to the last; None likewise.
    """

    total: float
    ttft: float | None = None
    tokens_per_second: float | None = None
    queue: float | None = None
    prefill: float | None = None
    decode: float | None = None


@dataclass(slots=True, weakref_slot=True)
class EngineTiming:
    """What an engine measured of one request, in seconds; filled in when it has ended there.

    Attributes:
        queue: waiting for the scheduler.
        prefill: computing the prompt, up to the first token.
        decode: from the first token to the last.
    """

    queue: float | None = None
    prefill: float | None = None
    decode: float | None = None


@dataclass(slots=True)
class Cached:
    """That an answer was not made for this call, and what it took to make it.

    Attributes:
        joined: it was made for an equal call at the same time; False where it was stored.
        age: seconds since it was stored.
        stale: it was past its time to live.
        usage: tokens that making it took; ``response.usage`` is zero, since this call took none. None where the
            provider didn't tell, or the answer is not there yet.
    """

    joined: bool = False
    age: float = 0.0
    stale: bool = False
    usage: Usage | None = None


class _Builder:
    """A part that is being written."""

    __slots__ = ("id", "kind", "name", "pieces", "value")

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.pieces: list[str] = []
        self.id: str | None = None
        self.name: str | None = None
        self.value: Part | None = None

    def build(self) -> Part:
        if self.value is not None:
            return self.value
        text = "".join(self.pieces)
        if self.kind is ToolCall:
            return ToolCall(self.id or "", self.name or "", text)
        return Thinking(text) if self.kind is Thinking else Refusal(text) if self.kind is Refusal else Text(text)


class Response:
    """An answer. Whole when ``stream`` was not asked for; otherwise open, its first content already there.

    Iterate it for events, or ``await response.read()`` for the rest at once. Accessors show what has arrived so far.

    Attributes:
        provider: name of the target that answered.
        model: exact id of the model that answered, as the provider tells it.
        response_id: the provider's id of the answer.
        request_id: the provider's id of the HTTP request, for its support.
        finish_reason: why the answer ended; None while it is open.
        raw_finish: the provider's own word for it.
        usage: tokens; None where the provider didn't tell (which is not zero).
        logprobs: log probabilities of the answer's tokens, if asked for.
        embeddings: one vector an input, for an embedding request.
        dropped: names of request fields left out because the target can't honour them (``drop_unsupported``).
        raw: the provider's JSON of a whole answer, nothing left out; None for a stream.
        headers: the HTTP response's headers, lower-case; empty without HTTP.
        deployment: the ``identity`` of the provider that answered, for routers; None where it has none.
        cost: US dollars that the call cost, once it has ended, attempts that failed or lost among them; None where a
            price or usage is not known (which is not zero). ``trace.cost`` says why, and how it is made up.
        cached: how a cache came by the answer; None where it was made for this call.
    """

    def __init__(
        self,
        *,
        provider: str,
        context: Context,
        request: Request,
        model: str | None = None,
        source: EventSource | None = None,
        events: Iterable[Event] = (),
        request_id: str | None = None,
        dropped: Sequence[str] = (),
        embeddings: Sequence[Sequence[float]] | None = None,
        raw: Any = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Make an open response from ``source``, or a whole one from ``events``, which must hold a Finish."""
        self.provider = provider
        self.model = model
        self.response_id: str | None = None
        self.request_id = request_id
        self.finish_reason: FinishReason | None = None
        self.raw_finish: str | None = None
        self.usage: Usage | None = None
        self.logprobs: list[TokenLogprob] = []
        self.embeddings = embeddings
        self.dropped: tuple[str, ...] = tuple(dropped)
        self.raw = raw
        self.headers: dict[str, str] = headers if headers is not None else {}
        self.deployment: Hashable | None = None
        self._cost: Decimal | None = None
        self.cached: Cached | None = None
        self.engine_timing: EngineTiming | None = None
        self.context = context
        self._request = request
        self._builders: dict[int, _Builder] = {}
        self._callbacks: list[Callable[[Outcome], None]] = []
        self._outcome: Outcome | None = None
        self._first_token: float | None = None
        self._ended: float | None = None
        self._replay: Sequence[Event] | None = None
        self._read = 0  # events of a whole answer that were handed out
        self._source = source
        if source is not None:
            self._read_from(source)
            self._first_token = context.clock.now()
        else:
            self._replay = tuple(events)
            for event in self._replay:
                self._absorb(event)
            if self.finish_reason is None and embeddings is None:
                cut = TruncatedAnswer(provider=provider, model=model)
                self._settle("error", cut)
                raise cut
            self._settle("ok")

    # ---- what arrived -----------------------------------------------------------------------------------------------

    @property
    def parts(self) -> tuple[Part, ...]:
        """The answer's parts in order; ``Message.assistant(*response.parts)`` replays it."""
        return tuple(self._builders[number].build() for number in sorted(self._builders))

    @property
    def text(self) -> str:
        """The answer's text (so far)."""
        builders = self._builders
        if len(builders) == 1:
            (only,) = builders.values()
            return "".join(only.pieces) if only.kind is Text and only.value is None else _text(only.build())
        return "".join(_text(builders[number].build()) for number in sorted(builders))

    @property
    def thinking(self) -> str:
        """The readable reasoning (so far)."""
        return "".join(part.text for part in self.parts if isinstance(part, Thinking))

    @property
    def refusal(self) -> str | None:
        """The model's refusal, where it declined in the provider's refusal field."""
        return "".join(part.text for part in self.parts if isinstance(part, Refusal)) or None

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tools that the model asks for."""
        return tuple(part for part in self.parts if isinstance(part, ToolCall))

    @property
    def parsed(self) -> Any:
        """The answer parsed by the output schema that was asked for.

        Raises:
            InvalidArgument: no output schema was asked for, or the stream is still open.
            InvalidOutput: the answer does not fit, was cut by ``max_tokens``, or is a refusal.
        """
        schema = self._request.output if isinstance(self._request, GenerateRequest) else None
        if schema is None:
            raise InvalidArgument(
                "output", "None", "a type or JSON Schema, passed with the request, to parse the answer by"
            )
        if not self.complete:
            raise InvalidArgument("parsed", "a stream that is still open", "a response read to its end")
        if self.finish_reason != "stop":
            raise InvalidOutput(provider=self.provider, detail=f"the answer ended with {self.finish_reason}")
        return schema.parse(self.text)

    @property
    def complete(self) -> bool:
        """True once the whole answer has arrived; False while open and for a broken or closed one."""
        return self._outcome is not None and self._outcome.kind == "ok"

    @property
    def closed(self) -> bool:
        """True once the response has ended in any way."""
        return self._outcome is not None

    @property
    def trace(self) -> Trace:
        """What happened in the call, attempt by attempt."""
        return self.context.trace

    @property
    def cost(self) -> Decimal | None:
        """What the call cost."""
        due = self.context.trace.costs_due
        if due is not None:
            due()
        return self._cost

    @cost.setter
    def cost(self, value: Decimal | None) -> None:
        self._cost = value

    @property
    def timing(self) -> Timing:
        """Where the time went."""
        started = self.context.call.started
        end = self._ended if self._ended is not None else self.context.clock.now()
        since = started if self._first_token is None else self._first_token
        tokens = self.usage.total_output if self.usage else 0
        engine = self.engine_timing
        return Timing(
            total=end - started,
            ttft=None if self._first_token is None else self._first_token - started,
            tokens_per_second=tokens / (end - since) if tokens and end > since else None,
            queue=engine.queue if engine else None,
            prefill=engine.prefill if engine else None,
            decode=engine.decode if engine else None,
        )

    # ---- reading ----------------------------------------------------------------------------------------------------

    def __aiter__(self) -> Response:
        return self

    async def __anext__(self) -> Event:
        if self._source is None:
            return self._next_of_whole()
        if self._outcome is not None:
            self._raise_if_broken()
            raise StopAsyncIteration
        try:
            event = self._poll() or await self._next()
        except StopAsyncIteration:
            if self.finish_reason is None:
                cut = TruncatedAnswer(provider=self.provider, model=self.model, in_stream=True)
                raise await self._break(cut) from cut
            try:
                self._settle("ok")  # first: a cancellation while closing takes nothing away from the answer
            finally:
                await self._release()
            raise
        except Exception as error:
            raise await self._break(error) from error
        except BaseException as error:
            try:
                await self._release()
            finally:
                self._settle("cancelled", error)
            raise
        self._absorb(event)
        return event

    def _next_of_whole(self) -> Event:
        replay = cast("Sequence[Event]", self._replay)
        if self._read >= len(replay):
            raise StopAsyncIteration
        self._read += 1
        return replay[self._read - 1]

    async def read(self) -> Response:
        """Read to the end and return this response.

        Raises:
            StreamInterrupted: it broke; the error's ``partial`` is this response.
        """
        if self._source is not None:
            async for _ in self:
                pass
        return self

    async def text_stream(self) -> AsyncIterator[str]:
        """Iterate over the text alone, piece by piece.

        Raises:
            StreamInterrupted: it broke, or it starts over (:class:`Reset`), which text alone can't tell.
        """
        begun = False
        async for event in self:
            if type(event) is TextDelta:
                begun = True
                yield event.text
            elif type(event) is Reset and begun:
                await self.aclose()
                raise started_over(self)

    async def aclose(self) -> None:
        """Stop reading and release the connection; what arrived stays readable."""
        if self._outcome is None:
            try:
                await self._release()
            finally:
                self._settle("closed" if self.finish_reason is None else "ok")

    async def __aenter__(self) -> Response:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _break(self, error: Exception) -> StreamInterrupted:
        # The connection goes back before anyone is told; that it broke stands even if the closing is cancelled.
        try:
            await self._release()
        except BaseException:
            self._broken(error)
            raise
        return self._broken(error)

    async def _release(self) -> None:
        # How the answer ended is known by now, and a close that fails does not change it.
        with contextlib.suppress(Exception):
            await close(cast("EventSource", self._source))

    # ---- for providers and wrappers ---------------------------------------------------------------------------------

    def poll(self) -> Event | None:
        """Return the next event if it is there already: a response is an event source too."""
        if self._outcome is not None or (event := self._poll()) is None:
            return None
        self._absorb(event)
        return event

    def abandon(self) -> None:
        """End without awaiting; for the source of a response that was garbage-collected unread."""
        if self._outcome is None:
            abandon = getattr(self._source, "abandon", None)
            if abandon is not None:
                abandon()
            self._settle("abandoned")

    def on_close(self, callback: Callable[[Outcome], None]) -> None:
        """Call ``callback`` once when the response ends; at once if it has ended. It must not await."""
        if self._outcome is not None:
            callback(self._outcome)
        else:
            self._callbacks.append(callback)

    def transform(self, wrap: Callable[[EventSource], EventSource]) -> None:
        """Put ``wrap(source)`` between an open response and its events; does nothing to a whole one."""
        if self._source is not None and self._outcome is None:
            self._read_from(wrap(self._source))

    def _read_from(self, source: EventSource) -> None:
        self._source = source
        self._next = source.__anext__
        self._poll: Callable[[], Event | None] = getattr(source, "poll", nothing_ready)

    def _settle(
        self, kind: Literal["ok", "error", "cancelled", "closed", "abandoned"], error: BaseException | None = None
    ) -> None:
        if self._outcome is not None:
            return
        self._ended = self.context.clock.now()
        self._outcome = outcome = Outcome(kind, error, self.usage, self.finish_reason)
        callbacks, self._callbacks = self._callbacks, []
        failure: Exception | None = None
        for callback in callbacks:
            try:
                callback(outcome)
            except Exception as raised:  # noqa: BLE001 - every permit must go back: one bad callback stops no other
                failure = failure or raised
        if failure is not None:
            if error is None:
                raise failure
            error.add_note(f"an on_close callback failed as well: {failure!r}")

    def _broken(self, error: Exception) -> StreamInterrupted:
        known = error if isinstance(error, CallError) else None
        interrupted = StreamInterrupted(
            self,
            provider=known.provider if known and known.provider else self.provider,
            model=known.model if known and known.model else self.model,
            status=known.status if known else None,
            code=known.code if known else None,
            request_id=self.request_id,
            retry_after=known.retry_after if known else None,
            provider_message=known.provider_message if known else None,
            in_stream=True,
            detail=type(error).__name__,
        )
        interrupted.usage = self.usage
        interrupted.trace = self.trace
        interrupted.__cause__ = error
        self._error = interrupted
        self._settle("error", error)
        return interrupted

    _error: StreamInterrupted | None = None

    def _raise_if_broken(self) -> None:
        if self._outcome is not None and self._outcome.kind == "cancelled" and self._error is None:
            self._error = StreamInterrupted(
                self,
                provider=self.provider,
                model=self.model,
                request_id=self.request_id,
                detail="reading was cancelled",
            )
            self._error.usage, self._error.trace = self.usage, self.trace
        if self._error is not None:
            raise self._error

    def _absorb(self, event: Event) -> None:
        if type(event) is TextDelta:
            self._written(event.part, Text).append(event.text)
            if event.logprobs:
                self.logprobs.extend(event.logprobs)
        elif isinstance(event, ThinkingDelta):
            self._written(event.part, Thinking).append(event.text)
        elif isinstance(event, RefusalDelta):
            self._written(event.part, Refusal).append(event.text)
        elif isinstance(event, ToolCallDelta):
            builder = self._builders.get(event.part)
            if builder is None:
                builder = self._builders[event.part] = _Builder(ToolCall)
            builder.id = event.id or builder.id
            builder.name = event.name or builder.name
            builder.pieces.append(event.arguments)
        elif isinstance(event, ToolCallDone):
            builder = self._builders[event.part] = _Builder(ToolCall)
            builder.value = event.call
        elif isinstance(event, PartDone):
            builder = self._builders[event.part] = _Builder(type(event.value))
            builder.value = event.value
        elif isinstance(event, UsageUpdate):
            self.usage = event.usage
        elif isinstance(event, Finish):
            self.finish_reason, self.raw_finish = event.reason, event.raw
        elif isinstance(event, Start):
            self.model = event.model or self.model
            self.response_id = event.response_id or self.response_id
        elif isinstance(event, Seam):
            for part in event.dropped:
                self._builders.pop(part, None)
        elif isinstance(event, Reset):
            self._builders.clear()
            self.logprobs.clear()

    def _written(self, part: int, kind: type) -> list[str]:
        builder = self._builders.get(part)
        if builder is None:
            builder = self._builders[part] = _Builder(kind)
        return builder.pieces

    def __del__(self) -> None:
        if getattr(self, "_outcome", self) is None:
            warnings.warn(
                f"{self!r} was dropped unread; use 'async with' or aclose()", ResourceWarning, stacklevel=2, source=self
            )
            self.abandon()

    def __repr__(self) -> str:
        state = self._outcome.kind if self._outcome else "open"
        size = f"{len(self.embeddings)} embeddings" if self.embeddings is not None else f"{len(self.text)} chars"
        return f"<Response {state} from {self.provider} model={self.model} {size} finish={self.finish_reason}>"


def started_over(response: Response) -> StreamInterrupted:
    """The error of a reader of text alone whose text no longer stands."""
    detail = "the answer started over, which text alone can't show; read its events"
    return StreamInterrupted(response, provider=response.provider, model=response.model, detail=detail)


def _text(part: Part) -> str:
    return part.text if isinstance(part, Text) else ""

"""The one noun, closed under wrapping: a wrapped provider is a provider, and so is a router over several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable
from weakref import ref

from llmprod.context import Context, Fare
from llmprod.cost import CostSource
from llmprod.errors import TruncatedAnswer, UnsupportedParameter
from llmprod.events import CONTENT, Event
from llmprod.request import GenerateRequest, Request
from llmprod.response import EventSource, Outcome, Response, WrappedSource, close
from llmprod.trace import Attempt, AttemptEnd
from llmprod.types import Audio, File, Image
from llmprod.usage import Usage

__all__ = ["BaseProvider", "Capabilities", "Provider", "committed"]

PARAMETERS = frozenset({
    "stream", "tools", "tool_choice", "parallel_tool_calls", "output", "max_tokens", "temperature", "top_p", "top_k",
    "frequency_penalty", "presence_penalty", "seed", "stop", "logprobs", "reasoning_effort",
})  # fmt: skip
"""All parameters of a GenerateRequest that a target may or may not honour."""

_MAY_DROP = frozenset({
    "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed", "stop", "logprobs",
    "reasoning_effort", "parallel_tool_calls", "dimensions",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a target can do. Routers filter by it before they order, and no request is sent that can't be honoured.

    Attributes:
        parameters: the request fields it honours; all by default.
        generate: it answers a GenerateRequest.
        embeddings: it answers an EmbedRequest.
        images: it takes images in a prompt.
        audio: it takes sound in a prompt.
        files: it takes documents in a prompt.
        prefill: continues an assistant message that ends the prompt.
        context_window: prompt and answer together, in tokens; None if unknown.
    """

    parameters: frozenset[str] = PARAMETERS
    generate: bool = True
    embeddings: bool = False
    images: bool = True
    audio: bool = True
    files: bool = True
    prefill: bool = False
    context_window: int | None = None

    def missing(self, request: Request) -> tuple[str, ...]:
        """Names of what ``request`` asks for and the target can't do, less what the request lets it drop."""
        lacking = self._lacking(request)
        return tuple(sorted(lacking - _MAY_DROP if request.drop_unsupported else lacking))

    def _lacking(self, request: Request) -> set[str]:
        if not isinstance(request, GenerateRequest):
            return set() if self.embeddings else {"embeddings"}
        if not self.generate:
            return {"generate"}
        lacking = request.used() - self.parameters - {"stream"}
        if self.prefill:
            lacking.discard("prefill")
        if not (self.images and self.audio and self.files):
            for message in request.messages:
                for part in message.parts:
                    if isinstance(part, Image) and not self.images:
                        lacking.add("images")
                    elif isinstance(part, Audio) and not self.audio:
                        lacking.add("audio")
                    elif isinstance(part, File) and not self.files:
                        lacking.add("files")
        return lacking

    def fit(self, request: Request, target: str) -> tuple[Request, tuple[str, ...]]:
        """Return ``request`` less what the target can't honour, and the names of what was left out.

        Raises:
            UnsupportedParameter: something can't be honoured and may not be left out.
        """
        lacking = self._lacking(request)
        if not lacking:
            return request, ()
        stuck = lacking - _MAY_DROP if request.drop_unsupported else lacking
        if stuck:
            raise UnsupportedParameter(target, tuple(sorted(stuck)))
        dropped = tuple(sorted(lacking))
        left_out: dict[str, Any] = {name: () if name == "stop" else None for name in dropped}
        return replace(request, **left_out), dropped

    def __or__(self, other: Capabilities) -> Capabilities:
        """Return what either can do: a router over both."""
        windows = [window for window in (self.context_window, other.context_window) if window]
        return Capabilities(
            parameters=self.parameters | other.parameters,
            generate=self.generate or other.generate,
            embeddings=self.embeddings or other.embeddings,
            images=self.images or other.images,
            audio=self.audio or other.audio,
            files=self.files or other.files,
            prefill=self.prefill or other.prefill,
            context_window=max(windows) if windows else None,
        )


@runtime_checkable
class Provider(Protocol):
    """Anything that answers requests.

    Attributes:
        name: what traces and errors call it, such as ``openai:gpt-5``.
        capabilities: what it can do.
    """

    @property
    def name(self) -> str:
        """What traces and errors call it."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    async def send(self, request: Request, context: Context) -> Response:
        """Return when the answer is committed: whole, or open with its first content there."""
        ...

    async def aclose(self) -> None:
        """Release connections and other resources."""
        ...


class BaseProvider(ABC):
    """A provider that answers by itself, rather than by asking others. Subclass it for a backend of your own.

    It checks the request against the capabilities and records the attempt; a subclass implements :meth:`_send`.

    Attributes:
        free: asking it costs nothing and loads nobody, so it needs no leave of a retry budget; only fixed answers do.
        cost_source: where a cost is from that it sets on its responses by itself.
    """

    free: ClassVar[bool] = False
    cost_source: ClassVar[CostSource] = "provider"

    @property
    @abstractmethod
    def name(self) -> str:
        """What traces and errors call it."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What it can do."""

    @property
    def identity(self) -> Hashable:
        """What makes it one deployment: breakers and limits of two providers with the same identity may be shared."""
        return id(self)

    @property
    def priced_as(self) -> tuple[str | None, str | None, str | None]:
        """Provider, model and the API's address, that prices are looked up by; None for what is not known."""
        kind, _, model = self.name.partition(":")
        return kind, model or kind, None

    def cost_of(self, usage: Usage | None) -> Decimal | None:
        """What a usage costs where no price list tells, in US dollars; None where it is to be looked up in one."""
        return Decimal(0) if self.free else None

    @abstractmethod
    async def _send(self, request: Request, context: Context, dropped: tuple[str, ...]) -> Response:
        """Answer; ``request`` asks for nothing that the capabilities lack.

        Return a :class:`Response` with the ``events`` of a whole answer, Finish last, or with the ``source`` of an open
        one whose first content is there, and hand ``dropped`` on to it. Raise a :class:`CallError` for what failed.
        """

    async def send(self, request: Request, context: Context) -> Response:
        """Answer ``request``; every attempt is recorded in ``context.trace``."""
        fares = await _admitted(self, request, context) if context.tolls and not self.free else ()
        clock, started = context.clock, context.call.started
        attempt = context.call.trace.begin(self.name, clock.now() - started)
        try:
            request, dropped = self.capabilities.fit(request, self.name)
            if not self.free:
                context.call.attempts += 1
            response = await self._send(request, context, dropped)
        except Exception as error:
            attempt.failed(error, clock.now() - started)
            self._over(context, attempt, request, None, error)
            for fare in fares:
                fare.failed(error)
            raise
        except BaseException as error:
            attempt.failed(error, clock.now() - started, state="cancelled")
            self._over(context, attempt, request, None, error)
            for fare in fares:
                fare.failed(error)
            raise
        response.deployment = self.identity
        if not response.closed:
            attempt.ttft = clock.now() - started - attempt.started

        weakly = ref(response)  # a response that holds itself would not be closed when it is dropped

        def ended(outcome: Outcome) -> None:
            attempt.ended(outcome, clock.now() - started)
            answer = weakly()
            if answer is not None:
                attempt.model = answer.model
            self._over(context, attempt, request, answer, outcome.error)

        response.on_close(ended)
        for fare in fares:
            response.on_close(partial(fare.ended, weakly))
        return response

    def _over(
        self,
        context: Context,
        attempt: Attempt,
        request: Request,
        response: Response | None,
        error: BaseException | None,
    ) -> None:
        if context.meters:
            end = AttemptEnd(attempt, self, request, response, error, context)
            for tell in context.meters:
                tell(end)

    async def aclose(self) -> None:  # noqa: B027 - most have nothing to release
        """Release resources; nothing to release by default."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


async def _admitted(provider: Provider, request: Request, context: Context) -> Sequence[Fare]:
    """Pay every toll of the call, or none."""
    fares: list[Fare] = []
    try:
        for toll in context.tolls:
            fares.append(await toll.admit(provider, request, context))  # noqa: PERF401 - what is paid must be known
    except BaseException:
        for fare in fares:
            fare.refund()
        raise
    return fares


class _Prefetched(WrappedSource):
    """A source whose first events have been read ahead."""

    __slots__ = ("_ready",)

    def __init__(self, source: EventSource, ready: deque[Event]) -> None:
        super().__init__(source)
        self._ready = ready
        self.poll = self._pop

    def _pop(self) -> Event | None:
        return self._ready.popleft() if self._ready else self._poll()

    async def __anext__(self) -> Event:
        return self._ready.popleft() if self._ready else await self._next()


async def committed(source: EventSource) -> EventSource:
    """Read ``source`` up to its first content and return a source that begins with what was read.

    A stream is committed by content alone: a failure before it can be retried without the caller noticing.
    """
    ready: deque[Event] = deque()
    try:
        while True:
            event = await source.__anext__()
            ready.append(event)
            if type(event) in CONTENT:
                return _Prefetched(source, ready)
    except BaseException as error:
        await close(source)
        if isinstance(error, StopAsyncIteration):
            raise TruncatedAnswer(detail="the stream ended before any content") from None
        raise

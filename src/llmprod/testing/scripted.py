"""A provider that does what a test tells it to, call by call, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import anyio

from llmprod.context import Context
from llmprod.events import Event, Finish, Start, TextDelta, UsageUpdate
from llmprod.provider import BaseProvider, Capabilities, committed
from llmprod.request import EmbedRequest, Request
from llmprod.response import Response
from llmprod.usage import Usage

__all__ = ["CUT", "HANG", "Item", "Scripted", "Step"]


class _Mark:
    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


HANG: Final = _Mark("HANG")
"""Say nothing more, for ever."""
CUT: Final = _Mark("CUT")
"""End here without a Finish, as a connection does that closes too early."""

Item: TypeAlias = str | float | Event | BaseException | _Mark
Step: TypeAlias = Item | list[Item] | tuple[Item, ...] | Callable[[Request, Context], Awaitable[Response]]


class Scripted(BaseProvider):
    """Plays one step a call.

    A step is one item or a list of them, played in order, for whole and streamed answers alike:

    * a string: a piece of text
    * a number: seconds to wait, on the call's clock
    * an event, such as ``ToolCallDone(...)``: that event
    * an exception: it is raised
    * ``HANG``: nothing more ever comes
    * ``CUT``: the answer ends without its terminal event

    A step that does not end by itself is ended with usage (one token for each event) and ``Finish("stop")``. A
    function in place of a step gets the request and the context, and gives the response.

        provider = Scripted(Overloaded(), [0.5, "Hel", 0.1, "lo"], ["Hel", ReadError(in_stream=True)])

    Args:
        steps: what to do in the first call, the second, …
        then: what to do in every further call; without it a further call is an AssertionError.
        name: what traces call it.
        capabilities: what it claims to be able to do; everything, by default.

    Attributes:
        requests: what it was asked, in order.
        contexts: the contexts that came with them.
        in_flight: calls that have begun and not ended, open streams among them.
        open_sources: streams whose source was not closed.
        closed: how often ``aclose`` was called.
    """

    def __init__(
        self,
        *steps: Step,
        then: Step | None = None,
        name: str = "scripted",
        capabilities: Capabilities | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self.contexts: list[Context] = []
        self.in_flight: int = 0
        self.open_sources = 0
        self.closed: int = 0
        self._steps = list(steps)
        self._then = then
        self._name = name
        self._capabilities = capabilities or Capabilities(embeddings=True)

    @property
    def name(self) -> str:
        """The given name."""
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        """The given capabilities."""
        return self._capabilities

    @property
    def calls(self) -> int:
        """How often it was asked."""
        return len(self.requests)

    async def aclose(self) -> None:
        """Count that it was closed."""
        self.closed += 1

    def _step(self) -> Step:
        number = len(self.requests)
        if number <= len(self._steps):
            return self._steps[number - 1]
        if self._then is None:
            raise AssertionError(f"{self._name} was asked {number} times; its script has {len(self._steps)} steps")
        return self._then

    async def _send(self, request: Request, context: Context, dropped: tuple[str, ...]) -> Response:
        self.requests.append(request)
        self.contexts.append(context)
        step = self._step()
        self.in_flight += 1
        try:
            response = await self._play(step, request, context, dropped)
        except BaseException:
            self.in_flight -= 1
            raise
        response.on_close(self._left)
        return response

    def _left(self, _: object) -> None:
        self.in_flight -= 1

    async def _play(self, step: Step, request: Request, context: Context, dropped: tuple[str, ...]) -> Response:
        if callable(step):
            return await step(request, context)
        source = _Source(self, list(step) if isinstance(step, (list, tuple)) else [step], context)
        if request.stream:
            return Response(
                provider=self._name, context=context, request=request, dropped=dropped, source=await committed(source)
            )
        events: list[Event] = []
        try:
            while True:
                events.append(await source.__anext__())
        except StopAsyncIteration:
            pass
        finally:
            source.abandon()
        embeddings = [[1.0, 0.0]] * len(request.inputs) if isinstance(request, EmbedRequest) else None
        return Response(
            provider=self._name, context=context, request=request, dropped=dropped, events=events, embeddings=embeddings
        )


class _Source:
    """Plays items as events. Closing it takes a checkpoint, as closing a connection does."""

    __slots__ = ("_closed", "_context", "_items", "_next", "_provider")

    def __init__(self, provider: Scripted, items: Sequence[Item], context: Context) -> None:
        self._provider = provider
        self._context = context
        self._items = _ended(provider.name, items)
        self._next = 0
        self._closed = False
        provider.open_sources += 1

    async def __anext__(self) -> Event:
        while self._next < len(self._items):
            item = self._items[self._next]
            self._next += 1
            if isinstance(item, (int, float)):
                await self._context.clock.sleep(item)
            elif isinstance(item, str):
                return TextDelta(item)
            elif isinstance(item, BaseException):
                await anyio.lowlevel.checkpoint()
                raise item
            elif item is HANG:
                await anyio.sleep_forever()
            elif isinstance(item, _Mark):
                break
            else:
                return item
        raise StopAsyncIteration

    async def aclose(self) -> None:
        if not self._closed:
            await anyio.lowlevel.checkpoint()
            self._closed = True
            self._provider.open_sources -= 1

    def abandon(self) -> None:
        if not self._closed:
            self._closed = True
            self._provider.open_sources -= 1


def _ended(name: str, items: Sequence[Item]) -> list[Item]:
    """The items with a start, and with usage and an end where they have none of their own."""
    whole: list[Item] = [Start(name), *items]
    if not any(isinstance(item, (BaseException, _Mark, Finish)) for item in items):
        pieces = sum(not isinstance(item, (int, float)) for item in items)
        whole += [UsageUpdate(Usage(input=1, output=pieces)), Finish("stop")]
    return whole

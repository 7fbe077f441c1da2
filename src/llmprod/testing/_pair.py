"""A provider whose calls a test answers by hand, one at a time, while they wait. After tower-test's mock pair."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import anyio

from llmprod.context import Context
from llmprod.events import Event, Finish, Start, TextDelta, UsageUpdate
from llmprod.provider import BaseProvider, Capabilities, committed
from llmprod.request import EmbedRequest, Request
from llmprod.response import Outcome, Response
from llmprod.usage import FinishReason, Usage

__all__ = ["ScriptHandle", "ScriptedCall", "scripted_pair"]


class ScriptedCall:
    """One call that arrived, and waits for what the test has to say.

    Attributes:
        request: what was asked.
        context: what came with it.
        cancelled: the caller was gone before the answer was whole: cancelled, timed out, or closed the stream.
        ended: it is over, either way.
    """

    def __init__(self, provider: str, request: Request, context: Context) -> None:
        self.request = request
        self.context = context
        self.cancelled: bool = False
        self.ended: bool = False
        self.embeddings: Sequence[Sequence[float]] | None = None
        self._events: deque[Event | Exception] = deque([Start(provider)])
        self._said = 0
        self._finished = False
        self._news = anyio.Event()
        self._gone = anyio.Event()

    def chunk(self, *items: str | Event) -> None:
        """Say more: texts, or events such as ``ToolCallDone(...)``. A stream's caller sees it at once."""
        self._check("chunk")
        self._events += (TextDelta(item) if isinstance(item, str) else item for item in items)
        self._said += len(items)
        self._wake()

    def finish(self, reason: FinishReason = "stop", *, usage: Usage | None = None) -> None:
        """End the answer; without ``usage``, with one token for each item that was said."""
        self._check("finish")
        self._events += (UsageUpdate(usage or Usage(input=1, output=self._said)), Finish(reason))
        self._end()

    def respond(self, *items: str | Event, embeddings: Sequence[Sequence[float]] | None = None) -> None:
        """Say all of it and finish; ``embeddings`` answers an EmbedRequest (default: a vector of two for each)."""
        self.embeddings = embeddings
        self.chunk(*items)
        self.finish()

    def fail(self, error: Exception) -> None:
        """Break off with ``error``: in a stream that has begun, after what was said."""
        self._check("fail")
        self._events.append(error)
        self._end()

    def cut(self) -> None:
        """Break off without a finish, as a connection does that closes too early."""
        self._check("cut")
        self._end()

    async def wait_cancelled(self, timeout: float = 5.0) -> None:
        """Return once the caller is gone.

        Raises:
            AssertionError: it still waits after ``timeout`` seconds, or was answered whole.
        """
        with anyio.move_on_after(timeout):
            await self._gone.wait()
        if not self.cancelled:
            state = "ended with its answer" if self.ended else f"still waits after {timeout:g} s"
            raise AssertionError(f"{self!r} was not cancelled: it {state}")

    def _check(self, verb: str) -> None:
        if self.cancelled:
            raise AssertionError(f"{verb}: the caller of {self!r} is gone")
        if self._finished:
            raise AssertionError(f"{verb}: {self!r} was answered to its end")

    def _end(self) -> None:
        self._finished = True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    def _left(self, outcome: Outcome | None = None) -> None:
        """The caller is gone; without an outcome before there was a response."""
        if not self.ended:
            self.ended = True
            self.cancelled = bool(self._events) or not self._finished
            self._gone.set()

    async def next_event(self) -> Event:
        """Return what was said next; for the provider."""
        while not self._events:
            if self._finished:
                raise StopAsyncIteration
            await self._news.wait()
        item = self._events.popleft()
        if isinstance(item, Exception):
            await anyio.lowlevel.checkpoint()
            raise item
        return item

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled else "ended" if self.ended else "open"
        return f"<ScriptedCall {state}: {self.request!r}>"


class _Source:
    """Hands out what the test says as it says it."""

    def __init__(self, call: ScriptedCall) -> None:
        self._call = call

    async def __anext__(self) -> Event:
        return await self._call.next_event()

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()  # as closing a connection does


class ScriptHandle:
    """The test's end of a pair.

    Attributes:
        calls: every call so far, in order.
    """

    def __init__(self) -> None:
        self.calls: list[ScriptedCall] = []
        self._taken = 0
        self._news = anyio.Event()

    @property
    def in_flight(self) -> int:
        """Calls that have arrived and are not over."""
        return sum(not call.ended for call in self.calls)

    async def next_call(self, timeout: float = 5.0) -> ScriptedCall:
        """Wait for the next call.

        Args:
            timeout: seconds to wait for it, in the event loop's time.

        Raises:
            AssertionError: none came.
        """
        with anyio.move_on_after(timeout):
            while self._taken == len(self.calls):
                await self._news.wait()
        if self._taken == len(self.calls):
            raise AssertionError(f"no call within {timeout:g} s; {self._taken} came before")
        self._taken += 1
        return self.calls[self._taken - 1]

    async def assert_no_call(self, seconds: float = 0.0) -> None:
        """Let every other task run until it waits, for ``seconds`` on top, and check that no further call came.

        Raises:
            AssertionError: one came that ``next_call`` has not taken.
        """
        await anyio.wait_all_tasks_blocked()
        if seconds:
            await anyio.sleep(seconds)
        if self._taken < len(self.calls):
            raise AssertionError(f"a call that nobody expected: {self.calls[self._taken]!r}")

    def assert_done(self) -> None:
        """Check that every call was taken and is over.

        Raises:
            AssertionError: one was not.
        """
        left = [call for call in self.calls if not call.ended] or self.calls[self._taken :]
        if left:
            raise AssertionError(f"{len(left)} calls are left: {', '.join(map(repr, left))}")

    def _arrived(self, call: ScriptedCall) -> None:
        self.calls.append(call)
        self._news.set()
        self._news = anyio.Event()

    def __repr__(self) -> str:
        return f"<ScriptHandle of {len(self.calls)} calls, {self.in_flight} in flight>"


class _PairedProvider(BaseProvider):
    def __init__(self, handle: ScriptHandle, name: str, capabilities: Capabilities) -> None:
        self._handle = handle
        self._name = name
        self._capabilities = capabilities

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def _send(self, request: Request, context: Context, dropped: tuple[str, ...]) -> Response:
        call = ScriptedCall(self._name, request, context)
        self._handle._arrived(call)
        try:
            response = await self._answer(call, request, context, dropped)
        except BaseException:
            call._left()
            raise
        response.on_close(call._left)
        return response

    async def _answer(
        self, call: ScriptedCall, request: Request, context: Context, dropped: tuple[str, ...]
    ) -> Response:
        source = _Source(call)
        if request.stream:
            opened = await committed(source)
            return Response(provider=self._name, context=context, request=request, dropped=dropped, source=opened)
        events: list[Event] = []
        try:
            while True:
                events.append(await source.__anext__())
        except StopAsyncIteration:
            pass
        embeddings = None
        if isinstance(request, EmbedRequest):
            embeddings = call.embeddings if call.embeddings is not None else [[1.0, 0.0]] * len(request.inputs)
        return Response(
            provider=self._name, context=context, request=request, dropped=dropped, events=events, embeddings=embeddings
        )


def scripted_pair(
    name: str = "scripted", *, capabilities: Capabilities | None = None
) -> tuple[BaseProvider, ScriptHandle]:
    """Return a provider and the handle with which a test answers its calls while they wait.

        provider, handle = scripted_pair()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, provider)
            call = await handle.next_call()
            call.chunk("Hel")
            call.fail(ReadError(in_stream=True))

    Both ends belong into the same event loop.

    Args:
        name: what traces call the provider.
        capabilities: what it claims to be able to do; everything, by default.
    """
    handle = ScriptHandle()
    return _PairedProvider(handle, name, capabilities or Capabilities(embeddings=True)), handle

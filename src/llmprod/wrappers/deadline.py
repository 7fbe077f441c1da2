"""Bounds a call as a whole: attempts, waits between them, and reading the stream.

The deadline is absolute and travels with the context, so that what is inside knows how much time is left (gRPC's
deadline propagation).
"""

from __future__ import annotations

from typing import ClassVar

import anyio

from llmprod import _validate
from llmprod.context import Context
from llmprod.errors import DeadlineExceeded
from llmprod.provider import Provider
from llmprod.request import Request
from llmprod.response import Response
from llmprod.wrapper import Phase, WrappedProvider, Wrapper
from llmprod.wrappers._limited import LimitedSource

__all__ = ["Deadline"]


class Deadline(Wrapper):
    """End every call after ``seconds`` (default 600) with :class:`DeadlineExceeded`.

    A tighter deadline that the caller gave with the call stands. Once content of a stream has been shown, the error
    is :class:`StreamInterrupted` with the deadline as its cause.

    Raises:
        InvalidArgument: ``seconds`` is not a positive number.
    """

    phase: ClassVar[Phase] = Phase.DEADLINE

    def __init__(self, seconds: float = 600.0) -> None:
        _validate.seconds("seconds", seconds)
        self.seconds: float = float(seconds)

    def wrap(self, inner: Provider) -> Provider:
        """Bound ``inner``'s calls."""
        return _DeadlineProvider(inner, self)

    def __repr__(self) -> str:
        return f"Deadline({self.seconds:g} s)"


class _DeadlineProvider(WrappedProvider):
    wrapper: Deadline

    async def send(self, request: Request, context: Context) -> Response:
        context = context.within(self.wrapper.seconds)
        end = context.deadline
        assert end is not None
        if end <= context.clock.now():
            context.check(self.name)

        def late() -> DeadlineExceeded:
            return DeadlineExceeded(end - context.call.started)

        with anyio.CancelScope(deadline=anyio.current_time() + end - context.clock.now()):
            response = await self.inner.send(request, context)
            response.transform(lambda source: LimitedSource(source, context.clock, end=end, late=late))
            return response
        raise late()

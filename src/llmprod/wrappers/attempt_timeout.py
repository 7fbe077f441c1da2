"""Four clocks on one attempt: connecting, the first token, the pause between tokens, and the whole.

One timeout can't serve a stream: a limit that lets a long answer finish waits as long for a server that never
answers. A whole (not streamed) answer shows no first token, so its limit grows with the tokens that were asked for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar

import anyio

from llmprod import _validate
from llmprod.context import Context
from llmprod.errors import AttemptTimedOut, CallTimeout, FirstTokenTimeout, IdleTimeout
from llmprod.provider import Provider
from llmprod.request import EmbedRequest, GenerateRequest, Request
from llmprod.response import Response
from llmprod.wrapper import Phase, WrappedProvider, Wrapper, leaves
from llmprod.wrappers._limited import LimitedSource

__all__ = ["AttemptTimeout"]

_ASSUMED_TOKENS = 4096


class AttemptTimeout(Wrapper):
    """Limit each attempt; every limit is in seconds, None takes it away.

    Args:
        connect: opening a connection (default 5). Raises :class:`ConnectTimeout`.
        first_token: from sending to the first content of a stream (default 30; twice that when reasoning was asked
            for). Raises :class:`FirstTokenTimeout`.
        idle: between two events of a stream, or two pieces of a body (default 20). Raises :class:`IdleTimeout`.
        total: one attempt as a whole. ``"auto"`` (default): a stream may take as long as it moves; a whole answer
            may take ``first_token`` and 0.05 s for each token of ``max_tokens`` (4,096 where that is not set), at
            most 600 s. Raises :class:`AttemptTimedOut`.

    Raises:
        InvalidArgument: naming the limit that is not a positive number.
    """

    phase: ClassVar[Phase] = Phase.ATTEMPT_TIMEOUT

    def __init__(
        self,
        *,
        connect: float | None = 5.0,
        first_token: float | None = 30.0,
        idle: float | None = 20.0,
        total: float | str | None = "auto",
    ) -> None:
        _validate.seconds("connect", connect, optional=True)
        _validate.seconds("first_token", first_token, optional=True)
        _validate.seconds("idle", idle, optional=True)
        if total != "auto":
            _validate.seconds("total", total, optional=True)
        self.connect = connect
        self.first_token = first_token
        self.idle = idle
        self.total = total

    def wrap(self, inner: Provider) -> Provider:
        """Limit ``inner``'s attempts."""
        return _AttemptTimeoutProvider(inner, self)

    def limits(self, request: Request) -> tuple[float | None, float | None]:
        """Return the limits in seconds for the first content and for the whole of ``request``."""
        generate = request if isinstance(request, GenerateRequest) else None
        first = self.first_token
        if first is not None and generate and generate.reasoning_effort not in (None, "none", "minimal"):
            first *= 2
        if not isinstance(self.total, str):
            return (first if request.stream else None), self.total
        if request.stream or first is None:
            return first if request.stream else None, None
        embeds = isinstance(request, EmbedRequest)
        tokens = 0 if embeds else getattr(request, "max_tokens", None) or _ASSUMED_TOKENS
        return None, min(600.0, first + 0.05 * tokens)

    def __repr__(self) -> str:
        shown = [
            f"{name}={value if isinstance(value, str) else f'{value:g} s'}"
            for name in ("connect", "first_token", "idle", "total")
            if (value := getattr(self, name)) is not None
        ]
        return f"AttemptTimeout({', '.join(shown)})"


class _AttemptTimeoutProvider(WrappedProvider):
    wrapper: AttemptTimeout

    def __init__(self, inner: Provider, wrapper: AttemptTimeout) -> None:
        super().__init__(inner, wrapper)
        answering = list(leaves(inner))
        self._prepare: Callable[[Context], Awaitable[None]] | None = (
            getattr(answering[0], "prepare", None) if len(answering) == 1 else None
        )

    async def send(self, request: Request, context: Context) -> Response:
        if self._prepare is not None:
            await self._prepare(context)  # an engine's start-up is no time of the attempt
        options = self.wrapper
        if options.connect is not None or options.idle is not None:
            context = context.but(connect_timeout=options.connect, idle_timeout=options.idle)
        first, total = options.limits(request)
        limit = first if total is None or (first is not None and first < total) else total
        started = context.clock.now()
        if limit is None:
            return self._bounded(await self.inner.send(request, context), started, total, context)
        with anyio.CancelScope(deadline=anyio.current_time() + limit):
            return self._bounded(await self.inner.send(request, context), started, total, context)
        kind: type[CallTimeout] = FirstTokenTimeout if request.stream and limit is first else AttemptTimedOut
        error = kind(limit, silent=True, provider=self.name)
        if context.trace.entries and context.trace.entries[-1].state == "cancelled":
            # The provider saw only a cancellation; it was this limit.
            context.trace.entries[-1].failed(error, context.elapsed)
        raise error

    def _bounded(self, response: Response, started: float, total: float | None, context: Context) -> Response:
        options = self.wrapper
        end = None if total is None else started + total
        if options.idle is not None or end is not None:
            response.transform(
                lambda source: LimitedSource(
                    source,
                    context.clock,
                    end=end,
                    late=lambda: AttemptTimedOut(total, provider=self.name, in_stream=True),
                    idle=options.idle,
                    stalled=lambda: IdleTimeout(options.idle, provider=self.name, in_stream=True),
                )
            )
        return response

"""Wrappers that are wrong in one way each, to see that the simulation notices."""

import contextlib
import copy
import time
from typing import Any

from llmprod import (
    Deadline,
    Failover,
    InvalidArgument,
    Phase,
    Provider,
    Request,
    Response,
    Retry,
    TextDelta,
    WrappedProvider,
    Wrapper,
)
from llmprod.context import Context
from llmprod.events import Event
from llmprod.mechanisms.circuit_breaker import Permit
from llmprod.response import EventSource, WrappedSource
from llmprod.wrappers.circuit_breaker import CircuitBreaker


class _Broken(Wrapper):
    """Wraps with a provider class of its own."""

    phase = Phase.RETRY
    made: type[WrappedProvider]

    def wrap(self, inner: Provider) -> Provider:
        return self.made(inner, self)


class _Stubborn(WrappedProvider):
    """Asks seven times, without asking anybody for leave, whatever the target said."""

    async def send(self, request: Request, context: Context) -> Response:
        for _ in range(6):
            with contextlib.suppress(Exception):
                return await self.inner.send(request, context)
        return await self.inner.send(request, context)


class StubbornRetry(_Broken):
    made = _Stubborn


class _Crashing(WrappedProvider):
    async def send(self, request: Request, context: Context) -> Response:
        response = await self.inner.send(request, context)
        if response.closed and not response.text:
            raise KeyError("text")
        return response


class CrashingRetry(_Broken):
    made = _Crashing


class _Forgetful(WrappedProvider):
    """Looks at the answer and asks again, leaving the first answer's stream open."""

    async def send(self, request: Request, context: Context) -> Response:
        lost = await self.inner.send(request, context)
        if not lost.closed:
            lost.__class__ = _Dropped
        return await self.inner.send(request, context)


class _Dropped(Response):
    def __del__(self) -> None:
        pass


class ForgetfulRetry(_Broken):
    made = _Forgetful


class _Swallowing(WrappedProvider):
    """Takes a cancellation for a failure of the target."""

    async def send(self, request: Request, context: Context) -> Response:
        try:
            return await self.inner.send(request, context)
        except BaseException:
            raise InvalidArgument("call", "cancelled", "nothing") from None


class SwallowingRetry(_Broken):
    made = _Swallowing


class _Echo(WrappedSource):
    __slots__ = ("_again",)

    def __init__(self, source: EventSource) -> None:
        super().__init__(source)
        self._again: Event | None = None

    async def __anext__(self) -> Event:
        again, self._again = self._again, None
        if again is not None:
            return again
        event = await self._next()
        self._again = event if isinstance(event, TextDelta) else None
        return event


class _Stuttering(WrappedProvider):
    async def send(self, request: Request, context: Context) -> Response:
        response = await self.inner.send(request, context)
        response.transform(_Echo)
        return response


class StutteringRetry(_Broken):
    made = _Stuttering


class _Impatient(WrappedProvider):
    """Waits by the real clock's whim, so that no run is like another."""

    async def send(self, request: Request, context: Context) -> Response:
        await context.clock.sleep(time.perf_counter_ns() % 1000 / 1e4)
        return await self.inner.send(request, context)


class MoodyRetry(_Broken):
    made = _Impatient


class _Twice(WrappedProvider):
    """Settles a response a second time."""

    async def send(self, request: Request, context: Context) -> Response:
        response = await self.inner.send(request, context)

        def again(outcome: Any) -> None:
            for callback in callbacks:
                callback(outcome)

        callbacks = list(response._callbacks)
        response.on_close(again)
        return response


class TwiceRetry(_Broken):
    made = _Twice


class _Lazy(WrappedProvider):
    """Gives a deadline to those within and does not hold it."""

    async def send(self, request: Request, context: Context) -> Response:
        assert isinstance(self.wrapper, LazyDeadline)
        return await self.inner.send(request, context.within(self.wrapper.seconds))


class LazyDeadline(Deadline):
    def wrap(self, inner: Provider) -> Provider:
        return _Lazy(inner, self)


class _LeakyPermit(Permit):
    __slots__ = ()

    def release(self) -> None:
        """Keeps it."""


class LeakyBreaker(CircuitBreaker):
    """Keeps the permits of cancelled trials."""

    def wrap(self, inner: Provider) -> Provider:
        made = super().wrap(inner)
        breaker: Any = copy.copy(made)
        acquire = made.breaker.acquire  # type: ignore[attr-defined]

        def leaky(**options: Any) -> Any:
            permit = acquire(**options)
            if permit is not None:
                permit.__class__ = _LeakyPermit
            return permit

        breaker.breaker.acquire = leaky
        return breaker


class DeafFailover(Failover):
    """Forgets at once that a target asked to be left alone."""

    def _hold(self, target: Provider, context: Context) -> None:
        return None


class GreedyRetry(Retry):
    """Takes no leave of the budget: it gives back what it takes."""

    def wrap(self, inner: Provider) -> Provider:
        made: Any = super().wrap(inner)
        budget = made.budget
        withdraw = budget.withdraw

        def free(kind: Any = "retry") -> bool:
            withdraw(kind)
            budget.refund()
            return True

        budget.withdraw = free
        return made

"""Breaks calls on purpose, so that a game day shows what an outage would do before there is one.

The kinds are those of Polly's chaos strategies (once Simmy): a fault instead of an answer, another outcome, latency;
and two that streams know, a cut and a drip. It stands innermost, so that the others see what they would see of a broken
provider. An injected fault counts as an attempt, as a real one would, and is never taken for a real one: its code is
``injected_by_chaos``, and the trace has a :class:`ChaosInjected`.
"""

from __future__ import annotations

import inspect
import logging
import random as chance
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias, cast

from llmprod import _validate
from llmprod.clock import SYSTEM_RANDOM, Random
from llmprod.context import Context
from llmprod.decisions import ChaosInjected
from llmprod.errors import InvalidArgument, TruncatedAnswer
from llmprod.events import Event
from llmprod.mechanisms.chaos import KINDS, NOTHING, Deal, Dice
from llmprod.provider import Provider
from llmprod.request import GenerateRequest, Request
from llmprod.response import Response
from llmprod.wrapper import Phase, WrappedProvider, Wrapper
from llmprod.wrappers._injected import (
    CutSource,
    DripSource,
    Fault,
    Made,
    counted_in,
    faults_of,
    made,
    marked,
    outcome_of,
)

__all__ = ["Chaos"]

Enabled: TypeAlias = bool | Callable[[Request, Context], bool]

_log = logging.getLogger("llmprod")


class Chaos(Wrapper):
    """Inject faults into some of the calls.

    A kind is injected where it, or its rate, is given. Several may hit one call; beside a fault or an outcome only
    latency has an effect.

    Args:
        fault: instead of asking, raise this: an exception, its class, a function that makes one, or a sequence of them,
            all equally likely (default: rate limited, overloaded, server error, broken connection, no connection, and
            two timeouts, which are raised at once; latency makes them take their time).
        outcome: instead of asking, answer this: a text, events that end with Finish, or a function of the request and
            the context that makes a Response. Texts and events answer generate requests alone.
        latency: seconds to wait before asking, or median and sigma of a lognormal distribution (default 5, 0.5).
        cut: break the connection after so many content events, or after a number between these two (default 1 to
            20), at the latest before the end. An answer that comes whole is asked for, and lost as a
            :class:`TruncatedAnswer`.
        drip: seconds by which each content event of a stream comes later (default 1). Of a decorated function's
            stream the items are counted instead.
        rate: share of the calls that are dealt each kind (default 0.001).
        fault_rate, outcome_rate, latency_rate, cut_rate, drip_rate: one kind's own rate.
        seed: makes it repeatable: the n-th enabled call of a wrapped target is dealt the same in every run. Without it
            every run differs.
        enabled: False for no chaos; or a function of the request and the context that says whether this call may be
            dealt any, so that a game day is one tenant's. It may be set while calls run.

    Raises:
        InvalidArgument: naming the option that is out of range, or nothing is to be injected.
    """

    phase: ClassVar[Phase] = Phase.CHAOS

    def __init__(
        self,
        *,
        fault: Fault | Sequence[Fault] | None = None,
        outcome: str | Sequence[Event] | Made | None = None,
        latency: float | tuple[float, float] | None = None,
        cut: int | tuple[int, int] | None = None,
        drip: float | None = None,
        rate: float = 0.001,
        fault_rate: float | None = None,
        outcome_rate: float | None = None,
        latency_rate: float | None = None,
        cut_rate: float | None = None,
        drip_rate: float | None = None,
        seed: int | None = None,
        enabled: Enabled = True,
    ) -> None:
        given = dict(zip(KINDS, (fault, outcome, latency, cut, drip), strict=True))
        own = dict(zip(KINDS, (fault_rate, outcome_rate, latency_rate, cut_rate, drip_rate), strict=True))
        _validate.between("rate", rate, 0, 1)
        for kind, value in own.items():
            _validate.between(f"{kind}_rate", value, 0, 1, optional=True)
        if outcome is None and outcome_rate is not None:
            raise InvalidArgument("outcome", "None", "an answer to give, where outcome_rate is given")
        _validate.seconds("drip", drip, optional=True)
        _validate.whole("seed", seed, -(2**63), optional=True)
        self.rates: dict[str, float] = {
            kind: rate if (value := own[kind]) is None else value
            for kind in KINDS
            if given[kind] is not None or own[kind] is not None
        }
        if not self.rates:
            raise InvalidArgument("rates", "nothing to inject", "one or more of " + ", ".join(KINDS))
        self.faults: tuple[Fault, ...] = faults_of(fault)
        self.outcome: Made | tuple[Event, ...] | None = outcome_of(outcome)
        self.latency: tuple[float, float] = _pair("latency", latency, (5.0, 0.5), lambda value: (value, 0.0))
        self.cut: tuple[int, int] = _pair("cut", cut, (1, 20), lambda value: (value, value))
        self.drip: float = 1.0 if drip is None else drip
        self.seed = seed
        self._enabled = _enabled(enabled)
        self._wrapped = 0
        self._dice("")  # checks the numbers here, not in the first call

    @property
    def enabled(self) -> Enabled:
        """Whether, or for which calls, faults are injected."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: Enabled) -> None:
        self._enabled = _enabled(enabled)

    def wrap(self, inner: Provider) -> Provider:
        """Break some of ``inner``'s calls."""
        self._wrapped += 1
        return _ChaosProvider(inner, self, self._dice(f"{inner.name}/{self._wrapped}"))

    def _dice(self, target: str) -> Dice:
        def source(kind: str) -> Random:
            return SYSTEM_RANDOM if self.seed is None else chance.Random(f"{self.seed}/{target}/{kind}")

        return Dice(self.rates, random=source, faults=len(self.faults), latency=self.latency, cut=self.cut)

    def __repr__(self) -> str:
        told = ", ".join(f"{kind} {rate:g}" for kind, rate in self.rates.items())
        off = "" if self._enabled is not False else ", disabled"
        return f"Chaos({told}{off})"


def _pair(field: str, value: Any, default: Any, of_one: Callable[[Any], Any]) -> Any:
    if value is None:
        return default
    if isinstance(value, tuple):
        pair = cast("Any", value)
        if len(pair) != 2:
            raise InvalidArgument(field, f"{len(pair)} values", "a number, or two of them")
        return pair
    return of_one(value)


def _enabled(enabled: Any) -> Enabled:
    if not isinstance(enabled, bool) and (not callable(enabled) or inspect.iscoroutinefunction(enabled)):
        raise InvalidArgument(
            "enabled", type(enabled).__name__, "True, False, or a function (not async) of the request and the context"
        )
    return cast("Enabled", enabled)


class _ChaosProvider(WrappedProvider):
    wrapper: Chaos

    def __init__(self, inner: Provider, wrapper: Chaos, dice: Dice) -> None:
        super().__init__(inner, wrapper)
        self._dice = dice

    async def send(self, request: Request, context: Context) -> Response:
        enabled = self.wrapper.enabled
        if enabled is not True and (enabled is False or not self._may(enabled, request, context)):
            return await self.inner.send(request, context)
        deal = self._dice.deal()
        if deal is NOTHING:
            return await self.inner.send(request, context)
        if deal.latency:
            await self._late(deal.latency, context)
        if deal.fault is not None:
            self._fail(self.wrapper.faults[deal.fault], context)
        if deal.outcome and (answer := self._answer(request, context)) is not None:
            return answer
        return await self._break(deal, request, context)

    def _may(self, enabled: Callable[[Request, Context], bool], request: Request, context: Context) -> bool:
        try:
            return bool(enabled(request, context))
        except Exception as error:  # noqa: BLE001 - chaos that breaks calls in ways nobody asked for helps nobody
            _log.error("Chaos is off for a call: its enabled raised %s", type(error).__name__)
            return False

    async def _late(self, seconds: float, context: Context) -> None:
        started = context.elapsed
        context.decided(ChaosInjected, self.name, kind="latency", seconds=seconds)
        try:
            await context.clock.sleep(seconds)
        except BaseException as error:
            # To whoever lost patience this was an attempt that said nothing.
            context.call.attempts += 1
            context.trace.begin(self.name, started).failed(error, context.elapsed, state="cancelled")
            raise

    def _fail(self, fault: Fault, context: Context) -> None:
        error = made(fault, self.name)
        context.decided(ChaosInjected, self.name, kind="fault", error=type(error).__name__)
        context.call.attempts += 1
        context.trace.begin(self.name, context.elapsed).failed(error, context.elapsed)
        raise error

    def _answer(self, request: Request, context: Context) -> Response | None:
        outcome = self.wrapper.outcome
        if not callable(outcome) and not isinstance(request, GenerateRequest):
            return None  # an embedding is no text, and a function's value is not ours to make
        attempt = context.trace.begin(self.name, context.elapsed)
        context.call.attempts += 1
        context.decided(ChaosInjected, self.name, kind="outcome")
        try:
            if callable(outcome):
                response = outcome(request, context)
            else:
                response = Response(provider=self.name, context=context, request=request, events=outcome or ())
        except Exception as error:
            attempt.failed(error, context.elapsed)
            raise
        response.on_close(lambda outcome: attempt.ended(outcome, context.elapsed))
        return response

    async def _break(self, deal: Deal, request: Request, context: Context) -> Response:
        before = len(context.trace.entries)
        response = await self.inner.send(request, context)
        if not response.closed:
            counted = counted_in(request)
            if deal.drip:
                response.transform(lambda source: DripSource(source, self.name, context, counted, self.wrapper.drip))
            cut = deal.cut
            if cut is not None:
                response.transform(lambda source: CutSource(source, self.name, context, counted, cut))
        elif deal.cut is not None:
            error = marked(TruncatedAnswer(in_stream=True), self.name)
            error.usage = response.usage
            context.decided(ChaosInjected, self.name, kind="cut")
            for entry in context.trace.entries[before:]:
                if entry.target == self.name:
                    entry.failed(error, context.elapsed)
                    break
            raise error
        return response

"""Counts what a call costs, over all its attempts: those that failed, lost a race, were cancelled or cut off too.

The provider of each attempt tells its end (``context.meters``), so that nothing between it and this wrapper can hide
one. At the call's end every attempt is priced by its own usage and model; where its provider did not tell the usage, it
is estimated, and marked so. An attempt that goes on after the call (an answer that equal calls share whose first caller
has left, a stored answer that is made anew) is counted when it ends, for the labels of the call that began it.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial, reduce
from operator import add
from typing import ClassVar

from llmprod.context import Context
from llmprod.cost import Cost, CostSource, total, unknown
from llmprod.cost_table import CostEntry
from llmprod.errors import (
    CallError,
    ConnectError,
    ConnectTimeout,
    InvalidArgument,
    LLMProdError,
    ProviderError,
    Rejected,
)
from llmprod.ledger import Ledger
from llmprod.mechanisms.flex import asked_tier
from llmprod.mechanisms.usage_estimate import Tokens, UsageEstimate, at_least
from llmprod.pricing.book import PriceBook
from llmprod.provider import Provider
from llmprod.request import Request
from llmprod.response import Response
from llmprod.trace import AttemptEnd, Trace
from llmprod.usage import Usage
from llmprod.wrapper import Phase, WrappedProvider, Wrapper

__all__ = ["CostMeter"]

_log = logging.getLogger(__name__)


class CostMeter(Wrapper):
    """Sets ``response.cost`` and each attempt's ``cost``, and adds them to a ledger.

    What is billed:

    * an answer, whole or not, at the usage that its provider told
    * an attempt that broke, timed out, was cancelled or closed after it was sent: what its provider told, but no less
      of the answer than was shown; else the prompt, and as much of the answer as was shown or can have been written
    * nothing for an attempt that the provider refused with an error, or that reached none

    Args:
        prices: what tokens cost (default: a :class:`PriceBook` without overrides).
        ledger: where attempts are added up; share one to add up several stacks (default: one of its own).
        on_cost: a function, or several, that is told each :class:`CostEntry`. What it raises is logged and goes no
            further. It may be called in another thread while the price data is being loaded.
        tokens: counts the tokens of a request's prompt or of a text, for estimates (default: by their length, corrected
            by what the target counted so far).
        now: seconds since 1970, for dated prices and the ledger (default ``time.time``).

    Raises:
        InvalidArgument: naming the argument.
    """

    phase: ClassVar[Phase] = Phase.BUDGET

    def __init__(
        self,
        prices: PriceBook | None = None,
        *,
        ledger: Ledger | None = None,
        on_cost: Callable[[CostEntry], object] | Sequence[Callable[[CostEntry], object]] = (),
        tokens: Tokens | None = None,
        now: Callable[[], float] | None = None,
    ) -> None:
        if prices is not None and not isinstance(prices, PriceBook):
            raise InvalidArgument("prices", type(prices).__name__, "a PriceBook, or None")
        if ledger is not None and not isinstance(ledger, Ledger):
            raise InvalidArgument("ledger", type(ledger).__name__, "a Ledger, or None")
        told = (on_cost,) if callable(on_cost) or not isinstance(on_cost, Sequence) else tuple(on_cost)
        if not all(map(callable, told)):
            raise InvalidArgument("on_cost", type(on_cost).__name__, "a function of a CostEntry, or a list of them")
        if tokens is not None and not callable(tokens):
            raise InvalidArgument("tokens", type(tokens).__name__, "a function of a request or a text, or None")
        if now is not None and not callable(now):
            raise InvalidArgument("now", type(now).__name__, "a function that tells the seconds since 1970, or None")
        self.prices: PriceBook = PriceBook() if prices is None else prices
        self.ledger: Ledger = Ledger() if ledger is None else ledger
        self.on_cost = told
        self.now: Callable[[], float] = time.time if now is None else now
        self.estimate: UsageEstimate = UsageEstimate(tokens)

    def wrap(self, inner: Provider) -> Provider:
        """Count what calls of ``inner`` cost."""
        return _CostMeterProvider(inner, self)

    def __repr__(self) -> str:
        return "CostMeter()"


class _CostMeterProvider(WrappedProvider):
    wrapper: CostMeter

    async def send(self, request: Request, context: Context) -> Response:
        call = _Call(self.wrapper, context)
        try:
            response = await self.inner.send(request, context.but(meters=(*context.meters, call.ended)))
        except BaseException:
            call.over(None)
            raise
        weakly = weakref.ref(response)
        response.on_close(lambda outcome: call.over(weakly()))
        return response


class _Call:
    """One call's attempts, priced at its end, and those that end by themselves later."""

    __slots__ = ("_at", "_context", "_ends", "_meter", "_over")

    def __init__(self, meter: CostMeter, context: Context) -> None:
        self._meter = meter
        self._context = context
        self._at = meter.now() - context.elapsed
        self._ends: list[_End] = []
        self._over = False

    def ended(self, end: AttemptEnd) -> None:
        """Note the end of an attempt."""
        ours = any(entry is end.attempt for entry in self._context.trace.entries)  # else of a call in the background
        began = self._at if ours else self._meter.now() - end.context.elapsed
        ended = _End(end, self._meter.estimate, began + end.attempt.started)
        if ours and not self._over:
            self._ends.append(ended)
        else:
            self._settle([ended], end.context.trace, None)

    def over(self, response: Response | None) -> None:
        """Price what the call has used."""
        self._over = True
        self._settle(self._ends, self._context.trace, response)

    def _settle(self, ends: list[_End], trace: Trace, response: Response | None) -> None:
        prices = self._meter.prices
        price = partial(self._price, ends, trace, None if response is None else weakref.ref(response))
        if prices.loaded or all(end.ready(prices) for end in ends):
            price()
        else:
            trace.costs_due = prices.wait
            self._meter.ledger.expect(prices.wait)
            prices.when_loaded(price)

    def _price(self, ends: list[_End], trace: Trace, weakly: weakref.ref[Response] | None) -> None:
        costs = [self._add(end) for end in ends]
        trace.costs_due = None
        response = None if weakly is None else weakly()
        if response is not None and costs:
            response.cost = reduce(add, costs).amount

    def _add(self, end: _End) -> Cost:
        meter, context, attempt = self._meter, self._context, end.attempt
        at = datetime.fromtimestamp(end.at, tz=UTC)
        cost = attempt.cost  # if a meter further in has counted it
        if cost is None:
            try:
                cost = end.cost(meter.prices, at)
            except Exception as error:  # noqa: BLE001 - a provider's own `cost_of` may raise: that must not end a call
                _log.error("an attempt could not be priced: %s", type(error).__name__)
                cost = unknown("it could not be priced")
        attempt.cost = cost
        entry = CostEntry(
            at=at,
            target=attempt.target,
            model=attempt.model or end.asked,
            cost=cost,
            usage=end.usage,
            tags=context.tags,
            prompt=context.prompt,
            attempt=attempt,
        )
        meter.ledger.add(entry)
        for tell in meter.on_cost:
            try:
                tell(entry)
            except Exception as error:  # noqa: BLE001 - a broken callback must not break calls
                _log.error("on_cost raised %s", type(error).__name__)
        return cost


class _End:
    """What is kept of an attempt until the call is over."""

    __slots__ = (
        "_blind", "_charged", "_free", "_of", "_sent", "_source", "_url", "asked", "at", "attempt", "kind", "usage",
    )  # fmt: skip

    def __init__(self, end: AttemptEnd, estimate: UsageEstimate, at: float) -> None:
        provider, response = end.provider, end.response
        self.at = at
        self.attempt = end.attempt
        self.kind, self.asked, self._url = provider.priced_as
        self._free = provider.free
        self._of = provider.cost_of
        self._source: CostSource = provider.cost_source
        self._charged: Decimal | None = None if response is None else response.cost
        self._sent = response is not None or _may_have_been_sent(end.error, known=self.kind is not None)
        self._blind = False
        self.usage: Usage | None = None
        try:
            self.usage = None if self._free else self._used(end, estimate)
        except Exception as error:  # noqa: BLE001 - the user's own `tokens` may raise: that must not end a call
            _log.error("an attempt's usage could not be estimated: %s", type(error).__name__)
        if self.usage is not None and not self._blind:
            end.attempt.usage = self.usage  # so that whoever asks for it, a race for what it has wasted, gets the same

    def _used(self, end: AttemptEnd, estimate: UsageEstimate) -> Usage | None:
        """Return what was told, or an estimate; None where the attempt was not sent or nothing is known."""
        attempt, response, told = end.attempt, end.response, end.attempt.usage
        seconds = attempt.seconds or 0.0
        if told is not None and told.cost is None and response is not None:
            told = estimate.filled(attempt.target, end.request, told, response)
        if told is not None and attempt.state == "ok":
            if not told.estimated:
                estimate.learn(attempt.target, end.request, told, seconds, whole=attempt.ttft is None)
            return told
        if told is None and not self._sent:
            return None
        shown = 0 if end.request.stream else None
        if response is not None:
            # A stream that was handed out has begun, though its first piece may not have been read.
            shown = max(estimate.shown(response), int(attempt.ttft is not None))
        if told is not None:
            return told if shown is None else at_least(told, shown)
        self._blind = shown is None
        guess = estimate.guess(attempt.target, end.request, shown=shown, seconds=seconds)
        return None if guess is None else replace(guess, tier=asked_tier(end.request, self.kind))

    def ready(self, prices: PriceBook) -> bool:
        """Tell whether it can be priced without loading anything."""
        usage = self.usage
        if self._free or self._charged is not None or usage is None or usage.cost is not None:
            return True
        models = [model for model in (self.attempt.model, self.asked) if model]
        return not models or any(prices.ready_for(provider=self.kind, model=model) for model in models)

    def cost(self, prices: PriceBook, at: datetime) -> Cost:
        """Return what the attempt cost."""
        attempt = self.attempt
        if self._free:
            return total(Decimal(0), "free")
        if self._blind:
            # A race knows more of an answer that it stopped: how much its winner wrote in that time.
            self.usage = attempt.usage or self.usage
            attempt.usage = self.usage
        usage = self.usage
        if usage is None and not self._sent:
            return total(Decimal(0), "unbilled")
        estimated = usage is not None and usage.estimated
        if self._charged is not None:
            return total(self._charged, self._source, estimated=estimated)
        own = self._of(usage)
        if own is not None:
            return total(own, self._source, estimated=estimated)
        if usage is None:
            return unknown("no usage, and nothing to estimate it by")
        model = attempt.model or self.asked
        return prices.cost(usage, provider=self.kind, model=model, asked=self.asked, at=at, url=self._url)


def _may_have_been_sent(error: BaseException | None, *, known: bool) -> bool:
    """Tell whether a provider may have begun to answer an attempt that gave no response.

    Not where it refused, and not where nothing left this process. A function's own exception says nothing of the model
    that it has called.
    """
    if isinstance(error, (Rejected, ConnectError, ConnectTimeout)):
        return False
    if isinstance(error, ProviderError):
        return error.in_stream
    if isinstance(error, CallError):
        return True
    if isinstance(error, Exception):
        return not known and not isinstance(error, LLMProdError)
    return True

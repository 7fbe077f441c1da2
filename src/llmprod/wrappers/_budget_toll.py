"""What one call may still spend, and what each of its attempts was let through for.

Every attempt of a call pays before it is made, whoever makes it (a retry, a failover, a hedge, a resumed stream), at
the price of the very target that it goes to. So the sum over all attempts is within what was reserved, a failover to a
dearer model is reserved for at its own price, and a router goes on to a cheaper target when money is short for one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Literal

from llmprod.context import Context
from llmprod.decisions import BudgetEstimated, BudgetOverrun, BudgetRefused
from llmprod.errors import (
    BudgetExceeded,
    BudgetUnavailable,
    ConnectError,
    ConnectTimeout,
    EngineStartFailed,
    InvalidArgument,
    PriceUnknown,
    ProviderError,
    Rejected,
    UnsupportedParameter,
)
from llmprod.mechanisms.budget import BudgetLimit, dollars, nano
from llmprod.mechanisms.budget_store import Bound, Level, Reserved, Short
from llmprod.provider import Provider
from llmprod.request import Request
from llmprod.response import Outcome, Response
from llmprod.types import Refusal, Text, Thinking, ToolCall
from llmprod.usage import Usage

if TYPE_CHECKING:
    from llmprod.wrappers.budget import _BudgetProvider

__all__ = ["CallToll"]

_GATEWAY_GAVE_UP = frozenset({408, 504, 524})
_BYTES_A_TOKEN = 2
"""Of an answer whose tokens nobody counted: prose has four and more, digits and Chinese two or three."""


class CallToll:
    """The money of one call.

    Args:
        owner: the provider that the call went through.
        request: what it asks.
        context: the call.
    """

    def __init__(self, owner: _BudgetProvider, request: Request, context: Context) -> None:
        self._owner = owner
        self._store = owner.store
        self._context = context
        self._bounds = [Bound(limit, limit.key(context.tags)) for limit in owner.windows]
        self._ready: Reserved | None = None
        self._request = request
        self._prompt = owner.quotes.prompt(request)
        self._of_call = 0  # nano-dollars that the attempts of this call cost, or may cost

    # ---- before -----------------------------------------------------------------------------------------------------

    def quote(self, provider: Provider, request: Request) -> int | None:
        """Return what an attempt may cost; None for a target that has no price and may not be asked."""
        return self._quote(provider, self._bound(provider, request))

    def _quote(self, provider: Provider, most: Usage) -> int | None:
        cost = self._owner.quotes.before(provider, most)
        return 0 if cost is None and self._owner.wrapper.unpriced == "allow" else cost

    def _bound(self, provider: Provider, request: Request) -> Usage:
        quotes = self._owner.quotes
        if request is not self._request:  # as of a resumed stream, whose prompt has grown
            self._request, self._prompt = request, quotes.prompt(request)
        return quotes.bound(provider, request, self._prompt)

    async def begin(self, amount: int) -> BudgetExceeded | None:
        """Reserve for the first attempt; return why not."""
        if (exceeded := self._of_call_exceeded(amount, self._owner.name)) is not None:
            return exceeded
        got = await self._reserve(amount, self._owner.name)
        if isinstance(got, Short):
            return self._exceeded(got, amount, self._owner.name)
        self._ready = got
        return None

    @property
    def soft(self) -> list[tuple[Bound, Level]]:
        """The limits whose soft share is passed, and how they stand."""
        levels = self._ready.levels if self._ready is not None else ()
        return [
            (bound, level)
            for bound, level in zip(self._bounds, levels, strict=False)
            if (soft := bound.limit.soft) is not None and level.spent + level.reserved > soft * bound.limit.nano
        ]

    def refuse(self, error: Rejected, target: str) -> None:
        """Note in the trace that nobody was asked, and why."""
        limit, needed, left = "store", None, None
        if isinstance(error, BudgetExceeded):
            limit, needed = error.limit or "", error.needed
            if error.amount is not None and error.spent is not None and error.reserved is not None:
                left = error.amount - error.spent - error.reserved
        elif isinstance(error, PriceUnknown):
            limit = "price"
        context = self._context
        context.trace.skipped(target, context.elapsed, f"budget: {limit}", error=type(error).__name__)
        context.decided(BudgetRefused, target, limit=limit, needed=needed, left=left)

    async def admit(self, provider: Provider, request: Request, context: Context) -> _Fare:
        """Take what the attempt may cost from what is ready, and reserve what that lacks."""
        most = self._bound(provider, request)
        quote = self._quote(provider, most)
        try:
            if quote is None:
                raise _unpriced(provider)
            if (exceeded := self._of_call_exceeded(quote, provider.name)) is not None:
                raise exceeded
            ready, self._ready = self._ready, None
            self._of_call += quote
            try:
                parts = await self._parts(ready, quote, provider.name)
            except BaseException:
                self._of_call -= quote
                if ready is not None and self._ready is None:
                    self._ready = ready
                elif ready is not None:
                    self._store.cancel(ready)
                raise
        except Rejected as error:
            self.refuse(error, provider.name)
            raise
        return _Fare(self, provider, most, quote, parts, context)

    async def _parts(self, ready: Reserved | None, quote: int, target: str) -> list[Reserved]:
        parts = [] if ready is None else [ready]
        lacking = quote - (ready.amount if ready is not None else 0)
        if not parts or lacking > 0:
            more = await self._reserve(max(lacking, 0), target)
            if isinstance(more, Short):
                raise self._exceeded(more, lacking, target)
            if more is not None:
                parts.append(more)
        return parts

    async def _reserve(self, amount: int, target: str) -> Reserved | Short | None:
        if not self._bounds:
            return None
        try:
            return await self._store.reserve(self._bounds, amount)
        except BudgetUnavailable as error:
            error.provider = error.provider or target
            raise
        finally:
            self._owner.watch_store(self._context)

    def close(self) -> None:
        """Give back what no attempt has taken."""
        ready, self._ready = self._ready, None
        if ready is not None:
            self._store.cancel(ready)

    def _of_call_exceeded(self, amount: int, target: str) -> BudgetExceeded | None:
        limit = self._owner.of_a_call
        if limit is None or not amount or self._of_call + amount <= limit.nano:
            return None
        return _exceeded(limit, self._of_call, 0, amount, target)

    def _exceeded(self, short: Short, amount: int, target: str) -> BudgetExceeded:
        limit, level = self._bounds[short.bound].limit, short.level
        error = _exceeded(limit, level.spent, level.reserved, amount, target)
        error.resets_at = limit.moment(level.ends)
        if amount <= limit.nano < level.spent + amount:
            error.retry_after = round(max(0.0, level.ends - short.now), 3)
        return error

    # ---- after ------------------------------------------------------------------------------------------------------

    def settle(self, fare: _Fare, actual: int) -> None:
        """An attempt cost ``actual``."""
        self._of_call += actual - fare.quote
        left = actual
        for place, part in enumerate(fare.parts):
            cost = left if place == len(fare.parts) - 1 else min(left, part.amount)
            left -= cost
            self._store.settle(part, cost)

    def price(self, provider: Provider, model: str | None, usage: Usage) -> int | None:
        """Return what ``usage`` cost; None where no price is known."""
        return self._owner.quotes.after(provider, model, usage)

    @property
    def keeps_cut(self) -> bool:
        """All that was reserved counts for an answer that broke off."""
        return self._owner.wrapper.cut_streams == "keep"


class _Fare:
    """What one attempt was let through for."""

    __slots__ = ("_context", "_most", "_over", "_provider", "_toll", "parts", "quote")

    def __init__(
        self, toll: CallToll, provider: Provider, most: Usage, quote: int, parts: list[Reserved], context: Context
    ) -> None:
        self._toll = toll
        self._provider = provider
        self._most = most
        self._context = context
        self._over = False
        self.quote = quote
        self.parts = parts

    def refund(self) -> None:
        self._settle(0)

    def failed(self, error: BaseException) -> None:
        if _billed(error):
            self._estimate(self.quote, "reservation")
        else:
            self._settle(0)

    def ended(self, response: Callable[[], Response | None], outcome: Outcome) -> None:
        try:
            self._ended(response(), outcome)
        finally:
            self._settle(self.quote)  # where a price raised

    def _ended(self, answer: Response | None, outcome: Outcome) -> None:
        usage = outcome.usage
        if answer is not None and answer.cost is not None:
            self._settle(nano(answer.cost), told=self.quote > 0)
        elif outcome.kind == "ok" and usage is not None:
            usage, filled = self._filled(usage, answer)
            cost = self._toll.price(self._provider, answer.model if answer is not None else None, usage)
            if cost is None:
                self._estimate(self.quote, "reservation" if self.quote else "unpriced")
            elif filled:
                self._estimate(cost, "shown")
            else:
                self._settle(cost)
        elif outcome.kind == "ok" or answer is None or self._toll.keeps_cut:
            self._estimate(self.quote, "reservation")
        else:
            seen = min(_seen(answer), self._most.total_output)
            known = usage if usage is not None and usage.total_input else self._most
            answered = usage.total_output if usage is not None else 0
            if known is self._most:
                known = replace(known, output=answered)
            used = replace(known, output=known.output + max(0, seen - answered), estimated=True)
            cost = self._toll.price(self._provider, answer.model, used)
            self._estimate(self.quote if cost is None else cost, "shown")

    def _filled(self, usage: Usage, answer: Response | None) -> tuple[Usage, bool]:
        """Return the usage of a whole answer, with what a server that counts nothing tells as 0; and if it did that."""
        prompt = 0 if usage.total_input or usage.cost is not None else self._most.total_input
        shown = 0
        if not usage.total_output and usage.cost is None and answer is not None:
            shown = min(_seen(answer), self._most.total_output)
        if not prompt and not shown:
            return usage, False
        return replace(usage, input=usage.input + prompt, output=usage.output + shown, estimated=True), True

    def _estimate(self, cost: int, basis: Literal["reservation", "shown", "unpriced"]) -> None:
        if not self._over:
            self._context.decided(BudgetEstimated, self._provider.name, cost=dollars(cost), basis=basis)
        self._settle(cost)

    def _settle(self, actual: int, *, told: bool = True) -> None:
        if self._over:
            return
        self._over = True
        if told and actual > self.quote:
            reserved, cost = dollars(self.quote), dollars(actual)
            self._context.decided(BudgetOverrun, self._provider.name, reserved=reserved, cost=cost)
        self._toll.settle(self, actual)


def _exceeded(limit: BudgetLimit, spent: int, reserved: int, needed: int, target: str) -> BudgetExceeded:
    told = f"{limit.name}: ${dollars(spent)} of ${limit.amount} spent, ${dollars(reserved)} reserved,"
    return BudgetExceeded(
        provider=target,
        limit=limit.name,
        scope=limit.tags,
        amount=dollars(limit.nano),
        spent=dollars(spent),
        reserved=dollars(reserved),
        needed=dollars(needed),
        detail=f"{told} ${dollars(needed)} needed",
    )


def _unpriced(provider: Provider) -> PriceUnknown:
    return PriceUnknown(provider=provider.name, detail="give a price, or unpriced='allow'")


def _billed(error: BaseException) -> bool:
    """Tell whether a failed attempt may be billed: unless the target refused it, or was never reached."""
    if isinstance(error, (Rejected, UnsupportedParameter, InvalidArgument, ConnectError, ConnectTimeout)):
        return False
    if isinstance(error, EngineStartFailed):
        return False
    if isinstance(error, ProviderError):
        return error.in_stream or error.status in _GATEWAY_GAVE_UP
    # Cancelled, broken off, timed out, not understood: what was computed is billed, and nobody has told how much.
    return True


def _seen(answer: Response) -> int:
    """Return a number of tokens that what arrived of an answer is rarely above."""
    size = 0
    for part in answer.parts:
        if isinstance(part, (Text, Thinking, Refusal)):
            size += len(part.text.encode("utf-8", "surrogatepass"))
        elif isinstance(part, ToolCall):
            size += len((part.name + part.arguments).encode("utf-8", "surrogatepass"))
    return ceil(size / _BYTES_A_TOKEN)

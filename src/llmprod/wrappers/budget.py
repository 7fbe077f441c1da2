"""Keeps what calls cost within limits: reserved before, settled after, and never overshot because many call at once.

Rate limits let calls wait; a budget refuses them, since money does not come back within a call. Before each attempt the
most that it may cost is set aside (the prompt's tokens and ``max_tokens`` at the target's price), all or nothing over
all limits; when it has ended, what it did cost is counted and the rest given back. So ``spent + reserved`` stays within
a limit however many calls there are (:mod:`llmprod.mechanisms.budget_ledger`), as with a card payment.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, Literal, TypeAlias

import anyio.to_thread

from llmprod import _validate
from llmprod.context import Context
from llmprod.decisions import BudgetPassedSoft, BudgetStoreChanged
from llmprod.errors import AllTargetsFailed, BudgetExceeded, InvalidArgument, Rejected, UnsupportedParameter
from llmprod.mechanisms.budget import BudgetLimit, dollars
from llmprod.mechanisms.budget_store import Bound, BudgetStore, Level
from llmprod.pricing import PriceBook
from llmprod.provider import BaseProvider, Provider
from llmprod.request import GenerateRequest, Request
from llmprod.response import Response
from llmprod.wrapper import Phase, WrappedProvider, Wrapper, leaves
from llmprod.wrappers._budget_quote import PriceFunction, PriceTable, Quotes, prices, prompt_bound
from llmprod.wrappers._budget_toll import CallToll, _unpriced
from llmprod.wrappers._memory_budgets import MemoryBudgets

__all__ = ["Budget", "BudgetState"]

OnSoft: TypeAlias = Callable[[BudgetPassedSoft, Context], None]

_WARNED_AT_MOST = 10_000
_log = logging.getLogger("llmprod")


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetState:
    """How a budget stands.

    Attributes:
        limit: its name.
        amount: US dollars that may be spent in the period.
        spent: those that are.
        reserved: those that calls under way may still spend.
        left: those that a call may take now; never below 0.
        resets_at: when the next period begins.
    """

    limit: str
    amount: Decimal
    spent: Decimal
    reserved: Decimal
    left: Decimal
    resets_at: datetime


class Budget(Wrapper):
    """Refuse calls, with :class:`llmprod.BudgetExceeded`, that might cost more than is left of a limit.

    Stands once a call, around the retries; each attempt that they make pays at the price of its own target.

    Args:
        limits: one or more :class:`BudgetLimit`; a call must find room in all of them.
        price: US dollars of a usage: a :class:`PriceBook` (default: one of its own); a function of provider, model and
            :class:`Usage` that returns None where it knows no price; or a mapping of targets to dollars a million
            tokens of prompt and answer.
        tokens: prompt tokens of a request at most (default: the ``upper_bound`` of :func:`llmprod.count_tokens`).
        store: where it is kept (default: this process): :class:`MemoryBudgets` shared with other stacks,
            :class:`llmprod.stores.disk_budgets.DiskBudgets`, :class:`llmprod.stores.redis_budgets.RedisBudgets`.
        on_soft: is told the first time that a period's soft limit is passed, in this process; must not await.
        cheaper: a provider that takes the calls over while a soft limit is passed, and those that the limit has no
            room for otherwise.
        assume_output: answer tokens that are reserved for a request without ``max_tokens`` (default 4096). A longer
            answer is counted in full and told as :class:`BudgetOverrun`.
        output_limit: the longest answer of a model, by provider and model; takes the place of ``assume_output`` where
            it knows the model.
        set_max_tokens: send such requests with ``max_tokens=assume_output``, so that what is reserved is a bound.
        unpriced: what to do about a target that has no price: ``refuse`` (default: a budget that lets through what it
            can't count is none) or ``allow``, for nothing.
        cut_streams: what counts for a stream that was cut or closed: ``estimate`` from what arrived (default), or
            ``keep`` all that was reserved, to be sure where models think without showing it.
        cache_writes: reserve for prompts that are written to the provider's cache, where that is dearer.

    Raises:
        InvalidArgument: naming the option that is out of range; ``inner``, if a target within is no
            :class:`BaseProvider` and so can't be made to pay.
    """

    phase: ClassVar[Phase] = Phase.BUDGET

    def __init__(
        self,
        *limits: BudgetLimit,
        price: PriceBook | PriceFunction | PriceTable | None = None,
        tokens: Callable[[Request], int] | None = None,
        store: BudgetStore | None = None,
        on_soft: OnSoft | None = None,
        cheaper: Provider | None = None,
        assume_output: int = 4096,
        output_limit: Callable[[str, str], int | None] | None = None,
        set_max_tokens: bool = False,
        unpriced: Literal["refuse", "allow"] = "refuse",
        cut_streams: Literal["estimate", "keep"] = "estimate",
        cache_writes: bool = False,
    ) -> None:
        if not limits:
            raise InvalidArgument("limits", "nothing", "at least one BudgetLimit")
        for limit in limits:
            if not isinstance(limit, BudgetLimit):
                raise InvalidArgument("limits", type(limit).__name__, "BudgetLimits")
        accounts = [(limit.name, limit.tags, limit.per, limit.timezone) for limit in limits]
        if len(set(accounts)) < len(accounts):
            raise InvalidArgument("limits", "two of one name, period and tags", "one of each, or names that differ")
        for name, value in (("tokens", tokens), ("on_soft", on_soft), ("output_limit", output_limit)):
            if value is not None and not callable(value):
                raise InvalidArgument(name, type(value).__name__, "a function")
        if cheaper is not None and not isinstance(cheaper, Provider):
            raise InvalidArgument("cheaper", type(cheaper).__name__, "a provider, or None")
        _validate.whole("assume_output", assume_output, 1)
        _validate.flag("set_max_tokens", set_max_tokens)
        _validate.flag("cache_writes", cache_writes)
        if store is not None and not callable(getattr(store, "settle", None)):
            raise InvalidArgument("store", type(store).__name__, "a store of budgets such as RedisBudgets(…), or None")
        if unpriced not in ("refuse", "allow"):
            raise InvalidArgument("unpriced", repr(unpriced)[:40], "refuse, allow")
        if cut_streams not in ("estimate", "keep"):
            raise InvalidArgument("cut_streams", repr(cut_streams)[:40], "estimate, keep")
        self.limits: tuple[BudgetLimit, ...] = limits
        given = PriceBook() if price is None else price
        self.book: PriceBook | None = given if isinstance(given, PriceBook) else None
        self.price: PriceFunction = prices(given)
        self.tokens: Callable[[Request], int] = tokens if tokens is not None else prompt_bound
        self.store: BudgetStore = store if store is not None else MemoryBudgets()
        self.on_soft = on_soft
        self.cheaper = cheaper
        self.assume_output = assume_output
        self.output_limit = output_limit
        self.set_max_tokens = set_max_tokens
        self.unpriced: Literal["refuse", "allow"] = unpriced
        self.cut_streams: Literal["estimate", "keep"] = cut_streams
        self.cache_writes = cache_writes

    def wrap(self, inner: Provider) -> Provider:
        """Keep ``inner``'s calls within the limits."""
        return _BudgetProvider(inner, self)

    async def state(self, tags: Mapping[str, str] | None = None) -> list[BudgetState]:
        """Return how the budgets of calls with these tags stand, those of single calls left out.

        Raises:
            BudgetUnavailable: the store is lost.
        """
        limits = [limit for limit in self.limits if not limit.of_a_call]
        levels = await self.store.spent([Bound(limit, limit.key(tags or {})) for limit in limits]) if limits else []
        return [
            BudgetState(
                limit=limit.name,
                amount=dollars(limit.nano),
                spent=dollars(level.spent),
                reserved=dollars(level.reserved),
                left=dollars(max(0, limit.nano - level.spent - level.reserved)),
                resets_at=limit.moment(level.ends),
            )
            for limit, level in zip(limits, levels, strict=True)
        ]

    def __repr__(self) -> str:
        told = [repr(limit).removeprefix("BudgetLimit(").removesuffix(")") for limit in self.limits]
        if self.cheaper is not None:
            told.append(f"then {self.cheaper.name}")
        return f"Budget({'; '.join(told)})"


class _BudgetProvider(WrappedProvider):
    wrapper: Budget

    def __init__(self, inner: Provider, wrapper: Budget) -> None:
        super().__init__(inner, wrapper)
        self.store = wrapper.store
        self.windows = [limit for limit in wrapper.limits if not limit.of_a_call]
        calls = [limit for limit in wrapper.limits if limit.of_a_call]
        self.of_a_call = min(calls, key=lambda limit: limit.nano, default=None)
        self.quotes = Quotes(
            wrapper.price,
            wrapper.tokens,
            assume_output=wrapper.assume_output,
            output_limit=wrapper.output_limit,
            cache_writes=wrapper.cache_writes,
            book=wrapper.book,
        )
        self._paying = _paying(inner)
        self._cheaper = _paying(wrapper.cheaper) if wrapper.cheaper is not None else []
        self._warned: OrderedDict[tuple[str, float], None] = OrderedDict()
        self._store_lost = False

    async def send(self, request: Request, context: Context) -> Response:
        wrapper = self.wrapper
        if wrapper.set_max_tokens and isinstance(request, GenerateRequest) and request.max_tokens is None:
            request = replace(request, max_tokens=wrapper.assume_output)
        if wrapper.book is not None and not wrapper.book.loaded:
            await anyio.to_thread.run_sync(wrapper.book.load)  # most of a second with genai-prices
        toll = CallToll(self, request, context)
        try:
            target = await self._reserve(toll, request, context)
            return await target.send(request, context.but(tolls=(*context.tolls, toll)))
        except AllTargetsFailed as error:
            short = _only_money(error)
            if short is None:
                raise
            raise short from None
        finally:
            toll.close()

    @property
    def stand_ins(self) -> tuple[Provider, ...]:
        """Who may answer in ``inner``'s place, for a cache: it must not take their answers for another stack's."""
        return () if self.wrapper.cheaper is None else (self.wrapper.cheaper,)

    async def aclose(self) -> None:
        try:
            await self.store.flush()
        finally:
            try:
                await self.inner.aclose()
            finally:
                if self.wrapper.cheaper is not None:
                    await self.wrapper.cheaper.aclose()

    # ---- before the first attempt -----------------------------------------------------------------------------------

    async def _reserve(self, toll: CallToll, request: Request, context: Context) -> Provider:
        """Reserve for the first attempt; return the target that the call goes to."""
        cheaper = self.wrapper.cheaper
        usual, unpriced = _quotes(toll, self._paying, request)
        spare = _quotes(toll, self._cheaper, request)[0]
        try:
            if unpriced is not None and not usual and not spare:
                raise _unpriced(unpriced)
            if not usual and unpriced is None:
                return self.inner  # whoever can serve it costs nothing
            # As much as the first target may take; if that is too much, as the one that may take least.
            exceeded: BudgetExceeded | None = None
            for amount in sorted({usual[0], min(usual)}, reverse=True) if usual else []:
                exceeded = await toll.begin(amount)
                if exceeded is None:
                    target = cheaper if toll.soft and cheaper is not None and spare else self.inner
                    self._tell(toll, target if target is cheaper else None, context)
                    return target
            if cheaper is not None and spare:
                exceeded = await toll.begin(min(spare))
                if exceeded is None:
                    self._tell(toll, cheaper, context)
                    return cheaper
            assert exceeded is not None
            raise exceeded
        except Rejected as error:
            toll.refuse(error, self.name)
            raise

    def _tell(self, toll: CallToll, cheaper: Provider | None, context: Context) -> None:
        for bound, level in toll.soft:
            decision: dict[str, Any] = {
                "limit": bound.limit.name,
                "used": dollars(level.spent + level.reserved),
                "amount": dollars(bound.limit.nano),
                "cheaper": cheaper.name if cheaper is not None else None,
            }
            context.decided(BudgetPassedSoft, self.name, **decision)
            if self.wrapper.on_soft is not None and self._first_time(bound, level):
                try:
                    self.wrapper.on_soft(BudgetPassedSoft(at=context.elapsed, target=self.name, **decision), context)
                except Exception as error:  # noqa: BLE001 - as with listeners: a broken callback must not break calls
                    _log.error("on_soft raised %s", type(error).__name__)

    def _first_time(self, bound: Bound, level: Level) -> bool:
        period = bound.key, level.ends
        if period in self._warned:
            return False
        self._warned[period] = None
        if len(self._warned) > _WARNED_AT_MOST:
            self._warned.popitem(last=False)
        return True

    def watch_store(self, context: Context) -> None:
        """Note that the store was lost, or is back."""
        if self.store.lost is not self._store_lost:
            self._store_lost = self.store.lost
            state: Literal["lost", "back"] = "lost" if self._store_lost else "back"
            context.decided(BudgetStoreChanged, self.name, state=state, mode=self.store.mode)


def _paying(provider: Provider) -> list[Provider]:
    """Return the targets within that cost something, in order."""
    found = [leaf for leaf in leaves(provider) if not getattr(leaf, "free", False)]
    for leaf in found:
        if not isinstance(leaf, BaseProvider):
            raise InvalidArgument(
                "inner", f"{leaf.name}, a {type(leaf).__name__}", "targets that are BaseProviders, which pay as they go"
            )
    return found


def _quotes(toll: CallToll, targets: Sequence[Provider], request: Request) -> tuple[list[int], Provider | None]:
    """Return what the targets that can serve a request may take, in order, and one of them that has no price."""
    costs: list[int] = []
    unpriced: Provider | None = None
    for target in targets:
        if not target.capabilities.missing(request):
            cost = toll.quote(target, request)
            if cost is not None:
                costs.append(cost)
            else:
                unpriced = unpriced or target
    return costs, unpriced


def _only_money(error: AllTargetsFailed) -> BudgetExceeded | None:
    """Return the refusal of a call that no target could serve for want of money."""
    said = [one for _, one in error.attempts]
    short = [one for one in said if isinstance(one, BudgetExceeded)]
    if short and all(isinstance(one, (BudgetExceeded, UnsupportedParameter)) for one in said):
        return short[0]
    return None

"""What a call costs: the provider's own word, the user's prices, genai-prices, this package's extract, or nothing."""

from __future__ import annotations

import functools
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any, Literal, cast

from llmprod.cost import Cost, total, unknown
from llmprod.errors import InvalidArgument
from llmprod.pricing.lists import NOT_SOLD, Found, PriceList, plain_model
from llmprod.pricing.price import Price, sheet
from llmprod.usage import Usage, special_tier

__all__ = ["PriceBook", "Prices"]

Prices = Literal["auto", "genai-prices", "snapshot", "none"]

_KEPT = 1024
_A_PRICE = "a Price(input=…, output=…), or a list of them"
_log = logging.getLogger(__name__)


class PriceBook:
    """Prices by provider and model. ``PriceBook().cost(usage, provider="openai", model="gpt-5")``.

    A cost comes from the first of these that knows it:

    1. the provider itself, where its usage tells what it took (OpenRouter),
    2. ``overrides``,
    3. genai-prices, where it is installed (the extra ``prices``); 2,300 models of 47 providers,
    4. the extract of it in this package: current models of seven providers, at the prices of a stated day.

    Else the cost's ``amount`` is None, with the reason: never 0. Nothing is fetched from the network, ever; an
    application that wants the data of the hour runs genai-prices' own ``UpdatePrices``.

    Args:
        overrides: prices of your own, by model: ``"openai:gpt-5"`` (provider and model), ``"gpt-5"`` (of whatever
            provider), or a pattern such as ``"vllm-server:*"``. An exact name goes before a pattern, and patterns go in
            the order that they are given in. A list of prices is one by date (``Price.since``).
        prices: which data to use beside them: ``auto`` (3, then 4), ``genai-prices`` (3), ``snapshot`` (4) or
            ``none``.

    Raises:
        InvalidArgument: naming the argument.
    """

    def __init__(
        self, overrides: Mapping[str, Price | Sequence[Price]] | None = None, *, prices: Prices = "auto"
    ) -> None:
        if prices not in ("auto", "genai-prices", "snapshot", "none"):
            raise InvalidArgument("prices", repr(prices)[:40], "auto, genai-prices, snapshot or none")
        if prices == "genai-prices" and find_spec("genai_prices") is None:
            raise InvalidArgument(
                "prices", "genai-prices, which is not installed", "pip install 'llmprod[prices]', or 'auto'"
            )
        self._prices: Prices = prices
        self._lock = threading.Lock()
        self._loader: threading.Thread | None = None
        self._waiting: deque[Callable[[], None]] = deque()
        self._exact: dict[str, Found] = {}
        self._patterns: list[tuple[str, Found]] = []
        for name, given in _checked(overrides).items():
            found = Found(sheet(given), "override", None)
            if any(mark in name for mark in "*?["):
                self._patterns.append((name, found))
            else:
                self._exact[name] = found
        self._lists: tuple[PriceList, ...] | None = () if prices == "none" else None
        self._looked_up: dict[tuple[str | None, str, str | None], Found | str] = {}

    # ---- loading ----------------------------------------------------------------------------------------------------

    @property
    def loaded(self) -> bool:
        """True once the price data is there."""
        return self._lists is not None

    def load(self) -> PriceBook:
        """Load the price data, which takes most of a second with genai-prices, and return this book.

        Asking for a cost does it too. :class:`llmprod.CostMeter` has a thread do it once a call has ended that you have
        given no price for.
        """
        if self._lists is None:
            lists: list[PriceList] = []
            if self._prices in ("auto", "genai-prices") and (genai := _genai()) is not None:
                lists.append(genai)
            if self._prices in ("auto", "snapshot"):
                lists.append(_snapshot())
            self._lists = tuple(lists)
        return self

    def ready_for(self, *, provider: str | None, model: str | None) -> bool:
        """Tell whether a cost can be told without loading anything: the data is there, or the price is your own."""
        name = _kind(provider)
        return (
            self._lists is not None or not model or name in NOT_SOLD or self._own(name, plain_model(model)) is not None
        )

    def when_loaded(self, job: Callable[[], None]) -> None:
        """Run ``job`` once the data is there: now, or in the thread that loads it. It must not raise."""
        if self._lists is not None or _at_hand(self._prices):
            self.load()
            job()
            return
        self._waiting.append(job)
        self._begin()
        if self._lists is not None:
            self._run_waiting()  # it was loaded meanwhile

    def _begin(self) -> None:
        with self._lock:
            if sys.is_finalizing() or (self._loader is not None and self._loader.is_alive()):
                return  # alive: a thread does not survive a fork
            self._loader = threading.Thread(target=self._load_beside, name="llmprod-prices", daemon=True)
            try:
                self._loader.start()
            except RuntimeError:  # the interpreter is about to end, and nobody will ask any more
                self._loader = None

    def wait(self) -> bool:
        """Wait until the data is there and what waited for it has run; False where it is this thread that loads it."""
        loader = self._loader
        if loader is threading.current_thread():
            return False  # a callback that is told of a cost: what it waits for comes after it
        if loader is not None:
            loader.join()
        self.load()
        self._run_waiting()
        return True

    def _load_beside(self) -> None:
        self.load()
        self._run_waiting()

    def _run_waiting(self) -> None:
        while True:
            try:
                job = self._waiting.popleft()
            except IndexError:
                return
            job()

    # ---- asking -----------------------------------------------------------------------------------------------------

    def cost(
        self,
        usage: Usage | None,
        *,
        provider: str | None,
        model: str | None,
        asked: str | None = None,
        at: datetime | None = None,
        tier: str | None = None,
        batch: bool = False,
        url: str | None = None,
    ) -> Cost:
        """Return what a usage costs.

        Args:
            usage: the tokens; None gives an unknown cost.
            provider: its name, such as ``openai``, or a provider's ``openai:gpt-5``. None where nobody knows: then the
                model's name alone must tell.
            model: the model's id, best the exact one that answered.
            asked: the id that was asked for, where another answered (``gpt-5`` for ``gpt-5-2025-08-07``): your own
                price of it goes before what price data says of the other, and its price where that knows none.
            at: when it was used (default now; without a zone, UTC).
            tier: the service tier, instead of the one in ``usage``.
            batch: it came by a batch API.
            url: the API's address; it tells the provider where its name does not, as with ``openai-compatible``.
        """
        if usage is None:
            return unknown("no usage")
        if usage.cost is not None:
            return total(usage.cost, "provider", estimated=usage.estimated)
        if not model:
            return unknown("no model", estimated=usage.estimated)
        found = self._find_either(provider, model, asked, url)
        if isinstance(found, str):
            return unknown(found, estimated=usage.estimated)
        moment = datetime.now(tz=UTC) if at is None else at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        named = special_tier(tier) if tier is not None else usage.tier
        tiers = tuple(name for name in dict.fromkeys(("batch" if batch else None, named)) if name is not None)
        rates = found.sheet.rates(moment, tiers)
        if isinstance(rates, str):
            return unknown(rates, estimated=usage.estimated)
        money, missing = found.sheet.price(usage, rates)
        return Cost(
            amount=None if missing is not None else sum(money.values(), _NOTHING),
            reason=missing,
            source=found.source,
            price_version=found.version,
            tier="+".join(tiers) or None,
            estimated=usage.estimated,
            buckets=money,
        )

    def knows(self, *, provider: str | None, model: str, url: str | None = None) -> bool:
        """Tell whether there are prices of a model."""
        return not isinstance(self._find(provider, model, url), str)

    def _find_either(self, provider: str | None, model: str, asked: str | None, url: str | None) -> Found | str:
        if asked is None or asked == model:
            return self._find(provider, model, url)
        name = _kind(provider)
        own = self._own(name, plain_model(model)) or self._own(name, plain_model(asked))
        if own is not None:
            return own
        found = self._find(provider, model, url)
        other = self._find(provider, asked, url) if isinstance(found, str) else found
        return found if isinstance(other, str) else other

    def _find(self, provider: str | None, model: str, url: str | None) -> Found | str:
        name = _kind(provider)
        model = plain_model(model)
        own = self._own(name, model)
        if own is not None:
            return own
        if name in NOT_SOLD:
            return f"no price list for the provider {name}; give it one of your own"
        lists = self.load()._lists or ()
        renewed = len(self._looked_up) >= _KEPT
        for each in lists:
            renewed = each.renewed() or renewed
        if renewed:
            self._looked_up.clear()
        looked_for = (name, model, url)
        known = self._looked_up.get(looked_for)
        if known is None:
            known = "no price data"
            for each in lists:
                known = each.find(name, model, url)
                if not isinstance(known, str):
                    break
            self._looked_up[looked_for] = known
        return known

    def _own(self, name: str | None, model: str) -> Found | None:
        """Return the override for a model."""
        if not self._exact and not self._patterns:
            return None
        asked = (f"{name}:{model}", model)
        for key in asked:
            if key in self._exact:
                return self._exact[key]
        for pattern, found in self._patterns:
            if any(fnmatchcase(key, pattern) for key in asked):
                return found
        return None

    def __repr__(self) -> str:
        return f"PriceBook({len(self._exact) + len(self._patterns)} overrides, prices={self._prices!r})"


_NOTHING = Decimal(0)


def _kind(provider: str | None) -> str | None:
    """The provider's id in a name such as ``openai:gpt-5``."""
    return None if provider is None else provider.partition(":")[0].lower()


def _at_hand(prices: Prices) -> bool:
    """Another book has loaded the data."""
    needed = (_genai,) if prices == "genai-prices" else (_snapshot,) if prices == "snapshot" else (_genai, _snapshot)
    return all(each.cache_info().currsize for each in needed)


@functools.cache
def _genai() -> PriceList | None:
    if find_spec("genai_prices") is None:
        return None
    from llmprod.pricing._genai import GenaiPrices

    try:
        return GenaiPrices()
    except (ImportError, AttributeError) as error:
        _log.warning("genai-prices is of a release that can't be read (%s); update it", type(error).__name__)
        return None


@functools.cache
def _snapshot() -> PriceList:
    from llmprod.pricing._snapshot import SnapshotPrices

    return SnapshotPrices()


def _checked(overrides: Any) -> dict[str, Price | tuple[Price, ...]]:
    if overrides is None:
        return {}
    allowed = "a dict of Price, or of lists of Price, by model"
    if not isinstance(overrides, Mapping):
        raise InvalidArgument("overrides", type(overrides).__name__, allowed)
    made: dict[str, Price | tuple[Price, ...]] = {}
    for name, given in cast("Mapping[object, object]", overrides).items():
        if not isinstance(name, str) or not name:
            raise InvalidArgument("overrides", f"the key {repr(name)[:40]}", "'provider:model', 'model' or a pattern")
        several = (given,) if isinstance(given, Price) else given
        if not isinstance(several, (list, tuple)) or not several:
            raise InvalidArgument(f"overrides[{name!r}]", type(given).__name__, _A_PRICE)
        for item in cast("Sequence[object]", several):
            if not isinstance(item, Price):
                raise InvalidArgument(f"overrides[{name!r}]", type(given).__name__, _A_PRICE)
        made[name.lower()] = tuple(cast("Sequence[Price]", several))
    return made

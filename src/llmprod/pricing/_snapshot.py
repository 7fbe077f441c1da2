"""The prices that come with the package: a dated extract of genai-prices, in ``snapshot.json``.

`tools/price_snapshot.py` writes the file. Its data is genai-prices' (Copyright (c) Pydantic Services Inc. 2025 to
present, MIT License; the whole notice is in the file).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date, time
from decimal import Decimal
from importlib.resources import files
from typing import Any

from pydantic_core import from_json

from llmprod.pricing.lists import ALIASES, Found, matcher, plain_model, undated
from llmprod.pricing.sheet import Cliff, Period, Rate, Sheet, Variant, When

__all__ = ["SnapshotPrices", "read_sheet"]


class _Seller:
    """A provider's models, each with the rule that its id is known by."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.url = re.compile(told["url"])
        self.names = matcher(told["names"]) if told["names"] else None
        self.models: list[tuple[Callable[[str], bool], Sheet]] = [
            (matcher(model["match"]), read_sheet(model)) for model in told["models"]
        ]

    def find(self, model: str) -> Sheet | None:
        for name in dict.fromkeys((model, undated(model))):
            for matches, sheet in self.models:
                if matches(name):
                    return sheet
        return None


class SnapshotPrices:
    """Looks up models in the package's own extract.

    Attributes:
        date: the day that the extract was made, in ISO form.
    """

    def __init__(self, told: Mapping[str, Any] | None = None) -> None:
        data: Mapping[str, Any] = (
            from_json(files("llmprod.pricing").joinpath("snapshot.json").read_bytes()) if told is None else told
        )
        sellers: Mapping[str, Any] = data["providers"]
        self.date: str = data["date"]
        self._sellers = {name: _Seller(seller) for name, seller in sellers.items()}

    def find(self, provider: str | None, model: str, url: str | None) -> Found | str:
        """Return a model's prices, or why there are none."""
        model = plain_model(model)
        name, seller = self._seller(provider, model, url)
        if seller is None:
            return "unknown provider" if provider is None else f"no price list for the provider {provider}"
        sheet = seller.find(model)
        return f"no price for this model of {name}" if sheet is None else Found(sheet, "snapshot", self.date)

    def renewed(self) -> bool:
        """Never: the data is of one day."""
        return False

    def _seller(self, provider: str | None, model: str, url: str | None) -> tuple[str, _Seller | None]:
        if provider is not None:
            name = ALIASES.get(provider, provider)
            if name in self._sellers:
                return name, self._sellers[name]
        for name, seller in self._sellers.items():
            if url is not None:
                if seller.url.match(url):
                    return name, seller
            elif provider is None and seller.names is not None and seller.names(model):
                return name, seller
        return "", None


def read_sheet(told: Mapping[str, Any]) -> Sheet:
    """Return a model's prices as the file tells them."""
    return Sheet(
        tuple(Period(_rates(each["rates"]), _when(each)) for each in told["periods"]),
        tuple(Variant(each["tier"], _rates(each["rates"]), _when(each)) for each in told.get("tiers", ())),
        frozenset(told.get("apart", ())),
    )


def _when(told: Mapping[str, Any]) -> When | None:
    if "since" in told:
        return When(since=date.fromisoformat(told["since"]))
    if "hours" in told:
        start, end = told["hours"]
        return When(hours=(time.fromisoformat(start), time.fromisoformat(end)))
    return None


def _rates(told: Mapping[str, Any]) -> dict[str, Rate]:
    return {
        name: Decimal(rate)
        if isinstance(rate, str)
        else Cliff(Decimal(rate["base"]), tuple((start, Decimal(price)) for start, price in rate["above"]))
        for name, rate in told.items()
    }

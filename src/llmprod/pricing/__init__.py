"""What a use of a model costs: price data, the user's own prices, and the sum of a call."""

from __future__ import annotations

from llmprod.pricing.book import PriceBook
from llmprod.pricing.cost import Cost
from llmprod.pricing.price import Price

__all__ = ["Cost", "Price", "PriceBook"]

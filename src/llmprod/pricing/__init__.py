"""What a use of a model costs: price data and prices of the user's own."""

from __future__ import annotations

from llmprod.pricing.book import PriceBook
from llmprod.pricing.price import Price

__all__ = ["Price", "PriceBook"]

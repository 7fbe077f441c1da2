"""The extract in the package is what the tool writes, and carries its date and its licence."""

from __future__ import annotations

import json
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pytest

from llmprod.pricing._snapshot import SnapshotPrices
from tools import price_snapshot


def test_the_extract_is_what_the_tool_writes() -> None:
    told = json.loads(price_snapshot.PLACE.read_text())
    if not told["source"].startswith(f"genai-prices {version('genai-prices')},"):
        pytest.skip("made from another release of genai-prices than is installed")
    assert price_snapshot.PLACE.read_text() == price_snapshot.written(price_snapshot.snapshot(told["date"]))


def test_date_licence_and_size() -> None:
    told = json.loads(price_snapshot.PLACE.read_text())
    assert date.fromisoformat(told["date"]).isoformat() == SnapshotPrices().date
    assert any("Copyright (c) Pydantic Services Inc." in line for line in told["license"])
    assert any("Permission is hereby granted, free of charge" in line for line in told["license"])
    assert told["providers"].keys() == {"openai", "anthropic", "google", "mistral", "deepseek", "x-ai", "groq"}
    assert sum(len(seller["models"]) for seller in told["providers"].values()) >= 60
    assert Path(price_snapshot.PLACE).stat().st_size < 100_000

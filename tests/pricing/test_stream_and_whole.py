"""Over a real server, by each API: streamed, whole and cut answers of one usage cost the same where they should."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from llmprod import Anthropic, Client, Google, OpenAI, Provider, StreamInterrupted
from llmprod.pricing import PriceBook
from llmprod.testing.fault_server import Answer, Behaviour, Cut, FaultServer, TokenCounts
from llmprod.wrappers.cost_meter import CostMeter

COUNTS = TokenCounts(input=1000, output=100, cache_read=400)
PER_MILLION = {  # input, cache read, output; from the extract in this package
    "gpt-5": ("1.25", "0.125", "10"),
    "claude-sonnet-5-5": ("2", "0.1", "10"),
    "gemini-2.5-flash": ("0.3", "0.03", "2.5"),
}


def provider(api: str, url: str) -> Provider:
    if api == "anthropic":
        return Anthropic("claude-sonnet-5-5", base_url=url, api_key="none")
    if api == "google":
        return Google("gemini-2.5-flash", base_url=f"{url}/v1beta", api_key="none")
    kind: Any = api
    return OpenAI("gpt-5", api=kind, base_url=f"{url}/v1", api_key="none")


def money(model: str, fresh: int, cached: int, written: int) -> Decimal:
    plain, read, output = map(Decimal, PER_MILLION[model])
    return (plain * fresh + read * cached + output * written) / 1_000_000


@pytest.mark.parametrize("api", ["chat", "responses", "anthropic", "google"])
def test_streamed_and_whole(api: str) -> None:
    meter = CostMeter(PriceBook(prices="snapshot"))
    with FaultServer(Behaviour(answer=Answer(text="Here you are.", usage=COUNTS))) as server:
        asked = provider(api, server.url)
        with Client(asked, wrappers=[], cost_meter=meter) as client:
            whole = client.generate("Hello")
            with client.stream("Hello") as stream:
                stream.read()
    expected = money(asked.name.partition(":")[2], 600, 400, 100)
    assert whole.cost == stream.response.cost == expected
    assert whole.trace.cost == stream.response.trace.cost
    assert not meter.ledger.totals.estimated
    assert meter.ledger.total == 2 * expected


@pytest.mark.parametrize("api", ["chat", "responses", "anthropic", "google"])
def test_a_connection_that_breaks_costs_what_was_shown(api: str) -> None:
    meter = CostMeter(PriceBook(prices="snapshot"), tokens=lambda asked: len(asked) if isinstance(asked, str) else 1000)
    broken = Behaviour(answer=Answer(text=["Here ", "you ", "are."], usage=COUNTS), cut=Cut(after=2))
    with FaultServer(broken) as server, Client(provider(api, server.url), wrappers=[], cost_meter=meter) as client:
        with client.stream("Hello") as stream, pytest.raises(StreamInterrupted):
            stream.read()
    (attempt,) = stream.response.trace.attempts
    assert attempt.usage is not None
    assert attempt.usage.estimated
    assert attempt.usage.total_input == 1000
    assert attempt.usage.total_output == len(stream.text) > 0
    assert attempt.cost is not None
    assert attempt.cost.amount == meter.ledger.total > 0

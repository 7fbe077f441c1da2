"""What decorated functions cost, read from what the vendors' SDKs return."""

from __future__ import annotations

from decimal import Decimal

import anthropic
import openai
import pytest

from llmprod import Retry, capture, resilient
from llmprod.pricing import Price, PriceBook
from llmprod.testing.fault_server import Answer, Behaviour, ErrorReply, FaultServer, RequestRecord, TokenCounts
from llmprod.wrappers.cost_meter import CostMeter

COUNTS = TokenCounts(input=1000, output=100, cache_read=400)


@pytest.fixture
def meter():
    return CostMeter(PriceBook(prices="snapshot").load())


@pytest.fixture
def server():
    with FaultServer(Behaviour(answer=Answer(text="Here you are.", usage=COUNTS))) as made:
        yield made


def test_openai_whole_and_streamed(server, meter):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as sdk:

        @resilient(meter)
        def ask(**more):
            messages = [{"role": "user", "content": "Hello"}]
            return sdk.chat.completions.create(model="gpt-5", messages=messages, **more)

        with capture() as calls:
            ask()
            for _ in ask(stream=True, stream_options={"include_usage": True}):
                pass
    expected = (600 * Decimal("1.25") + 400 * Decimal("0.125") + 100 * Decimal(10)) / 1_000_000
    assert [call.trace.cost.amount for call in calls] == [expected, expected]
    assert [call.response.cost for call in calls] == [expected, expected]
    assert meter.ledger.by("model").rows()[0]["model"] == "gpt-5"
    assert meter.ledger.total == 2 * expected


def test_anthropic(server, meter):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as sdk:

        @resilient(meter)
        def ask():
            messages = [{"role": "user", "content": "Hello"}]
            return sdk.messages.create(model="claude-sonnet-5-5", max_tokens=10, messages=messages)

        with capture() as calls:
            ask()
    expected = (600 * Decimal(2) + 400 * Decimal("0.1") + 100 * Decimal(10)) / 1_000_000
    assert calls[0].trace.cost.amount == expected == meter.ledger.total


def test_failures_and_functions_of_any_kind(meter):
    def first_fails(record: RequestRecord) -> Behaviour:
        if record.number == 0:
            return Behaviour(error=ErrorReply(kind="overloaded"))
        return Behaviour(answer=Answer(text="Here you are.", usage=COUNTS))

    with FaultServer(first_fails) as server:
        sdk = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

        @resilient(meter, Retry(2))
        def ask():
            return sdk.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "Hello"}])

        with capture() as calls, sdk:
            ask()
    assert [entry.cost.source for entry in calls[0].trace.attempts] == ["unbilled", "snapshot"]
    assert calls[0].trace.cost.amount == meter.ledger.total > 0


def test_what_a_function_used_that_says_nothing_is_unknown(meter):
    @resilient(meter)
    def silent():
        return "an answer"

    @resilient(meter)
    def broken():
        raise ValueError("after the model was called, or before: who knows")

    with capture() as calls:
        silent()
        with pytest.raises(ValueError, match="who knows"):
            broken()
    assert [call.trace.cost.amount for call in calls] == [None, None]
    assert meter.ledger.totals.unpriced == 2


def test_a_price_for_a_model_that_no_list_knows():
    meter = CostMeter(PriceBook({"house-model": Price(input=1, output=2)}, prices="none"))
    with FaultServer(Behaviour(answer=Answer(text="Here you are.", usage=TokenCounts(input=10, output=1)))) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as sdk:

            @resilient(meter)
            def ask():
                return sdk.responses.create(model="house-model", input="Hello")

            ask()
    assert meter.ledger.total == Decimal(12) / 1_000_000

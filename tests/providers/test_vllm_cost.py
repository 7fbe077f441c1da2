"""What a usage costs that the engine itself did not see the end of: the engine's mean pace, by its price an hour."""

from decimal import Decimal

from llmprod import VLLM, Usage
from llmprod.mechanisms.engine_meter import EngineMeter, EngineStep


class HandClock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("a meter does not wait")


def metered(price: str | None) -> VLLM:
    """An engine that was never started, with a meter that has seen ten busy seconds and a thousand tokens."""
    model, clock = VLLM("some/model", price_per_hour=price), HandClock()
    meter = model._engine.meter = EngineMeter(clock=clock)
    meter.call_began()
    meter.step(EngineStep(prompt_tokens=800, generated_tokens=200))
    clock.time = 10.0
    meter.call_ended()
    return model


def test_a_usage_costs_its_share_of_the_busy_time():
    # A hundredth of a second a token; what the cache gave took none.
    usage = Usage(input=60, cache_read=900, output=30, reasoning=10, estimated=True)
    assert metered("3.6").cost_of(usage) == Decimal("0.001")
    assert metered("0").cost_of(usage) == 0


def test_nothing_is_told_without_a_price_a_usage_or_a_token():
    assert metered(None).cost_of(Usage(input=1)) is None
    assert metered("3.6").cost_of(None) is None
    assert VLLM("some/other-model", price_per_hour="3.6").cost_of(Usage(input=1)) is None
    assert metered("3.6").cost_source == "gpu-hour"

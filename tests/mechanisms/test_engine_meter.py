"""The engine's numbers, and what a token costs."""

from __future__ import annotations

import gc
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod import InvalidArgument, RestartPolicy
from llmprod.mechanisms.engine_meter import EngineMeter, EngineStep, FinishedCall, hourly_price
from llmprod.mechanisms.restart import Restarts
from tests.mechanisms.hand_clock import HandClock


def test_steps_add_up_and_levels_are_the_last_ones() -> None:
    clock = HandClock()
    meter = EngineMeter(clock=clock)
    meter.call_began()
    timing = meter.watch("abc")
    meter.step(EngineStep(running=2, waiting=3, kv_cache_use=0.5, prefix_queries=100, prefix_hits=40, prompt_tokens=60))
    assert (meter.waiting(), meter.kv_cache_use()) == (3, 0.5)
    clock.time += 2.0
    meter.step(
        EngineStep(
            running=1,
            generated_tokens=10,
            draft_tokens=8,
            accepted_tokens=6,
            preemptions=1,
            first_token_seconds=(0.5, 0.1),
            between_tokens_seconds=(0.02,),
            finished=(FinishedCall(request="abc", queue=0.1, prefill=0.2, decode=1.5),),
        )
    )
    stats = meter.stats()
    assert (stats.running, stats.waiting, stats.in_flight, stats.finished, stats.preemptions) == (1, 0, 1, 1, 1)
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (60, 40, 10)
    assert stats.prefix_cache_hit_rate == 0.4
    assert stats.acceptance_rate == 0.75
    assert (stats.ttft_p50, stats.ttft_p95, stats.between_tokens_p50) == (0.5, 0.5, 0.02)
    assert stats.busy_seconds == 2.0
    assert (timing.queue, timing.prefill, timing.decode) == (0.1, 0.2, 1.5)
    meter.call_ended()
    clock.time += 50.0
    assert meter.stats().busy_seconds == 2.0, "idle time is not busy"
    assert meter.waiting() == 0


def test_before_anything_nothing_is_claimed() -> None:
    stats = EngineMeter(clock=HandClock()).stats()
    assert stats.prefix_cache_hit_rate is stats.acceptance_rate is stats.ttft_p50 is stats.tokens_per_second is None
    assert stats.busy_seconds == 0


def test_a_request_nobody_watches_any_more_is_forgotten() -> None:
    meter = EngineMeter(clock=HandClock())
    meter.watch("gone")
    gc.collect()
    assert len(meter._watched) == 0
    meter.step(EngineStep(finished=(FinishedCall(request="gone", queue=0, prefill=0, decode=0),)))


def test_several_engines_are_added() -> None:
    meter = EngineMeter(clock=HandClock())
    meter.call_began()
    meter.step(EngineStep(running=2, waiting=1, kv_cache_use=0.2), 0)
    meter.step(EngineStep(running=3, waiting=4, kv_cache_use=0.9), 1)
    assert (meter.stats().running, meter.waiting(), meter.kv_cache_use()) == (5, 5, 0.9)


@pytest.mark.parametrize("price", ["2.49", 2.49, Decimal("2.49")], ids=["text", "number", "decimal"])
def test_prices(price: object) -> None:
    assert hourly_price("price", price) == Decimal("2.49")
    assert hourly_price("price", None) is None
    for wrong in (-1, "cheap", True, float("nan"), "inf"):
        with pytest.raises(InvalidArgument, match="price"):
            hourly_price("price", wrong)


def test_restarts_come_at_once_then_slower_then_never() -> None:
    clock = HandClock()
    restarts = Restarts(RestartPolicy(attempts=4, within=100, first_wait=1, longest_wait=3), clock=clock)
    assert [restarts.died() for _ in range(5)] == [0.0, 1.0, 2.0, 3.0, None]
    assert restarts.total == 4
    clock.time += 100.0
    assert restarts.died() == 0.0, "what was long ago does not count"
    restarts.died()
    restarts.forget()
    assert restarts.died() == 0.0
    assert Restarts(RestartPolicy(attempts=0), clock=clock).died() is None
    for wrong in ({"attempts": -1}, {"within": 0}, {"first_wait": -1}, {"longest_wait": float("inf")}):
        with pytest.raises(InvalidArgument):
            RestartPolicy(**wrong)


CALLS = st.lists(
    st.tuples(st.sampled_from(["begin", "end", "step", "wait"]), st.floats(0.001, 2.0), st.integers(0, 40)), max_size=60
)


@given(CALLS)
def test_busy_time_and_counts_only_grow_and_all_of_it_is_shared_out(events: list[tuple[str, float, int]]) -> None:
    """Calls that overlap in any way: the busy time up to the last step is shared out."""
    clock = HandClock()
    meter = EngineMeter(clock=clock)
    inside, busy, tokens_told, last, at_last_step = 0, 0.0, 0, meter.share_mark(), 0.0
    for kind, seconds, tokens in events:
        if kind == "begin":
            meter.call_began()
            inside += 1
        elif kind == "end" and inside:
            meter.call_ended()
            inside -= 1
        elif kind == "wait":
            clock.time += seconds
            busy += seconds if inside else 0.0
        elif kind == "step" and inside and tokens:
            meter.step(EngineStep(running=inside, generated_tokens=tokens, between_tokens_seconds=(0.1,) * inside))
            tokens_told += tokens
            at_last_step = busy
        stats, mark = meter.stats(), meter.share_mark()
        assert meter.in_flight == stats.in_flight == inside
        assert stats.busy_seconds == pytest.approx(busy)
        assert (mark.busy, mark.tokens, mark.per_token, mark.steps) >= (last.busy, last.tokens, last.per_token, 0)
        assert mark.of_prompt(mark) == mark.of_answer(mark) == 0.0
        assert stats.tokens_per_second is None or stats.tokens_per_second >= 0
        assert meter.waiting() >= 0
        last = mark
    assert last.busy == pytest.approx(at_last_step)
    assert last.tokens == tokens_told
    mean = meter.seconds_per_token()
    assert mean is None if not tokens_told else mean == pytest.approx(busy / tokens_told)


def test_an_engine_that_ended_runs_nothing() -> None:
    meter = EngineMeter(clock=HandClock())
    meter.call_began()
    meter.step(EngineStep(running=5, waiting=7, kv_cache_use=0.5, generated_tokens=3))
    meter.engine_ended()
    stats = meter.stats()
    assert (stats.running, stats.waiting, stats.kv_cache_use, stats.generated_tokens) == (0, 0, 0.0, 3)

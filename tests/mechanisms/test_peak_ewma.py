"""Peak EWMA: what the next call would cost at a target, by example and in any interleaving of calls."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from llmprod import InvalidArgument
from llmprod.mechanisms.peak_ewma import PeakEwma, Pending, first_token_time
from tests.mechanisms.hand_clock import HandClock


def idle(rtt: float = 0.5, **options) -> tuple[PeakEwma, HandClock]:
    """A target whose estimate is exactly ``rtt``, with no call under way."""
    clock = HandClock()
    ewma = PeakEwma(**{"default": 1e-9, **options}, clock=clock)
    ewma.observe(rtt)
    return ewma, clock


# ---- rules, one by one ----------------------------------------------------------------------------------------------


def test_the_cost_is_the_average_by_the_calls_under_way_and_this_one():
    ewma, _ = idle(0.5)
    assert ewma.cost == pytest.approx(0.5)
    one, other = ewma.begin(), ewma.begin()
    assert ewma.cost == pytest.approx(1.5)
    one.end()
    other.end()
    assert ewma.cost == pytest.approx(0.5)


def test_heavy_calls_count_as_several():
    ewma, _ = idle(0.5)
    heavy = ewma.begin(4.0)
    assert ewma.cost == pytest.approx(2.5)
    assert ewma.calls == 1
    heavy.end()
    assert (ewma.pending, ewma.calls) == (0.0, 0)


def test_before_anything_was_measured_the_default_counts():
    assert PeakEwma(clock=HandClock()).cost == 1.0


def test_a_peak_becomes_the_average_at_once():
    ewma, _ = idle(0.5)
    ewma.observe(3.0)
    assert ewma.estimate == pytest.approx(3.0)


def test_below_the_average_it_moves_by_the_time_that_passed():
    ewma, clock = idle(2.0, decay=10)
    clock.time += 5
    ewma.observe(1.0)
    kept = math.exp(-0.5)
    assert ewma.estimate == pytest.approx(2.0 * kept + 1.0 * (1 - kept))
    ewma.observe(0.2)  # no time has passed: it has no weight
    assert ewma.estimate == pytest.approx(2.0 * kept + 1.0 * (1 - kept))


def test_idle_it_decays_so_that_it_is_tried_again():
    ewma, clock = idle(5.0, decay=10)
    clock.time += 10
    assert ewma.estimate == pytest.approx(5.0 / math.e)
    clock.time += 13
    assert ewma.estimate == pytest.approx(0.5, rel=0.01)  # after 23 s it looks as good as one of half a second


def test_after_hours_of_silence_calls_under_way_still_count():
    ewma, clock = idle()
    clock.time += 86_400
    ewma.begin()
    assert ewma.cost == pytest.approx(0.002)


def test_a_failure_counts_as_long_however_fast_it_was():
    ewma, clock = idle(0.5, penalty=10)
    ewma.begin().failed()
    assert ewma.estimate == pytest.approx(10)
    clock.time += 30
    assert ewma.estimate == pytest.approx(0.5, rel=0.01)


def test_failures_in_a_row_count_double_up_to_a_minute_until_one_succeeds():
    ewma, clock = idle(penalty=10)
    seen = []
    for _ in range(5):
        clock.time += 1_000
        ewma.begin().failed()
        seen.append(round(ewma.estimate))
    assert seen == [10, 20, 40, 60, 60]
    ewma.begin().began(0.5)
    clock.time += 1_000
    ewma.begin().failed()
    assert ewma.estimate == pytest.approx(10)


def test_calls_that_fail_together_are_one_failure():
    ewma, clock = idle(penalty=10)
    calls = [ewma.begin() for _ in range(20)]
    clock.time += 0.1
    for call in calls:
        call.failed()
    assert ewma.estimate == pytest.approx(10)
    assert ewma.pending == 0


def test_a_failure_never_makes_a_target_look_better():
    ewma, clock = idle(120.0, penalty=10)
    clock.time += 0.001
    before = ewma.estimate
    ewma.begin().failed()
    assert ewma.estimate >= before - 1e-9


def test_a_slow_failure_counts_as_long_as_it_took():
    ewma, clock = idle(penalty=10)
    call = ewma.begin()
    clock.time += 45
    call.failed()
    assert ewma.estimate == pytest.approx(45)


def test_a_stream_that_breaks_after_its_first_token_counts_as_a_failure_not_as_its_length():
    ewma, clock = idle(penalty=10)
    call = ewma.begin()
    call.began(0.5)
    clock.time += 45
    call.failed()
    assert ewma.estimate == pytest.approx(10)


def test_given_up_tells_that_it_took_at_least_as_long():
    ewma, clock = idle(0.5)
    call = ewma.begin()
    clock.time += 4
    call.given_up()
    assert ewma.estimate == pytest.approx(4)


def test_given_up_early_tells_nothing():
    ewma, clock = idle(5.0)
    call = ewma.begin()
    clock.time += 0.1
    call.given_up()
    assert ewma.estimate == pytest.approx(5 * math.exp(-0.01))


def test_given_up_is_no_success():
    ewma, clock = idle(penalty=10)
    ewma.begin().failed()
    clock.time += 100
    late = ewma.begin()
    clock.time += 8
    late.given_up()
    ewma.begin()
    clock.time += 1000
    ewma.begin().failed()
    assert ewma.estimate == pytest.approx(20)


def test_a_call_is_told_once_and_ends_once():
    ewma, _ = idle(0.5)
    call = ewma.begin()
    call.began(2.0)
    call.began(9.0)
    call.end()
    call.end()
    call.failed()
    call.given_up()
    assert (ewma.calls, ewma.pending) == (0, 0.0)
    assert ewma.estimate == pytest.approx(2.0)


def test_whole_and_streamed_answers_have_a_common_measure():
    # 0.5 s to the first token, 64 tokens a second, 8,192 tokens of prompt a second
    assert first_token_time(0.5, 0, 0) == 0.5
    assert first_token_time(0.5 + 320 / 64, 0, 320) == pytest.approx(0.5)
    assert first_token_time(0.5 + 16_384 / 8192, 16_384, 0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("field", "value"), [("decay", 0), ("decay", None), ("default", -1), ("penalty", 0), ("penalty", math.inf)]
)
def test_options_out_of_range_are_refused(field, value):
    with pytest.raises(InvalidArgument, match=rf"{field}: got .*; allowed: "):
        PeakEwma(**{field: value}, clock=HandClock())


# ---- any interleaving -----------------------------------------------------------------------------------------------


class Interleavings(RuleBasedStateMachine):
    """Calls begin, get their first token, fail, are given up and end in any order while time passes.

    Beside it a model: Finagle's Metric, told over all observations.
    """

    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.clock = HandClock()
        self.ewma = PeakEwma(decay=10, default=1, penalty=5, clock=self.clock)
        self.out: list[Pending] = []
        self.rtt, self.stamp = 1.0, self.clock.time
        self.told: set[int] = set()
        self.started: dict[int, float] = {}
        self.row, self.failed_at = 0, -math.inf

    def expect(self, rtt: float) -> None:
        kept = math.exp(-(self.clock.time - self.stamp) / 10)
        self.rtt = rtt if rtt > self.rtt else self.rtt * kept + rtt * (1 - kept)
        self.stamp = self.clock.time

    @rule(target=calls, weight=st.floats(0.125, 8))
    def begin(self, weight):
        call = self.ewma.begin(weight)
        self.out.append(call)
        self.started[id(call)] = self.clock.time
        return call

    @rule(call=calls, rtt=st.floats(0, 20))
    def began(self, call, rtt):
        if call in self.out and id(call) not in self.told:
            self.told.add(id(call))
            self.row = 0
            self.expect(rtt)
        call.began(rtt)

    @rule(call=consumes(calls))
    def end(self, call):
        before = self.ewma.cost
        self.expect(0.0)
        self.out.remove(call)
        call.end()
        assert self.ewma.cost <= before + 1e-9

    @rule(call=consumes(calls))
    def fail(self, call):
        before = self.ewma.estimate
        self.expect(0.0)
        elapsed = 0.0 if id(call) in self.told else self.clock.time - self.started[id(call)]
        if self.started[id(call)] > self.failed_at:
            self.row += 1
            self.failed_at = self.clock.time
        self.out.remove(call)
        call.failed()
        self.expect(max(elapsed, 5, min(60, 5 * 2 ** (self.row - 1)), before))
        assert self.ewma.estimate >= max(before, 5) - 1e-9

    @rule(call=consumes(calls))
    def give_up(self, call):
        before = self.ewma.estimate
        self.expect(0.0)
        elapsed = self.clock.time - self.started[id(call)]
        if id(call) not in self.told and elapsed > before:
            self.expect(elapsed)
        self.out.remove(call)
        call.given_up()
        assert self.ewma.estimate >= before - 1e-9

    @rule(seconds=st.floats(0.001, 40))
    def wait(self, seconds):
        self.clock.time += seconds

    @precondition(lambda self: not self.out)
    @rule(seconds=st.floats(0.001, 40))
    def idle(self, seconds):
        before = self.ewma.cost
        self.clock.time += seconds
        assert self.ewma.cost <= before

    @invariant()
    def pending_is_the_sum_of_what_is_out(self):
        assert self.ewma.calls == len(self.out)
        assert self.ewma.pending == pytest.approx(sum(call.weight for call in self.out))
        assert self.ewma.pending >= 0
        if not self.out:
            assert self.ewma.pending == 0

    @invariant()
    def it_is_finagles(self):
        self.expect(0.0)
        assert self.ewma.estimate == pytest.approx(max(self.rtt, 0.001), rel=1e-6)

    @invariant()
    def one_more_call_costs_more(self):
        before = self.ewma.cost
        probe = self.ewma.begin()
        assert self.ewma.cost > before
        probe.end()
        assert self.ewma.cost == pytest.approx(before)

    def teardown(self):
        for call in self.out:
            call.end()
        assert (self.ewma.calls, self.ewma.pending) == (0, 0.0)


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(st.floats(0, 60), st.floats(0, 30)), min_size=1, max_size=30))
def test_the_estimate_lies_between_nothing_and_the_highest_seen(steps):
    clock = HandClock()
    ewma = PeakEwma(clock=clock)
    for wait, rtt in steps:
        clock.time += wait
        ewma.observe(rtt)
        assert 0 < ewma.estimate <= max(1.0, *(seen for _, seen in steps)) + 1e-9
    quiet = ewma.estimate
    clock.time += 10
    assert ewma.estimate == pytest.approx(max(quiet / math.e, 0.001), rel=1e-6) or quiet == 0.001

"""Quantiles of recent durations, against the list of all of them."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmprod import EmbedRequest, GenerateRequest, InvalidArgument, Message
from llmprod.mechanisms.attempt_time import AttemptTime
from llmprod.mechanisms.latency_window import LatencyWindow
from tests.mechanisms.hand_clock import HandClock

ERROR = 1.05**0.5 + 1e-9
"""A bucket is 5% wide and told by its middle."""


def window(*args, **options) -> tuple[LatencyWindow, HandClock]:
    clock = HandClock()
    return LatencyWindow(*args, **{"minimum": 1, "clock": clock, **options}), clock


def exact(samples: list[float], share: float) -> float:
    return sorted(samples)[max(1, math.ceil(share * len(samples))) - 1]


def assert_close(estimate: float | None, value: float) -> None:
    assert estimate is not None
    assert max(value, 1e-4) / ERROR <= estimate <= max(value, 1e-4) * ERROR


def test_there_is_no_quantile_before_there_are_enough_samples():
    made, _ = window(minimum=20)
    for count in range(19):
        assert made.count == count
        made.record(1.0)
        assert made.quantile(0.5) is None
    made.record(1.0)
    assert_close(made.quantile(0.5), 1.0)


def test_by_default_twenty_samples_of_the_last_minute():
    clock = HandClock()
    made = LatencyWindow(clock=clock)
    assert (made.window, made.minimum) == (60.0, 20)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9, 0.95, 0.99, 1.0])
def test_quantiles_are_those_of_the_list_but_for_half_a_bucket(share):
    made, _ = window()
    samples = [0.01 * 1.1**number for number in range(100)]
    for sample in reversed(samples):
        made.record(sample)
    assert_close(made.quantile(share), exact(samples, share))


@given(samples=st.lists(st.floats(1e-4, 600), min_size=1, max_size=60), share=st.floats(0, 1))
def test_any_quantile_of_any_list(samples, share):
    made, _ = window()
    for sample in samples:
        made.record(sample)
    assert_close(made.quantile(share), exact(samples, share))


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-9, 1e-4])
def test_what_takes_no_time_takes_the_least_that_is_measured(seconds):
    made, _ = window()
    made.record(seconds)
    assert_close(made.quantile(0.5), 1e-4)


def test_what_has_left_the_window_no_longer_counts():
    made, clock = window(60.0)
    clock.time = 1020.0
    made.record(10.0)
    for _ in range(5):
        clock.time += 10
        made.record(1.0)
        assert made.count == int((clock.time - 1020) / 10) + 1
    assert_close(made.quantile(1.0), 10.0)
    clock.time += 10
    assert made.count == 5
    assert_close(made.quantile(1.0), 1.0)


def test_a_long_pause_empties_it():
    for pause in (60, 61, 119, 600, 100_000):
        made, clock = window(60.0)
        for _ in range(6):
            made.record(1.0)
            clock.time += 10
        clock.time += pause
        assert made.count == 0
        assert made.quantile(0.5) is None
        made.record(3.0)
        assert made.count == 1


def test_a_quantile_is_computed_once_a_second():
    made, clock = window()
    made.record(1.0)
    known = made.quantile(0.5)
    made.record(9.0)
    made.record(9.0)
    clock.time += 0.9
    assert made.quantile(0.5) == known
    assert_close(made.quantile(0.9), 9.0)  # another share was not known yet
    clock.time += 0.1
    assert_close(made.quantile(0.5), 9.0)
    assert_close(made.quantile(0.9), 9.0)


def test_a_clock_that_steps_back_forgets_nothing():
    made, clock = window()
    made.record(1.0)
    clock.time -= 30
    made.record(2.0)
    assert made.count == 2


@pytest.mark.parametrize("share", [-0.01, 1.01, math.nan, None, True])
def test_a_share_out_of_range_is_refused(share):
    made, _ = window()
    with pytest.raises(InvalidArgument, match="share"):
        made.quantile(share)


@pytest.mark.parametrize(
    ("options", "field"), [({"window": 0}, "window"), ({"minimum": 0}, "minimum"), ({"minimum": 1.5}, "minimum")]
)
def test_options_out_of_range_are_refused(options, field):
    with pytest.raises(InvalidArgument) as caught:
        LatencyWindow(**options)
    assert caught.value.field == field


def test_it_tells_what_it_holds():
    made, _ = window(30.0)
    made.record(1.0)
    assert repr(made) == "<LatencyWindow of 1 samples in 30 s>"


class Durations(RuleBasedStateMachine):
    """Samples in any order while time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = HandClock()
        self.window = LatencyWindow(12.0, minimum=3, clock=self.clock)
        self.samples: list[tuple[float, float]] = []

    def live(self) -> list[float]:
        slot = int(self.clock.time / 12.0 * 6)
        return [seconds for at, seconds in self.samples if slot - int(at / 12.0 * 6) < 6]

    @rule(seconds=st.floats(1e-3, 100))
    def record(self, seconds):
        self.window.record(seconds)
        self.samples.append((self.clock.time, seconds))

    @rule(seconds=st.floats(0.01, 1.5) | st.floats(5, 40))
    def wait(self, seconds):
        self.clock.time += seconds

    @rule(share=st.sampled_from([0.05, 0.5, 0.95]))
    def ask(self, share):
        self.clock.time += 1.0  # what was known is computed anew
        live = self.live()
        told = self.window.quantile(share)
        if len(live) < 3:
            assert told is None
        else:
            assert_close(told, exact(live, share))

    @invariant()
    def the_count_is_that_of_the_list(self):
        assert self.window.count == len(self.live())


TestDurations = Durations.TestCase
TestDurations.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# ---- how long an attempt takes at least ------------------------------------------------------------------------------

HI = (Message.user("Hi"),)
WHOLE, STREAM = GenerateRequest(messages=HI), GenerateRequest(messages=HI, stream=True)
EMBED = EmbedRequest(inputs=("Hi",))


def attempt_time(request, samples) -> tuple[AttemptTime, HandClock]:
    clock = HandClock()
    made = AttemptTime(clock=clock)
    for seconds in samples:
        made.record(request, seconds)
    return made, clock


@pytest.mark.parametrize("request_", [WHOLE, STREAM, EMBED], ids=["whole", "stream", "embed"])
def test_little_known_is_no_reason_to_refuse(request_):
    made, _ = attempt_time(request_, [5.0] * 19)
    assert made.least(request_) == 0.0
    made.record(request_, 5.0)
    assert made.least(request_) == pytest.approx(5.0, rel=0.03)


def test_half_of_the_streams_and_the_quickest_of_the_whole_answers_count():
    samples = [float(number) for number in range(1, 41)]
    assert attempt_time(STREAM, samples)[0].least(STREAM) == pytest.approx(20.0, rel=0.03)
    assert attempt_time(WHOLE, samples)[0].least(WHOLE) == pytest.approx(2.0, rel=0.03)


def test_streams_and_whole_answers_are_told_apart():
    made, _ = attempt_time(STREAM, [5.0] * 20)
    assert made.least(WHOLE) == 0.0
    assert made.least(EMBED) == 0.0
    made, _ = attempt_time(WHOLE, [5.0] * 20)
    assert made.least(STREAM) == 0.0


def test_it_forgets_within_a_minute():
    made, clock = attempt_time(STREAM, [5.0] * 20)
    clock.time += 61
    assert made.least(STREAM) == 0.0

"""The delay before a hedge: a percentile of what was seen, which failures and losers never make shorter."""

import math
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmprod import EmbedRequest, GenerateRequest, InvalidArgument, Message
from llmprod.mechanisms.hedge_delay import HedgeDelay

WHOLE = GenerateRequest(messages=(Message.user("Hi"),))
STREAM = GenerateRequest(messages=(Message.user("Hi"),), stream=True)
EMBED = EmbedRequest(inputs=("Hi",))
KINDS = [STREAM, WHOLE, EMBED]


class HandClock:
    def __init__(self) -> None:
        self.time = 1_000.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("a mechanism never sleeps")


def made(**options) -> tuple[HedgeDelay, HandClock]:
    clock = HandClock()
    return HedgeDelay(clock=clock, **options), clock


def test_nothing_before_there_is_data():
    delay, _ = made()
    for _ in range(19):
        delay.record(STREAM, 1.0)
    assert delay.seconds(STREAM) is None
    assert delay.least(STREAM) == 0.0
    delay.record(STREAM, 1.0)
    assert delay.seconds(STREAM) == pytest.approx(1.0, rel=0.05)


def test_a_target_that_always_takes_the_same_time_is_never_late():
    for seconds in (0.01, 0.1, 0.73, 1.0, 5.5, 30.0):
        delay, _ = made()
        for _ in range(20):
            delay.record(STREAM, seconds)
        assert seconds <= delay.seconds(STREAM) <= seconds * 1.06


def test_the_percentile():
    delay, _ = made(percentile=0.9)
    for number in range(1, 101):
        delay.record(WHOLE, number / 10)
    assert delay.seconds(WHOLE) == pytest.approx(9.0, rel=0.06)


def test_kinds_have_windows_of_their_own():
    delay, _ = made(minimum=1)
    delay.record(STREAM, 0.3)
    delay.record(WHOLE, 8.0)
    delay.record(EMBED, 0.05)
    assert [round(delay.seconds(kind), 1) for kind in (STREAM, WHOLE)] == [0.3, pytest.approx(8.0, rel=0.06)]
    assert delay.seconds(EMBED) == pytest.approx(0.05, rel=0.06)


def test_an_attempt_needs_what_the_usual_stream_and_the_quickest_whole_answer_took():
    delay, _ = made()
    for number in range(1, 101):
        delay.record(STREAM, number / 10)
        delay.record(WHOLE, number / 10)
    assert delay.least(STREAM) == pytest.approx(5.0, rel=0.06)
    assert delay.least(WHOLE) == pytest.approx(0.5, rel=0.06)


def test_a_lower_bound_below_the_delay_counts_for_nothing():
    delay, clock = made()
    for _ in range(20):
        delay.record(STREAM, 1.0)
    for _ in range(1000):
        delay.at_least(STREAM, 0.01)  # refused at once, say
    clock.time += 2
    assert delay.seconds(STREAM) == pytest.approx(1.0, rel=0.06)


def test_a_lower_bound_above_it_counts():
    delay, clock = made()
    for _ in range(20):
        delay.record(STREAM, 1.0)
    delay.seconds(STREAM)
    for _ in range(2):
        delay.at_least(STREAM, 30.0)
    clock.time += 2
    assert delay.seconds(STREAM) == pytest.approx(30.0, rel=0.06)


def test_lower_bounds_alone_are_no_data():
    delay, _ = made(minimum=1)
    delay.at_least(STREAM, 30.0)
    assert delay.seconds(STREAM) is None


def test_it_forgets():
    delay, clock = made(window=60)
    for _ in range(20):
        delay.record(STREAM, 1.0)
    clock.time += 71  # a slot of a sixth of the window may have some seconds more
    assert delay.seconds(STREAM) is None


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_hedging_does_not_move_its_own_percentile(share):
    """Late calls are cut off where the other side answered; the delay stays where it would be without that."""
    chance = random.Random(7)
    free, _ = made(percentile=1 - share, window=1e6)
    hedged, clock = made(percentile=1 - share, window=1e6)
    late = 0
    for _ in range(5000):
        clock.time += 1.0
        primary, other = chance.lognormvariate(0, 1), chance.lognormvariate(0, 1)
        free.record(STREAM, primary)
        delay = hedged.seconds(STREAM)
        if delay is None or primary <= delay + other:
            hedged.record(STREAM, primary)
        else:
            hedged.at_least(STREAM, delay + other)
        late += delay is not None and primary > delay
    free._stream._known_until = -math.inf
    assert hedged.seconds(STREAM) == pytest.approx(free.seconds(STREAM), rel=0.08)
    assert late / 5000 == pytest.approx(share, rel=0.25)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"percentile": 1.5}, "percentile"),
        ({"percentile": 0.2}, "percentile"),
        ({"minimum": 0}, "minimum"),
        ({"window": 0}, "window"),
    ],
)
def test_bad_options(options, field):
    with pytest.raises(InvalidArgument) as caught:
        HedgeDelay(**options)
    assert caught.value.field == field


def test_repr():
    assert repr(made()[0]).startswith("<HedgeDelay p95: <LatencyWindow of 0 samples in 60 s>")


class Machine(RuleBasedStateMachine):
    """Any sequence of answers, losers and pauses against a list of what must count."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = HandClock()
        self.delay = HedgeDelay(0.9, minimum=5, window=60, clock=self.clock)
        self.seen: dict[int, list[tuple[float, float]]] = {kind: [] for kind in range(3)}
        self.bounds: dict[int, list[tuple[float, float]]] = {kind: [] for kind in range(3)}

    @rule(kind=st.integers(0, 2), seconds=st.floats(0.001, 100))
    def answer(self, kind, seconds):
        self.delay.record(KINDS[kind], seconds)
        self.seen[kind].append((self.clock.time, seconds))

    @rule(kind=st.integers(0, 2), seconds=st.floats(0.0, 200))
    def loser(self, kind, seconds):
        before = self.delay.seconds(KINDS[kind])
        self.delay.at_least(KINDS[kind], seconds)
        if before is not None and seconds >= before:
            self.bounds[kind].append((self.clock.time, seconds))
        self.forget_cached()
        after = self.delay.seconds(KINDS[kind])
        assert before is None or seconds < before or after >= before / 1.0001

    @rule(seconds=st.floats(0.1, 90))
    def wait(self, seconds):
        self.clock.time += seconds

    def forget_cached(self) -> None:
        for window in (self.delay._stream, self.delay._whole, self.delay._embed):
            window._known_until = -math.inf

    @invariant()
    def within_what_was_seen(self):
        for kind, request in enumerate(KINDS):
            self.forget_cached()
            delay = self.delay.seconds(request)
            counted = [*self.seen[kind], *self.bounds[kind]]
            # A slot of ten seconds goes as one.
            surely = [seconds for at, seconds in counted if at > self.clock.time - 50 + 1e-6]
            perhaps = [seconds for at, seconds in counted if at > self.clock.time - 60 - 1e-6]
            if len(surely) >= 5:
                assert delay is not None
            if len(perhaps) < 5:
                assert delay is None
            if delay is not None:
                assert min(perhaps) * 0.999 <= delay <= max(perhaps) * 1.0501
                assert self.delay.least(request) <= delay


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase

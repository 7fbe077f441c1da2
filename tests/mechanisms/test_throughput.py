"""Throughput against its definition: too few characters in a window of waiting."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from llmprod import InvalidArgument
from llmprod.mechanisms.throughput import Throughput


def test_nothing_at_all_fails_after_one_window():
    pace = Throughput(characters_per_second=4, over=5)
    assert pace.left == 5
    pace.arrived(0, 2.0)
    assert pace.left == 3
    assert not pace.enough


def test_a_window_passes_with_just_enough():
    pace = Throughput(characters_per_second=4, over=5)
    pace.arrived(20, 1.0)
    assert pace.enough
    assert pace.left == 5
    pace.arrived(0, 4.0)
    assert pace.left == 1
    pace.arrived(19, 0.5)
    assert pace.left == 0.5, "the 20 leave the window, and 19 are too few"
    pace.arrived(1, 0.25)
    assert pace.left == 4.75


def test_one_big_piece_lasts_no_longer_than_a_small_one():
    pace = Throughput(characters_per_second=4, over=5)
    pace.arrived(10_000, 0.0)
    assert pace.left == 5


@pytest.mark.parametrize("options", [{"characters_per_second": 0, "over": 5}, {"characters_per_second": 4, "over": -1}])
def test_wrong_options(options):
    with pytest.raises(InvalidArgument):
        Throughput(**options)


class Machine(RuleBasedStateMachine):
    """Whole numbers, so that nothing is rounded."""

    @initialize(rate=st.integers(1, 5), over=st.integers(1, 8))
    def begin(self, rate: int, over: int) -> None:
        self.pace = Throughput(characters_per_second=rate, over=over)
        self.least, self.over = rate * over, over
        self.time = 0
        self.arrivals: list[tuple[int, int]] = []
        self.failed = False

    def within(self, time: int) -> int:
        return sum(count for at, count in self.arrivals if time - self.over < at <= time)

    @rule(characters=st.integers(0, 30), seconds=st.integers(0, 4))
    def arrive(self, characters: int, seconds: int) -> None:
        if self.failed or seconds >= self.pace.left:
            self.failed = True  # the guard would have stopped it while it waited
            return
        self.time += seconds
        self.pace.arrived(characters, seconds)
        if characters:
            self.arrivals.append((self.time, characters))

    @invariant()
    def it_fails_when_a_window_holds_too_little(self) -> None:
        if not hasattr(self, "pace"):
            return
        candidates = [self.over, *(at + self.over for at, _ in self.arrivals)]
        at = min(time for time in candidates if time >= max(self.over, self.time) and self.within(time) < self.least)
        assert self.pace.left == at - self.time
        recent = self.within(self.time)
        assert self.pace.recent == recent if recent < self.least else self.least <= self.pace.recent <= recent
        assert len(self.pace._arrivals) <= self.least + 1


TestMachine = Machine.TestCase

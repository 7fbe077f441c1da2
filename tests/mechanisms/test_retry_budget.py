"""The retry budget, against a list of all that was ever put in and taken out."""

import math
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmprod import InvalidArgument
from llmprod.mechanisms._buckets import Buckets
from llmprod.mechanisms.retry_budget import RetryBudget
from tests.mechanisms.hand_clock import HandClock

KINDS = ("retry", "failover", "hedge", "resume")


def budget(*args, **options) -> tuple[RetryBudget, HandClock]:
    clock = HandClock()
    return RetryBudget(*args, clock=clock, **options), clock


def withdrawals(made: RetryBudget, kind="retry") -> int:
    """How many are given before one is refused."""
    for count in range(10_000):
        if not made.withdraw(kind):
            return count
    raise AssertionError("it never refuses")


# ---- rules, one by one -----------------------------------------------------------------------------------------------


def test_the_defaults_are_those_that_the_documentation_names():
    made, _ = budget()
    assert (made.ratio, made.reserve, made.failover_ratio, made.window) == (0.2, 10, 1.0, 60.0)


def test_the_reserve_is_there_without_any_call():
    made, _ = budget(reserve=3)
    assert made.balance() == 3
    assert withdrawals(made) == 3
    assert made.balance() == 0


def test_every_call_adds_its_share():
    made, _ = budget(0.25, reserve=0)
    for _ in range(3):
        made.deposit()
    assert made.balance() == pytest.approx(0.75)
    assert not made.withdraw()
    made.deposit()
    assert made.balance() == 1
    assert made.withdraw()
    assert not made.withdraw()


def test_shares_that_add_up_to_one_by_floats_are_one():
    made, _ = budget(0.1, reserve=0)
    for _ in range(10):
        made.deposit()  # 0.1 ten times is 0.9999999999999999
    assert made.withdraw()


@pytest.mark.parametrize(("kind", "expected"), [("retry", 2), ("hedge", 2), ("resume", 2), ("failover", 10)])
def test_a_failover_has_the_wider_share(kind, expected):
    made, _ = budget(0.2, reserve=0, failover_ratio=1.0)
    for _ in range(10):
        made.deposit()
    assert made.balance(kind) == expected
    assert withdrawals(made, kind) == expected


def test_all_kinds_draw_on_one_account():
    made, _ = budget(0.2, reserve=0, failover_ratio=1.0)
    for _ in range(10):
        made.deposit()
    assert [made.withdraw(kind) for kind in ("failover", "failover", "retry")] == [True, True, False]
    assert made.balance("failover") == 8
    assert made.balance("retry") == 0  # never negative, though 2 were taken of its 2


def test_what_has_left_the_window_no_longer_counts():
    made, clock = budget(1.0, reserve=1, window=60)
    made.deposit()
    assert withdrawals(made) == 2
    clock.time += 53.9
    assert made.balance() == 0
    clock.time += 6.1
    assert made.balance() == 1
    made.deposit()
    assert withdrawals(made) == 2


def test_a_withdrawal_outlives_an_older_deposit():
    made, clock = budget(1.0, reserve=0, window=60)
    made.deposit()
    clock.time += 30
    made.deposit()
    assert made.withdraw()
    assert made.withdraw()
    clock.time += 36
    assert made.balance() == 0  # one call is left in the window, and two attempts
    made.deposit()
    assert not made.withdraw()
    made.deposit()
    assert made.withdraw()


def test_a_refund_gives_one_back_and_never_more_than_was_taken():
    made, _ = budget(reserve=2)
    assert withdrawals(made) == 2
    made.refund()
    assert made.balance() == 1
    for _ in range(5):
        made.refund()
    assert made.balance() == 2


def test_a_refund_takes_back_the_latest():
    made, clock = budget(reserve=2, window=60)
    made.withdraw()
    clock.time += 30
    made.withdraw()
    made.refund()
    assert made.balance() == 1
    clock.time += 30
    assert made.balance() == 2  # the one that is left was the older


def test_a_refund_takes_back_the_latest_of_those_before_this_moment():
    made, clock = budget(reserve=2, window=60)
    made.withdraw()
    clock.time += 24
    made.withdraw()
    clock.time += 12
    made.refund()
    clock.time += 24
    assert made.balance() == 2  # the one that is left was the older, a window ago


def test_a_refund_finds_an_older_withdrawal():
    made, clock = budget(reserve=1, window=60)
    made.withdraw()
    clock.time += 48
    made.refund()
    assert made.balance() == 1


def test_a_refund_of_what_has_left_the_window_is_nothing():
    made, clock = budget(reserve=1, window=60)
    made.withdraw()
    clock.time += 61
    made.refund()
    assert made.balance() == 1


def test_it_tells_its_balance():
    made, _ = budget(reserve=3)
    made.withdraw()
    assert repr(made) == "<RetryBudget of 2>"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"ratio": -0.1}, "ratio"),
        ({"ratio": 10.1}, "ratio"),
        ({"ratio": True}, "ratio"),
        ({"reserve": -1}, "reserve"),
        ({"reserve": 1.5}, "reserve"),
        ({"failover_ratio": -0.1}, "failover_ratio"),
        ({"failover_ratio": 11}, "failover_ratio"),
        ({"window": 0}, "window"),
        ({"window": math.inf}, "window"),
    ],
)
def test_options_out_of_range_are_refused(options, field):
    with pytest.raises(InvalidArgument) as caught:
        RetryBudget(**options)
    assert caught.value.field == field


def test_options_at_the_ends_of_their_range_are_taken():
    for options in ({"ratio": 0}, {"ratio": 10}, {"reserve": 0}, {"failover_ratio": 0}, {"failover_ratio": 10}):
        RetryBudget(**options)


# ---- any sequence ----------------------------------------------------------------------------------------------------

WINDOW, RATIO, FAILOVER, RESERVE = 20.0, 0.5, 1.5, 2


class Accounts(RuleBasedStateMachine):
    """Calls, further attempts and refunds in any order while time passes, against lists of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = HandClock()
        self.budget = RetryBudget(RATIO, reserve=RESERVE, failover_ratio=FAILOVER, window=WINDOW, clock=self.clock)
        self.calls: list[float] = []
        self.extra: list[float] = []

    def within(self, times: list[float]) -> int:
        slot = int(self.clock.time / (WINDOW / 10))
        return sum(slot - int(time / (WINDOW / 10)) < 10 for time in times)

    def expected(self, kind: str) -> float:
        ratio = FAILOVER if kind == "failover" else RATIO
        return max(0.0, RESERVE + ratio * self.within(self.calls) - self.within(self.extra))

    @rule(times=st.integers(1, 5))
    def deposit(self, times):
        for _ in range(times):
            self.budget.deposit()
            self.calls.append(self.clock.time)

    @rule(kind=st.sampled_from(KINDS))
    def withdraw(self, kind):
        given = self.budget.withdraw(kind)
        assert given == (self.expected(kind) >= 1)
        if given:
            self.extra.append(self.clock.time)

    @precondition(lambda self: self.extra)
    @rule()
    def refund(self):
        self.budget.refund()
        if self.within(self.extra[-1:]):
            self.extra.pop()

    @rule(seconds=st.floats(0.01, 30))
    def wait(self, seconds):
        self.clock.time += seconds

    @invariant()
    def the_balance_is_that_of_the_lists(self):
        for kind in KINDS:
            assert self.budget.balance(kind) == pytest.approx(self.expected(kind))


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class Counts(RuleBasedStateMachine):
    """The ten buckets under it, against a list of times."""

    def __init__(self) -> None:
        super().__init__()
        self.buckets, self.now = Buckets(10.0), 50.0
        self.times: deque[float] = deque()

    @rule(count=st.integers(1, 4))
    def add(self, count):
        self.buckets.add(self.now, count)
        self.times.extend([self.now] * count)

    @rule()
    def take(self):
        live = [time for time in self.times if int(self.now) - int(time) < 10]
        assert self.buckets.take(self.now) == bool(live)
        if live:
            self.times.pop()

    @rule()
    def clear(self):
        self.buckets.clear()
        self.times.clear()

    @rule(seconds=st.floats(0, 3) | st.floats(8, 40))
    def wait(self, seconds):
        self.now += seconds

    @rule(seconds=st.floats(0, 0.5))
    def an_older_reading_changes_nothing(self, seconds):
        expected = self.buckets.total(self.now)
        assert self.buckets.total(self.now - seconds) == expected

    @invariant()
    def the_total_is_that_of_the_list(self):
        assert self.buckets.total(self.now) == sum(int(self.now) - int(time) < 10 for time in self.times)


TestCounts = Counts.TestCase
TestCounts.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

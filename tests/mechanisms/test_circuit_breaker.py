"""The circuit breaker's state machine, driven through any interleaving of calls by Hypothesis."""

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from llmprod import Breaker, BreakerOptions, BreakerState, InvalidArgument
from llmprod.mechanisms.circuit_breaker import Permit

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


class HandClock:
    def __init__(self) -> None:
        self.time = 1_000.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("a mechanism never sleeps")


def breaker(**options) -> tuple[Breaker, HandClock]:
    clock = HandClock()
    return Breaker(BreakerOptions(**options), clock=clock, random=random.Random(1)), clock


def fail(made: Breaker, times: int) -> None:
    for _ in range(times):
        permit = made.acquire()
        assert permit is not None
        permit.failure()


def opened(**options) -> tuple[Breaker, HandClock]:
    made, clock = breaker(**options)
    fail(made, made.options.consecutive_failures)
    assert made.state is OPEN
    return made, clock


def half_opened(**options) -> tuple[Breaker, HandClock]:
    made, clock = opened(**options)
    clock.time += made.retry_after
    assert made.state is HALF_OPEN
    return made, clock


# ---- rules, one by one ----------------------------------------------------------------------------------------------


def test_failures_in_a_row_open_it():
    made, _ = breaker(consecutive_failures=3)
    fail(made, 2)
    assert made.state is CLOSED
    fail(made, 1)
    assert made.state is OPEN
    assert made.acquire() is None


def test_a_success_between_breaks_the_row():
    made, _ = breaker(consecutive_failures=3, minimum_calls=100)
    for _ in range(5):
        fail(made, 2)
        made.acquire().success()
    assert made.state is CLOSED


def test_a_share_of_failures_opens_it_once_there_are_enough_calls():
    made, _ = breaker(failure_ratio=0.5, minimum_calls=6, consecutive_failures=100)
    for _ in range(2):
        made.acquire().success()
        fail(made, 1)
    made.acquire().success()
    assert made.state is CLOSED  # 2 of 5
    fail(made, 1)
    assert made.state is OPEN  # 3 of 6


def test_what_has_left_the_window_no_longer_counts():
    made, clock = breaker(failure_ratio=0.5, minimum_calls=4, consecutive_failures=100, window=60)
    fail(made, 3)
    clock.time += 61
    fail(made, 3)
    assert made.state is CLOSED
    fail(made, 1)
    assert made.state is OPEN


def test_a_released_permit_says_nothing():
    made, _ = breaker(consecutive_failures=2, minimum_calls=2)
    fail(made, 1)
    for _ in range(10):
        made.acquire().release()
    fail(made, 1)  # still two in a row: a cancelled call between is no success
    assert made.state is OPEN


def test_open_time_doubles_with_each_failed_trial_up_to_its_bound():
    made, clock = opened(open_for=5, open_for_at_most=20, consecutive_failures=1, outage_share=None)
    bounds = []
    for _ in range(4):
        bounds.append(made.retry_after)
        clock.time += made.retry_after
        assert made.state is HALF_OPEN
        fail(made, 1)
    for bound, most in zip(bounds, [5, 10, 20, 20], strict=True):
        assert most / 2 <= bound <= most


def test_closing_forgets_how_often_it_opened():
    made, clock = half_opened(successes_to_close=1, open_for=5, open_for_at_most=300)
    fail(made, 1)
    clock.time += made.retry_after
    made.acquire().success()
    assert made.state is CLOSED
    fail(made, 5)
    assert made.retry_after <= 5


def test_half_open_lets_a_few_through_and_closes_on_successes():
    made, _ = half_opened(trials=3, successes_to_close=2)
    trials = [made.acquire() for _ in range(3)]
    assert None not in trials
    assert made.acquire() is None
    trials[0].success()
    assert made.state is HALF_OPEN
    trials[1].success()
    assert made.state is CLOSED
    trials[2].failure()  # begun before it closed
    assert made.state is CLOSED


def test_successes_of_an_earlier_trial_time_do_not_count():
    made, clock = half_opened(trials=2, successes_to_close=2)
    made.acquire().success()
    fail(made, 1)
    clock.time += made.retry_after
    made.acquire().success()
    assert made.state is HALF_OPEN
    made.acquire().success()
    assert made.state is CLOSED


def test_a_long_pause_empties_the_whole_window():
    for pause in (60, 61, 66, 120, 601):
        made, clock = breaker(minimum_calls=12, consecutive_failures=100, window=60)
        for _ in range(10):
            fail(made, 1)
            clock.time += 6
        clock.time += pause
        fail(made, 11)
        assert made.state is CLOSED, pause
        fail(made, 1)
        assert made.state is OPEN


def test_a_cancelled_trial_neither_closes_nor_opens_and_makes_room_for_another():
    made, _ = half_opened(trials=1, successes_to_close=1)
    for _ in range(5):
        trial = made.acquire()
        assert made.acquire() is None
        trial.release()
        assert made.state is HALF_OPEN
    made.acquire().success()
    assert made.state is CLOSED


def test_a_trial_that_never_reports_does_not_hold_the_place_for_ever():
    made, clock = half_opened(trials=1, trial_for_at_most=60)
    assert made.acquire() is not None
    clock.time += 59
    assert made.acquire() is None
    clock.time += 1
    assert made.acquire() is not None


def test_late_results_do_not_prolong_the_open_time():
    made, clock = breaker(consecutive_failures=3)
    late = [made.acquire() for _ in range(10)]
    fail(made, 3)
    wait = made.retry_after
    for permit in late:
        permit.failure()
    assert made.retry_after == wait
    clock.time += wait
    assert made.state is HALF_OPEN


def test_a_late_success_does_not_close_it():
    made, clock = breaker(consecutive_failures=3, successes_to_close=1)
    late = [made.acquire() for _ in range(4)]
    fail(made, 3)
    late[0].success()
    assert made.state is OPEN
    clock.time += made.retry_after
    late[1].success()
    assert made.state is HALF_OPEN
    late[2].failure()
    assert made.state is HALF_OPEN


def test_a_permit_is_reported_once():
    made, _ = breaker(consecutive_failures=2)
    permit = made.acquire()
    permit.failure()
    permit.failure()
    permit.failure()
    assert made.state is CLOSED


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("failure_ratio", 0),
        ("failure_ratio", 1.5),
        ("minimum_calls", 0),
        ("consecutive_failures", 1.5),
        ("trials", 0),
        ("successes_to_close", True),
        ("window", 0),
        ("open_for", -1),
        ("open_for_at_most", None),
        ("trial_for_at_most", "60"),
    ],
)
def test_options_out_of_range_are_refused(field, value):
    with pytest.raises(InvalidArgument, match=rf"{field}: got .*; allowed: "):
        BreakerOptions(**{field: value})


# ---- any interleaving -----------------------------------------------------------------------------------------------

OPTIONS = BreakerOptions(
    minimum_calls=4,
    consecutive_failures=3,
    window=10,
    open_for=2,
    open_for_at_most=8,
    trials=2,
    trial_for_at_most=20,
    outage_share=None,
)


class Interleavings(RuleBasedStateMachine):
    """Calls begin, end and are cancelled in any order while time passes."""

    permits = Bundle("permits")

    def __init__(self) -> None:
        super().__init__()
        self.clock = HandClock()
        self.breaker = Breaker(OPTIONS, clock=self.clock, random=random.Random(7))
        self.out: list[Permit] = []
        self.opened_at = 0.0
        self.failed_trials = 0

    def report(self, permit: Permit, how: str) -> None:
        """Report ``permit`` and check what it may have changed."""
        before, wait, epoch = self.breaker.state, self.breaker.retry_after, self.breaker._epoch
        belongs = permit.epoch == epoch
        self.out.remove(permit)
        getattr(permit, how)()
        after = self.breaker.state
        if how == "release" or not belongs:
            assert (after, self.breaker.retry_after) == (before, wait), "it decided something"
            return
        allowed = {
            (CLOSED, "success"): {CLOSED},
            (CLOSED, "failure"): {CLOSED, OPEN},
            (HALF_OPEN, "success"): {HALF_OPEN, CLOSED},
            (HALF_OPEN, "failure"): {OPEN},
        }
        assert after in allowed[before, how]
        if after is OPEN:
            self.failed_trials = self.failed_trials + 1 if before is HALF_OPEN else 0
            bound = min(OPTIONS.open_for_at_most, OPTIONS.open_for * 2**self.failed_trials)
            assert bound / 2 - 1e-9 <= self.breaker.retry_after <= bound + 1e-9
        if after is CLOSED:
            self.failed_trials = 0

    @rule(target=permits)
    def begin(self):
        state = self.breaker.state
        trials = [
            permit
            for permit in self.out
            if permit.trial and permit.epoch == self.breaker._epoch and permit.expires > self.clock.time
        ]
        permit = self.breaker.acquire()
        assert (permit is not None) == (state is CLOSED or (state is HALF_OPEN and len(trials) < OPTIONS.trials))
        if permit is None:
            return multiple()
        self.out.append(permit)
        return permit

    @rule(permit=consumes(permits), how=st.sampled_from(["success", "failure", "release"]))
    def end(self, permit, how):
        self.report(permit, how)

    @rule(seconds=st.floats(0.01, 12))
    def wait(self, seconds):
        self.clock.time += seconds

    @invariant()
    def permits_are_conserved(self):
        live = [permit for permit in self.breaker._trials if permit.expires > self.clock.time]
        assert len(live) <= OPTIONS.trials
        assert all(permit in self.out for permit in self.breaker._trials), "a permit that was given back is still out"

    @invariant()
    def it_is_never_open_for_longer_than_its_bound(self):
        assert self.breaker.retry_after <= OPTIONS.open_for_at_most

    def teardown(self):
        for permit in list(self.out):
            self.report(permit, "release")
        assert self.breaker._trials == []


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# ---- against a model that keeps every call --------------------------------------------------------------------------


@dataclass
class EveryCall:
    """The closed breaker's rule, told over a list of all calls with their times."""

    options: BreakerOptions
    calls: list[tuple[float, bool]]

    def opens(self, now: float) -> bool:
        row = 0
        for _, good in reversed(self.calls):
            if good:
                break
            row += 1
        if row >= self.options.consecutive_failures:
            return True
        window = self.options.window
        counted = [good for at, good in self.calls if int(now / window * 10) - int(at / window * 10) < 10]
        bad = counted.count(False)
        return len(counted) >= self.options.minimum_calls and bad >= self.options.failure_ratio * len(counted)


@given(
    steps=st.lists(st.tuples(st.floats(0, 4) | st.floats(15, 50), st.booleans()), max_size=60),
    minimum=st.integers(1, 12),
    ratio=st.sampled_from([0.3, 0.5, 0.9]),
    row=st.integers(2, 8),
)
def test_it_opens_exactly_where_the_list_of_all_calls_says(steps, minimum, ratio, row):
    options = BreakerOptions(window=20, minimum_calls=minimum, failure_ratio=ratio, consecutive_failures=row)
    clock = HandClock()
    made, model = Breaker(options, clock=clock, random=random.Random(1)), EveryCall(options, [])
    for wait, good in steps:
        clock.time += wait
        permit = made.acquire()
        (permit.success if good else permit.failure)()
        model.calls.append((clock.time, good))
        expected = OPEN if not good and model.opens(clock.time) else CLOSED
        assert made.state is expected
        if expected is OPEN:
            break


# ---- growth in proportion to the outage ------------------------------------------------------------------------------


def test_open_time_grows_with_the_outage_and_not_beyond_its_share():
    made, clock = opened(open_for=5, consecutive_failures=1, outage_share=0.25)
    began = clock.time
    bounds = []
    for _ in range(40):
        outage = clock.time - began
        assert made.retry_after <= max(10, 0.25 * outage) + 1e-9
        bounds.append(made.retry_after)
        clock.time += made.retry_after
        assert made.state is HALF_OPEN
        fail(made, 1)
    assert bounds[0] <= 5
    assert bounds[-1] > 60
    assert max(bounds) <= 300


# ---- slow first tokens -----------------------------------------------------------------------------------------------


def begin_after(made: Breaker, *seconds: float) -> None:
    for time in seconds:
        permit = made.acquire()
        assert permit is not None
        permit.first_token(time)
        permit.success()


def test_slow_first_tokens_open_it():
    made, _ = breaker(slow_first_token=2, slow_ratio=0.8, minimum_calls=5)
    begin_after(made, 1, 3, 3, 3)
    assert made.state is CLOSED  # too few
    permit = made.acquire()
    permit.first_token(2)  # not longer than the bound
    permit.success()
    begin_after(made, 3, 3, 3, 3)  # 7 of 9
    assert made.state is CLOSED
    begin_after(made, 3)  # 8 of 10
    assert made.state is OPEN
    assert made.changes[-1][2] == "slow first tokens"


def test_it_opens_while_the_slow_answer_still_runs_and_its_end_decides_nothing():
    made, _ = breaker(slow_first_token=2, minimum_calls=1)
    permit = made.acquire()
    permit.first_token(3)
    assert made.state is OPEN
    wait = made.retry_after
    permit.success()
    assert made.state is OPEN
    assert made.retry_after == wait


def test_without_a_bound_nothing_is_slow():
    made, _ = breaker(minimum_calls=1)
    begin_after(made, *[1e6] * 20)
    assert made.state is CLOSED


def test_a_slow_trial_opens_it_again():
    made, _ = half_opened(slow_first_token=2)
    permit = made.acquire()
    permit.first_token(3)
    assert made.state is OPEN
    permit.success()
    assert made.state is OPEN
    assert made._trials == []


def test_slow_ones_leave_the_window():
    made, clock = breaker(slow_first_token=2, minimum_calls=4, window=60)
    begin_after(made, 3, 3, 3)
    clock.time += 61
    begin_after(made, 3, 3, 3)
    assert made.state is CLOSED


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_isolated_it_lets_nothing_through_for_as_long_as_somebody_wants():
    made, clock = breaker()
    running = made.acquire()
    made.isolate()
    clock.time += 1e6
    assert made.state is BreakerState.ISOLATED
    assert not made.ready
    assert made.acquire() is None
    assert made.acquire(insist=True) is None
    assert made.retry_after == 0
    running.success()
    assert made.state is BreakerState.ISOLATED
    made.close()
    assert made.state is CLOSED
    made.acquire().success()


def test_disabled_it_counts_and_lets_all_through():
    made, _ = breaker(consecutive_failures=2)
    made.disable()
    fail(made, 50)
    assert made.state is BreakerState.DISABLED
    assert made.ready
    made.close()
    assert made.state is CLOSED  # what was counted is forgotten
    fail(made, 1)
    assert made.state is CLOSED
    fail(made, 1)
    assert made.state is OPEN


def test_closing_an_open_one_by_hand_starts_afresh():
    made, _ = opened(open_for=5, open_for_at_most=300, outage_share=None)
    made.close()
    fail(made, 5)
    assert made.retry_after <= 5


# ---- insisting -------------------------------------------------------------------------------------------------------


def test_insisting_lets_a_few_through_an_open_one():
    made, clock = opened(trials=2)
    assert made.acquire() is None
    first, second = made.acquire(insist=True), made.acquire(insist=True)
    assert first
    assert second
    assert made.acquire(insist=True) is None
    wait = made.retry_after
    first.failure()
    assert (made.state, made.retry_after) == (OPEN, wait)  # a failure prolongs nothing
    second.release()
    assert made.acquire(insist=True)
    clock.time += made.options.trial_for_at_most
    assert made._insisted  # one that never reported …
    clock.time = made._open_until - 0.1
    made._insisted[0].expires = clock.time
    assert made.acquire(insist=True)  # … holds its place for a time only


def test_an_insisted_success_begins_to_close_it():
    made, _ = opened(successes_to_close=2)
    made.acquire(insist=True).success()
    assert made.state is HALF_OPEN
    made.acquire().success()
    assert made.state is CLOSED
    made, _ = opened(successes_to_close=1)
    made.acquire(insist=True).success()
    assert made.state is CLOSED
    assert [reason for *_, reason in made.changes][-2:] == ["answered while open", "successful trials"]


def test_insisting_on_a_closed_one_is_an_ordinary_call():
    made, _ = breaker()
    permit = made.acquire(insist=True)
    assert not permit.insisted
    assert not permit.trial


def test_a_late_insisted_result_decides_nothing():
    made, clock = opened(successes_to_close=1)
    late = made.acquire(insist=True)
    clock.time += made.retry_after
    assert made.state is HALF_OPEN
    late.success()
    assert made.state is HALF_OPEN
    assert made._insisted == []


def test_ready_tells_whether_a_call_would_go_through():
    made, clock = opened(trials=1)
    assert not made.ready
    clock.time += made.retry_after
    assert made.ready
    trial = made.acquire()
    assert not made.ready
    trial.success()
    assert made.ready


def test_changes_are_kept_until_they_are_taken_the_last_ones_at_least():
    made, clock = breaker(consecutive_failures=1)
    for _ in range(40):
        fail(made, 1)
        clock.time += made.retry_after
        assert made.state is HALF_OPEN
    assert len(made.changes) == 16
    assert made.changes[-1] == (OPEN, HALF_OPEN, "open time over")


@pytest.mark.parametrize(
    ("field", "value"), [("slow_first_token", 0), ("slow_ratio", 0), ("outage_share", 0), ("outage_share", 11)]
)
def test_new_options_out_of_range_are_refused(field, value):
    with pytest.raises(InvalidArgument, match=rf"{field}: got .*; allowed: "):
        BreakerOptions(**{field: value})


# ---- refusals for want of capacity ----------------------------------------------------------------------------------


def refuse(made: Breaker, times: int) -> None:
    for _ in range(times):
        made.acquire().refused()


def test_a_target_that_refuses_all_calls_is_down():
    made, _ = breaker(consecutive_failures=3)
    refuse(made, 2)
    assert made.state is CLOSED
    refuse(made, 1)
    assert made.state is OPEN


def test_a_target_that_serves_some_calls_is_not_down_however_many_it_refuses():
    made, clock = breaker(consecutive_failures=3, minimum_calls=10, open_for=5)
    for _ in range(30):
        made.acquire().success()
        refuse(made, 9)
        clock.time += 4.9
        refuse(made, 9)
    assert made.state is CLOSED
    clock.time += 0.2  # nobody was served for five seconds
    refuse(made, 3)
    assert made.state is OPEN


def test_other_failures_of_a_target_that_serves_are_failures():
    made, _ = breaker(consecutive_failures=3)
    made.acquire().success()
    refuse(made, 9)
    fail(made, 3)
    assert made.state is OPEN


def test_a_refused_trial_opens_it_again_unless_another_was_served():
    made, clock = half_opened(trials=2, successes_to_close=2)
    refuse(made, 1)
    assert made.state is OPEN
    clock.time += made.retry_after
    one, other = made.acquire(), made.acquire()
    one.success()
    other.refused()
    assert made.state is HALF_OPEN
    assert made._trials == []


def test_what_was_served_before_it_closed_is_forgotten():
    made, _ = breaker(consecutive_failures=2)
    made.acquire().success()
    made.close()
    refuse(made, 2)
    assert made.state is OPEN


def test_a_refusal_is_reported_once():
    made, _ = breaker(consecutive_failures=2)
    permit = made.acquire()
    permit.refused()
    permit.refused()
    permit.failure()
    assert made.state is CLOSED

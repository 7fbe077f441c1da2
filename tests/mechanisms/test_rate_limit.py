"""The rate limiter: buckets, reservations, debts and calibration, in any interleaving."""

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from llmprod import InvalidArgument
from llmprod.mechanisms.limit_headers import LimitReading
from llmprod.mechanisms.limit_store import Limit, Limits, Shortage
from llmprod.mechanisms.rate_limit import RateLimiter, Reservation
from tests.mechanisms.hand_clock import HandClock


def limiter(*rates: Limit, concurrent: int | None = None) -> tuple[RateLimiter, HandClock]:
    clock = HandClock()
    return RateLimiter(Limits(rates=rates, concurrent=concurrent), clock=clock), clock


def requests(amount: float, **options) -> Limit:
    return Limit(dimension="requests", amount=amount, **options)


def tokens(amount: float, **options) -> Limit:
    return Limit(dimension="tokens", amount=amount, **options)


def take(made: RateLimiter, **costs: float) -> Reservation:
    got = made.reserve(costs)
    assert isinstance(got, Reservation)
    return got


def short(made: RateLimiter, **costs: float) -> tuple[str, float | None]:
    got = made.reserve(costs)
    assert isinstance(got, Shortage)
    return got.dimension, None if got.seconds is None else pytest.approx(got.seconds)


def told(dimension: str, remaining: float, **fields) -> tuple[LimitReading, ...]:
    return (LimitReading(dimension=dimension, remaining=remaining, **fields),)


# ---- rules, one by one ----------------------------------------------------------------------------------------------


def test_it_refills_evenly_and_no_higher_than_the_burst():
    made, clock = limiter(requests(60, burst=2))
    take(made, requests=1)
    take(made, requests=1)
    assert short(made, requests=1) == ("requests", 1)
    clock.time += 0.5
    assert short(made, requests=1) == ("requests", 0.5)
    clock.time += 0.5
    take(made, requests=1)
    clock.time += 3600
    assert made.left() == {"requests": 2}


def test_all_dimensions_or_none():
    made, _ = limiter(requests(60, burst=10), tokens(6000, burst=1000))
    take(made, requests=1, tokens=900)
    assert short(made, requests=1, tokens=500) == ("tokens", 4)
    assert made.left() == {"requests": 9, "tokens": 100}, "the refused call has taken something"
    assert made.in_flight == 1


def test_the_longest_wait_is_told():
    made, _ = limiter(requests(6, burst=1), tokens(6000, burst=1000))
    take(made, requests=1, tokens=1000)
    assert short(made, requests=1, tokens=1000) == ("requests", 10)


def test_more_than_the_burst_passes_when_full_and_leaves_a_debt():
    made, clock = limiter(tokens(6000, burst=100))
    take(made, tokens=5000)
    assert made.left() == {"tokens": -4900}
    assert short(made, tokens=5000) == ("tokens", 50)
    clock.time += 50
    take(made, tokens=5000)


def test_settling_gives_back_what_was_not_used_and_takes_what_was_used_more():
    made, _ = limiter(tokens(6000, burst=1000))
    one, other = take(made, tokens=300), take(made, tokens=300)
    one.settle({"tokens": 100})
    assert made.left() == {"tokens": 600}
    other.settle({"tokens": 1500})
    assert made.left() == {"tokens": -600}
    assert made.in_flight == 0


def test_numbers_of_an_answer_that_broke_off_only_add():
    made, _ = limiter(tokens(6000, burst=1000))
    take(made, tokens=300).settle({"tokens": 100}, final=False)
    assert made.left() == {"tokens": 700}
    take(made, tokens=300).settle({"tokens": 400}, final=False)
    assert made.left() == {"tokens": 300}


def test_what_is_not_told_keeps_its_estimate():
    made, _ = limiter(requests(60), tokens(6000))
    take(made, requests=1, tokens=300).settle({})
    take(made, requests=1, tokens=300).keep()
    assert made.left() == {"requests": 58, "tokens": 5400}


def test_a_call_that_was_never_sent_gives_all_back():
    made, _ = limiter(requests(60), tokens(6000), concurrent=1)
    reservation = take(made, requests=1, tokens=300)
    reservation.cancel()
    assert made.left() == {"requests": 60, "tokens": 6000}
    assert made.in_flight == 0


def test_a_reservation_ends_once():
    made, _ = limiter(tokens(6000), concurrent=2)
    reservation = take(made, tokens=300)
    for _ in range(3):
        reservation.settle({"tokens": 200})
        reservation.cancel()
        reservation.keep()
    assert made.left() == {"tokens": 5800}
    assert made.in_flight == 0


def test_a_limit_of_calls_under_way():
    made, _ = limiter(concurrent=2)
    one = take(made)
    take(made)
    assert short(made) == ("concurrent", None)
    woken = []
    made.on_room = lambda: woken.append(1)
    one.keep()
    assert woken == [1]
    take(made)


def test_costs_of_nothing_pass_a_bucket_in_debt():
    made, _ = limiter(tokens(6000, burst=100))
    take(made, tokens=500)
    take(made, tokens=0)


def test_days_and_minutes_both_bind():
    made, clock = limiter(requests(60, burst=5), requests(8, period=86400))
    for _ in range(8):
        take(made, requests=1)
        clock.time += 1
    dimension, seconds = short(made, requests=1)
    assert dimension == "requests/86400s"
    assert seconds == pytest.approx(86400 / 8 - 8)


def test_a_pause_begins_with_nothing():
    made, clock = limiter(requests(60, burst=5))
    made.pause(10)
    assert short(made, requests=1) == ("paused", 10)
    made.pause(2)
    assert short(made, requests=1) == ("paused", 10), "a pause was shortened"
    clock.time += 10
    assert short(made, requests=1) == ("requests", 1)
    clock.time += 1
    take(made, requests=1)


def test_delay_counts_the_pause_the_debt_and_who_stands_before():
    made, _ = limiter(tokens(600, burst=100))
    assert made.delay({"tokens": 50}) is None
    take(made, tokens=300)
    assert made.delay({"tokens": 50}).seconds == pytest.approx(25)
    assert made.delay({"tokens": 50}, {"tokens": 100}).seconds == pytest.approx(35)
    made.pause(7)
    assert made.delay({"tokens": 50}, {"tokens": 100}).seconds == pytest.approx(42)


def test_refusals_slow_it_down_for_a_while():
    made, clock = limiter(requests(60, burst=5))
    made.throttled(1)
    made.throttled(1)  # a second answer of the same moment
    assert made.pace == pytest.approx(0.95)
    clock.time += 2
    made.throttled(1)
    assert made.pace == pytest.approx(0.95 * 0.9, abs=0.01)
    clock.time += 1
    assert short(made, requests=1)[1] == pytest.approx(1 / 0.857, abs=0.01)
    clock.time += 600
    assert made.pace == 1


def test_many_refusals_never_stop_it():
    made, clock = limiter(requests(60, burst=5))
    for _ in range(200):
        made.throttled(0.5)
        clock.time += 1
    assert 0.1 <= made.pace < 0.2


# ---- what the provider says -----------------------------------------------------------------------------------------


def test_a_lower_count_of_the_provider_is_believed_a_higher_is_not():
    made, _ = limiter(requests(60), tokens(6000))
    assert made.calibrate(told("requests", 100)) == []
    (changed,) = made.calibrate(told("requests", 10))
    assert (changed.dimension, changed.before, changed.after) == ("requests", 60, 10)
    assert made.left() == {"requests": 10, "tokens": 6000}


def test_a_reading_is_as_old_as_its_call():
    made, clock = limiter(tokens(6000, burst=1000))
    reservation = take(made, tokens=400)  # 600 are left, we believe
    clock.time += 2
    take(made, tokens=300)  # 500 are left
    reservation.calibrate(told("tokens", 450))  # 150 fewer than believed then
    assert made.left() == {"tokens": 350}


def test_calls_that_were_sent_together_do_not_correct_one_error_twice():
    made, _ = limiter(tokens(6000, burst=1000))
    several = [take(made, tokens=100) for _ in range(5)]
    for number, reservation in enumerate(several):
        reservation.calibrate(told("tokens", 700 - 100 * number))  # 200 fewer than believed, each time
    assert made.left() == {"tokens": 300}


def test_what_is_left_for_a_longer_time_binds_too_and_for_a_shorter_it_does_not():
    made, _ = limiter(requests(60))
    made.calibrate(told("requests", 3, period=86400.0))
    assert made.left() == {"requests": 3}
    made.calibrate(told("requests", 1, period=1.0))
    assert made.left() == {"requests": 3}


# ---- what makes no sense --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [("amount", 0), ("amount", math.inf), ("amount", "5"), ("period", 0), ("burst", -1), ("dimension", "words")],
)
def test_limits_out_of_range_are_refused(field, value):
    options = {"dimension": "requests", "amount": 10, field: value}
    with pytest.raises(InvalidArgument, match=field):
        Limit(**options)


def test_limits_that_contradict_are_refused():
    with pytest.raises(InvalidArgument, match="rates"):
        Limits(rates=(requests(5), requests(6)))
    with pytest.raises(InvalidArgument, match="concurrent"):
        Limits(concurrent=0)


def test_shares():
    limits = Limits(rates=(requests(100, burst=8),), concurrent=3)
    assert limits.share(1) is limits
    assert limits.share(4) == Limits(rates=(requests(25, burst=2),), concurrent=1)


# ---- any interleaving -----------------------------------------------------------------------------------------------

RATES = (requests(60, burst=3), tokens(600, burst=50), tokens(20_000, period=3600.0))
COSTS = st.floats(0, 200, allow_nan=False)


class Interleavings(RuleBasedStateMachine):
    """Calls reserve, end in every way, and time passes; a ledger of our own keeps count of all of it."""

    reservations = Bundle("reservations")

    def __init__(self) -> None:
        super().__init__()
        self.clock = HandClock()
        self.limiter = RateLimiter(Limits(rates=RATES, concurrent=5), clock=self.clock)
        self.out = 0
        self.taken = dict.fromkeys((limit.name for limit in RATES), 0.0)
        self.started = self.clock.time
        self.woken = 0
        self.limiter.on_room = self.wake

    def wake(self) -> None:
        self.woken += 1

    def account(self, tokens: float, requests: float = 0.0) -> None:
        for limit in RATES:
            self.taken[limit.name] += requests if limit.dimension == "requests" else tokens

    def got(self, answer, cost: float):
        if isinstance(answer, Shortage):
            return False
        self.out += 1
        self.account(cost, 1.0)
        return True

    @rule(target=reservations, cost=COSTS)
    def reserve(self, cost):
        before = self.limiter.left()
        answer = self.limiter.reserve({"requests": 1.0, "tokens": cost})
        if not self.got(answer, cost):
            assert self.limiter.left() == before, "a refused call has taken something"
            return multiple()
        return answer, cost

    @rule(target=reservations, cost=COSTS)
    def wait_exactly_as_told(self, cost):
        costs = {"requests": 1.0, "tokens": cost}
        for _ in range(4):  # of three limits and a pause
            answer = self.limiter.reserve(costs)
            if not isinstance(answer, Shortage):
                break
            if answer.seconds is None:
                assert self.out == 5
                return multiple()
            assert answer.seconds > 0
            self.clock.time += answer.seconds
        assert self.got(answer, cost), f"waiting as told was not enough: {answer}"
        return answer, cost

    @rule(held=consumes(reservations), used=COSTS, final=st.booleans())
    def settle(self, held, used, final):
        reservation, cost = held
        reservation.settle({"tokens": used}, final=final)
        self.account(used - cost if final else max(0.0, used - cost))
        self.ended()

    @rule(held=consumes(reservations))
    def cancel(self, held):
        held[0].cancel()
        self.account(-held[1], -1.0)
        self.ended()

    @rule(held=consumes(reservations))
    def keep(self, held):
        held[0].keep()
        self.ended()
        held[0].cancel()  # comes too late

    def ended(self):
        self.out -= 1
        assert self.woken == 1
        self.woken = 0

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds):
        self.clock.time += seconds

    @rule(seconds=st.floats(0, 20))
    def pause(self, seconds):
        self.limiter.pause(seconds)

    @rule(remaining=st.floats(0, 100), dimension=st.sampled_from(["requests", "tokens"]))
    def calibrate(self, remaining, dimension):
        self.limiter.calibrate(told(dimension, remaining))

    @invariant()
    def nothing_is_above_the_burst(self):
        for limit in RATES:
            assert self.limiter.left()[limit.name] <= limit.depth + 1e-9

    @invariant()
    def no_more_was_given_than_the_limits_allow(self):
        # What was taken, less a debt that the last call may leave, fits into the burst and the refill since.
        for limit in RATES:
            most = limit.depth + limit.rate * (self.clock.time - self.started)
            assert self.taken[limit.name] <= most - min(0.0, self.limiter.left()[limit.name]) + 1e-6

    @invariant()
    def reservations_are_conserved(self):
        assert self.limiter.in_flight == self.out <= 5


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)

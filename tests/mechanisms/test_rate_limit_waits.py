"""The rate limiter: what it foretells, when it may be forgotten, and what it takes for granted."""

import pytest

from llmprod import InvalidArgument
from llmprod.mechanisms.limit_headers import LimitReading
from llmprod.mechanisms.limit_store import Limit, Limits, Shortage
from llmprod.mechanisms.rate_limit import RateLimiter, Reservation, matches
from tests.mechanisms.hand_clock import HandClock


def limiter(*rates: Limit, concurrent: int | None = None) -> tuple[RateLimiter, HandClock]:
    clock = HandClock()
    return RateLimiter(Limits(rates=rates, concurrent=concurrent), clock=clock), clock


def requests(amount: float, **options) -> Limit:
    return Limit(dimension="requests", amount=amount, **options)


def take(made: RateLimiter, **costs: float) -> Reservation:
    got = made.reserve(costs)
    assert isinstance(got, Reservation)
    return got


ONE = {"requests": 1.0}


def test_a_free_limit_foretells_no_wait():
    made, _ = limiter(requests(60, burst=1))
    assert made.delay(ONE) is None
    assert made.delay({}) is None
    assert made.delay(ONE, {}) is None


def test_the_foretold_wait_is_that_of_the_shortest_limit_and_names_it():
    made, _ = limiter(requests(60, burst=1), Limit(dimension="tokens", amount=600, burst=10))
    take(made, requests=1, tokens=10)
    assert made.delay({"requests": 1, "tokens": 5}) == Shortage("requests", pytest.approx(1.0))
    assert made.delay({"requests": 1, "tokens": 10}) == Shortage("requests", pytest.approx(1.0))
    assert made.delay({"tokens": 5}) == Shortage("tokens", pytest.approx(0.5))
    made.reserve({})
    assert made.delay({"requests": 0}) is None


def test_those_ahead_have_their_turn_first():
    made, _ = limiter(requests(60, burst=1), Limit(dimension="tokens", amount=600, burst=10))
    take(made, requests=1)
    assert made.delay(ONE, {"requests": 2.0}) == Shortage("requests", pytest.approx(3.0))
    assert made.delay(ONE, {"tokens": 3.0}) == Shortage("requests", pytest.approx(1.0))  # they need none of it


def test_a_pause_comes_before_everything():
    made, clock = limiter(requests(60, burst=1))
    made.pause(5)
    assert made.delay({}) == Shortage("paused", pytest.approx(5.0))
    assert made.delay(ONE) == Shortage("paused", pytest.approx(6.0))  # the bucket begins empty after it
    clock.time += 4.5
    assert made.delay({}) == Shortage("paused", pytest.approx(0.5))
    clock.time += 0.5
    assert made.delay(ONE) == Shortage("requests", pytest.approx(1.0))


def test_of_calls_at_once_no_wait_can_be_foretold():
    made, _ = limiter(concurrent=2)
    assert made.delay({}) is None
    take(made)
    assert made.delay({}) is None
    take(made)
    assert made.delay({}) == Shortage("concurrent", None)
    made.pause(0.5)
    assert made.delay({}) == Shortage("paused", pytest.approx(0.5))


def test_after_a_refusal_the_foretold_wait_is_at_the_slower_pace():
    made, clock = limiter(requests(60, burst=1))
    made.throttled(1)
    clock.time += 1
    slower = made.pace
    assert 0.94 < slower < 0.96
    assert made.delay(ONE) == Shortage("requests", pytest.approx(1 / slower))
    for _ in range(60):
        clock.time += 1
        made.left()
    assert made.pace == 1.0


def test_a_slower_pace_refills_slower():
    made, clock = limiter(requests(600, burst=100))
    made.throttled(1)
    clock.time += 1
    slower = made.pace
    clock.time += 1
    made.reserve({})  # brings it up to now
    assert made.left()["requests"] == pytest.approx(10 * slower, rel=0.01)


def test_what_a_call_does_not_name_costs_nothing():
    made, _ = limiter(requests(60, burst=5), Limit(dimension="tokens", amount=60, burst=5))
    take(made, requests=1)
    assert made.left() == {"requests": 4, "tokens": 5}


def test_what_was_not_estimated_is_settled_in_full():
    made, _ = limiter(Limit(dimension="tokens", amount=60, burst=50))
    take(made).settle({"tokens": 20.0})
    assert made.left() == {"tokens": 30}


def test_it_may_be_forgotten_when_nothing_is_under_way_paused_or_owed():
    made, clock = limiter(requests(60, burst=2))
    assert made.idle
    leave = take(made, requests=2)
    assert not made.idle
    leave.keep()
    assert not made.idle  # the bucket is not full yet
    clock.time += 1.9
    assert not made.idle
    clock.time += 0.1
    assert made.idle
    leave = take(made)
    assert not made.idle  # it costs nothing, and is under way
    leave.cancel()
    assert made.idle
    made.pause(10)
    clock.time += 9.9
    assert not made.idle
    clock.time += 2.1
    assert made.idle


def test_a_limit_without_buckets_is_idle_as_soon_as_its_pause_is_over():
    made, clock = limiter(concurrent=1)
    made.pause(10)
    assert not made.idle
    clock.time += 10
    assert made.idle


def test_it_tells_what_is_left():
    made, _ = limiter(requests(60, burst=2), Limit(dimension="tokens", amount=600))
    take(made, requests=1, tokens=50)
    assert repr(made) == "<RateLimiter, left: requests 1, tokens 550; 1 under way>"


def test_corrections_add_up_over_calls_that_were_under_way_together():
    made, _ = limiter(requests(60, burst=10))
    first, second, third = (take(made, requests=1) for _ in range(3))  # believed: 9, 8, 7
    (changed,) = first.calibrate((LimitReading(dimension="requests", remaining=6),))  # 3 were taken by others
    assert (changed.before, changed.after) == (7, 4)
    assert second.calibrate((LimitReading(dimension="requests", remaining=5),)) == []
    (changed,) = third.calibrate((LimitReading(dimension="requests", remaining=3.5),))
    assert (changed.before, changed.after) == (4, 3.5)
    fourth = take(made, requests=1)
    (changed,) = fourth.calibrate((LimitReading(dimension="requests", remaining=1),))
    assert (changed.before, changed.after) == (2.5, 1)
    fourth.keep()
    assert fourth.calibrate((LimitReading(dimension="requests", remaining=0),)) == []


def test_a_reading_of_one_limit_is_for_every_bucket_that_it_binds():
    made, _ = limiter(Limit(dimension="tokens", amount=60), requests(60), requests(100, period=86400.0))
    changed = made.calibrate((LimitReading(dimension="requests", remaining=7),))
    assert [one.dimension for one in changed] == ["requests", "requests/86400s"]
    assert matches(LimitReading(dimension="requests", remaining=1, period=60.0), "requests", 60.0)
    assert not matches(LimitReading(dimension="requests", remaining=1, period=59.0), "requests", 60.0)


def test_a_pause_leaves_the_allowance_of_a_day_as_it_is():
    made, _ = limiter(requests(60), requests(100, period=86400.0))
    made.pause(5)
    assert made.left() == {"requests": 0, "requests/86400s": 100}


def test_shares_are_equal_and_never_nothing():
    limits = Limits(rates=(requests(60, burst=6),), concurrent=5)
    assert limits.share(1) is limits
    half = limits.share(2)
    assert (half.rates[0].amount, half.rates[0].depth, half.concurrent) == (30, 3, 2)
    assert isinstance(half.concurrent, int)
    assert limits.share(10).concurrent == 1
    assert Limits(rates=(requests(60),)).share(2).concurrent is None


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Limits(concurrent=0), "concurrent"),
        (lambda: Limits(rates=(requests(1), requests(2))), "rates"),
        (lambda: requests(0), "amount"),
        (lambda: requests(1, period=-1), "period"),
        (lambda: requests(1, burst=0), "burst"),
        (lambda: Limit(dimension="letters", amount=1), "dimension"),  # type: ignore[arg-type]
    ],
)
def test_limits_out_of_range_are_refused(make, field):
    with pytest.raises(InvalidArgument) as caught:
        make()
    assert caught.value.field == field


def test_small_allowances_are_allowed():
    assert requests(0.5, period=0.5, burst=0.5).rate == 1.0

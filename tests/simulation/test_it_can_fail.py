"""The simulation finds what is broken: each wrapper here is wrong in one way, and some seed shows it."""

import pytest

from llmprod.mechanisms.circuit_breaker import Breaker
from tests.simulation import broken
from tests.simulation.scenario import investigate

SEEDS = range(60)


def _retry(kind):
    return {"Retry": lambda builder, where, **options: kind()}


def _leaky(builder, where, **options):
    made = broken.LeakyBreaker(clock=builder.clock, random=builder.chance("breaker", where), **options)
    made.breaker = Breaker(made.options, clock=made.clock, random=made.random)
    return made


BROKEN = {
    "uncapped retry": (_retry(broken.StubbornRetry), "attempts_stay_within_the_cap"),
    "retry without leave": (
        {"Retry": lambda builder, where, **options: broken.GreedyRetry(budget=builder.budget(), **options)},
        "the_retry_budget_covers_every_further_attempt",
    ),
    "foreign error": (_retry(broken.CrashingRetry), "only_errors_of_the_library_reach_a_caller"),
    "stream left open": (_retry(broken.ForgetfulRetry), "nothing_is_in_flight"),
    "cancellation swallowed": (_retry(broken.SwallowingRetry), "a_cancelled_call_ends"),
    "text twice": (_retry(broken.StutteringRetry), "an_answer_is_right_or_an_error"),
    "settled twice": (_retry(broken.TwiceRetry), "nothing_is_in_flight"),
    "moody": (_retry(broken.MoodyRetry), "the backends differ"),
    "deadline ignored": (
        {"Deadline": lambda builder, where, **options: broken.LazyDeadline(**options)},
        "deadlines_hold",
    ),
    "leaky permit": ({"CircuitBreaker": _leaky}, "nothing_is_held"),
    "pause forgotten": (
        {"Failover": lambda builder, chains, **options: broken.DeafFailover(*chains, clock=builder.clock, **options)},
        "a_target_that_asks_for_a_wait_is_left_alone",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_found(name):
    replaced, expected = BROKEN[name]
    for seed in SEEDS:
        found = investigate(seed, replaced)
        if any(expected in violation for violation in found.violations):
            return
    raise AssertionError(f"{len(SEEDS)} scenarios with a broken wrapper, and {expected} held in all")

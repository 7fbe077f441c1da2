"""When something that has died is started again: properties over any history of deaths."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmprod import RestartPolicy
from llmprod.mechanisms.restart import Restarts
from tests.mechanisms.hand_clock import HandClock

POLICIES = st.builds(
    RestartPolicy,
    attempts=st.integers(0, 6),
    within=st.floats(0.5, 100),
    first_wait=st.floats(0, 5),
    longest_wait=st.floats(0, 20),
)
GAPS = st.lists(st.floats(0, 60), max_size=40)


@given(POLICIES, GAPS)
def test_no_more_starts_than_allowed_within_any_span(policy: RestartPolicy, gaps: list[float]) -> None:
    clock = HandClock()
    restarts = Restarts(policy, clock=clock)
    starts: list[float] = []
    for gap in gaps:
        clock.time += gap
        if restarts.died() is not None:
            starts.append(clock.time)
    assert restarts.total == len(starts)
    for at in starts:
        assert sum(0 <= at - other < policy.within for other in starts) <= policy.attempts
    if policy.attempts and gaps:
        assert starts, "the first death is always mended"


@given(POLICIES, GAPS)
def test_waits_grow_to_their_limit_and_begin_at_once_after_a_quiet_time(
    policy: RestartPolicy, gaps: list[float]
) -> None:
    clock = HandClock()
    restarts = Restarts(policy, clock=clock)
    for gap in gaps:
        clock.time += gap
        wait = restarts.died()
        assert wait is None or 0 <= wait <= policy.longest_wait
    clock.time += policy.within * 1.001
    waits = [restarts.died() for _ in range(policy.attempts)]
    assert all(wait is not None for wait in waits)
    assert waits == sorted(wait for wait in waits if wait is not None)
    assert waits[:1] in ([], [0.0])
    assert restarts.died() is None


@given(POLICIES, st.integers(0, 10))
def test_by_hand_it_begins_anew(policy: RestartPolicy, deaths: int) -> None:
    restarts = Restarts(policy, clock=HandClock())
    for _ in range(deaths):
        restarts.died()
    restarts.forget()
    assert restarts.died() == (0.0 if policy.attempts else None)

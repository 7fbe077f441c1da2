"""Backoff: full jitter between zero and a bound that doubles up to a cap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod import Backoff, InvalidArgument


class Drawn:
    """Chance that always draws the same."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


HIGHEST = 1 - 2**-53


def test_the_bound_doubles_up_to_the_cap():
    backoff = Backoff(base=0.5, cap=3)
    assert [backoff.delay(failures, Drawn(HIGHEST)) for failures in (1, 2, 3, 4, 5)] == pytest.approx([0.5, 1, 2, 3, 3])


def test_throttling_has_a_base_and_cap_of_its_own():
    backoff = Backoff(throttle_base=1, throttle_cap=20)
    waits = [backoff.delay(failures, Drawn(HIGHEST), throttled=True) for failures in (1, 2, 5, 6)]
    assert waits == pytest.approx([1, 2, 16, 20])


@given(failures=st.integers(1, 10_000), drawn=st.floats(0, HIGHEST), throttled=st.booleans())
def test_every_wait_lies_between_zero_and_the_cap(failures, drawn, throttled):
    backoff = Backoff()
    cap = backoff.throttle_cap if throttled else backoff.cap
    base = backoff.throttle_base if throttled else backoff.base
    wait = backoff.delay(failures, Drawn(drawn), throttled=throttled)
    assert 0 <= wait <= cap
    assert wait == pytest.approx(drawn * min(cap, base * 2.0 ** min(failures - 1, 60)))


@pytest.mark.parametrize("field", ["base", "cap", "throttle_base", "throttle_cap"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "1", True])
def test_what_is_no_number_of_seconds_is_refused(field, value):
    with pytest.raises(InvalidArgument, match=rf"backoff\.{field}: got .*; allowed: 0 or more seconds"):
        Backoff(**{field: value})

"""XFetch: the share of readers that compute a value anew early is the paper's."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod.mechanisms.xfetch import early


class Drawn:
    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("left", [0.1, 1.0, 3.0])
def test_the_share_is_exponential_in_the_time_left(beta, left):
    # delta * beta * -ln(u) >= left  <=>  u <= exp(-left / (delta * beta))
    delta, draws = 1.5, 20_000
    chance = random.Random(7)
    seen = sum(early(100.0 - left, 100.0, delta, beta, chance) for _ in range(draws)) / draws
    expected = math.exp(-left / (delta * beta))
    assert abs(seen - expected) < 5 * math.sqrt(expected * (1 - expected) / draws)


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 100), st.floats(0, 10))
def test_at_the_end_always_and_without_beta_or_time_never_before(drawn, delta, beta):
    assert early(100.0, 100.0, delta, beta, Drawn(drawn))
    assert not early(99.0, 100.0, delta, 0.0, Drawn(drawn))
    assert not early(99.0, 100.0, 0.0, beta, Drawn(drawn))


@given(st.floats(0, 1, exclude_max=True), st.floats(0.01, 50), st.floats(0.1, 5))
def test_who_begins_early_would_begin_later_too(drawn, left, delta):
    if early(100.0 - left, 100.0, delta, 1.0, Drawn(drawn)):
        assert early(100.0 - left / 2, 100.0, delta, 1.0, Drawn(drawn))
        assert early(100.0 - left, 100.0, delta, 2.0, Drawn(drawn))

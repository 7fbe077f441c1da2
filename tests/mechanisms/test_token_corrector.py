"""What is learned from counted prompts."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod.mechanisms.token_corrector import TokenCorrector, TokenError


def test_nothing_learned_changes_nothing():
    corrector = TokenCorrector()
    assert corrector.factor == corrector.quantile(0.99) == 1
    assert corrector.error() == TokenError(None, None, 0)


def test_a_constant_ratio_is_found_and_the_error_falls():
    corrector, chance = TokenCorrector(), random.Random(1)
    for _ in range(300):
        size = chance.randint(50, 4000)
        corrector.learn(size, size * 1.3 * chance.uniform(0.95, 1.05))
    assert corrector.factor == pytest.approx(1.3, rel=0.02)
    error = corrector.error()
    assert error.mean == pytest.approx(0.025, abs=0.01)
    assert error.p90 == pytest.approx(0.045, abs=0.01)
    assert error.count == 300


def test_one_strange_prompt_moves_nothing():
    corrector = TokenCorrector()
    for _ in range(20):
        corrector.learn(1000, 1100)
    corrector.learn(1000, 50_000)
    assert corrector.factor == pytest.approx(1.1)


def test_it_begins_carefully():
    corrector = TokenCorrector()
    corrector.learn(1000, 1500)
    assert corrector.factor == 1
    for _ in range(2):
        corrector.learn(1000, 1500)
    assert corrector.factor == pytest.approx(1.5)


def test_short_prompts_weigh_little():
    corrector = TokenCorrector()
    for _ in range(30):
        corrector.learn(5, 10)
        corrector.learn(5000, 5500)
    assert corrector.factor == pytest.approx(1.1)


def test_a_change_is_followed():
    corrector = TokenCorrector()
    for _ in range(100):
        corrector.learn(1000, 1000)
    for _ in range(30):
        corrector.learn(1000, 1350)
    assert corrector.factor == pytest.approx(1.35)


@given(st.lists(st.tuples(st.floats(allow_nan=True), st.floats(allow_nan=True)), max_size=80))
def test_it_stays_bounded_whatever_it_is_told(told):
    corrector = TokenCorrector()
    for estimate, real in told:
        corrector.learn(estimate, real)
        assert 0.5 <= corrector.factor <= 2

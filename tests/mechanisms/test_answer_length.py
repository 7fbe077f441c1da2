"""Learned limits: a high quantile with room, and none that cuts for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod import InvalidArgument
from llmprod.mechanisms.answer_length import AnswerLengths


def test_nothing_is_said_before_enough_was_seen():
    lengths = AnswerLengths()
    for _ in range(49):
        lengths.learn("a", 1000)
    assert lengths.limit("a") is None
    lengths.learn("a", 1000)
    assert lengths.limit("a") == 1500
    assert lengths.limit("b") is None


@given(st.lists(st.integers(1, 5000), min_size=100, max_size=1200))
def test_it_is_the_quantile_of_the_last_answers(samples):
    lengths = AnswerLengths(quantile=0.9, room=1, least=1)
    for tokens in samples:
        lengths.learn("a", tokens)
    limit = lengths.limit("a")
    recent = samples[-512:]
    assert sum(tokens <= limit for tokens in recent) >= 0.9 * len(recent)
    assert sum(tokens < limit for tokens in recent) < 0.9 * len(recent)


def test_short_answers_get_room_all_the_same():
    lengths = AnswerLengths(minimum=1)
    lengths.learn("a", 3)
    assert lengths.limit("a") == 256


def test_a_limit_that_cuts_grows_until_it_does_not():
    lengths = AnswerLengths(minimum=20)
    for _ in range(20):
        lengths.learn("a", 200)
    needed, rounds = 5000, 0
    while (limit := lengths.limit("a")) < needed:
        lengths.learn("a", min(needed, limit), cut=limit < needed)
        rounds += 1
        assert rounds < 60
    for _ in range(600):
        lengths.learn("a", needed)
    assert lengths.limit("a") == 7500


def test_kinds_long_unused_are_forgotten():
    lengths = AnswerLengths(minimum=1)
    for number in range(3000):
        lengths.learn("kept", 1000)
        lengths.learn(str(number), 10)
    assert lengths.limit("kept") == 1500
    assert lengths.limit("0") is None
    assert len(lengths._routes) == 1024


@pytest.mark.parametrize("options", [{"quantile": 0.1}, {"room": 0.5}, {"minimum": 0}, {"least": 0}])
def test_wrong_options_are_named(options):
    with pytest.raises(InvalidArgument) as caught:
        AnswerLengths(**options)
    assert caught.value.field == next(iter(options))

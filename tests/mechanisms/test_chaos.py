"""Dice: what a call is dealt, how often, and that a seed deals it again."""

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from llmprod import InvalidArgument
from llmprod.mechanisms.chaos import KINDS, NOTHING, Dice


def seeded(seed=7):
    return lambda kind: random.Random(f"{seed}/{kind}")


def test_at_rate_0_and_1():
    never = Dice(dict.fromkeys(KINDS, 0.0), random=seeded())
    assert all(never.deal() is NOTHING for _ in range(100))
    always = Dice(dict.fromkeys(KINDS, 1.0), random=seeded(), faults=3, cut=(2, 4))
    deals = [always.deal() for _ in range(200)]
    assert {deal.fault for deal in deals} == {0, 1, 2}
    assert {deal.cut for deal in deals} == {2, 3, 4}
    assert all(deal.outcome and deal.drip and deal.latency > 0 for deal in deals)


def test_each_kind_comes_as_often_as_it_should():
    dice = Dice({"fault": 0.1, "cut": 0.3}, random=seeded())
    deals = [dice.deal() for _ in range(20_000)]
    assert sum(deal.fault is not None for deal in deals) == pytest.approx(2000, rel=0.1)
    assert sum(deal.cut is not None for deal in deals) == pytest.approx(6000, rel=0.1)
    assert not any(deal.outcome or deal.drip or deal.latency for deal in deals)


def test_latency_is_fixed_or_lognormal():
    fixed = Dice({"latency": 1.0}, random=seeded(), latency=(2.5, 0.0))
    assert {fixed.deal().latency for _ in range(10)} == {2.5}
    spread = Dice({"latency": 1.0}, random=seeded(), latency=(2.0, 0.5))
    logs = [math.log(spread.deal().latency) for _ in range(20_000)]
    assert statistics.fmean(logs) == pytest.approx(math.log(2.0), abs=0.02)
    assert statistics.stdev(logs) == pytest.approx(0.5, rel=0.03)


def test_a_draw_of_almost_one_is_still_in_range():
    class Greatest:
        def random(self):
            return math.nextafter(1.0, 0.0)

    dice = Dice(dict.fromkeys(KINDS, 1.0), random=lambda kind: Greatest(), faults=3, cut=(1, 5))
    deal = dice.deal()
    assert (deal.fault, deal.cut) == (2, 5)
    assert math.isfinite(deal.latency)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 1000))
def test_a_kind_is_dealt_the_same_whatever_the_others_rates(rate, other, seed):
    alone = Dice({"cut": rate}, random=seeded(seed))
    beside = Dice({"cut": rate, "fault": other, "latency": other, "drip": other}, random=seeded(seed))
    assert [alone.deal().cut for _ in range(30)] == [beside.deal().cut for _ in range(30)]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"rates": {"fault": 1.1}}, "fault_rate"),
        ({"rates": {"cut": -0.1}}, "cut_rate"),
        ({"rates": {"quake": 0.1}}, "rates"),
        ({"faults": 0}, "faults"),
        ({"latency": (-1, 0.5)}, "latency"),
        ({"latency": (1, -0.5)}, "latency's sigma"),
        ({"cut": (0, 3)}, "cut"),
        ({"cut": (4, 3)}, "cut's greatest"),
    ],
)
def test_bad_options_are_named(options, field):
    with pytest.raises(InvalidArgument) as caught:
        Dice(**{"rates": {"fault": 0.1}, "random": seeded(), **options})
    assert caught.value.field == field


class Machine(RuleBasedStateMachine):
    """Two dice of one seed deal the same, and never outside of what was asked for."""

    @initialize(
        rates=st.dictionaries(st.sampled_from(KINDS), st.floats(0, 1)),
        seed=st.integers(0, 100),
        faults=st.integers(1, 9),
        cut=st.tuples(st.integers(1, 5), st.integers(0, 5)),
    )
    def make(self, rates, seed, faults, cut):
        self.rates, self.faults, self.cut = rates, faults, (cut[0], cut[0] + cut[1])
        self.one, self.two = (Dice(rates, random=seeded(seed), faults=faults, cut=self.cut) for _ in range(2))
        self.last = NOTHING

    @rule()
    def deal(self):
        self.last = self.one.deal()
        assert self.last == self.two.deal()

    @invariant()
    def within_what_was_asked_for(self):
        deal = self.last
        injected = {
            "fault": deal.fault is not None,
            "outcome": deal.outcome,
            "latency": deal.latency > 0,
            "cut": deal.cut is not None,
            "drip": deal.drip,
        }
        assert all(self.rates.get(kind, 0) > 0 for kind, hit in injected.items() if hit)
        assert deal.fault is None or 0 <= deal.fault < self.faults
        assert deal.cut is None or self.cut[0] <= deal.cut <= self.cut[1]


TestMachine = Machine.TestCase

"""Balancing policies: who comes first, by example, by count and by property."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod import EmbedRequest, GenerateRequest, InvalidArgument, Message, Usage
from llmprod.mechanisms.balancing import PowerOfTwo, Priority, Weighted
from llmprod.mechanisms.call_weight import CallWeight
from llmprod.mechanisms.peak_ewma import PeakEwma
from llmprod.mechanisms.prefix_key import prefix_key
from llmprod.mechanisms.sticky import Sticky
from llmprod.schema import Tool
from tests.mechanisms.hand_clock import HandClock


def loads(*rtts: float) -> list[PeakEwma]:
    clock = HandClock()
    made = [PeakEwma(default=1e-9, clock=clock) for _ in rtts]
    for load, rtt in zip(made, rtts, strict=True):
        load.observe(rtt)
    return made


def chance(seed: int = 1) -> random.Random:
    return random.Random(seed)


# ---- power of two choices -------------------------------------------------------------------------------------------


def test_of_two_the_cheaper_comes_first():
    assert PowerOfTwo().order([0, 1], loads(2.0, 1.0), chance()) == [1, 0]
    busy = loads(2.0, 1.0)
    for _ in range(3):
        busy[1].begin()
    assert PowerOfTwo().order([0, 1], busy, chance()) == [0, 1]


def test_of_equals_each_is_first_as_often():
    drawn = Counter(PowerOfTwo().order([0, 1, 2], loads(1, 1, 1), chance(seed))[0] for seed in range(3_000))
    assert all(900 < drawn[place] < 1_100 for place in range(3))


def test_the_dearest_of_three_is_never_first_and_the_others_follow_by_cost():
    ordered = {tuple(PowerOfTwo().order([0, 1, 2], loads(1, 9, 3), chance(seed))) for seed in range(200)}
    assert ordered == {(0, 2, 1), (2, 0, 1)}


def test_the_fullest_of_a_hundred_is_near_the_mean_where_random_choice_is_not():
    """A hundred calls a target: power of two keeps the maximum within ln ln n of the mean, and a bit."""
    drawn = chance(3)
    targets = loads(*[1.0] * 100)
    for _ in range(10_000):
        targets[PowerOfTwo().order(range(100), targets, drawn)[0]].begin()
    most, least = max(load.calls for load in targets), min(load.calls for load in targets)
    assert most - 100 <= math.log(math.log(100)) + 2
    assert least >= 95
    blind = Counter(int(drawn.random() * 100) for _ in range(10_000))
    assert max(blind.values()) - 100 > 15


# ---- weights --------------------------------------------------------------------------------------------------------


def turns(policy, ready, times) -> list[int]:
    return [policy.order(ready, [], chance())[0] for _ in range(times)]


def test_weights_are_mixed_smoothly_as_in_nginx():
    assert turns(Weighted([5, 1, 1]), [0, 1, 2], 7) == [0, 0, 1, 0, 2, 0, 0]  # the example of nginx's commit


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any))
def test_shares_are_exact_over_a_whole_round(weights):
    policy = Weighted(weights)
    for _ in range(3):
        counted = Counter(turns(policy, range(len(weights)), sum(weights)))
        assert [counted[place] for place in range(len(weights))] == weights


def test_one_that_is_out_leaves_its_share_to_the_others_and_takes_it_up_again():
    policy = Weighted([2, 1, 1])
    assert Counter(turns(policy, [1, 2], 20)) == {1: 10, 2: 10}
    counted = Counter(turns(policy, [0, 1, 2], 40))
    assert abs(counted[0] - 20) <= 1


def test_a_weight_of_zero_is_only_for_failures():
    policy = Weighted([0, 1, 3])
    assert 0 not in turns(policy, [0, 1, 2], 50)
    assert policy.order([0, 1, 2], [], chance())[-1] == 0
    assert policy.order([0], [], chance()) == [0]
    assert turns(Weighted([3, 0]), [1], 2) == [1, 1]


@given(st.data())
def test_every_policy_orders_all_that_are_ready_and_nobody_else(data):
    count = data.draw(st.integers(1, 6))
    ready = data.draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True).map(sorted))
    weights = data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count).filter(any))
    levels = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    key = data.draw(st.none() | st.text())
    names = [f"t{place}" for place in range(count)]
    for policy in (
        PowerOfTwo(),
        Weighted(weights),
        Priority(levels),
        Priority(levels, within=Weighted(weights)),
        Sticky(names, weights=weights),
        Priority(levels, within=Sticky(names, otherwise=Weighted(weights))),
    ):
        policy.check(count)
        ordered = policy.order(ready, loads(*range(1, count + 1)), chance(), key)
        assert sorted(ordered) == ready


# ---- levels ---------------------------------------------------------------------------------------------------------


def test_a_lower_level_is_asked_when_none_above_can_be():
    policy = Priority([1, 0, 0, 2])
    for seed in range(20):
        ordered = policy.order([0, 1, 2, 3], loads(1, 1, 1, 1), chance(seed))
        assert set(ordered[:2]) == {1, 2}
        assert ordered[2:] == [0, 3]
    assert policy.order([0, 3], loads(1, 1, 1, 1), chance()) == [0, 3]
    assert policy.order([3], loads(1, 1, 1, 1), chance()) == [3]


def test_levels_below_take_no_turn_of_their_weights():
    policy = Priority([0, 1, 1], within=Weighted([1, 1, 1]))
    for _ in range(3):
        policy.order([0, 1, 2], loads(1, 1, 1), chance())
    assert turns(policy, [1, 2], 4) == [1, 2, 1, 2]


# ---- sticky ---------------------------------------------------------------------------------------------------------

NAMES = ["a", "b", "c", "d"]
KEYS = [f"session {number}" for number in range(2_000)]


def firsts(policy: Sticky, ready=(0, 1, 2, 3)) -> list[int]:
    idle = loads(1, 1, 1, 1)
    return [policy.order(ready, idle, chance(), key)[0] for key in KEYS]


def test_a_key_keeps_its_target_and_keys_are_spread_evenly():
    first = firsts(Sticky(NAMES))
    assert first == firsts(Sticky(NAMES))
    counted = Counter(first)
    assert all(430 < counted[place] < 570 for place in range(4))


def test_when_a_target_is_out_only_its_own_keys_move_and_they_come_back():
    policy = Sticky(NAMES)
    before, without = firsts(policy), firsts(policy, (0, 1, 3))
    for old, new in zip(before, without, strict=True):
        assert new == old or old == 2
    moved = Counter(new for old, new in zip(before, without, strict=True) if old == 2)
    assert all(moved[place] > 100 for place in (0, 1, 3))  # spread over all, not heaped on one
    assert firsts(policy) == before


def test_targets_of_one_name_are_told_apart():
    counted = Counter(firsts(Sticky(["a"] * 4)))
    assert all(430 < counted[place] < 570 for place in range(4))


def test_keys_are_shared_out_by_weight():
    counted = Counter(firsts(Sticky(NAMES, weights=[2, 1, 1, 0])))
    assert 930 < counted[0] < 1_070
    assert counted[3] == 0


def test_one_hot_key_cannot_overload_its_target():
    policy = Sticky(NAMES, factor=1.25, slack=8)
    targets = loads(1, 1, 1, 1)
    for number in range(400):
        targets[policy.order([0, 1, 2, 3], targets, chance(), "hot")[0]].begin()
        most = max(load.calls for load in targets)
        assert most <= max(8, math.ceil(1.25 * (number + 1) / 4))
    assert max(load.calls for load in targets) <= 125


def test_a_few_calls_at_once_stay_together():
    policy = Sticky(NAMES)
    targets = loads(1, 1, 1, 1)
    went = []
    for _ in range(8):
        went.append(policy.order([0, 1, 2, 3], targets, chance(), "one")[0])
        targets[went[-1]].begin()
    assert len(set(went)) == 1
    assert policy.order([0, 1, 2, 3], targets, chance(), "one")[0] != went[0]


def test_a_slack_of_one_spreads_even_two_calls():
    policy, targets = Sticky(NAMES, factor=1, slack=1), loads(1, 1, 1, 1)
    first = policy.order([0, 1, 2, 3], targets, chance(), "one")
    targets[first[0]].begin()
    assert policy.order([0, 1, 2, 3], targets, chance(), "one") == [*first[1:], first[0]]


def test_calls_without_a_key_go_by_the_other_policy():
    assert turns(Sticky(NAMES, otherwise=Weighted([0, 1, 0, 0])), [0, 1, 2, 3], 5) == [1] * 5


# ---- what a prefix is -----------------------------------------------------------------------------------------------


def ask(*messages: Message, **options) -> GenerateRequest:
    return GenerateRequest(messages=messages, **options)


def test_a_conversation_keeps_its_prefix():
    system, first = Message.system("Be brief."), Message.user("Hello")
    one = prefix_key(ask(system, first))
    assert one == prefix_key(ask(system, first, Message.assistant("Hi"), Message.user("And then?")))
    assert one != prefix_key(ask(system, Message.user("Other")))
    assert one != prefix_key(ask(Message.system("Be long."), first))
    assert one != prefix_key(
        ask(system, first, tools=(Tool(name="look", description="Looks", parameters={"type": "object"}),))
    )
    assert one != prefix_key(ask(Message.user("Be brief."), Message.user("Hello")))


def test_only_so_much_of_a_prefix_counts():
    long = "word " * 1_000
    assert prefix_key(ask(Message.user(long + "A"))) == prefix_key(ask(Message.user(long + "B")))
    assert prefix_key(ask(Message.system(long), Message.user("A"))) == prefix_key(
        ask(Message.system(long), Message.user("B"))
    )
    assert prefix_key(ask(Message.user("A" * 10)), 5) == prefix_key(ask(Message.user("A" * 11)), 5)
    full = Message.system("A" * 5)
    assert prefix_key(ask(full, Message.user("B")), 5) == prefix_key(ask(full, Message.user("C")), 5)
    assert prefix_key(ask(full, Message.user("B")), 6) != prefix_key(ask(full, Message.user("C")), 6)
    assert prefix_key(ask(Message.user("A" * 4_095 + "B"))) != prefix_key(ask(Message.user("A" * 4_096)))
    assert prefix_key(ask(Message.user("A" * 4_096 + "B"))) == prefix_key(ask(Message.user("A" * 4_096)))


def test_what_has_no_prompt_has_no_prefix_and_odd_text_has_one():
    assert prefix_key(EmbedRequest(inputs=("Hi",))) is None
    assert prefix_key(ask(Message.user("\ud800"))) is not None


# ---- how heavy a call is --------------------------------------------------------------------------------------------


def test_a_typical_call_weighs_one_and_a_long_one_more():
    weight = CallWeight()
    short = ask(Message.user("word " * 100))
    for _ in range(100):
        assert weight.weigh(short).weight == pytest.approx(1)
    long = weight.weigh(ask(Message.user("word " * 1_000)))
    assert 2 < long.weight < 8
    assert weight.weigh(ask(Message.user("word " * 1_000_000))).weight == 8
    assert weight.weigh(EmbedRequest(inputs=("Hi",))).weight == 1 / 8


def test_max_tokens_and_what_answers_were_are_reserved():
    weight = CallWeight()
    request = ask(Message.user("word " * 10))
    weight.weigh(request)
    assert weight.weigh(ask(Message.user("word " * 10), max_tokens=1)).weight < 0.25
    for _ in range(50):
        weight.learn(request, Usage(output=3_000))
    assert weight.weigh(request).weight > 2
    weight.learn(request, None)


WRONG = {
    "no weights": (lambda: Weighted([]), "weights"),
    "no weight above 0": (lambda: Weighted([0, 0]), "weights"),
    "a negative weight": (lambda: Weighted([1, -1]), r"weights\[1\]"),
    "no number": (lambda: Weighted([1, math.nan]), r"weights\[1\]"),
    "too few weights": (lambda: Weighted([1]).check(2), "weights"),
    "a negative level": (lambda: Priority([0, -1]), r"priorities\[1\]"),
    "too few levels": (lambda: Priority([0, 1]).check(3), "priorities"),
    "weights of a level": (lambda: Priority([0, 1], within=Weighted([1])).check(2), "weights"),
    "factor": (lambda: Sticky(NAMES, factor=0.5), "factor"),
    "slack": (lambda: Sticky(NAMES, slack=0), "slack"),
}


@pytest.mark.parametrize("case", WRONG)
def test_options_out_of_range_are_refused(case):
    make, field = WRONG[case]
    with pytest.raises(InvalidArgument, match=rf"{field}: got .*; allowed: "):
        make()

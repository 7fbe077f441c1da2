"""Usage: disjoint buckets, so sums count every token once."""

from dataclasses import fields, replace
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from llmprod import Usage

BUCKETS = [item.name for item in fields(Usage) if item.type == "int"]
OUTPUT = {"output", "reasoning", "output_audio", "output_image"}

usages = st.builds(
    Usage,
    **{name: st.integers(0, 10**6) for name in BUCKETS},
    server_tools=st.dictionaries(st.sampled_from(["web_search", "code"]), st.integers(0, 9)),
    estimated=st.booleans(),
)


@given(usages)
def test_the_total_is_the_sum_of_all_buckets_and_each_counts_once(usage):
    assert usage.total == sum(getattr(usage, name) for name in BUCKETS)
    assert usage.total == usage.total_input + usage.total_output
    for name in BUCKETS:
        more = replace(usage, **{name: getattr(usage, name) + 1})
        assert more.total_output - usage.total_output == (name in OUTPUT)
        assert more.total_input - usage.total_input == (name not in OUTPUT)


@given(usages, usages, usages)
def test_adding_is_associative_commutative_and_adds_totals(one, two, three):
    assert one + two == two + one
    assert (one + two) + three == one + (two + three)
    assert (one + two).total == one.total + two.total
    assert (one + two).estimated == (one.estimated or two.estimated)
    assert one + Usage() == one


def test_a_sum_is_of_a_tier_or_a_cost_where_both_are():
    flex, priced = Usage(tier="flex", cost=Decimal(1)), Usage(cost=Decimal(2))
    assert (flex + flex).tier == "flex"
    assert (flex + priced).tier is None
    assert (flex + priced).cost == 3
    assert (flex + Usage()).cost is None


@given(usages)
def test_what_was_cached_is_in_the_prompt(usage):
    assert usage.cached == usage.cache_read + usage.cache_read_audio + usage.cache_read_image <= usage.total_input


@given(usages)
def test_a_repr_names_what_is_there_and_nothing_else(usage):
    for name in BUCKETS:
        assert (f"({name}=" in repr(usage) or f" {name}=" in repr(usage)) == (getattr(usage, name) > 0)

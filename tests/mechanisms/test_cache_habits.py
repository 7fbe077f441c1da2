"""Lifetimes and keys by what was seen, what is warm where, prices."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod import GenerateRequest, InvalidArgument, Message, Usage
from llmprod.mechanisms.cache_habits import CacheHabits, Seen
from llmprod.mechanisms.cache_ledger import CacheLedger, PromptCacheStats, as_prices
from llmprod.mechanisms.cache_prices import CachePrices, break_even_reads, cached_content_saves
from llmprod.mechanisms.cache_routing_key import CacheRoutingKey
from llmprod.mechanisms.prefix_chain import prefix_chain
from llmprod.mechanisms.warmth import Warmth
from tests.mechanisms.hand_clock import HandClock

PRICES = CachePrices(fresh="4", read="0.2", write=5, write_1h=Decimal(8), output=20)
counts = st.integers(0, 10**6)


uses = st.tuples(st.sampled_from([1.0, 200.0, 400.0, 3000.0, 4000.0, 90000.0]), st.sampled_from([0.0, 50.0, 500.0]))


def simulated(steps: list[tuple[float, float]], lifetime: float, write: float, unused: float) -> float:
    """What a conversation costs by its uses, and the first messages of others that nobody continued."""
    size, cost = 1000.0, write * (1000.0 + unused)
    for gap, new in steps:
        cost += size * (write if gap > lifetime else 0.1) + new * write
        size += new
    return cost


@given(st.lists(uses, min_size=3, max_size=20), st.sampled_from([0.0, 1000.0, 20_000.0]))
def test_the_cheaper_lifetime_is_chosen(steps: list[tuple[float, float]], unused: float) -> None:
    seen = Seen()
    seen.add(None, 0, 1000 + unused)
    size = 1000.0
    for gap, new in steps:
        seen.add(gap, size, new)
        size += new
    short, hour = simulated(steps, 300, 1.25, unused), simulated(steps, 3600, 2, unused)
    if abs(short - hour) > 0.4 * min(short, hour):  # old uses count less than new ones
        assert seen.lifetime == ("1h" if hour < short else "5m")


def test_nothing_is_known_at_first() -> None:
    seen = Seen()
    seen.add(None, 0, 100)
    for _ in range(2):
        seen.add(1000, 100, 0)
        assert seen.lifetime == "5m"
    seen.add(1000, 100, 0)
    assert seen.lifetime == "1h"


def test_conversations() -> None:
    clock = HandClock()
    habits = CacheHabits(clock=clock)
    assert habits.goes_on("p", 1.25)
    assert habits.lifetimes("p") == ("5m", "5m")
    for number in range(25):
        habits.sent("p", f"c{number}", 50, 100)
        habits.sent("p", f"c{number}", 50, 100)  # the same prompt again is no next turn
    assert not habits.goes_on("p", 1.25)
    for number in range(8):
        habits.sent("p", f"c{number}", 50, 200)
    assert habits.goes_on("p", 1.25)
    assert not habits.goes_on("p", 2.0)  # 8 of 25 is less than 53%
    for number in range(8, 20):
        habits.sent("p", f"c{number}", 50, 200)
        habits.sent("p", f"c{number}", 50, 300)  # a third turn does not count twice
    assert habits.goes_on("p", 2.0)


def test_slow_turns_want_an_hour_for_what_stands_before_them() -> None:
    clock = HandClock()
    habits = CacheHabits(clock=clock)
    for turn in range(6):
        habits.sent("p", "c", 500, 1000 + turn)
        habits.sent("p", f"other {turn}", 500, 550)
        clock.time += 1200
    assert habits.lifetimes("p") == ("1h", "1h")


def test_habits_are_bounded() -> None:
    habits = CacheHabits(at_most=10, clock=HandClock())
    for number in range(100):
        habits.sent(f"p{number}", f"c{number}", 1, 1)
    assert len(habits._prefixes) == len(habits._conversations) == 10


# ---- keys ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.sampled_from([1.0, 15.0, 100.0]))
def test_keys_are_as_many_as_the_busiest_minute_wants(calls: int, per_minute: float) -> None:
    clock = HandClock()
    key = CacheRoutingKey("app", per_minute=per_minute, clock=clock)
    for number in range(calls):
        key.key("p", f"c{number}")
    keys = key.keys("p")
    assert keys * per_minute >= calls
    assert keys == 1 or keys / 2 * per_minute < calls
    clock.time += 9 * 60
    assert key.keys("p") == keys  # a quiet while moves nobody
    clock.time += 120 * 60
    assert key.keys("p") == 1


def test_when_keys_double_nobody_moves_but_to_the_new_ones() -> None:
    clock = HandClock()
    key = CacheRoutingKey("app", clock=clock)
    placed: list[dict[int, int]] = []
    for calls in (15, 16, 31, 61):
        while key.keys("p") * 15 < calls:
            key.key("p", "busy")
        keys = key.keys("p")
        # Asked of the rule itself, since each call counts.
        placed.append({number: int(key._digest(f"c{number}".encode())[:8], 16) % keys for number in range(500)})
    for before, after, keys in zip(placed, placed[1:], (1, 2, 4), strict=False):
        assert all(after[number] in (place, place + keys) for number, place in before.items())
    assert key.key("p", "c7").removeprefix(key._digest(b"p")) in ("", f"-{placed[-1][7]}")


def test_keys_hide_what_they_are_made_of() -> None:
    key = CacheRoutingKey("secret app", clock=HandClock())
    made = key.key("prefix", "conversation")
    assert len(made) == 32
    assert made != CacheRoutingKey("other", clock=HandClock()).key("prefix", "conversation")
    with pytest.raises(InvalidArgument):
        CacheRoutingKey("app", per_minute=0.5)


# ---- warmth ----------------------------------------------------------------------------------------------------------


def test_warmth_ends_is_corrected_and_is_bounded() -> None:
    clock = HandClock()
    warmth = Warmth(clock=clock)
    cuts = prefix_chain(GenerateRequest(messages=(Message.system("a" * 400), Message.user("b" * 400))))
    longer = prefix_chain(
        GenerateRequest(messages=(Message.system("a" * 400), Message.user("b" * 400), Message.user("c")))
    )
    other = prefix_chain(GenerateRequest(messages=(Message.system("a" * 400), Message.user("x"))))
    warmth.served("m", cuts, 300)
    assert warmth.warm("m", longer) == cuts[-1].tokens
    assert warmth.warm("m", other) == cuts[1].tokens
    assert warmth.warm("n", cuts) == 0
    clock.time += 200
    warmth.served("m", cuts[:2], 300)
    clock.time += 200
    assert warmth.warm("m", cuts) == cuts[1].tokens
    warmth.missed("m", cuts)
    assert warmth.warm("m", cuts) == 0
    small = Warmth(at_most=2, clock=clock)
    small.served("m", cuts, 300)
    assert len(small) == 2
    with pytest.raises(InvalidArgument):
        Warmth(at_most=0)


# ---- money -----------------------------------------------------------------------------------------------------------

usages = st.builds(
    Usage,
    input=counts,
    cache_read=counts,
    cache_write=counts,
    cache_write_5m=counts,
    cache_write_30m=counts,
    cache_write_1h=counts,
    cache_write_12h=counts,
    output=counts,
    reasoning=counts,
)


@given(usages)
def test_money_adds_up(usage: Usage) -> None:
    ledger = CacheLedger("m", as_prices(PRICES))
    ledger.add(usage)
    stats = ledger.stats
    assert stats.fresh + stats.read + stats.written == usage.total_input
    assert stats.cost == PRICES.cost(usage)
    assert stats.uncached == PRICES.without_cache(usage)
    long = usage.cache_write_1h + usage.cache_write_12h
    by_hand = usage.cache_read * Decimal("3.8") - (stats.written - long) * 1 - long * 4
    assert stats.saved == by_hand / 10**6


@given(st.lists(usages, max_size=5))
def test_totals_of_targets_add_up(many: list[Usage]) -> None:
    together, apart = CacheLedger("m", as_prices(PRICES)), PromptCacheStats()
    for usage in many:
        together.add(usage, expected=10)
        one = CacheLedger("m", as_prices(PRICES))
        one.add(usage, expected=10)
        apart += one.stats
    assert together.stats == apart


def test_what_a_read_of_the_reference_costs() -> None:
    """50,000 tokens of prefix: warm at the dear model is cheaper than cold at the one below it."""
    opus = CachePrices(fresh=4, read="0.2", write=5, output=0)
    sonnet = CachePrices(fresh=2, read="0.1", write="2.5", output=0)
    haiku = CachePrices(fresh="0.1", read="0.01", write="0.125", output=0)
    assert opus.expected(prompt=50_000, warm=50_000, kept=50_000, output=0) == Decimal("0.01")
    assert sonnet.expected(prompt=50_000, warm=0, kept=50_000, output=0) == Decimal("0.125")
    assert haiku.expected(prompt=50_000, warm=0, kept=50_000, output=0) == Decimal("0.00625")


def test_break_even() -> None:
    flash = CachePrices(fresh="0.75", read="0.075", output="3.75")
    reads = break_even_reads(flash, hours=1, storage=1)
    assert reads is not None
    assert round(reads, 3) == Decimal("2.593")
    zero = cached_content_saves(flash, tokens=10**6, reads=float(reads), hours=1, storage=1)
    assert abs(zero) < Decimal("0.000001")
    assert cached_content_saves(flash, tokens=100_000, reads=10, hours=1, storage=1) == Decimal("0.5")
    assert cached_content_saves(flash, tokens=100_000, reads=0, hours=1, storage=1) == Decimal("-0.175")
    assert break_even_reads(CachePrices(fresh=1, output=1), hours=1, storage=1) is None


@pytest.mark.parametrize("price", [float("nan"), -1, "much", True, None, "NaN", "Infinity"])
def test_prices_that_are_none(price: object) -> None:
    with pytest.raises(InvalidArgument):
        CachePrices(fresh=price, output=1)  # type: ignore[arg-type]


def test_a_float_counts_as_what_it_prints_as() -> None:
    assert CachePrices(fresh=0.1, output=1) == CachePrices(fresh="0.1", output=Decimal(1))


def test_prices_by_name_and_by_function() -> None:
    usage = Usage(input=10**6)
    by_name = as_prices({"m": PRICES, "openai:n": PRICES})
    assert by_name is not None
    assert [by_name(name, usage) for name in ("openai:m", "openai:n", "openai:o")] == [4, 4, None]
    asked = []

    def price(name: str, told: Usage) -> Decimal:
        asked.append((name, told.total_input))
        return Decimal(1)

    ledger = CacheLedger("openai:m", as_prices(price))
    ledger.add(Usage(cache_read=5, input=1))
    assert asked == [("openai:m", 6)] * 2
    assert ledger.stats.saved == 0
    ledger.add(None)
    assert ledger.stats.unknown == 1
    assert "$0.0000" in str(ledger.stats)

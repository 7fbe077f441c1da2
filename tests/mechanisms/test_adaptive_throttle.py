"""The client-side throttle against a list of all calls, and on a steady load whose target loses its capacity."""

import heapq
import math
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from llmprod import InvalidArgument
from llmprod.mechanisms.adaptive_throttle import Throttle
from tests.mechanisms.test_circuit_breaker import HandClock


class Chance:
    """Draws what it is told to, and counts how often it was asked."""

    def __init__(self, value: float = 0.5) -> None:
        self.value = value
        self.drawn = 0

    def random(self) -> float:
        self.drawn += 1
        return self.value


def throttle(chance: float = 0.999, **options) -> tuple[Throttle, HandClock, Chance]:
    clock, drawn = HandClock(), Chance(chance)
    return Throttle(clock=clock, random=drawn, **{"minimum": 0, **options}), clock, drawn


def counted(made: Throttle) -> tuple[float, float]:
    return round(made.requests, 9), round(made.accepts, 9)


# ---- rules, one by one ----------------------------------------------------------------------------------------------


def test_a_request_is_counted_before_it_is_sent_and_presumed_accepted():
    made, *_ = throttle()
    tickets = [made.acquire() for _ in range(100)]
    assert counted(made) == (100, 100)
    assert made.probability == 0
    for ticket in tickets:
        ticket.accepted()
    assert counted(made) == (100, 100)


def test_the_probability_is_the_sre_books():
    made, *_ = throttle()
    tickets = [made.acquire() for _ in range(10)]
    for ticket in tickets[:5]:
        ticket.refused()
    assert (counted(made), made.probability) == ((10, 5), 0.0)
    for ticket in tickets[5:8]:
        ticket.refused()
    assert made.probability == pytest.approx((10 - 2 * 2) / 11)


def test_k_says_how_many_are_sent_for_each_that_is_accepted():
    made, *_ = throttle(k=1.0)
    for ticket in [made.acquire() for _ in range(4)][:1]:
        ticket.refused()
    assert made.probability == pytest.approx(1 / 5)


def test_the_probability_has_a_cap_so_that_something_always_gets_through():
    made, _, drawn = throttle(at_most=0.75)
    for _ in range(200):
        made.acquire().refused()
    assert made.probability == 0.75
    drawn.value = 0.7499
    assert made.acquire() is None
    drawn.value = 0.75
    assert made.acquire() is not None


def test_what_is_refused_here_counts_as_a_request():
    made, _, drawn = throttle()
    for _ in range(20):
        made.acquire().refused()
    drawn.value = 0.0
    for _ in range(5):
        assert made.acquire() is None
    assert counted(made) == (25, 0)


def test_few_requests_refuse_nothing_and_chance_is_not_asked_without_need():
    made, _, drawn = throttle(minimum=10, chance=0.0)
    for _ in range(9):
        made.acquire().refused()
    assert made.probability == 0
    assert made.acquire() is not None
    assert drawn.drawn == 0
    assert made.acquire() is None
    assert drawn.drawn == 1


def test_counts_fade_exponentially():
    made, clock, _ = throttle(window=10)
    for _ in range(10):
        made.acquire()
    clock.time += 10
    assert made.requests == pytest.approx(10 / math.e)
    clock.time += 1000
    assert made.requests == pytest.approx(0)


def test_a_late_report_takes_back_what_is_left_of_its_request():
    made, clock, _ = throttle(window=10)
    old = made.acquire()
    clock.time += 10
    made.acquire()
    old.refused()
    assert counted(made) == (round(1 + 1 / math.e, 9), 1)
    old = made.acquire()
    clock.time += 10
    old.withdraw()
    assert made.accepts == pytest.approx(1 / math.e)


def test_a_withdrawn_call_was_never_made_and_a_ticket_is_reported_once():
    made, *_ = throttle()
    kept, gone = made.acquire(), made.acquire()
    gone.withdraw()
    gone.withdraw()
    gone.refused()
    assert counted(made) == (1, 1)
    kept.accepted()
    kept.refused()
    assert counted(made) == (1, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("k", 0.5), ("k", "2"), ("window", 0), ("window", None), ("at_most", 1), ("at_most", -0.1), ("minimum", -1)],
    ids=str,
)
def test_options_out_of_range_are_refused(field, value):
    with pytest.raises(InvalidArgument, match=rf"{field}: got .*; allowed: "):
        Throttle(**{field: value})


# ---- any interleaving, against a list of all calls ------------------------------------------------------------------


class EveryCall(RuleBasedStateMachine):
    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.throttle, self.clock, self.chance = throttle(minimum=3, window=5)
        self.calls: list[list] = []  # when, requests, accepts

    def weighed(self, column: int) -> float:
        return math.fsum(call[column] * math.exp((call[0] - self.clock.time) / 5) for call in self.calls)

    @rule(target=tickets, chance=st.floats(0, 0.999))
    def acquire(self, chance):
        self.chance.value = chance
        requests, accepts = self.weighed(1), self.weighed(2)
        wanted = min(0.75, max(0.0, (requests - 2 * accepts) / (requests + 1)))
        wanted = wanted if requests >= 3 else 0.0
        ticket = self.throttle.acquire()
        if abs(wanted - chance) > 1e-6 and abs(requests - 3) > 1e-6:
            assert (ticket is None) == (chance < wanted)
        call = [self.clock.time, 1, 0 if ticket is None else 1]
        self.calls.append(call)
        return multiple() if ticket is None else (ticket, call)

    @rule(item=consumes(tickets), how=st.sampled_from(["accepted", "refused", "withdraw"]))
    def report(self, item, how):
        ticket, call = item
        getattr(ticket, how)()
        if how != "accepted":
            call[2] = 0
        if how == "withdraw":
            call[1] = 0

    @rule(seconds=st.floats(0.001, 8))
    def wait(self, seconds):
        self.clock.time += seconds

    @invariant()
    def counts_are_those_of_the_list(self):
        assert self.throttle.requests == pytest.approx(self.weighed(1), abs=1e-6)
        assert self.throttle.accepts == pytest.approx(self.weighed(2), abs=1e-6)
        assert 0 <= self.throttle.accepts <= self.throttle.requests + 1e-9
        assert 0 <= self.throttle.probability <= 0.75


TestEveryCall = EveryCall.TestCase
TestEveryCall.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


# ---- a target that loses capacity for a minute ----------------------------------------------------------------------


class Overload:
    """Steady load at a target that takes it all, then ``left`` of it for a minute, then all again."""

    BEGIN, END, OVER = 60.0, 120.0, 150.0

    def __init__(self, made: Throttle, clock: HandClock, *, rate=50, left=0.3, answer=2.0, refusal=0.05, seed=1):
        self.events: list[tuple[float, str]] = []
        self.reduced = rate * left
        chance = random.Random(seed)
        started, room, pending = clock.time, 0.0, []
        now, last = 0.0, 0.0
        while now < self.OVER:
            now += chance.expovariate(rate)
            while pending and pending[0][0] <= now:
                clock.time, _, report = heapq.heappop(pending)
                clock.time += started
                report()
            clock.time = started + now
            capacity = self.reduced if self.BEGIN <= now < self.END else rate * 1.05
            room, last = min(1 + capacity / 2, room + (now - last) * capacity), now
            ticket = made.acquire()
            if ticket is None:
                self.events.append((now, "shed"))
            elif room >= 1:
                room -= 1
                self.events.append((now, "good"))
                heapq.heappush(pending, (now + answer, len(self.events), ticket.accepted))
            else:
                self.events.append((now, "refused"))
                heapq.heappush(pending, (now + refusal, len(self.events), ticket.refused))

    def count(self, what: str, begin: float, end: float) -> int:
        return sum(begin <= at < end and kind == what for at, kind in self.events)

    @property
    def recovered(self) -> float:
        """Seconds from the end of the overload to the last call that was refused here."""
        return max(at for at, kind in self.events if kind == "shed") - self.END


def overload(**options) -> Overload:
    settings = {name: options.pop(name) for name in ("k", "window", "minimum") if name in options}
    clock = HandClock()
    made = Throttle(clock=clock, random=random.Random(5), **settings)
    return Overload(made, clock, **options)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("answer", [0.5, 20.0])
def test_it_spares_the_target_keeps_the_goodput_and_recovers_in_ten_seconds(seed, answer):
    run = overload(seed=seed, answer=answer)
    assert run.count("shed", 0, run.BEGIN) == 0
    settled = run.BEGIN + 20
    lasting = run.END - settled
    assert run.count("good", run.BEGIN, run.END) >= 0.95 * run.reduced * 60
    assert run.count("good", settled, run.END) >= 0.95 * run.reduced * lasting
    # k = 2: for each call that it accepts the target refuses about one; it would be 2.3.
    assert run.count("refused", settled, run.END) <= 1.5 * run.count("good", settled, run.END)
    assert run.recovered < 10


def test_a_window_of_two_minutes_would_not_notice():
    assert overload(window=120.0).count("shed", 0, Overload.OVER) == 0

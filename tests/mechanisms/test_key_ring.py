"""The key ring: quarantines and shared quotas, by example and in any interleaving of calls."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from llmprod import InvalidArgument
from llmprod.mechanisms.key_ring import KeyRing, KeyUse, QuotaGroup
from tests.mechanisms.hand_clock import HandClock


def ring(count: int = 3, **options) -> tuple[KeyRing, HandClock]:
    clock = HandClock()
    return KeyRing(count, clock=clock, **options), clock


# ---- rules, one by one ----------------------------------------------------------------------------------------------


def test_keys_take_turns():
    made, _ = ring()
    first = []
    for _ in range(6):
        first.append(made.order()[0])
        made.take(first[-1]).end()
    assert first == [0, 1, 2, 0, 1, 2]


def test_turns_are_even_beside_a_dead_key():
    made, _ = ring()
    made.take(1).refused()
    first = []
    for _ in range(6):
        first.append(made.order()[0])
        made.take(first[-1]).end()
    assert first == [2, 0, 2, 0, 2, 0]


def test_the_one_with_the_fewest_calls_comes_first():
    made, _ = ring()
    busy = [made.take(0), made.take(0), made.take(1)]
    assert made.order() == [2, 1, 0]
    for use in busy:
        use.end()
        use.end()
    assert made.order() == [2, 0, 1]  # in turn again


def refusals(made: KeyRing, clock: HandClock, place: int, times: int) -> list[float]:
    """The quarantines of a key that is refused whenever it is tried."""
    seen = []
    for _ in range(times):
        seen.append(made.take(place).refused())
        assert not made.usable(place)
        clock.time += seen[-1] - 1
        assert not made.usable(place)
        clock.time += 1
        assert made.usable(place)
    return seen


def test_a_refused_key_is_out_for_a_time_that_doubles_up_to_its_bound():
    made, clock = ring(2, quarantine=600, quarantine_at_most=3600)
    assert refusals(made, clock, 0, 5) == [600, 1200, 2400, 3600, 3600]


def test_the_last_one_is_tried_again_soon():
    made, clock = ring(2)
    assert made.take(0).refused() == 600
    assert made.take(1).refused() == 30
    assert made.all_refused
    assert made.retry_after == 30
    clock.time += 30
    assert made.order() == [1]
    assert made.take(1).refused() == 60
    alone, clock = ring(1)
    assert refusals(alone, clock, 0, 8) == [30, 60, 120, 240, 480, 960, 1920, 3600]
    brief, clock = ring(1, quarantine=10)
    assert refusals(brief, clock, 0, 2) == [10, 20]


def test_after_its_quarantine_one_call_at_a_time_tries_it():
    made, clock = ring(2)
    made.take(0).refused()
    clock.time += 600
    assert made.state() == {"key1": "trial", "key2": "usable"}
    trial = made.take(0)
    assert made.order() == [1]
    trial.end()  # cancelled: nothing was learned
    trial = made.take(0)
    trial.accepted()
    assert sorted(made.order()) == [0, 1]
    assert made.state() == {"key1": "usable", "key2": "usable"}
    trial.end()
    assert made.take(0).refused() == 600


def test_calls_under_way_when_a_key_is_refused_decide_nothing_more():
    made, clock = ring(2)
    calls = [made.take(0) for _ in range(4)]
    assert calls[0].refused() == 600
    assert calls[1].refused() is None
    calls[2].accepted()  # begun while the key was good
    assert calls[3].exhausted() == []
    assert not made.usable(0)
    clock.time += 600
    assert made.usable(0) is False  # the third call is still under way
    calls[2].end()
    assert made.take(0).refused() == 1200


def test_an_account_without_credit_takes_its_other_keys_with_it():
    made, _ = ring(4, quota_groups=["a", "a", None, "a"])
    made.take(3).refused()
    assert made.take(0).exhausted() == [("key1", 600), ("key2", 600)]
    assert made.order() == [2]


def test_a_throttled_group_is_paused_for_as_long_as_was_asked():
    made, clock = ring(3, quota_groups=["a", "a", "b"])
    assert made.take(0).throttled(20.0) == ("a", 20.0)
    assert made.order() == [2]
    assert made.state() == {"key1": "paused", "key2": "paused", "key3": "usable"}
    assert made.retry_after == 0
    made.take(2).throttled(7.0)
    assert made.retry_after == 7
    clock.time += 20
    assert sorted(made.order()) == [0, 1, 2]


def test_where_the_server_does_not_say_a_default_counts_and_later_answers_prolong_nothing():
    made, clock = ring(1, pause=5)
    late = made.take(0)
    assert made.take(0).throttled(None) == ("key1", 5)
    clock.time += 3
    assert late.throttled(None) is None
    assert made.retry_after == 2
    made.take(0).throttled(1.0)
    assert made.retry_after == 2, "a pause was shortened"
    assert made.take(0).throttled(4.0) == ("key1", 4)


def test_a_pause_lasts_an_hour_at_most_and_ends_by_hand():
    clock = HandClock()
    group = QuotaGroup("a", clock=clock)
    assert group.pause(1e9) == 3600
    assert repr(group) == "<QuotaGroup a paused for 3.6e+03 s>"
    group.resume()
    assert group.paused_for == 0
    assert repr(group) == "<QuotaGroup a>"


def test_a_group_shared_by_two_rings_pauses_both():
    clock = HandClock()
    account = QuotaGroup("account", clock=clock)
    one = KeyRing(1, quota_groups=[account], clock=clock)
    other = KeyRing(2, quota_groups=[account, None], clock=clock)
    one.take(0).throttled(30.0)
    assert other.order() == [1]


def test_an_equal_name_is_one_group_within_a_ring_alone():
    clock = HandClock()
    one, other = (KeyRing(1, quota_groups=["a"], clock=clock) for _ in range(2))
    one.take(0).throttled(30.0)
    assert other.usable(0)


def test_a_quarantine_ends_by_hand():
    made, _ = ring(2)
    late = made.take(0)
    made.take(0).refused()
    made.restore("key1")
    assert made.state()["key1"] == "usable"
    assert late.refused() is None  # begun before it was mended
    assert made.usable(0)
    made.take(0).throttled(60.0)
    made.restore("key1")
    assert made.usable(0)
    with pytest.raises(InvalidArgument, match="label: got 'key9'; allowed: key1, key2"):
        made.restore("key9")


def test_it_shows_labels():
    made, _ = ring(2)
    made.take(1).refused()
    assert repr(made) == "<KeyRing key1 usable, key2 quarantined>"
    assert KeyRing(["eu", "us"]).labels == ("eu", "us")


WRONG = {
    "no labels": ([], {}, "labels"),
    "none": (0, {}, "labels"),
    "one string": ("ab", {}, "labels"),
    "equal labels": (["a", "a"], {}, "labels"),
    "an empty label": ([" "], {}, "labels"),
    "too few groups": (2, {"quota_groups": ["a"]}, "quota_groups"),
    "a string of groups": (2, {"quota_groups": "ab"}, "quota_groups"),
    "a group of another kind": (1, {"quota_groups": [3]}, r"quota_groups\[0\]"),
    "quarantine": (1, {"quarantine": 0}, "quarantine"),
    "bound": (1, {"quarantine_at_most": -1}, "quarantine_at_most"),
    "pause": (1, {"pause": None}, "pause"),
}


@pytest.mark.parametrize("case", WRONG)
def test_options_out_of_range_are_refused(case):
    labels, options, field = WRONG[case]
    with pytest.raises(InvalidArgument, match=rf"{field}: got .*; allowed: "):
        KeyRing(labels, **options)


@pytest.mark.parametrize("name", ["", " ", None])
def test_a_group_has_a_name(name):
    with pytest.raises(InvalidArgument, match=r"name: got .*; allowed: "):
        QuotaGroup(name)


# ---- any interleaving -----------------------------------------------------------------------------------------------

GROUPS = ["a", "a", "b", None]


class Interleavings(RuleBasedStateMachine):
    """Calls begin and end in every way, in any order, while time passes; beside it a model by lists of times."""

    uses = Bundle("uses")

    def __init__(self) -> None:
        super().__init__()
        self.clock = HandClock()
        self.ring = KeyRing(4, quota_groups=GROUPS, quarantine=60, quarantine_at_most=200, pause=5, clock=self.clock)
        self.out: dict[KeyUse, tuple[int, float]] = {}
        self.until = [0.0] * 4
        self.row = [0] * 4
        self.changed = [0.0] * 4
        self.paused = dict.fromkeys(("a", "b", "key4"), 0.0)

    def group(self, place: int) -> str:
        return GROUPS[place] or "key4"

    def pending(self, place: int) -> int:
        return [at for at, _ in self.out.values()].count(place)

    def usable(self, place: int) -> bool:
        now = self.clock.time
        if self.paused[self.group(place)] > now:
            return False
        return not self.row[place] or (self.until[place] <= now and not self.pending(place))

    def quarantined(self, place: int) -> float:
        last = all(until > self.clock.time for other, until in enumerate(self.until) if other != place)
        seconds = min(200, (30 if last else 60) * 2 ** self.row[place])
        self.row[place] += 1
        self.until[place] = self.clock.time + seconds
        self.changed[place] = self.clock.time
        return seconds

    def settled(self, use: KeyUse) -> tuple[int, bool]:
        """The key's place, and whether nothing was decided about it since the call began."""
        place, started = self.out.pop(use)
        return place, started > self.changed[place]

    @rule(target=uses)
    def begin(self):
        places = self.ring.order()
        assert sorted(places) == [place for place in range(4) if self.usable(place)]
        assert [self.pending(place) for place in places] == sorted(self.pending(place) for place in places)
        if not places:
            return multiple()
        self.clock.time += 0.001  # so that begin and change are never at the same time
        use = self.ring.take(places[0])
        self.out[use] = (places[0], self.clock.time)
        return use

    @rule(use=uses)
    def accept(self, use):
        use.accepted()
        if use in self.out:
            place, started = self.out[use]
            if started > self.changed[place]:
                self.row[place] = 0

    @rule(use=consumes(uses))
    def refuse(self, use):
        self.clock.time += 0.001
        place, fresh = self.settled(use)
        assert use.refused() == (self.quarantined(place) if fresh else None)

    @rule(use=consumes(uses))
    def exhaust(self, use):
        self.clock.time += 0.001
        place, fresh = self.settled(use)
        told = use.exhausted()
        if not fresh:
            assert told == []
            return
        expected = [
            (f"key{other + 1}", self.quarantined(other))
            for other in range(4)
            if other == place or (self.group(other) == self.group(place) and self.until[other] <= self.clock.time)
        ]
        assert told == expected

    @rule(use=consumes(uses), seconds=st.none() | st.floats(0, 100))
    def throttle(self, use, seconds):
        place, _ = self.settled(use)
        name, now = self.group(place), self.clock.time
        before = self.paused[name]
        if seconds is not None or before <= now:
            self.paused[name] = max(before, now + (5 if seconds is None else seconds))
        told = use.throttled(seconds)
        if self.paused[name] > max(before, now):
            assert told == (name, pytest.approx(self.paused[name] - now))
        else:
            assert told is None

    @rule(use=consumes(uses))
    def end(self, use):
        self.out.pop(use)
        use.end()
        use.end()
        assert use.refused() is None
        assert use.throttled(10.0) is None

    @rule(seconds=st.floats(0.01, 90))
    def wait(self, seconds):
        self.clock.time += seconds

    @invariant()
    def calls_are_conserved(self):
        assert [key.pending for key in self.ring.keys] == [self.pending(place) for place in range(4)]

    @invariant()
    def it_tells_when_to_come_back(self):
        waits = [
            max(0.0, self.until[place] - self.clock.time, self.paused[self.group(place)] - self.clock.time)
            for place in range(4)
        ]
        assert self.ring.retry_after == pytest.approx(min(waits), abs=1e-6)
        assert self.ring.retry_after <= 200

    @invariant()
    def a_paused_or_quarantined_key_is_never_given_out(self):
        assert [self.ring.usable(place) for place in range(4)] == [self.usable(place) for place in range(4)]


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)

"""Limits of calls at once, in any interleaving of calls; Gradient2 against the steps of Netflix's source."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from llmprod import InvalidArgument
from llmprod.mechanisms.concurrency_limit import AIMDLimit, ConcurrencyLimit, FixedLimit, QueueLimit
from llmprod.mechanisms.gradient2 import Gradient2
from tests.mechanisms.test_circuit_breaker import HandClock


def fill(limit: ConcurrencyLimit) -> list:
    permits = []
    while (permit := limit.acquire()) is not None:
        permits.append(permit)
    return permits


def used(limit: ConcurrencyLimit, share: float = 1.0) -> list:
    return [limit.acquire() for _ in range(int(limit.limit * share))]


# ---- a fixed number -------------------------------------------------------------------------------------------------


def test_a_fixed_limit_gives_as_many_permits_and_takes_each_back_once():
    limit = FixedLimit(2)
    one, two = limit.acquire(), limit.acquire()
    assert limit.acquire() is None
    one.release()
    one.release()
    assert limit.in_flight == 1
    three = limit.acquire()
    assert limit.acquire() is None
    for permit in (two, three):
        permit.answered(1.0)
        permit.dropped()
        permit.release()
    assert (limit.in_flight, limit.limit) == (0, 2)


# ---- AIMD -----------------------------------------------------------------------------------------------------------


def test_aimd_grows_by_one_an_answer_while_half_of_it_is_used():
    limit = AIMDLimit(initial=10)
    permits = used(limit, 0.5)
    permits[3].answered()
    assert limit.limit == 10  # four under way as it began: less than half
    permits[4].answered()
    assert limit.limit == 11


def test_aimd_does_not_grow_by_answers_that_come_late():
    limit = AIMDLimit(initial=10, clock=HandClock())
    permit = used(limit)[-1]
    for number in range(40):
        permit.answered(0.5 + number % 4, whole=True)
    grown = limit.limit
    assert grown > 10  # lengths of answers differ: a quarter of them always counts
    limit = AIMDLimit(initial=10, maximum=10, clock=HandClock())
    permit = used(limit)[-1]
    for _ in range(40):
        permit.answered(0.5, whole=True)
    limit.maximum = 100
    permit.answered(2.1, whole=True)
    assert limit.limit == 10
    permit.answered(2.1)  # of first tokens nothing is known yet
    permit.answered(1.9, whole=True)
    assert limit.limit == 12


def test_a_deadline_that_passes_late_cuts_and_a_hasty_callers_does_not():
    limit = AIMDLimit(initial=10, maximum=10, clock=HandClock())
    permits = used(limit)
    permits[0].expired(9.0, whole=True)
    assert limit.limit == 10  # nothing is known
    for _ in range(20):
        permits[0].answered(0.5, whole=True)
    permits[0].expired(0.4, whole=True)
    assert limit.limit == 10
    permits[0].expired(9.0, whole=True)
    permits[1].expired(9.0, whole=True)
    assert limit.limit == 9
    fixed = FixedLimit(2)
    fixed.acquire().expired(9.0)
    assert fixed.limit == 2


def test_aimd_never_grows_beyond_its_maximum_nor_falls_below_its_minimum():
    limit = AIMDLimit(initial=10, minimum=4, maximum=12)
    permits = used(limit)
    for _ in range(10):
        permits[-1].answered()
    assert limit.limit == 12
    for permit in permits:
        permit.release()
    for _ in range(30):
        permit = limit.acquire()
        permit.dropped()
        permit.release()
    assert limit.limit == 4


def test_a_burst_of_refusals_cuts_once():
    limit = AIMDLimit(initial=100)
    burst = used(limit)
    for permit in burst:
        permit.dropped()
        permit.release()
    assert limit.limit == 90
    later = limit.acquire()
    later.dropped()
    assert limit.limit == 81


def test_a_released_permit_reports_nothing_more():
    limit = AIMDLimit(initial=2)
    permit = used(limit)[-1]
    permit.release()
    permit.answered()
    permit.dropped()
    assert (limit.limit, limit.in_flight) == (2, 1)


# ---- Gradient2 ------------------------------------------------------------------------------------------------------


class Netflix:
    """``Gradient2Limit._update`` and ``ExpAvgMeasurement``, step by step as they stand in the Java source."""

    def __init__(self, initial=20, minimum=20, maximum=200, queue=4, smoothing=0.2, window=600, tolerance=1.5):
        self.estimated = float(initial)
        self.min, self.max, self.queue, self.smoothing = minimum, maximum, queue, smoothing
        self.tolerance, self.window, self.warm_up = tolerance, window, 10
        self.value = self.sum = 0.0
        self.count = 0

    def add(self, sample):
        if self.count < self.warm_up:
            self.count += 1
            self.sum += sample
            self.value = self.sum / self.count
        else:
            factor = 2.0 / (self.window + 1)
            self.value = self.value * (1 - factor) + sample * factor
        return self.value

    def update(self, short, inflight):
        long = self.add(short)
        if long / short > 2:
            self.value = self.value * 0.95
        if inflight < self.estimated / 2:
            return int(self.estimated)
        gradient = max(0.5, min(1.0, self.tolerance * long / short))
        new = self.estimated * gradient + self.queue
        new = self.estimated * (1 - self.smoothing) + new * self.smoothing
        self.estimated = max(self.min, min(self.max, new))
        return int(self.estimated)


@given(
    samples=st.lists(st.tuples(st.floats(0.01, 30), st.integers(0, 200)), max_size=120),
    window=st.sampled_from([10, 50, 600]),
    queue=st.integers(1, 10),
    smoothing=st.floats(0.05, 1),
)
def test_gradient2_takes_netflixs_steps(samples, window, queue, smoothing):
    mine = Gradient2(long_window=window, queue=queue, smoothing=smoothing)
    theirs = Netflix(window=window, queue=queue, smoothing=smoothing)
    for seconds, in_flight in samples:
        mine._update(seconds, in_flight)
        assert mine.limit == theirs.update(seconds, in_flight)
        assert mine.usual == pytest.approx(theirs.value)


def full(limit: Gradient2, seconds: float, times: int) -> None:
    """Samples of a limit that is used to the full."""
    for _ in range(times):
        limit._update(seconds, limit.limit)


def test_a_sample_is_the_mean_over_a_second_and_ten_calls():
    clock = HandClock()
    limit = Gradient2(clock=clock, sample_window=1.0)
    permits = fill(limit)
    for number in range(30):
        permits[number % 10].answered(0.1 * (1 + number % 2))
    assert limit.usual is None  # thirty calls, but no second
    clock.time += 1
    permits[19].answered(0.15)
    assert limit.usual == pytest.approx(0.15)
    assert limit.limit == 20  # 20.8
    clock.time += 5
    for _ in range(9):
        permits[19].answered(0.15)
    assert limit._samples == 1
    permits[19].answered(0.15)
    assert limit._samples == 2
    assert limit.limit == 21  # 21.6


def test_a_sample_tells_of_the_most_that_was_under_way():
    clock = HandClock()
    limit = Gradient2(clock=clock)
    permits = fill(limit)
    clock.time += 1
    for permit in (permits[8], permits[9], *permits[:8]):
        permit.answered(0.1)
    assert limit._estimate == pytest.approx(20.8)  # ten of twenty are half
    clock.time += 1
    for permit in [permits[9]] * 10:
        permit.answered(0.1)
    assert limit._estimate == pytest.approx(20.8)  # ten of more than twenty are less


def test_gradient2_grows_while_first_tokens_come_as_usual_and_shrinks_when_they_come_late():
    limit = Gradient2()
    full(limit, 0.5, 50)
    grown = limit.limit
    assert grown == 60  # 20 + 50 * 0.2 * 4
    full(limit, 0.7, 10)
    assert limit.limit > grown  # within the tolerance
    full(limit, 3.0, 20)
    assert limit.limit < grown / 2
    full(limit, 3.0, 20)
    assert limit.limit == 20


def test_gradient2_learns_nothing_from_a_whole_answer_nor_while_it_is_not_used():
    clock = HandClock()
    limit = Gradient2(initial=40, clock=clock)
    for permit in fill(limit):
        clock.time += 1
        permit.answered(None)
        permit.answered(0.0)
    assert (limit.limit, limit.usual) == (40, None)
    for _ in range(50):
        limit._update(0.5, 19)
    assert limit.limit == 40
    assert limit.usual == pytest.approx(0.5)


def test_gradient2_forgets_an_overload_quickly():
    limit = Gradient2(long_window=600)
    full(limit, 10.0, 100)
    full(limit, 0.5, 60)
    assert limit.usual < 1.1  # a plain average over 600 samples would still say 8


def test_gradient2_queue_may_follow_the_limit():
    asked = []
    limit = Gradient2(queue=lambda now: asked.append(now) or max(4, now // 10))
    full(limit, 0.5, 1)
    assert (asked, limit.limit) == ([20], 20)
    limit = Gradient2(queue=lambda now: -50)
    full(limit, 0.5, 5)
    assert limit.limit == 20


def test_a_refusal_cuts_gradient2_and_is_no_sample():
    limit = Gradient2(initial=100)
    limit.acquire().dropped()
    assert (limit.limit, limit.usual) == (90, None)


# ---- the engine's queue ---------------------------------------------------------------------------------------------


class Engine:
    def __init__(self) -> None:
        self.waiting: float | Exception | None = 0
        self.cache: float | None = 0.1
        self.read = 0

    def queue(self) -> float | None:
        self.read += 1
        if isinstance(self.waiting, Exception):
            raise self.waiting
        return self.waiting


def queue_limit(**options) -> tuple[QueueLimit, Engine, HandClock]:
    engine, clock = Engine(), HandClock()
    settings = {"initial": 10, "cache_use": lambda: engine.cache, **options}
    return QueueLimit(engine.queue, clock=clock, **settings), engine, clock


def test_the_engine_is_read_once_an_interval():
    limit, engine, clock = queue_limit(interval=0.25)
    for _ in range(10):
        limit.acquire()
    assert engine.read == 1
    clock.time += 0.25
    assert limit.limit == 11  # all ten are used, none waits
    assert engine.read == 2
    assert limit.ask_again == 0.25


def test_a_queue_in_the_engine_cuts_and_waits_for_the_cut_to_work():
    limit, engine, clock = queue_limit()
    permits = fill(limit)
    engine.waiting = 3
    clock.time += 1
    assert limit.limit == 9
    clock.time += 1
    assert limit.limit == 9  # ten are still under way: the cut has not worked yet
    for permit in permits[:2]:
        permit.release()
    clock.time += 1
    assert limit.limit == 8
    engine.waiting = 0
    clock.time += 1
    assert limit.limit == 9


def test_it_does_not_grow_while_it_is_not_used():
    limit, _, clock = queue_limit()
    used(limit, 0.4)
    clock.time += 1
    assert limit.limit == 10


def test_a_full_cache_cuts_too_and_the_target_allows_some_waiting():
    limit, engine, clock = queue_limit(target=5, cache_at_most=0.9)
    engine.waiting = 5
    clock.time += 1
    assert limit.limit == 10
    engine.cache = 0.91
    clock.time += 1
    assert limit.limit == 9


@pytest.mark.parametrize("unknown", [None, float("nan"), RuntimeError("no metrics")], ids=["None", "nan", "raises"])
def test_an_unknown_reading_changes_nothing(unknown):
    limit, engine, clock = queue_limit()
    fill(limit)
    engine.waiting = unknown
    clock.time += 1
    assert limit.limit == 10


def test_a_refusal_cuts_it_but_an_answer_says_nothing():
    limit, *_ = queue_limit()
    permit = fill(limit)[-1]
    permit.answered(0.1)
    assert limit.limit == 10
    permit.dropped()
    assert limit.limit == 9


# ---- options --------------------------------------------------------------------------------------------------------


OUT_OF_RANGE = [
    (FixedLimit, "limit", {"limit": 0}),
    (FixedLimit, "limit", {"limit": True}),
    (AIMDLimit, "initial", {"initial": 0}),
    (AIMDLimit, "minimum", {"minimum": 0}),
    (AIMDLimit, "initial", {"minimum": 30}),
    (AIMDLimit, "initial", {"maximum": 10}),
    (AIMDLimit, "backoff", {"backoff": 1.0}),
    (Gradient2, "initial", {"initial": 10}),
    (Gradient2, "maximum", {"maximum": "200"}),
    (Gradient2, "queue", {"queue": 0}),
    (Gradient2, "smoothing", {"smoothing": 0}),
    (Gradient2, "sample_window", {"sample_window": 0}),
    (Gradient2, "long_window", {"long_window": 5}),
    (Gradient2, "tolerance", {"tolerance": 0.5}),
    (Gradient2, "backoff", {"backoff": 0.1}),
    (QueueLimit, "waiting", {"waiting": 3}),
    (QueueLimit, "cache_use", {"waiting": int, "cache_use": 0.5}),
    (QueueLimit, "target", {"waiting": int, "target": -1}),
    (QueueLimit, "cache_at_most", {"waiting": int, "cache_at_most": 2}),
    (QueueLimit, "interval", {"waiting": int, "interval": 0}),
]


@pytest.mark.parametrize(("kind", "field", "options"), OUT_OF_RANGE, ids=map(str, range(len(OUT_OF_RANGE))))
def test_options_out_of_range_are_refused(kind, field, options):
    with pytest.raises(InvalidArgument, match=rf"{field}: got .*; allowed: "):
        kind(**options)


# ---- any interleaving -----------------------------------------------------------------------------------------------


class Interleavings(RuleBasedStateMachine):
    """Calls begin, are answered, refused, and end in any order while time passes and the engine's queue moves."""

    permits = Bundle("permits")

    @initialize(kind=st.sampled_from(["fixed", "aimd", "gradient2", "queue"]))
    def begin_with(self, kind):
        self.clock, self.engine = HandClock(), Engine()
        self.bounds = (6, 6) if kind == "fixed" else (2, 12)
        bounds = {"initial": 6, "minimum": 2, "maximum": 12}
        self.limit: ConcurrencyLimit = {
            "fixed": lambda: FixedLimit(6),
            "aimd": lambda: AIMDLimit(**bounds),
            "gradient2": lambda: Gradient2(clock=self.clock, sample_window=0.1, **bounds),
            "queue": lambda: QueueLimit(
                self.engine.queue, cache_use=lambda: self.engine.cache, clock=self.clock, **bounds
            ),
        }[kind]()
        self.out = []

    @rule(target=permits)
    def acquire(self):
        room = self.limit.limit - len(self.out)
        permit = self.limit.acquire()
        assert (permit is not None) == (room > 0)
        if permit is None:
            return multiple()
        self.out.append(permit)
        assert permit.in_flight == len(self.out)
        return permit

    @rule(permit=permits, seconds=st.none() | st.floats(0.001, 60))
    def answered(self, permit, seconds):
        before = self.limit.limit
        permit.answered(seconds)
        if permit not in self.out:
            assert self.limit.limit == before

    @rule(permit=permits)
    def dropped(self, permit):
        before = self.limit.limit
        permit.dropped()
        assert self.limit.limit <= before
        after = self.limit.limit
        permit.dropped()
        assert self.limit.limit == after, "one refusal cut twice"

    @rule(permit=consumes(permits), again=st.booleans())
    def release(self, permit, again):
        permit.release()
        self.out.remove(permit)
        if again:
            permit.release()
            permit.answered(1.0)

    @rule(seconds=st.floats(0.01, 2), waiting=st.none() | st.integers(0, 5), cache=st.none() | st.floats(0, 1))
    def wait(self, seconds, waiting, cache):
        self.clock.time += seconds
        self.engine.waiting, self.engine.cache = waiting, cache

    @invariant()
    def permits_are_conserved(self):
        if hasattr(self, "limit"):
            assert self.limit.in_flight == len(self.out)

    @invariant()
    def the_limit_keeps_its_bounds(self):
        if hasattr(self, "limit"):
            least, most = self.bounds
            assert least <= self.limit.limit <= most

    def teardown(self):
        for permit in getattr(self, "out", []):
            permit.release()
        if hasattr(self, "limit"):
            assert self.limit.in_flight == 0


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)

"""Budgets: calendar windows, and accounts that never promise more than is left, in any interleaving."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from llmprod import InvalidArgument
from llmprod.mechanisms.budget import BudgetLimit, dollars, nano
from llmprod.mechanisms.budget_ledger import BudgetLedger
from llmprod.mechanisms.budget_store import Bound, Reserved, Short

# ---- money ----------------------------------------------------------------------------------------------------------


@given(st.decimals(min_value=0, max_value=10**6, allow_nan=False, allow_infinity=False, places=12))
def test_money_is_rounded_up_to_a_nano_dollar(money):
    whole = nano(money)
    assert 0 <= dollars(whole) - money < Decimal("1e-9")


@pytest.mark.parametrize("money", ["9007199.254740992", "1e30", "1E+300"])
def test_no_cost_is_more_than_a_store_can_count(money):
    assert nano(Decimal(money)) == 2**53 - 1


def test_dollars_are_written_plainly():
    assert [str(dollars(amount)) for amount in (0, 1, 10**9, 5 * 10**10, 1_500_000_000)] == [
        "0", "1E-9", "1", "50", "1.5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"amount": 0}, "amount"),
        ({"amount": "-1"}, "amount"),
        ({"amount": 1.5}, "amount"),
        ({"amount": True}, "amount"),
        ({"amount": "lots"}, "amount"),
        ({"amount": "Infinity"}, "amount"),
        ({"amount": 10_000_000}, "amount"),
        ({"amount": "0.0000000001"}, "amount"),
        ({"per": "week"}, "per"),
        ({"per": 0}, "per"),
        ({"by": ["user"]}, "by"),
        ({"by": ("",)}, "by"),
        ({"soft": 1.1}, "soft"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"timezone": None}, "timezone"),
        ({"name": 3}, "name"),
    ],
)
def test_wrong_options_are_named(options, field):
    with pytest.raises(InvalidArgument) as caught:
        BudgetLimit(**{"amount": 1, **options})
    assert caught.value.field == field


def test_it_says_what_it_is():
    assert repr(BudgetLimit("12.50", per="month", by=("tenant", "user"))) == "BudgetLimit($12.50/month, by tenant+user)"
    assert (BudgetLimit(1).name, BudgetLimit(1, per=90, by="user").name) == ("all/day", "user/90 s")
    assert BudgetLimit(3).amount == Decimal(3)


def test_an_account_is_that_of_its_tags_and_unreadable():
    limit = BudgetLimit(1, by=("user", "tenant"))
    keys = {
        limit.key(tags)
        for tags in ({"user": "a", "tenant": "b"}, {"user": "b", "tenant": "a"}, {"user": "ab"}, {"tenant": "ab"}, {})
    }
    assert len(keys) == 5
    assert limit.key({"user": "a", "other": "x"}) == limit.key({"user": "a"})
    assert "secret" not in limit.key({"user": "secret"})
    for end in ("\x1f", "1:", ":", ""):  # a name that its owner chose so as to spend another's money
        assert limit.key({"user": f"a{end}b", "tenant": "c"}) != limit.key({"user": "a", "tenant": f"b{end}c"})
    assert BudgetLimit(9, by=("user", "tenant")).key({}) == limit.key({}), "a limit that was raised keeps its account"
    assert BudgetLimit(1, by=("user", "tenant"), timezone="Asia/Tokyo").key({}) != limit.key({})


# ---- windows --------------------------------------------------------------------------------------------------------

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "America/Santiago", "America/Havana",
         "Australia/Lord_Howe", "Pacific/Apia", "Africa/Cairo", "Asia/Beirut"]  # fmt: skip
MOMENTS = st.floats(min_value=1.2e9, max_value=2.2e9)  # 2008 to 2039


@given(MOMENTS, st.sampled_from(ZONES), st.sampled_from(["minute", "hour", "day", "month", 7.5, 86400 * 7]))
def test_windows_tile_all_time(now, zone, per):
    limit = BudgetLimit(1, per=per, timezone=zone)
    window = limit.window(now)
    assert window.begins <= now < window.ends
    assert limit.window(window.begins) == window
    following = limit.window(window.ends)
    assert following.begins == window.ends
    assert limit.window(window.ends - 0.001) == window


@given(MOMENTS, st.sampled_from(ZONES), st.sampled_from(["day", "month"]))
def test_days_and_months_begin_where_the_calendar_turns(now, zone, per):
    limit = BudgetLimit(1, per=per, timezone=zone)
    place = ZoneInfo(zone)
    before, at = (datetime.fromtimestamp(limit.window(now).begins + step, place) for step in (-1, 0))
    assert (before.date() < at.date()) if per == "day" else ((before.year, before.month) < (at.year, at.month))


def test_the_day_of_a_clock_change_is_an_hour_longer_or_shorter():
    limit = BudgetLimit(1, timezone="Europe/Berlin")

    def hours(*day):
        window = limit.window(datetime(*day, 12, tzinfo=UTC).timestamp())
        return (window.ends - window.begins) / 3600

    assert [hours(2026, 3, 28), hours(2026, 3, 29), hours(2026, 10, 25)] == [24, 23, 25]
    # Chile skips midnight itself: its day begins at one o'clock.
    chile = BudgetLimit(1, timezone="America/Santiago")
    begins = chile.moment(chile.window(datetime(2024, 9, 8, 12, tzinfo=UTC).timestamp()).begins)
    assert (begins.day, begins.hour) == (8, 1)


def test_it_resets_in_its_own_time_zone():
    limit = BudgetLimit(1, per="month", timezone="Asia/Tokyo")
    ends = limit.moment(limit.window(datetime(2026, 1, 31, 14, tzinfo=UTC).timestamp()).ends)
    assert ends == datetime(2026, 2, 1, tzinfo=ZoneInfo("Asia/Tokyo"))
    assert ends.utcoffset() == timedelta(hours=9)


# ---- accounts -------------------------------------------------------------------------------------------------------


class Time:
    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 23, 59, tzinfo=UTC).timestamp()

    def __call__(self) -> float:
        return self.now


def bound(limit: BudgetLimit, **tags: str) -> Bound:
    return Bound(limit, limit.key(tags))


def ledger(**options) -> tuple[BudgetLedger, Time]:
    now = Time()
    return BudgetLedger(now=now, **options), now


def take(accounts: BudgetLedger, amount: int, *bounds: Bound) -> Reserved:
    got = accounts.reserve(bounds, amount)
    assert isinstance(got, Reserved)
    return got


def stands(accounts: BudgetLedger, *bounds: Bound) -> list[tuple[int, int]]:
    return [(level.spent, level.reserved) for level in accounts.levels(bounds)]


DAY = bound(BudgetLimit("0.000001"))  # a thousand nano-dollars
USER = bound(BudgetLimit("0.0000005", by="user", per="hour"), user="ann")


def test_all_limits_or_none():
    accounts, _ = ledger()
    take(accounts, 400, DAY, USER)
    got = accounts.reserve([DAY, USER], 200)
    assert isinstance(got, Short)
    assert (got.bound, got.level.reserved) == (1, 400)
    assert stands(accounts, DAY, USER) == [(0, 400), (0, 400)], "the refused call has taken something"
    take(accounts, 600, DAY)


def test_of_several_that_are_short_the_latest_to_begin_anew_is_told():
    accounts, now = ledger()
    now.now -= 7200
    take(accounts, 500, DAY, USER)
    for order in ([USER, DAY], [DAY, USER]):
        got = accounts.reserve(order, 501)
        assert isinstance(got, Short)
        assert order[got.bound] is DAY
        assert got.level.ends == now.now + 7260


def test_what_is_settled_counts_in_full():
    accounts, _ = ledger()
    one, other = take(accounts, 500, DAY), take(accounts, 500, DAY)
    accounts.settle(one, 700)
    accounts.settle(one, 700)  # a second time counts nothing
    accounts.cancel(one)
    assert stands(accounts, DAY) == [(700, 500)]
    accounts.cancel(other)
    assert stands(accounts, DAY) == [(700, 0)]
    assert isinstance(accounts.reserve([DAY], 301), Short)
    take(accounts, 300, DAY)


def test_nothing_always_has_room():
    accounts, _ = ledger()
    accounts.settle(take(accounts, 1000, DAY), 1200)
    take(accounts, 0, DAY)
    assert isinstance(accounts.reserve([DAY], 1), Short)


def test_a_reservation_is_charged_to_the_day_it_was_made_in():
    accounts, now = ledger()
    late = take(accounts, 900, DAY)
    now.now += 120
    assert stands(accounts, DAY) == [(0, 0)]
    take(accounts, 1000, DAY)
    accounts.settle(late, 900)
    assert stands(accounts, DAY) == [(0, 1000)]
    now.now -= 120
    assert stands(accounts, DAY) == [(900, 0)]


@pytest.mark.parametrize(("lapsed_is_spent", "then"), [(True, (600, 0)), (False, (0, 0))])
def test_a_lease_lapses_and_a_late_settlement_corrects_it(lapsed_is_spent, then):
    accounts, now = ledger(lease=10, lapsed_is_spent=lapsed_is_spent)
    now.now += 3600
    late = take(accounts, 600, DAY)
    quick = take(accounts, 100, DAY)
    accounts.settle(quick, 0)
    now.now += 9
    assert stands(accounts, DAY) == [(0, 600)]
    now.now += 1
    assert stands(accounts, DAY) == [then]
    assert accounts.open == 0
    accounts.settle(late, 250)
    accounts.settle(late, 250)
    assert stands(accounts, DAY) == [(250, 0)]


def test_windows_that_have_ended_are_forgotten():
    accounts, now = ledger(lease=1)
    minute = BudgetLimit(1, per="minute", by="user")
    for number in range(2000):
        got = take(accounts, 5, bound(minute, user=str(number)))
        if number % 2:
            accounts.settle(got, 3)
        now.now += 1
    assert len(accounts._accounts) < 600
    assert len(accounts._held) < 600


LIMITS = [BudgetLimit("0.000001"), BudgetLimit("0.0000006", per="minute", by="user"), BudgetLimit("0.000003", per=45)]
BOUNDS = st.lists(
    st.tuples(st.sampled_from(LIMITS), st.sampled_from("ab")).map(lambda pair: bound(pair[0], user=pair[1])),
    min_size=1, max_size=3, unique_by=lambda made: made.key,
)  # fmt: skip
AMOUNTS = st.integers(0, 700)


class Accounts(RuleBasedStateMachine):
    """Against a plain list of everything that was ever reserved."""

    made = Bundle("made")

    def __init__(self) -> None:
        super().__init__()
        self.ledger, self.now = ledger(lease=100.0)
        self.all: list[dict] = []

    def expected(self, one: Bound, now: float) -> tuple[int, int, int]:
        """What an account has spent, reserved, and spent beyond its reservations."""
        window = one.limit.window(now)
        spent = reserved = over = 0
        for entry in self.all:
            if (one.key, window.begins) in entry["accounts"]:
                if entry["actual"] is not None:
                    spent += entry["actual"]
                    over += max(0, entry["actual"] - entry["amount"])
                elif entry["until"] <= self.now.now:
                    spent += entry["amount"]
                else:
                    reserved += entry["amount"]
        return spent, reserved, over

    @rule(target=made, bounds=BOUNDS, amount=AMOUNTS)
    def reserve(self, bounds, amount):
        now = self.now.now
        before = [self.expected(one, now) for one in bounds]
        fits = all(
            not amount or spent + reserved + amount <= one.limit.nano
            for one, (spent, reserved, _) in zip(bounds, before, strict=True)
        )
        got = self.ledger.reserve(bounds, amount)
        assert isinstance(got, Reserved) is fits
        if isinstance(got, Short):
            assert got.level.spent + got.level.reserved + amount > bounds[got.bound].limit.nano
            return multiple()
        entry = {
            "amount": amount,
            "actual": None,
            "until": now + 100.0,
            "accounts": {(one.key, one.limit.window(now).begins) for one in bounds},
            "bounds": bounds,
        }
        self.all.append(entry)
        return got, entry

    @rule(one=consumes(made), actual=AMOUNTS)
    def settle(self, one, actual):
        got, entry = one
        self.ledger.settle(got, actual)
        if entry["actual"] is None:  # only the first end counts
            entry["actual"] = actual

    @rule(one=made)
    def cancel(self, one):
        got, entry = one
        self.ledger.cancel(got)
        if entry["actual"] is None:
            entry["actual"] = 0

    @rule(seconds=st.sampled_from([0.5, 10, 45, 60, 100, 3600]))
    def wait(self, seconds):
        self.now.now += seconds

    @invariant()
    def accounts_stand_as_they_should(self):
        now = self.now.now
        for limit in LIMITS:
            for user in "ab":
                one = bound(limit, user=user)
                spent, reserved, over = self.expected(one, now)
                assert stands(self.ledger, one) == [(spent, reserved)]
                assert spent + reserved <= limit.nano + over

    def teardown(self):
        for entry in self.all:
            entry["actual"] = entry["actual"] or 0
        self.now.now += 1000
        self.ledger.levels([DAY])
        assert self.ledger.open == 0
        assert all(not account.reserved for account in self.ledger._accounts.values())


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

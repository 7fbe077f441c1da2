"""KeyPool: what a failure says about a credential, and who is asked instead."""

import anyio
import pytest

from llmprod import (
    AuthenticationFailed,
    BadRequest,
    Breaker,
    BreakerOptions,
    CircuitBreaker,
    CircuitOpen,
    ConnectError,
    FirstTokenTimeout,
    InvalidArgument,
    KeyQuarantined,
    LoopClock,
    NoUsableKey,
    Overloaded,
    PermissionDenied,
    QuotaExhausted,
    QuotaPaused,
    RateLimited,
    RateLimitExceeded,
    ReadError,
    Retry,
    RetryBudget,
    ServerError,
    Static,
    StreamInterrupted,
)
from llmprod.mechanisms.key_ring import KeyRing, QuotaGroup
from llmprod.testing.scripted import HANG, Scripted
from llmprod.wrappers.balance import Balance
from llmprod.wrappers.failover import Failover
from llmprod.wrappers.key_pool import KeyPool
from tests.cancel_sweep import sweep
from tests.wrappers.helpers import EMBED, STREAM, WHOLE, Drawn, ask, context, states

REQUESTS = pytest.mark.parametrize("request_", [WHOLE, STREAM, EMBED], ids=["whole", "stream", "embed"])


def pool(*targets, **options) -> KeyPool:
    return KeyPool(*targets, **{"clock": LoopClock(), **options})


def key(*steps, then="Hi") -> Scripted:
    return Scripted(*steps, then=then, name="m")


def decisions(told, kind) -> list:
    return [decision.values() for decision in told.trace.decisions if isinstance(decision, kind)]


def pending(made: KeyPool) -> list[int]:
    return [key.pending for key in made.ring.keys]


@REQUESTS
async def test_calls_go_round(request_):
    one, other = key(), key()
    made = pool(one, other)
    for _ in range(4):
        assert (await ask(made, request_)).complete
    assert (one.calls, other.calls) == (2, 2)
    assert pending(made) == [0, 0]


async def test_the_key_with_fewer_calls_under_way_is_asked():
    one, other = key(["a", HANG]), key()
    made = pool(one, other)
    async with await made.send(STREAM, context()):
        for _ in range(3):
            await ask(made)
        assert pending(made) == [1, 0]
    assert (one.calls, other.calls) == (1, 3)
    assert pending(made) == [0, 0]


@REQUESTS
@pytest.mark.parametrize("error", [AuthenticationFailed(status=401), PermissionDenied(), QuotaExhausted()])
async def test_a_refused_key_is_quarantined_and_the_next_one_asked_at_once(error, request_):
    dead, good = key(error, then="back"), key()
    made = pool(dead, good)
    told = context()
    response = await (await made.send(request_, told)).read()
    assert response.timing.total == 0
    assert states(response) == ["failed", "ok"]
    assert decisions(told, KeyQuarantined) == [{"key": "key1", "seconds": 600.0, "error": type(error).__name__}]
    for _ in range(5):
        await ask(made)
    assert dead.calls == 1
    assert made.ready
    await anyio.sleep(601)
    for _ in range(2):
        await ask(made)
    assert dead.calls == 2
    assert made.ring.state() == {"key1": "usable", "key2": "usable"}


async def test_a_key_that_stays_dead_costs_one_attempt_a_quarantine():
    dead, good = key(then=AuthenticationFailed()), key()
    made = pool(dead, good)
    for seconds, calls in [(0, 1), (601, 2), (601, 2), (1201, 3), (3601, 4), (3601, 5)]:
        await anyio.sleep(seconds)
        for _ in range(3):
            assert (await ask(made)).text == "Hi"
        assert dead.calls == calls


async def test_an_account_without_credit_takes_its_other_keys_with_it():
    a1, a2, b = key(QuotaExhausted()), key(), key()
    made = pool(a1, a2, b, quota_groups=["a", "a", "b"], labels=["a1", "a2", "b1"])
    told = context()
    await made.send(WHOLE, told)
    assert [record["key"] for record in decisions(told, KeyQuarantined)] == ["a1", "a2"]
    assert (a2.calls, b.calls) == (0, 1)


async def test_a_throttled_account_is_left_alone_whichever_key_it_is():
    a1, a2, b = key(RateLimited(retry_after=20)), key(), key()
    made = pool(a1, a2, b, quota_groups=["a", "a", "b"])
    told = context()
    response = await made.send(WHOLE, told)
    assert states(response) == ["failed", "ok"]
    assert decisions(told, QuotaPaused) == [{"group": "a", "seconds": 20.0}]
    for _ in range(5):
        await ask(made)
    assert (a1.calls, a2.calls, b.calls) == (1, 0, 6)
    await anyio.sleep(20)
    for _ in range(3):
        await ask(made)
    assert a2.calls == 1


async def test_where_the_server_does_not_say_the_default_counts():
    one = key(RateLimited())
    made = pool(one, pause=5)
    with pytest.raises(NoUsableKey) as caught:
        await ask(made)
    assert caught.value.retry_after == 5
    assert isinstance(caught.value.__cause__, RateLimited)
    await anyio.sleep(5)
    await ask(made)


@REQUESTS
@pytest.mark.parametrize(
    "error", [ServerError(), Overloaded(retry_after=3), ReadError(), ConnectError(), FirstTokenTimeout(), BadRequest()]
)
async def test_what_is_not_the_keys_fault_is_raised_as_it_is(error, request_):
    one, other = key(error), key()
    made = pool(one, other)
    with pytest.raises(type(error)) as caught:
        await ask(made, request_)
    assert caught.value is error
    assert other.calls == 0
    assert made.ring.state() == {"key1": "usable", "key2": "usable"}
    assert pending(made) == [0, 0]


async def test_a_retry_outside_waits_as_long_as_the_quota_asks():
    one = key(RateLimited(retry_after=7))
    response = await ask(Retry(3)(pool(one)))
    assert response.text == "Hi"
    assert response.timing.total == pytest.approx(7.35)
    # … also where another call found it out
    one = key(RateLimited(retry_after=7))
    made = pool(one)
    with pytest.raises(NoUsableKey):
        await ask(made)
    response = await ask(Retry(3)(made))
    assert response.timing.total == pytest.approx(7.35)


async def test_a_retry_outside_does_not_wait_for_a_quarantine():
    made = pool(key(AuthenticationFailed()))
    for _ in range(2):
        told = context()
        with pytest.raises(NoUsableKey) as caught:
            await Retry(3)(made).send(WHOLE, told)
        assert told.elapsed == 0
        assert caught.value.refused
        assert caught.value.retry_after == 30


async def test_a_moment_of_refusing_good_keys_does_not_shut_them_all_off():
    """A provider whose own check of keys is broken refuses all of them with 401."""
    keys = [key(AuthenticationFailed()) for _ in range(3)]
    made = pool(*keys)
    with pytest.raises(NoUsableKey):
        await ask(made)
    await anyio.sleep(30)
    assert (await ask(made)).text == "Hi"
    await anyio.sleep(570)
    for _ in range(3):
        await ask(made)
    assert made.ring.state() == {"key1": "usable", "key2": "usable", "key3": "usable"}


async def test_a_failover_outside_moves_on():
    made = Failover(pool(key(AuthenticationFailed()), key(RateLimited(retry_after=9))), Static("fallback"))
    assert (await ask(made)).text == "fallback"


async def test_a_balance_outside_knows_beforehand():
    dead, good = pool(key(AuthenticationFailed())), key()
    made = Balance(dead, good, policy="weighted", weights=[1, 0], clock=LoopClock(), random=Drawn())
    assert states(await ask(made)) == ["failed", "skipped", "ok"]
    assert states(await ask(made)) == ["ok"]
    assert not dead.ready


async def test_when_none_is_usable_it_says_until_when_and_why():
    made = pool(key(AuthenticationFailed()), key(RateLimited(retry_after=30)), labels=["eu", "us"])
    told = context()
    with pytest.raises(NoUsableKey) as caught:
        await made.send(WHOLE, told)
    assert caught.value.retry_after == 30
    assert str(caught.value) == "m: no usable key (eu quarantined, us paused), retry after 30 s"
    assert [(entry.state, entry.error) for entry in told.trace.entries] == [
        ("failed", "AuthenticationFailed"),
        ("failed", "RateLimited"),
        ("skipped", "NoUsableKey"),
    ]
    await anyio.sleep(10)
    with pytest.raises(NoUsableKey) as caught:
        await ask(made)
    assert caught.value.retry_after == 20
    assert caught.value.__cause__ is None


async def test_each_further_key_needs_leave():
    refused = AuthenticationFailed()
    for options in ({"attempts_at_most": 1}, {"budget": RetryBudget(reserve=0, failover_ratio=0, clock=LoopClock())}):
        one, other = key(refused), key()
        with pytest.raises(AuthenticationFailed):
            await ask(Retry(3, **options)(pool(one, other)))
        assert other.calls == 0


async def test_ten_dead_keys_cost_no_more_than_the_cap():
    keys = [key(then=AuthenticationFailed()) for _ in range(10)]
    with pytest.raises(AuthenticationFailed):
        await ask(Retry(3)(pool(*keys)))
    assert sum(one.calls for one in keys) == 5


async def test_leave_comes_back_where_no_provider_was_asked():
    budget = RetryBudget(reserve=5, clock=LoopClock())
    limited = Static("x")
    full = CircuitBreaker(breaker=opened())(key())
    made = Retry(3, budget=budget)(pool(key(AuthenticationFailed()), full, key()))
    await ask(made)
    assert budget.balance() == pytest.approx(5 + 0.2 - 1)
    assert limited.free


def opened() -> Breaker:
    made = Breaker(BreakerOptions(consecutive_failures=1), clock=LoopClock(), random=Drawn())
    made.acquire().failure()
    return made


async def test_a_key_whose_own_limit_or_breaker_refuses_is_passed_over():
    limited, open_, good = key(then=RateLimitExceeded(retry_after=2)), CircuitBreaker(breaker=opened())(key()), key()
    made = pool(limited, open_, good)
    for _ in range(3):
        assert (await ask(made)).text == "Hi"
    assert good.calls == 3
    made = pool(limited, open_)
    with pytest.raises(RateLimitExceeded) as caught:  # the one that comes back first
        await ask(made)
    assert caught.value.retry_after == 2
    with pytest.raises(CircuitOpen):
        await ask(pool(CircuitBreaker(breaker=opened())(key())))


async def test_a_stream_that_is_throttled_midway_pauses_its_account():
    one, other = key(["Hel", RateLimited(retry_after=30)]), key()
    made = pool(one, other)
    told = context()
    with pytest.raises(StreamInterrupted):
        await (await made.send(STREAM, told)).read()
    assert decisions(told, QuotaPaused) == [{"group": "key1", "seconds": 30.0}]
    assert made.ring.state() == {"key1": "paused", "key2": "usable"}
    assert pending(made) == [0, 0]


async def test_many_calls_at_once_learn_of_a_dead_key_together():
    dead, good = key(then=[0.5, AuthenticationFailed()]), key(then=[0.5, "Hi"])
    made = pool(dead, good)
    tolds = [context() for _ in range(20)]
    async with anyio.create_task_group() as group:
        for told in tolds:
            group.start_soon(made.send, WHOLE, told)
    assert [record for told in tolds for record in decisions(told, KeyQuarantined)] == [
        {"key": "key1", "seconds": 600.0, "error": "AuthenticationFailed"}
    ]
    assert made.ring.retry_after == 0
    assert dead.calls == 10
    await anyio.sleep(600)
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(ask, made)
    assert dead.calls == 11  # one call tries it


async def test_no_storm_of_429s_on_a_throttled_account():
    throttled = key(then=[0.1, RateLimited(retry_after=10)])
    made = pool(throttled, pause=5)
    refused = 0
    for _ in range(100):
        with pytest.raises(NoUsableKey):
            await ask(made)
        await anyio.sleep(0.1)
        refused += 1
    assert throttled.calls <= 2
    assert refused == 100


# ---- state ----------------------------------------------------------------------------------------------------------


async def test_a_ring_is_shared_between_stacks():
    ring = KeyRing(2, clock=LoopClock())
    small = pool(key(AuthenticationFailed()), key(), ring=ring)
    large_dead, large_good = key(), key()
    large = pool(large_dead, large_good, ring=ring)
    await ask(small)
    for _ in range(3):
        await ask(large)
    assert (large_dead.calls, large_good.calls) == (0, 3)


async def test_an_account_shared_by_pools_pauses_them_all():
    account = QuotaGroup("account", clock=LoopClock())
    small = pool(key(RateLimited(retry_after=30)), quota_groups=[account])
    large = pool(key(), quota_groups=[account])
    for made in (small, large):
        with pytest.raises(NoUsableKey):
            await ask(made)
    await anyio.sleep(30)
    await ask(large)


async def test_keys_are_made_into_providers_and_never_shown():
    made_from = []

    def make(secret):
        made_from.append(secret)
        return key(AuthenticationFailed())

    made = KeyPool.of(make, ["sk-one", "sk-two"], labels=["eu", "us"], clock=LoopClock())
    assert made_from == ["sk-one", "sk-two"]
    told = context()
    with pytest.raises(NoUsableKey) as caught:
        await made.send(WHOLE, told)
    shown = [repr(made), repr(made.ring), str(caught.value), repr(caught.value), str(told.trace)]
    shown += [str(decision) for decision in told.trace.decisions]
    assert "sk-" not in "".join(shown)
    assert made.name == "m"
    assert repr(made) == "KeyPool(<Scripted m>, <Scripted m>)"


async def test_closing_closes_all():
    one, other = key(), key()
    await pool(one, other).aclose()
    assert (one.closed, other.closed) == (1, 1)


# ---- cancellation ---------------------------------------------------------------------------------------------------


@REQUESTS
async def test_cancelled_anywhere_it_gives_all_back(request_):
    def scenario():
        answer = [0.5, "Hel", 0.5, "lo"]
        keys = [key([0.5, AuthenticationFailed()]), key(RateLimited(retry_after=9)), key(then=answer)]
        made = pool(*keys)
        told = context()

        async def run():
            async with await made.send(request_, told) as response:
                await response.read()

        def check():
            assert [(one.in_flight, one.open_sources) for one in keys] == [(0, 0)] * 3
            assert pending(made) == [0, 0, 0]
            failed = [entry.error for entry in told.trace.entries if entry.state == "failed"]
            assert (made.ring.keys[0].refused > 0) == ("AuthenticationFailed" in failed)
            assert (made.ring.keys[1].group.paused_for > 0) == ("RateLimited" in failed)
            assert (made.ring.keys[2].refused, made.ring.keys[2].group.paused_for) == (0, 0)

        return run(), check

    assert await sweep(scenario) >= 4


async def test_a_cancelled_trial_leaves_room_for_another():
    dead = key(AuthenticationFailed(), HANG)
    made = pool(dead)
    with pytest.raises(NoUsableKey):
        await ask(made)
    await anyio.sleep(30)
    with anyio.move_on_after(1):
        await ask(made)
    assert made.ring.state() == {"key1": "trial"}
    await ask(made)
    assert made.ring.state() == {"key1": "usable"}


# ---- arguments ------------------------------------------------------------------------------------------------------

ONE, OTHER = key(), key()
WRONG = {
    "no target": ((), {}, "targets"),
    "no provider": (("sk-secret",), {}, "targets"),
    "the same twice": ((ONE, ONE), {}, "targets"),
    "too few labels": ((ONE, OTHER), {"labels": ["a"]}, "labels"),
    "equal labels": ((ONE, OTHER), {"labels": ["a", "a"]}, "labels"),
    "too few groups": ((ONE, OTHER), {"quota_groups": ["a"]}, "quota_groups"),
    "quarantine": ((ONE,), {"quarantine": 0}, "quarantine"),
    "pause": ((ONE,), {"pause": -1}, "pause"),
    "a ring of another size": ((ONE,), {"ring": KeyRing(2)}, "ring"),
    "a ring and labels": ((ONE,), {"ring": KeyRing(1), "labels": ["a"]}, "ring"),
    "no ring": ((ONE,), {"ring": "ring"}, "ring"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arguments_out_of_range_are_refused(case):
    targets, options, field = WRONG[case]
    with pytest.raises(InvalidArgument, match=rf"{field}: got .*; allowed: ") as caught:
        KeyPool(*targets, **options)
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "keys", ["sk-secret", [], ["sk-secret", "sk-secret"], None], ids=["one", "none", "twice", "what"]
)
def test_keys_that_are_none_are_refused_without_showing_them(keys):
    with pytest.raises(InvalidArgument, match=r"keys: got .*; allowed: ") as caught:
        KeyPool.of(lambda one: key(), keys)
    assert "sk-secret" not in str(caught.value)

"""One plan of attempts for a call: its cap, its deadline and the retry budget, for Retry and the routers alike."""

import anyio
import pytest

from llmprod import (
    AllTargetsFailed,
    AuthenticationFailed,
    CircuitBreaker,
    CircuitOpen,
    Deadline,
    Failover,
    InvalidArgument,
    LoopClock,
    Overloaded,
    RateLimited,
    Retry,
    ServerError,
    Static,
)
from llmprod.context import Context
from llmprod.decisions import AttemptRefused, LeastBadTried, RetryScheduled, TargetPaused
from llmprod.errors import Rejected
from llmprod.mechanisms.circuit_breaker import Breaker, BreakerOptions
from llmprod.mechanisms.retry_budget import RetryBudget
from llmprod.testing.scripted import HANG, Scripted
from llmprod.wrappers.hedge import Hedge
from tests.wrappers.helpers import EMBED, STREAM, WHOLE, Drawn, ask, context


class Refusing:
    """A target that refuses locally: no provider is asked."""

    name = "refusing"

    def __init__(self, provider: Scripted, *, first: int = 0) -> None:
        self.provider, self.capabilities, self.asked, self.first = provider, provider.capabilities, 0, first

    async def send(self, request, told):
        self.asked += 1
        if self.asked > self.first:
            raise Rejected(provider=self.name)
        return await self.provider.send(request, told)

    async def aclose(self) -> None: ...


def budget(reserve: int = 10, **options) -> RetryBudget:
    return RetryBudget(reserve=reserve, clock=LoopClock(), **options)


def left(made: RetryBudget) -> float:
    """What is left of the reserve, whatever calls there were."""
    return round(made.reserve - made._extra.total(anyio.current_time()), 6)


def opened(provider, *, seconds: float = 10.0):
    """``provider`` behind a breaker that is open; half of ``seconds`` and half of that half are to go."""
    breaker = Breaker(
        BreakerOptions(consecutive_failures=1, open_for=seconds, open_for_at_most=seconds, outage_share=None),
        clock=LoopClock(),
        random=Drawn(),
    )
    breaker.acquire().failure()
    return CircuitBreaker(breaker=breaker)(provider)


def refusals(told: Context) -> list[tuple[str, str]]:
    return [(item.kind, item.reason) for item in told.trace.decisions if isinstance(item, AttemptRefused)]


async def fails(stack, request=WHOLE, **options) -> Context:
    told = context(**options)
    with pytest.raises((AllTargetsFailed, Overloaded, RateLimited, ServerError, CircuitOpen, Rejected)):
        await (await stack.send(request, told)).read()
    return told


# ---- the cap ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [WHOLE, STREAM, EMBED], ids=["whole", "stream", "embed"])
async def test_no_call_makes_more_attempts_than_the_cap_over_all_targets(request_):
    targets = [Scripted(then=Overloaded(), name=name) for name in "abcd"]
    told = await fails(Retry(5, attempts_at_most=6)(Failover(*targets)), request_)
    assert sum(target.calls for target in targets) == 6
    assert told.call.attempts == 6
    assert refusals(told)[-1] == ("retry", "attempts")


async def test_the_cap_is_five_or_the_attempts_if_they_are_more():
    for attempts, expected in ((1, 3), (3, 5), (8, 8)):
        targets = [Scripted(then=Overloaded(), name=name) for name in "abc"]
        await fails(Retry(attempts, budget=budget(100))(Failover(*targets)))
        assert sum(target.calls for target in targets) == expected


async def test_a_failover_within_the_cap_is_told_as_refused():
    a, b = Scripted(then=Overloaded(), name="a"), Scripted(name="b")
    told = await fails(Retry(3, attempts_at_most=1)(Failover(a, b)))
    assert (a.calls, b.calls) == (1, 0)
    assert refusals(told) == [("failover", "attempts"), ("retry", "attempts")]


async def test_a_free_target_needs_no_leave():
    a = Scripted(then=Overloaded(), name="a")
    stack = Retry(1, attempts_at_most=1, budget=budget(0, ratio=0, failover_ratio=0))(Failover(a, Static("sorry")))
    told = context()
    response = await stack.send(WHOLE, told)
    assert response.text == "sorry"
    assert (told.call.attempts, refusals(told)) == (1, [])


# ---- the budget ------------------------------------------------------------------------------------------------------


async def test_the_budget_bounds_the_retries_of_many_calls_together():
    made = budget(2, ratio=0.0)
    provider = Scripted(then=ServerError())
    stack = Retry(5, budget=made)(provider)
    for _ in range(10):
        told = await fails(stack)
    assert provider.calls == 10 + 2
    assert refusals(told) == [("retry", "budget")]


async def test_a_shared_budget_is_one_for_all_stacks():
    made = budget(3, ratio=0.0)
    stacks = [Retry(5, budget=made)(Scripted(then=ServerError())) for _ in range(3)]
    for stack in stacks:
        await fails(stack)
    assert sum(stack.inner.calls for stack in stacks) == 3 + 3


async def test_stacks_of_one_retry_have_budgets_of_their_own():
    wrapper = Retry(3, clock=LoopClock())
    one, two = wrapper(Scripted()), wrapper(Scripted())
    assert one.budget is not two.budget


async def test_a_failover_is_paid_from_the_same_budget_by_its_wider_ratio():
    made = budget(0, ratio=0.0, failover_ratio=1.0)
    a, b = Scripted(then=Overloaded(), name="a"), Scripted(then="B", name="b")
    stack = Retry(3, budget=made)(Failover(a, b))
    for _ in range(4):
        assert (await ask(stack)).text == "B"
    assert made._extra.total(anyio.current_time()) == 4
    assert made.balance("failover") == made.balance("retry") == 0


async def test_without_a_retry_nothing_asks_for_leave():
    targets = [Scripted(then=Overloaded(), name=name) for name in "abcdefgh"]
    told = await fails(Failover(*targets))
    assert told.call.attempts == 8
    assert (told.call.cap, told.call.budget) == (None, None)


async def test_the_outer_retry_alone_opens_the_account():
    inner, outer = budget(5), budget(7)
    stack = Failover(Retry(2, budget=inner)(Scripted(then=ServerError())), clock=LoopClock())
    await fails(Retry(2, budget=outer)(stack))
    assert inner.balance() == 5
    assert left(outer) < 7


async def test_leave_is_given_back_for_a_round_in_which_no_provider_was_asked():
    made = budget()
    provider = Scripted(ServerError())
    stack = Retry(2, budget=made)(Refusing(provider, first=1))
    await fails(stack)
    assert provider.calls == 1
    assert left(made) == 10


async def test_a_first_attempt_took_no_leave_and_gives_none_back():
    # Every round is refused locally, with an error that may be retried: the budget must not grow by it.
    made = budget()
    paused = Scripted(RateLimited(retry_after=5), then="A", name="a")
    other = Scripted(then=RateLimited(retry_after=5), name="b")
    stack = Retry(2, budget=made)(Failover(paused, other, clock=LoopClock()))
    async with anyio.create_task_group() as group:
        group.start_soon(ask, stack)
        await anyio.sleep(1)
        taken = made._extra.total(anyio.current_time())
        with anyio.move_on_after(1):
            await ask(stack)  # both targets are paused: it waits, and no provider has been asked
        assert made._extra.total(anyio.current_time()) == taken
    assert made._extra.total(anyio.current_time()) == 2


async def test_a_failover_that_was_refused_locally_gives_its_leave_back():
    made = budget()
    a, b, c = Scripted(then=Overloaded(), name="a"), Scripted(name="b"), Scripted(then="C", name="c")
    assert (await ask(Retry(1, budget=made)(Failover(a, Refusing(b), c)))).text == "C"
    assert left(made) == 9


@pytest.mark.parametrize("where", ["waiting to retry", "second target"])
async def test_a_cancelled_further_attempt_that_reached_nobody_gives_its_leave_back(where):
    made = budget()

    class Queue(Refusing):
        async def send(self, request, told):
            await anyio.sleep_forever()

    if where == "waiting to retry":
        stack = Retry(3, budget=made)(Scripted(RateLimited(retry_after=30)))
    else:
        stack = Retry(1, budget=made)(Failover(Scripted(Overloaded(), name="a"), Queue(Scripted(name="b"))))
    with anyio.move_on_after(1) as scope:
        await ask(stack)
    assert scope.cancelled_caught
    assert left(made) == 10


async def test_a_cancelled_attempt_that_reached_its_provider_is_paid():
    made = budget()
    stack = Retry(3, budget=made)(Scripted(ServerError(), [HANG]))
    with anyio.move_on_after(5):
        await ask(stack)
    assert left(made) == 9


async def test_a_router_around_a_stack_that_was_refused_in_the_end_asks_for_leave():
    # The first target made an attempt of its own before its breaker opened: whatever is asked now is a further attempt.
    made = budget()
    provider, other = Scripted(ServerError(), name="a"), Scripted(then="B", name="b")
    breaker = CircuitBreaker(consecutive_failures=1, clock=LoopClock(), random=Drawn())
    told = context()
    told.call.budget = made
    response = await Failover(Retry(3)(breaker(provider)), other).send(WHOLE, told)
    assert (response.text, provider.calls) == ("B", 1)
    assert left(made) == 9  # the retry's leave came back, the failover's is taken


async def test_a_least_bad_that_is_a_further_attempt_asks_for_leave():
    for reserve, calls in ((1, 2), (2, 3)):
        made = budget(reserve, ratio=0.0, failover_ratio=0.0)
        provider = Scripted(then=ServerError(), name="a")
        breaker = CircuitBreaker(consecutive_failures=1, clock=LoopClock(), random=Drawn())
        tries = Retry(2, budget=made)(breaker(provider))  # the second round finds the breaker open and costs nothing
        with pytest.raises(AllTargetsFailed):
            await ask(Failover(tries, Static("sorry")), EMBED)
        assert provider.calls == calls
        assert left(made) == 0


@pytest.mark.parametrize("reserve", [0, 1])
async def test_a_hedge_takes_leave_even_where_the_primary_still_waits_in_line(reserve):
    class Queue(Refusing):
        async def send(self, request, told):
            await anyio.sleep(2)
            return await self.provider.send(request, told)

    made = budget(reserve, ratio=0.0, failover_ratio=0.0)
    a, b = Scripted(then=[5.0, "A"], name="a"), Scripted(then=[3.0, "B"], name="b")
    hedge = Hedge(delay=1.0, budget=1.0, clock=LoopClock())
    told = context()
    response = await Retry(1, budget=made)(hedge(Failover(Queue(a), b))).send(WHOLE, told)
    assert (a.calls, b.calls) == (1, reserve)
    assert response.text == "AB"[reserve]
    assert left(made) == 0
    assert refusals(told) == ([] if reserve else [("hedge", "budget")])


# ---- the deadline ----------------------------------------------------------------------------------------------------


async def seen(stack, provider, seconds: float, request) -> None:
    """Let twenty answers take ``seconds`` each, so that the stack knows how long one takes."""
    for _ in range(20):
        provider._steps.append([seconds, "Hi"])
        await ask(stack, request)


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_no_retry_that_takes_longer_than_is_left(request_):
    provider = Scripted()
    stack = Deadline(100)(Retry(3, clock=LoopClock())(provider))
    await seen(stack, provider, 2.0, request_)
    provider._steps += [ServerError()]
    began = anyio.current_time()
    told = await fails(stack, request_, seconds=2)  # a wait of 0.25 s, and an attempt of 2
    assert anyio.current_time() == began
    assert refusals(told) == [("retry", "deadline")]
    provider._steps += [ServerError(), "Hi"]
    assert (await ask(stack, request_, seconds=3)).text == "Hi"


async def test_no_failover_that_takes_longer_than_is_left():
    a, b = Scripted(then=Overloaded(), name="a"), Scripted(name="b")
    stack = Deadline(100)(Failover(a, b, clock=LoopClock()))
    await seen(stack, b, 2.0, WHOLE)
    told = await fails(stack, seconds=1.5)
    assert b.calls == 20
    assert refusals(told) == [("failover", "deadline")]


async def test_whole_answers_are_judged_by_their_quickest():
    provider = Scripted()
    stack = Deadline(1000)(Retry(3, clock=LoopClock())(provider))
    for seconds in (1.0, *[30.0] * 15):
        provider._steps.append([seconds, "Hi"])
    for _ in range(16):
        await ask(stack)
    provider._steps += [ServerError(), "Hi"]
    assert (await ask(stack, seconds=5)).text == "Hi"  # this one may be short


# ---- the least bad ---------------------------------------------------------------------------------------------------


async def test_where_every_breaker_is_open_the_one_nearest_to_recovery_is_asked():
    a, b = Scripted(then="A", name="a"), Scripted(then="B", name="b")
    told = context()
    response = await Failover(opened(a, seconds=20), opened(b, seconds=10)).send(WHOLE, told)
    assert response.text == "B"
    assert (a.calls, b.calls) == (0, 1)
    (decision,) = [item for item in told.trace.decisions if isinstance(item, LeastBadTried)]
    assert decision.target == "b"
    assert decision.retry_after == pytest.approx(7.5)


async def test_the_least_bad_is_not_asked_where_another_target_was():
    a, b = Scripted(name="a"), Scripted(then=Overloaded(), name="b")
    told = await fails(Failover(opened(a), b))
    assert (a.calls, b.calls) == (0, 1)
    assert not [item for item in told.trace.decisions if isinstance(item, LeastBadTried)]


async def test_the_least_bad_is_not_asked_where_one_asked_to_be_left_alone():
    a, b = Scripted(name="a"), Scripted(RateLimited(retry_after=30), name="b")
    stack = Failover(opened(a, seconds=1000), b, clock=LoopClock())
    await fails(stack)
    told = await fails(stack)
    assert (a.calls, b.calls) == (0, 1)
    assert not [item for item in told.trace.decisions if isinstance(item, LeastBadTried)]


async def test_one_target_with_an_open_breaker_stays_refused():
    a = Scripted(name="a")
    with pytest.raises(AllTargetsFailed) as caught:
        await ask(Failover(opened(a)))
    assert isinstance(caught.value.attempts[0][1], CircuitOpen)
    assert a.calls == 0


# ---- waits that a target asked for -----------------------------------------------------------------------------------


async def test_a_wait_that_one_call_was_asked_for_keeps_all_calls_away():
    a, b = Scripted(RateLimited(retry_after=30), then="A", name="a"), Scripted(then="B", name="b")
    stack = Failover(a, b, clock=LoopClock())
    told = context()
    assert (await stack.send(WHOLE, told)).text == "B"
    assert [(item.target, item.seconds) for item in told.trace.decisions if isinstance(item, TargetPaused)] == [
        ("a", 30)
    ]
    for _ in range(3):
        await anyio.sleep(9.99)
        assert (await ask(stack)).text == "B"
    await anyio.sleep(0.04)
    assert (await ask(stack)).text == "A"


async def test_a_pause_lasts_a_minute_at_most():
    a, b = Scripted(RateLimited(retry_after=3600), then="A", name="a"), Scripted(then="B", name="b")
    stack = Failover(a, b, clock=LoopClock())
    assert (await ask(stack)).text == "B"
    await anyio.sleep(59)
    assert (await ask(stack)).text == "B"
    await anyio.sleep(1.1)
    assert (await ask(stack)).text == "A"


async def test_a_shorter_wait_does_not_shorten_a_longer_one():
    # Two calls were under way together; the second to hear of it is asked for less.
    a = Scripted([0.1, RateLimited(retry_after=30)], [0.2, RateLimited(retry_after=1)], then="A", name="a")
    b = Scripted(then="B", name="b")
    stack = Failover(a, b, clock=LoopClock())
    async with anyio.create_task_group() as group:
        group.start_soon(ask, stack)
        group.start_soon(ask, stack)
    for _ in range(2):
        await anyio.sleep(10)
        assert (await ask(stack)).text == "B"
    await anyio.sleep(10)
    assert (await ask(stack)).text == "A"


async def test_a_lone_target_is_not_paused_for_other_calls():
    a = Scripted(RateLimited(retry_after=30), then="A", name="a")
    stack = Failover(a, clock=LoopClock())
    await fails(stack)
    assert (await ask(stack)).text == "A"


async def test_a_retry_waits_for_the_soonest_of_the_paused():
    a = Scripted(RateLimited(retry_after=30), then="A", name="a")
    b = Scripted(RateLimited(retry_after=5), then="B", name="b")
    stack = Retry(3, budget=budget())(Failover(a, b, clock=LoopClock()))
    told = context()
    assert (await stack.send(WHOLE, told)).text == "B"
    assert anyio.current_time() == pytest.approx(5.25)
    (decision,) = [item for item in told.trace.decisions if isinstance(item, RetryScheduled)]
    assert (decision.round, decision.delay, decision.error) == (2, pytest.approx(5.25), "AllTargetsFailed")


async def test_a_wait_longer_than_allowed_is_told():
    told = await fails(Retry(3, retry_after_at_most=10)(Scripted(RateLimited(retry_after=11))))
    assert refusals(told) == [("retry", "retry_after")]


# ---- left for the failover -------------------------------------------------------------------------------------------


async def test_a_preferred_target_gets_no_second_chance_just_before_the_deadline():
    for seconds, calls in ((1.9, [1, 1]), (10, [2, 0])):
        a, b = Scripted(ServerError(), then="A", name="a"), Scripted(then="B", name="b")
        await ask(Deadline(60)(Retry(3)(Failover(a, b))), seconds=seconds)
        assert [a.calls, b.calls] == calls


async def test_a_second_chance_that_the_plan_refuses_is_none_and_the_failure_is_told():
    a, b = Scripted(ServerError(), AuthenticationFailed(), name="a"), Scripted(then="B", name="b")
    made = budget(1, ratio=0.0, failover_ratio=1.0)
    assert (await ask(Retry(3, budget=made)(Failover(a, b)))).text == "B"
    assert (a.calls, b.calls) == (2, 1)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"attempts_at_most": 0}, "attempts_at_most"), ({"budget": 3}, "budget"), ({"retry_after_at_most": -1}, "retry")],
)
def test_bad_arguments(options, field):
    with pytest.raises(InvalidArgument, match=field):
        Retry(3, **options)

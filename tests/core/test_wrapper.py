"""Stacks: composition, order, description; and the context that travels through them."""

import warnings

import pytest

from llmprod import (
    AttemptTimeout,
    CircuitBreaker,
    Context,
    Deadline,
    DeadlineExceeded,
    Failover,
    LoopClock,
    Phase,
    Provider,
    Retry,
    Stack,
    StackOrderWarning,
    Static,
    describe,
    lint,
    standard,
)
from llmprod.testing.scripted import Scripted


def test_a_wrapped_provider_is_a_provider():
    inner = Scripted(name="a")
    wrapped = Stack(Deadline(), Retry(), CircuitBreaker(), AttemptTimeout())(inner)
    assert isinstance(wrapped, Provider)
    assert isinstance(Failover(wrapped, inner), Provider)
    assert (wrapped.name, wrapped.capabilities) == ("a", inner.capabilities)


async def test_closing_reaches_every_target():
    targets = [Scripted(name=name) for name in "abc"]
    await standard(targets[0], targets[1:]).aclose()
    assert [target.closed for target in targets] == [1, 1, 1]


async def test_one_target_that_fails_to_close_keeps_no_other_open():
    class Stuck(Scripted):
        async def aclose(self) -> None:
            raise OSError("close failed")

    last = Scripted(name="b")
    with pytest.raises(OSError, match="close failed"):
        await Failover(Stuck(), last).aclose()
    assert last.closed == 1


WRAPPERS = [Deadline(), Retry(), CircuitBreaker(), AttemptTimeout()]


@pytest.mark.parametrize("outer", range(4))
@pytest.mark.parametrize("inner", range(4))
def test_only_the_order_of_the_phases_passes(outer, inner):
    pair = (WRAPPERS[outer], WRAPPERS[inner])
    if outer < inner:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert lint(Stack(*pair)(Static("a"))) == []
        return
    if outer == inner and not isinstance(pair[0], Retry):
        return
    with pytest.warns(StackOrderWarning) as told:
        stack = Stack(*pair)
    assert len(told) == 1
    assert lint(stack(Static("a"))) == [str(told[0].message)]


def test_a_warning_tells_what_to_move():
    with pytest.warns(
        StackOrderWarning, match=r"AttemptTimeout\(.*\) stands outside Retry\(3 attempts\), but retry belongs"
    ):
        Stack(AttemptTimeout(), Retry())
    with pytest.warns(StackOrderWarning, match="their attempts multiply"):
        Stack(Retry(), Retry())


def test_lint_sees_through_a_failover_and_nested_stacks():
    inner = Stack(Stack(Retry(2)), AttemptTimeout())(Scripted(name="a"))
    findings = lint(Stack(Retry(3))(Failover(inner, Scripted(name="b"))))
    assert any("multiply" in finding for finding in findings)
    assert any("route" in finding for finding in findings)
    assert lint(standard(Scripted(name="a"), [Scripted(name="b")])) == []
    twice = Failover(Retry(2)(Scripted(name="a")), Retry(2)(Scripted(name="b")))
    assert any("route" in finding for finding in lint(twice))


def test_describe_draws_the_stack():
    stack = standard(Scripted(name="a"), [Scripted(name="b"), Static("Sorry")])
    assert describe(stack).splitlines() == [
        "Deadline(600 s)",
        "└─ Failover",
        "   ├─ Retry(3 attempts)",
        "   │  └─ Failover",
        "   │     ├─ CircuitBreaker(0.5 of >= 10 or 5 in a row)",
        "   │     │  └─ AttemptTimeout(connect=5 s, first_token=30 s, idle=20 s, total=auto)",
        "   │     │     └─ a",
        "   │     └─ CircuitBreaker(0.5 of >= 10 or 5 in a row)",
        "   │        └─ AttemptTimeout(connect=5 s, first_token=30 s, idle=20 s, total=auto)",
        "   │           └─ b",
        "   └─ static:answer",
    ]
    assert lint(stack) == []


def test_phases_stand_in_the_order_of_the_design():
    assert [phase.name for phase in sorted(Phase)] == [
        "TELEMETRY", "DEADLINE", "QUOTA", "INPUT_GUARD", "CACHE", "OUTPUT_GUARD", "MAX_TOKENS", "CONTEXT_WINDOW",
        "BUDGET", "RESUME", "RETRY", "HEDGE", "ROUTE", "LOAD_SHED", "RATE_LIMIT", "BULKHEAD", "CIRCUIT_BREAKER",
        "ATTEMPT_TIMEOUT", "VENDOR", "ATTEMPT_SPAN", "CHAOS",
    ]  # fmt: skip


class HandClock:
    time = 100.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


def test_a_deadline_is_absolute_and_only_tightens():
    clock = HandClock()
    context = Context.new(clock=clock, seconds=10)
    clock.time += 4
    assert (context.elapsed, context.remaining, context.deadline) == (4, 6, 110)
    assert context.within(60) is context
    assert context.within(2).remaining == 2
    assert context.within(2).call is context.call
    clock.time += 5.9
    context.check("a")
    clock.time += 0.1
    with pytest.raises(DeadlineExceeded, match="before asking a"):
        context.check("a")
    clock.time += 1
    assert context.remaining == pytest.approx(-1)


def test_without_a_deadline_nothing_runs_out():
    context = Context.new()
    assert context.remaining is None
    context.check("a")
    assert context.within(5).remaining == pytest.approx(5, abs=0.5)


async def test_the_loops_clock_follows_the_loop():
    clock = LoopClock()
    started = clock.now()
    await clock.sleep(3600)
    assert clock.now() - started == pytest.approx(3600)

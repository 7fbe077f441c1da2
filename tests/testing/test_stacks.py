"""assert_stack: what holds passes, what doesn't fails with words and a drawing."""

import pytest

from llmprod import (
    AsyncClient,
    AttemptTimeout,
    Breaker,
    BreakerOptions,
    CircuitBreaker,
    Client,
    Deadline,
    Failover,
    Retry,
    Stack,
    Static,
    resilient,
    standard,
)
from llmprod.testing import Scripted, assert_stack


@pytest.fixture
def stack():
    return standard(Scripted(name="a"), [Scripted(name="b"), Static("Sorry.")], attempts=2, deadline=30)


def fails(check, *words):
    with pytest.raises(AssertionError) as caught:
        check()
    told = str(caught.value)
    for word in words:
        assert word in told, told
    assert "Failover" in told  # the stack is drawn
    assert "└─" in told


def test_what_holds(stack):
    checks = assert_stack(stack)
    assert (
        checks.order("Deadline", "Retry", "Failover", "CircuitBreaker", "AttemptTimeout")
        .order(Deadline, AttemptTimeout)
        .order()
        .contains(Retry, attempts=2)
        .contains("Retry")
        .contains(Deadline, seconds=30)
        .contains(CircuitBreaker, consecutive_failures=5, failure_ratio=0.5)
        .contains("Scripted")
        .contains("a")
        .lacks("Hedge", "c")
        .around("a", "Retry", CircuitBreaker, AttemptTimeout)
        .around("static:answer", "Deadline")
        .around(Scripted, "Failover")
        .targets("a", "b", Static)
        .sound()
        is checks
    )
    assert repr(checks) == "<StackChecks of Deadline>"


def test_order_fails_readably(stack):
    fails(
        lambda: assert_stack(stack).order("Retry", "Deadline"),
        "no way through the stack meets Retry → Deadline in this order",
    )
    fails(lambda: assert_stack(stack).order(Retry, Retry), "Retry → Retry")
    fails(lambda: assert_stack(stack).order("Retry", "static:answer"), "Retry → static:answer")


def test_contains_fails_readably(stack):
    fails(lambda: assert_stack(stack).contains("Hedge"), "there is no Hedge")
    fails(lambda: assert_stack(stack).contains(Retry, attempts=3), "no Retry has attempts=3; there is attempts=2")
    fails(lambda: assert_stack(stack).contains(Retry, attemps=2), "no Retry has attemps=2; there is no option attemps")
    fails(lambda: assert_stack(stack).contains(CircuitBreaker, window=60, trials=9), "window=60.0, trials=3; window")


def test_options_must_all_be_one_parts():
    failover = Failover(Retry(2)(Scripted(name="a")), Retry(3, retry_after_at_most=9)(Scripted(name="b")))
    assert_stack(failover).contains(Retry, attempts=2).contains(Retry, attempts=3, retry_after_at_most=9)
    fails(lambda: assert_stack(failover).contains(Retry, attempts=2, retry_after_at_most=9), "attempts=2")


def test_lacks_around_and_targets_fail_readably(stack):
    fails(lambda: assert_stack(stack).lacks("Hedge", Retry), "there is a Retry")
    fails(lambda: assert_stack(stack).around("c", "Retry"), "there is no target c")
    fails(
        lambda: assert_stack(stack).around("static:answer", "Retry"),
        "expected Retry around static:answer; there is Deadline → Failover",
    )
    fails(lambda: assert_stack(stack).targets("a", "b"), "expected the targets a, b; there are a, b, static:answer")
    fails(lambda: assert_stack(stack).targets(), "expected the targets nothing; there are a")


def test_exactly():
    stack = Stack(Deadline(9), Retry(2))(Failover(Scripted(name="a"), Scripted(name="b")))
    assert_stack(stack).exactly("Deadline", "Retry", "Failover")
    fails(lambda: assert_stack(stack).exactly("Deadline", "Retry"), "there is Deadline → Retry → Failover")
    fails(lambda: assert_stack(stack).exactly("Retry", "Deadline", "Failover"), "around a")
    assert_stack(Scripted()).exactly()


def test_soundness():
    stack = Failover(Retry()(Deadline(5)(Scripted(name="a"))), Scripted(name="b"))
    fails(lambda: assert_stack(stack).sound(), "deadline belongs outside retry")


def test_a_shared_breaker_is_found_by_its_object():
    breaker = Breaker(BreakerOptions())
    failover = Failover(CircuitBreaker(breaker=breaker)(Scripted(name="a")), Scripted(name="b"))
    assert_stack(failover).contains(CircuitBreaker, breaker=breaker)


def test_subclasses_count_as_what_they_are():
    class Mine(Retry):
        pass

    assert_stack(Mine()(Scripted())).contains(Retry).contains("Mine").contains("Retry")


def test_clients_and_decorated_functions():
    @resilient(Retry(2))
    def ask(): ...

    assert_stack(ask).exactly("Retry").targets("ask")
    with Client(Scripted()) as client:
        assert_stack(client).order("Deadline", "Retry", "Scripted")
    assert_stack(AsyncClient(Scripted(), wrappers=[Retry()])).exactly(Retry)
    with pytest.raises(TypeError, match="got int"):
        assert_stack(3)

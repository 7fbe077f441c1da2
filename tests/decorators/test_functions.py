"""Functions, coroutine functions, generators and asynchronous generators behave alike under the wrappers."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import pickle

import pytest

import llmprod
from llmprod import (
    AllTargetsFailed,
    AttemptTimedOut,
    AttemptTimeout,
    CircuitBreaker,
    CircuitOpen,
    Deadline,
    DeadlineExceeded,
    FirstTokenTimeout,
    InvalidArgument,
    Retry,
    Stack,
    StreamInterrupted,
    capture,
    describe,
    resilient,
)
from tests.decorators.scripted import KINDS, Scripted, Wait, given, retry, use

pytestmark = pytest.mark.parametrize("kind", KINDS)
RESET = ConnectionResetError("the peer is gone")


def test_a_healthy_call_is_made_once_with_the_callers_arguments(kind):
    ask = Scripted(kind, ("a", "b"))
    assert use(kind, resilient(retry())(ask.function), "question", temperature=0) == given(kind, "a", "b")
    assert ask.calls == [(("question",), {"temperature": 0})]


def test_a_failure_before_the_first_item_is_retried_unseen(kind):
    ask = Scripted(kind, RESET, RESET, ("a", "b"))
    with capture() as calls:
        assert use(kind, resilient(retry())(ask.function)) == given(kind, "a", "b")
    (record,) = calls
    assert [attempt.state for attempt in record.trace.attempts] == ["failed", "failed", "ok"]
    assert [attempt.error for attempt in record.trace.attempts] == ["ReadError", "ReadError", None]
    assert record.error is None


@pytest.mark.parametrize("form", ["bare", "called"])
def test_without_wrappers_the_standard_stack_stands_around_it(kind, form):
    ask = Scripted(kind, ("a",))
    decorated = resilient(ask.function) if form == "bare" else resilient()(ask.function)
    assert use(kind, decorated) == given(kind, "a")
    names = [line.strip("└─ ").partition("(")[0] for line in describe(decorated.__llmprod__.provider).splitlines()]
    assert names == ["Deadline", "Retry", "CircuitBreaker", "AttemptTimeout", "ask"]


def test_the_applications_own_error_passes_untouched_and_is_not_retried(kind):
    own = ValueError("the application's")
    ask = Scripted(kind, own)
    with pytest.raises(ValueError, match="the application's") as caught:
        use(kind, resilient(retry())(ask.function))
    assert caught.value is own
    assert len(ask.calls) == 1
    assert not hasattr(own, "llmprod_trace")
    assert not hasattr(own, "__notes__")
    assert own.__context__ is None
    assert own.__cause__ is None


def test_the_original_error_is_raised_when_the_attempts_are_used_up(kind):
    ask = Scripted(kind, RESET)
    with capture() as calls, pytest.raises(ConnectionResetError) as caught:
        use(kind, resilient(retry())(ask.function))
    assert len(ask.calls) == 3
    assert len(caught.value.llmprod_trace) == 3
    assert calls[-1].error is caught.value
    assert calls[-1].response is None
    assert caught.value.__notes__[-1] == "llmprod: 3 attempts: ReadError, ReadError, ReadError"
    del caught.value.__notes__


def test_a_late_attempt_ends(kind):
    ask = Scripted(kind, (Wait(0.5), "late"), "in time")
    limit = AttemptTimeout(total=0.05)
    with pytest.raises((AttemptTimedOut, FirstTokenTimeout)) as caught:
        use(kind, resilient(limit)(ask.function))
    assert caught.value.trace.attempts[0].state == "failed"
    assert caught.value.provider == "ask"


def test_the_deadline_holds_over_attempts(kind):
    ask = Scripted(kind, (Wait(0.5), "late"))
    with pytest.raises(DeadlineExceeded):
        use(kind, resilient(Deadline(0.05), retry())(ask.function))


def test_a_fallback_answers(kind):
    primary, fallback = Scripted(kind, RESET), Scripted(kind, ("x", "y"))
    decorated = resilient(retry(), fallbacks=[fallback.function])(primary.function)
    with capture() as calls:
        assert use(kind, decorated, "q", n=1) == given(kind, "x", "y")
    assert fallback.calls == [(("q",), {"n": 1})]
    assert calls[-1].trace.attempts[-1].state == "ok"


def test_a_lambda_is_the_last_resort_of_every_kind(kind):
    decorated = resilient(retry(1), fallbacks=[lambda: "Sorry"])(Scripted(kind, RESET).function)
    assert use(kind, decorated) == given(kind, "Sorry")


def test_a_decorated_function_may_be_a_fallback(kind):
    inner = resilient(retry())(Scripted(kind, RESET, ("x",)).function)
    decorated = resilient(retry(1), fallbacks=[inner])(Scripted(kind, RESET).function)
    with capture() as calls:
        assert use(kind, decorated) == given(kind, "x")
    assert [len(record.trace.attempts) for record in calls] == [2, 2]


def test_all_fail(kind):
    decorated = resilient(retry(1), fallbacks=[Scripted(kind, TimeoutError()).function])(Scripted(kind, RESET).function)
    with pytest.raises(AllTargetsFailed) as caught:
        use(kind, decorated)
    assert [type(error).__name__ for _, error in caught.value.attempts] == ["ReadError", "CallTimeout"]


def test_wrappers_of_a_deployment_stand_around_each_target(kind):
    def other(*args):
        return None

    primary = Scripted(kind, "x").function
    decorated = resilient(Deadline(9), Stack(Retry(2), CircuitBreaker()), AttemptTimeout(), fallbacks=[other])(primary)
    names = [line.strip("└├│─ ").partition("(")[0] for line in describe(decorated.__llmprod__.provider).splitlines()]
    target = ["CircuitBreaker", "AttemptTimeout"]
    assert names == ["Deadline", "Retry", "Failover", *target, "ask", *target, "other"]


def test_the_breaker_remembers_over_calls(kind):
    ask = Scripted(kind, RESET)
    decorated = resilient(CircuitBreaker(consecutive_failures=2, open_for=60))(ask.function)
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            use(kind, decorated)
    with pytest.raises(CircuitOpen):
        use(kind, decorated)
    assert len(ask.calls) == 2


def test_a_verdict_of_the_applications_own(kind):
    def mine(error):
        if isinstance(error, KeyError):
            return llmprod.Verdict(action=llmprod.Action.RETRY_SAME)
        return llmprod.classify(error)

    ask = Scripted(kind, KeyError("later"), ("a",))
    decorated = resilient(Retry(2, backoff=llmprod.Backoff(base=0), classify=mine))(ask.function)
    assert use(kind, decorated) == given(kind, "a")


def test_a_stream_that_breaks_after_its_first_item_is_interrupted(kind):
    if "items" not in kind:
        pytest.skip("a value has no middle")
    ask = Scripted(kind, ("a", "b", RESET))
    with capture() as calls, pytest.raises(StreamInterrupted) as caught:
        use(kind, resilient(retry())(ask.function))
    assert caught.value.partial.text == "ab"
    assert len(ask.calls) == 1
    assert caught.value.trace.attempts[0].state == "interrupted"
    assert caught.value.__cause__.__cause__ is RESET
    assert calls[-1].text == "ab"
    assert isinstance(calls[-1].error, llmprod.ReadError)


def test_a_stream_raises_the_applications_own_error_untouched(kind):
    if "items" not in kind:
        pytest.skip("a value has no middle")
    own = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        use(kind, resilient(retry())(Scripted(kind, ("a", own)).function))
    assert caught.value is own


def test_what_a_function_is_stays_visible(kind):
    function = Scripted(kind, "x").function
    decorated = resilient()(function)
    assert decorated.__name__ == "ask"
    assert decorated.__wrapped__ is function
    assert inspect.signature(decorated) == inspect.signature(function)
    assert inspect.isfunction(decorated)
    assert asyncio.iscoroutinefunction(decorated) == (kind == "async")


def test_a_method_is_bound(kind):
    ask = Scripted(kind, RESET, ("a",))

    class Service:
        answer = resilient(retry())(ask.function)

    service = Service()
    assert use(kind, service.answer, "q") == given(kind, "a")
    assert ask.calls[-1] == ((service, "q"), {})


def test_class_and_static_methods(kind):
    ask = Scripted(kind, ("a",))

    class Service:
        of_class = resilient(retry())(classmethod(ask.function))
        of_none = resilient(staticmethod(ask.function))

    use(kind, Service.of_class, 1)
    use(kind, Service().of_none, 2)
    assert [args for args, _ in ask.calls] == [(Service, 1), (2,)]


def test_partials_and_callable_objects(kind):
    ask = Scripted(kind, ("a",))
    use(kind, resilient(retry())(functools.partial(ask.function, 1)), 2)

    class Asker:
        pass

    Asker.__call__ = ask.function  # type: ignore[method-assign]
    asker = Asker()
    decorated = resilient(retry())(asker)
    with capture() as calls:
        use(kind, decorated, 3)
    assert [args for args, _ in ask.calls] == [(1, 2), (asker, 3)]
    assert calls[-1].function == "Asker"


def test_a_name_of_its_own(kind):
    with capture() as calls:
        use(kind, resilient(retry(), name="primary")(Scripted(kind, ("a",)).function))
    assert calls[-1].trace.attempts[0].target == "primary"
    assert repr(calls[-1]) == "<CallRecord primary: 1 attempts, answered>"


def test_no_text_of_prompt_or_answer_is_shown(kind, caplog):
    caplog.set_level(logging.DEBUG)
    secret = "secret-prompt"
    with capture() as calls, pytest.raises((ConnectionError, llmprod.CallError)):
        use(kind, resilient(retry(2))(Scripted(kind, RESET).function), secret, key=secret)
    use(kind, resilient(retry(2))(Scripted(kind, ("secret-prompt",)).function), secret)
    shown = [repr(calls), str(calls[-1].trace), *RESET.__notes__, caplog.text]
    assert not any(secret in text for text in shown)
    RESET.__notes__.clear()


# ---- wrong arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decorate", "named"),
    [
        (lambda f: resilient(Retry)(f), r"wrappers: got the class Retry; allowed: wrappers such as Retry\(3\)"),
        (lambda f: resilient(3)(f), "wrappers: got int"),
        (lambda f: resilient(Retry(), f), "wrappers: got function"),
        (lambda f: resilient(Retry())(3), "function: got int"),
        (lambda f: resilient(Retry())(dict), "function: got the class dict"),
        (lambda f: resilient(fallbacks=["openai:gpt-5"])(f), r"fallbacks\[0\]: got str"),
        (lambda f: resilient(fallbacks="openai:gpt-5")(f), "fallbacks: got str; allowed: a list of functions"),
        (lambda f: resilient(fallbacks=[llmprod.Static("x")])(f), r"fallbacks\[0\]: got Static"),
        (lambda f: resilient(name="")(f), "name: got empty"),
        (lambda f: resilient(name=3)(f), "name: got int"),
    ],
)
def test_wrong_arguments_are_named_when_decorating(kind, decorate, named):
    with pytest.raises(InvalidArgument, match=named):
        decorate(Scripted(kind, "x").function)


def test_a_synchronous_function_has_synchronous_fallbacks(kind):
    async def other(): ...

    function = Scripted(kind, "x").function
    if kind.startswith("async"):
        resilient(fallbacks=[other])(function)
    else:
        with pytest.raises(InvalidArgument, match="an asynchronous function"):
            resilient(fallbacks=[other])(function)


def test_the_order_of_wrappers_is_checked(kind):
    with pytest.warns(llmprod.StackOrderWarning):
        resilient(AttemptTimeout(), Retry())(Scripted(kind, "x").function)


def test_errors_travel_between_processes(kind):
    with pytest.raises(AttemptTimedOut) as caught:
        use(kind, resilient(AttemptTimeout(total=0.02, first_token=None))(Scripted(kind, (Wait(0.2), "x")).function))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

"""Failover: the next target answers when one can't; verdicts decide, capabilities filter, waits hold."""

import anyio
import pytest

from llmprod import (
    Action,
    AllTargetsFailed,
    AttemptTimeout,
    AuthenticationFailed,
    BadRequest,
    Capabilities,
    CircuitOpen,
    ConnectError,
    ContentFiltered,
    ContextTooLong,
    Deadline,
    DeadlineExceeded,
    EmbedRequest,
    Failover,
    FirstTokenTimeout,
    GenerateRequest,
    NotFound,
    Overloaded,
    ProtocolError,
    RateLimited,
    ReadError,
    Retry,
    ServerError,
    Static,
    StreamInterrupted,
    TruncatedAnswer,
    UnsupportedParameter,
    Verdict,
    classify,
)
from llmprod.testing.scripted import HANG, Scripted
from tests.wrappers.helpers import HI, STREAM, WHOLE, ask, context


def targets(*scripts, **options) -> list[Scripted]:
    return [Scripted(*script, name=name, **options) for name, script in zip("abc", scripts, strict=False)]


def calls(*made: Scripted) -> list[int]:
    return [target.calls for target in made]


MOVES_ON = [
    RateLimited(),
    Overloaded(),
    NotFound(),
    AuthenticationFailed(),
    FirstTokenTimeout(),
    TruncatedAnswer(),
    ProtocolError(),
]


async def test_the_first_target_that_answers_does():
    a, b = targets(["A"], ["B"])
    response = await ask(Failover(a, b))
    assert (response.text, response.provider, calls(a, b)) == ("A", "a", [1, 0])


@pytest.mark.parametrize("error", MOVES_ON, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("around", [lambda p: p, Retry(3)], ids=["bare", "retry"])
async def test_throttling_cuts_and_timeouts_move_on_at_once(error, around):
    a, b = targets([error], ["B"])
    response = await ask(around(Failover(a, b)))
    assert (response.text, calls(a, b)) == ("B", [1, 1])
    assert anyio.current_time() == 0


@pytest.mark.parametrize(
    "error", [BadRequest(), ContentFiltered(), ValueError()], ids=lambda error: type(error).__name__
)
async def test_what_no_target_can_help_goes_to_the_caller(error):
    a, b = targets([error], ["B"])
    with pytest.raises(type(error)) as caught:
        await ask(Retry(3)(Failover(a, b)))
    assert caught.value is error
    assert calls(a, b) == [1, 0]


@pytest.mark.parametrize("error", [ServerError(), ConnectError(), ReadError()], ids=lambda error: type(error).__name__)
async def test_a_transient_failure_gives_the_preferred_target_a_second_chance_and_no_third(error):
    a, b = targets([error, "A"], [])
    assert (await ask(Retry(3)(Failover(a, b)))).text == "A"
    a, b = targets([error, error], ["B"])
    response = await ask(Retry(3)(Failover(a, b)))
    assert (response.text, calls(a, b)) == ("B", [2, 1])


async def test_without_a_retry_outside_there_is_no_second_chance():
    a, b = targets([ServerError()], ["B"])
    assert (await ask(Failover(a, b))).text == "B"
    a, b = targets([ServerError()], ["B"])
    assert (await ask(Retry(1)(Failover(a, b)))).text == "B"


async def test_a_500_that_asks_for_a_wait_moves_on():
    a, b = targets([ServerError(retry_after=3600)], ["B"])
    assert (await ask(Retry(3)(Failover(a, b)))).text == "B"
    assert anyio.current_time() == 0


async def test_a_cut_before_content_moves_on_and_one_after_it_is_told():
    a, b = targets([[ReadError(in_stream=True)]], ["B"])
    assert (await ask(Retry(3)(Failover(a, b)), STREAM)).text == "B"
    a, b = targets([["Hel", ReadError(in_stream=True)]], ["B"])
    response = await Retry(3)(Failover(a, b)).send(STREAM, context())
    with pytest.raises(StreamInterrupted):
        await response.read()
    assert calls(a, b) == [1, 0]


async def test_attempts_add_and_never_multiply():
    a, b, c = targets(*[[ServerError() for _ in range(9)]] * 3)
    with pytest.raises(AllTargetsFailed):
        await ask(Retry(3)(Failover(a, b, c)))
    assert sum(calls(a, b, c)) <= 3 * 3
    a, b = (Scripted(then=Overloaded(), name=name) for name in "ab")
    with pytest.raises(AllTargetsFailed):
        await ask(Retry(3)(Failover(a, b)))
    assert calls(a, b) == [3, 2]  # five in all, as in gRPC
    a, b = (Scripted(then=Overloaded(), name=name) for name in "ab")
    with pytest.raises(AllTargetsFailed):
        await ask(Retry(3, attempts_at_most=9)(Failover(a, b)))
    assert calls(a, b) == [3, 3]


async def test_a_silent_target_is_not_asked_again_in_the_call_but_in_the_next():
    a, b = targets([[HANG], "A"], [Overloaded(), Overloaded(), "B"])
    stack = Retry(3)(Failover(AttemptTimeout(first_token=10)(a), b))
    response = await ask(stack, STREAM)
    assert (response.text, calls(a, b)) == ("B", [1, 3])
    assert (await ask(stack, STREAM)).text == "A"


# ---- waits that were asked for --------------------------------------------------------------------------------------


async def test_a_target_that_asked_for_a_wait_is_left_alone_in_the_next_round():
    a, b = targets([RateLimited(retry_after=30)], [Overloaded(), "B"])
    response = await ask(Retry(3)(Failover(a, b)))
    assert (response.text, calls(a, b)) == ("B", [1, 2])
    told = [(entry.target, entry.state) for entry in response.trace.entries]
    assert told == [("a", "failed"), ("b", "failed"), ("a", "skipped"), ("b", "ok")]
    assert "asked for" in response.trace.entries[2].reason


async def test_when_all_ask_for_a_wait_the_shortest_is_waited_and_only_its_target_asked():
    a, b = targets([RateLimited(retry_after=30)], [RateLimited(retry_after=10), "B"])
    response = await ask(Retry(3)(Failover(a, b)))
    assert (response.text, calls(a, b)) == ("B", [1, 2])
    assert anyio.current_time() == pytest.approx(10.5)


async def test_after_its_wait_a_target_is_asked_again():
    a, b = targets([RateLimited(retry_after=5), "A"], [NotFound()])
    response = await ask(Retry(3)(Failover(a, b)))
    assert (response.text, calls(a, b)) == ("A", [2, 1])
    assert anyio.current_time() == pytest.approx(5.25)


async def test_when_all_ask_for_an_hour_nobody_sleeps():
    a, b = targets([RateLimited(retry_after=3600)], [Overloaded(retry_after=7200)])
    with pytest.raises(AllTargetsFailed) as caught:
        await ask(Retry(3)(Failover(a, b)))
    assert caught.value.retry_after == 3600
    assert anyio.current_time() == 0


# ---- who is asked at all --------------------------------------------------------------------------------------------


async def test_targets_that_lack_something_are_skipped_and_told():
    plain = Scripted(name="a", capabilities=Capabilities(parameters=Capabilities().parameters - {"seed"}))
    b = Scripted("B", name="b")
    response = await ask(Failover(plain, b), GenerateRequest(messages=HI, seed=0))
    assert (response.text, plain.calls) == ("B", 0)
    assert [(entry.state, entry.reason) for entry in response.trace.entries] == [
        ("skipped", "lacks seed"),
        ("ok", None),
    ]


async def test_when_all_lack_it_that_is_the_error():
    stack = Retry(3)(Failover(Scripted(capabilities=Capabilities()), Static("x")))
    with pytest.raises(AllTargetsFailed) as caught:
        await ask(stack, EmbedRequest(inputs=("a",)))
    assert [type(error) for _, error in caught.value.attempts] == [UnsupportedParameter] * 2
    assert caught.value.verdict.action is Action.RETRY_OTHER


async def test_dropping_what_is_unsupported_is_up_to_each_target():
    plain = Scripted("A", name="a", capabilities=Capabilities(parameters=Capabilities().parameters - {"seed"}))
    response = await ask(
        Failover(plain, Scripted(name="b")), GenerateRequest(messages=HI, seed=0, drop_unsupported=True)
    )
    assert (response.text, response.dropped) == ("A", ("seed",))


async def test_a_prompt_too_long_goes_only_to_larger_windows():
    def sized(name: str, window: int | None, *script) -> Scripted:
        return Scripted(*script, name=name, capabilities=Capabilities(context_window=window))

    a = sized("a", 8_000, ContextTooLong(provider="a"))
    same, unknown, larger = sized("b", 8_000), sized("c", None), sized("d", 32_000, "D")
    response = await ask(Failover(a, same, unknown, larger))
    assert (response.text, calls(a, same, unknown, larger)) == ("D", [1, 0, 0, 1])

    a, same = sized("a", 8_000, ContextTooLong(provider="a")), sized("b", 8_000)
    with pytest.raises(ContextTooLong) as caught:  # not a list of one
        await ask(Failover(a, same))
    assert caught.value.provider == "a"


async def test_a_refusal_here_is_no_attempt():
    a, b = targets([CircuitOpen(provider="a", retry_after=4)], ["B"])
    response = await ask(Failover(a, b))
    assert response.text == "B"


# ---- when all fail --------------------------------------------------------------------------------------------------


async def test_all_failed_lists_each_in_order_and_tells_whether_to_try_again():
    a, b, c = targets(
        [Overloaded(provider="a")], [AuthenticationFailed(provider="b")], [RateLimited(provider="c", retry_after=9)]
    )
    with pytest.raises(AllTargetsFailed) as caught:
        await ask(Failover(a, b, c))
    error = caught.value
    assert [(name, type(cause).__name__) for name, cause in error.attempts] == [
        ("a", "Overloaded"),
        ("b", "AuthenticationFailed"),
        ("c", "RateLimited"),
    ]
    assert classify(error).action is Action.RETRY_SAME
    assert (error.retry_after, classify(error).throttled) == (None, True)  # a may be asked sooner than c
    assert "a: overloaded" in str(error)
    assert "c: rate limited" in str(error)


async def test_when_none_may_be_asked_again_that_is_the_verdict():
    a, b = targets([AuthenticationFailed()], [NotFound()])
    with pytest.raises(AllTargetsFailed) as caught:
        await ask(Retry(3)(Failover(a, b)))
    assert caught.value.verdict.action is Action.RETRY_OTHER
    assert calls(a, b) == [1, 1]


async def test_the_last_resort_answers():
    a, b = targets([Overloaded()], [ConnectError()])
    response = await ask(Failover(a, b, Static("Come back later.")))
    assert (response.text, response.provider) == ("Come back later.", "static:answer")


async def test_no_further_target_is_asked_after_the_deadline():
    a, b = targets([[5.0, Overloaded()]], [])
    with pytest.raises(DeadlineExceeded):
        await ask(Failover(a, b), seconds=5)
    assert calls(a, b) == [1, 0]
    a, b = targets([[HANG]], [])
    with pytest.raises(DeadlineExceeded):
        await ask(Deadline(5)(Failover(a, b)), WHOLE)
    assert calls(a, b) == [1, 0]


async def test_a_classifier_of_ones_own_decides():
    def mine(error: BaseException) -> Verdict:
        return Verdict(action=Action.RETRY_OTHER) if isinstance(error, BadRequest) else classify(error)

    a, b = targets([BadRequest()], ["B"])
    assert (await ask(Failover(a, b, classify=mine))).text == "B"


async def test_a_cancellation_moves_nowhere():
    a, b = targets([[HANG]], ["B"])
    with anyio.move_on_after(1) as scope:
        await ask(Failover(a, b, classify=lambda _: Verdict(action=Action.RETRY_OTHER)))
    assert scope.cancelled_caught
    assert (calls(a, b), a.in_flight) == ([1, 0], 0)


def test_a_router_can_do_what_any_target_can():
    a = Scripted(capabilities=Capabilities(images=False, context_window=1000))
    b = Scripted(capabilities=Capabilities(embeddings=True))
    assert Failover(a, b).capabilities == Capabilities(embeddings=True, context_window=1000)
    assert Failover(a, b).name == "scripted | scripted"

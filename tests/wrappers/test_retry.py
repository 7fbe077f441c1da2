"""Retry: what may pass is asked again, never sooner than the server asked, never once content was shown."""

import random
import subprocess
import sys

import anyio
import pytest
from tenacity import wait_fixed

from llmprod import (
    Action,
    AuthenticationFailed,
    Backoff,
    BadRequest,
    ConnectError,
    FirstTokenTimeout,
    Overloaded,
    RateLimited,
    ReadError,
    Retry,
    ServerError,
    StreamInterrupted,
    Verdict,
    classify,
)
from llmprod.events import Start
from llmprod.mechanisms.retry_budget import RetryBudget
from llmprod.testing.scripted import HANG, Scripted
from tests.wrappers.helpers import STREAM, WHOLE, Drawn, ask, context


async def test_what_may_pass_is_asked_again():
    provider = Scripted(ServerError(), ConnectError(), "Hi")
    response = await ask(Retry(3)(provider))
    assert (response.text, provider.calls) == ("Hi", 3)
    # Half of the bounds 0.5 and 1.
    assert anyio.current_time() == pytest.approx(0.25 + 0.5)
    assert [entry.wait for entry in response.trace.entries] == pytest.approx([0, 0.25, 0.5])


async def test_throttling_backs_off_longer():
    await ask(Retry(3)(Scripted(RateLimited(), Overloaded(), "Hi")))
    assert anyio.current_time() == pytest.approx(0.5 + 1)


async def test_the_last_error_is_raised_as_it_is():
    errors = [ServerError(status=500), ServerError(status=502), ServerError(status=503)]
    provider = Scripted(*errors)
    with pytest.raises(ServerError) as caught:
        await ask(Retry(3)(provider))
    assert caught.value is errors[2]
    assert provider.calls == 3


@pytest.mark.parametrize("error", [BadRequest(), AuthenticationFailed(), FirstTokenTimeout(), ValueError()])
async def test_what_will_not_pass_is_not_repeated(error):
    provider = Scripted(error)
    with pytest.raises(type(error)):
        await ask(Retry(3)(provider))
    assert provider.calls == 1
    assert anyio.current_time() == 0


async def test_one_attempt_is_no_retry():
    provider = Scripted(ServerError())
    with pytest.raises(ServerError):
        await ask(Retry(1)(provider))
    assert provider.calls == 1


@pytest.mark.parametrize("drawn", [0.0, 0.5, 1 - 2**-53])
async def test_retry_after_is_waited_in_full_and_never_shortened(drawn):
    provider = Scripted(RateLimited(retry_after=7), "Hi")
    await ask(Retry(2)(provider), random=Drawn(drawn))
    assert anyio.current_time() == pytest.approx(7 + 0.7 * drawn)  # not all at one moment


async def test_those_who_were_told_to_wait_come_back_one_by_one():
    calls = [Scripted(RateLimited(retry_after=600), "Hi") for _ in range(50)]
    chance = random.Random(3)
    ended: list[float] = []

    async def one(provider: Scripted) -> None:
        await ask(Retry(2, retry_after_at_most=600)(provider), random=chance)
        ended.append(anyio.current_time())

    async with anyio.create_task_group() as group:
        for provider in calls:
            group.start_soon(one, provider)
    assert 600 <= min(ended) < 601
    assert 604 < max(ended) <= 605
    assert len({round(time, 3) for time in ended}) > 40


async def test_backoff_longer_than_retry_after_stands():
    await ask(Retry(2, backoff=Backoff(throttle_base=20))(Scripted(RateLimited(retry_after=7), "Hi")))
    assert anyio.current_time() == pytest.approx(10)


async def test_a_longer_wait_than_allowed_is_none():
    provider = Scripted(RateLimited(retry_after=3600))
    with pytest.raises(RateLimited) as caught:
        await ask(Retry(5)(provider))
    assert caught.value.retry_after == 3600
    assert provider.calls == 1
    assert anyio.current_time() == 0
    await ask(Retry(2, retry_after_at_most=3600)(Scripted(RateLimited(retry_after=3600), "Hi")))
    assert anyio.current_time() == pytest.approx(3602.5)


async def test_a_later_wait_that_is_too_long_ends_it_too():
    provider = Scripted(ServerError(), RateLimited(retry_after=3600))
    with pytest.raises(RateLimited):
        await ask(Retry(5)(provider))
    assert provider.calls == 2


async def test_no_wait_that_would_end_after_the_deadline():
    provider = Scripted([4.0, RateLimited(retry_after=7)])
    with pytest.raises(RateLimited):
        await ask(Retry(3)(provider), seconds=10)
    assert anyio.current_time() == pytest.approx(4)
    provider = Scripted(RateLimited(retry_after=7), "Hi")
    assert (await ask(Retry(3)(provider), seconds=10)).text == "Hi"


async def test_tenacitys_waits_are_understood_and_retry_after_stands_above_them():
    await ask(Retry(2, wait=wait_fixed(3))(Scripted(ServerError(), "Hi")))
    assert anyio.current_time() == pytest.approx(3)
    await ask(Retry(2, wait=wait_fixed(3))(Scripted(RateLimited(retry_after=10), "Hi")))
    assert anyio.current_time() == pytest.approx(13.5)


async def test_a_classifier_of_ones_own():
    def mine(error: BaseException) -> Verdict:
        return Verdict(action=Action.RETRY_SAME) if isinstance(error, KeyError) else classify(error)

    assert (await ask(Retry(2, classify=mine)(Scripted(KeyError(), "Hi")))).text == "Hi"


async def test_no_classifier_can_swallow_a_cancellation():
    provider = Scripted(ServerError(), then=[HANG])
    retry = Retry(5, classify=lambda _: Verdict(action=Action.RETRY_SAME))
    with anyio.move_on_after(10) as scope:
        await ask(retry(provider))
    assert scope.cancelled_caught
    assert provider.calls == 2
    assert provider.in_flight == 0
    with anyio.move_on_after(0.1) as scope:  # while it waits
        await ask(retry(Scripted(RateLimited(retry_after=5))))
    assert scope.cancelled_caught


# ---- streams --------------------------------------------------------------------------------------------------------


async def test_a_stream_that_fails_before_content_is_retried_unseen():
    provider = Scripted([Start("first"), 1.0, ReadError(in_stream=True)], ["Hel", "lo"])
    response = await ask(Retry(2)(provider), STREAM)
    assert (response.text, provider.calls) == ("Hello", 2)
    assert [entry.state for entry in response.trace.entries] == ["failed", "ok"]
    assert provider.open_sources == 0


async def test_a_stream_that_fails_after_content_is_not():
    provider = Scripted(["Hel", ReadError(in_stream=True)], "unreached")
    response = await Retry(3)(provider).send(STREAM, context())
    with pytest.raises(StreamInterrupted) as caught:
        await response.read()
    assert caught.value.partial_text == "Hel"
    assert provider.calls == 1


# ---- tenacity, caged ------------------------------------------------------------------------------------------------


async def test_concurrent_calls_share_nothing():
    count = 50
    seen: list[str] = []

    async def flaky(request, told):
        key = told.tags["n"]
        attempts[key] = attempts.get(key, 0) + 1
        await anyio.sleep(0.01)
        if attempts[key] < 3:
            raise ServerError
        return await Scripted(key).send(request, told)

    attempts: dict[str, int] = {}
    provider = Retry(3, budget=RetryBudget(reserve=2 * count))(Scripted(then=flaky))

    async def one(number: int) -> None:
        response = await ask(provider, tags={"n": str(number)})
        assert response.text == str(number)
        seen.append(response.text)

    async with anyio.create_task_group() as group:
        for number in range(count):
            group.start_soon(one, number)
    assert sorted(map(int, seen)) == list(range(count))
    assert set(attempts.values()) == {3}


def test_a_call_that_succeeds_does_not_even_import_tenacity():
    code = """
import sys, anyio
from llmprod import Context, GenerateRequest, Message, Retry, ServerError
from llmprod.testing.scripted import Scripted
request = GenerateRequest(messages=(Message.user("Hi"),))
anyio.run(Retry()(Scripted("Hi")).send, request, Context.new())
assert "tenacity" not in sys.modules
anyio.run(Retry(2, wait=lambda _: 0)(Scripted(ServerError(), "Hi")).send, request, Context.new())
assert "tenacity" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_the_number_of_attempts_is_the_number_of_calls():
    for attempts in range(1, 6):
        provider = Scripted(then=ServerError())
        with pytest.raises(ServerError):
            await ask(Retry(attempts)(provider), WHOLE)
        assert provider.calls == attempts

"""ServiceTier: what is asked for, and what becomes of a tier without room."""

from typing import Any

import anyio
import httpx
import pytest

from llmprod import (
    Anthropic,
    CircuitBreaker,
    EmbedRequest,
    GenerateRequest,
    Google,
    InvalidArgument,
    LoopClock,
    Message,
    OpenAI,
    OpenAICompatible,
    RateLimited,
    Retry,
)
from llmprod.decisions import AttemptRefused, TierGivenUp
from llmprod.wrapper import Phase
from llmprod.wrappers.service_tier import ServiceTier
from tests.wrappers.helpers import context
from tests.wrappers.vendors import AnthropicVendor, GoogleVendor, OpenAIVendor, Vendor

FULL = {"error": {"message": "Resource unavailable", "type": "resource_unavailable", "code": "resource_unavailable"}}
LIMIT = {"error": {"message": "Slow down", "type": "requests", "code": "rate_limit_exceeded"}}
UNKNOWN = {"error": {"message": "no flex", "type": "invalid_request_error", "param": "service_tier", "code": None}}
WHOLE = GenerateRequest(messages=(Message.user("Hi"),))


def tier(*args: Any, **options: Any) -> ServiceTier:
    return ServiceTier(*args, **{"clock": LoopClock(), **options})


def openai(vendor: Vendor, **options: Any) -> OpenAI:
    return OpenAI("gpt-5.6", api_key="k", http=vendor.http(), **options)


async def send(provider: Any, request: Any = WHOLE, **options: Any) -> Any:
    return await (await provider.send(request, context(**options))).read()


def asked(vendor: Vendor, field: str = "service_tier") -> list[Any]:
    return [body.get(field) for body in vendor.bodies]


def given_up(response: Any) -> list[Any]:
    return [(one.tries, one.reason) for one in response.trace.decisions if isinstance(one, TierGivenUp)]


@pytest.mark.parametrize(
    ("wanted", "openai_", "google_", "anthropic_"),
    [
        ("standard", "default", "standard", "standard_only"),
        ("flex", "flex", "flex", None),
        ("priority", "priority", "priority", "auto"),
        ("auto", None, None, None),
    ],
)
async def test_what_each_calls_it(wanted: str, openai_: Any, google_: Any, anthropic_: Any) -> None:
    one, two, three = OpenAIVendor(breakpoints=True), GoogleVendor(), AnthropicVendor()
    await send(tier(wanted)(openai(one)))
    await send(tier(wanted)(Google("gemini-3-flash", api_key="k", http=two.http())))
    await send(tier(wanted)(Anthropic("claude-opus-5-5", api_key="k", http=three.http())))
    assert (asked(one), asked(two, "serviceTier"), asked(three)) == ([openai_], [google_], [anthropic_])


@pytest.mark.parametrize(("seconds", "expected"), [(None, None), (899, None), (900, "flex"), (86400, "flex")])
async def test_auto_takes_flex_where_the_deadline_leaves_room(seconds: float | None, expected: str | None) -> None:
    vendor = OpenAIVendor(breakpoints=True)
    await send(tier()(openai(vendor)), seconds=seconds)
    assert asked(vendor) == [expected]


async def test_what_the_request_says_and_others_are_left_alone() -> None:
    vendor = OpenAIVendor(breakpoints=True)
    own = GenerateRequest(messages=WHOLE.messages, extra={"openai": {"service_tier": "priority"}})
    await send(tier("flex")(openai(vendor)), own)
    other = OpenAICompatible("m", base_url="http://x/v1", http=vendor.http())
    await send(tier("flex")(other))
    assert asked(vendor) == ["priority", None]
    kept = GenerateRequest(messages=WHOLE.messages, extra={"openai": {"store": True}})
    await send(tier("priority")(openai(vendor)), kept)
    assert (vendor.bodies[-1]["store"], vendor.bodies[-1]["service_tier"]) == (True, "priority")


async def test_no_room_means_a_few_tries_and_then_the_standard_tier() -> None:
    vendor = OpenAIVendor(breakpoints=True)
    vendor.failures = [httpx.Response(429, json=FULL)] * 3
    provider = tier("flex", flex_tries=3)(openai(vendor))
    started = anyio.current_time()
    response = await send(provider)
    assert asked(vendor) == ["flex"] * 3 + ["default"]
    assert given_up(response) == [(3, "no capacity")]
    assert anyio.current_time() - started == 0.5 * 1 + 0.5 * 2  # half of each backoff's bound
    await send(provider)  # for a minute nobody asks again
    assert asked(vendor)[-1] == "default"
    await anyio.sleep(61)
    await send(provider)
    assert asked(vendor)[-1] == "flex"


async def test_room_at_the_second_try() -> None:
    vendor = OpenAIVendor(breakpoints=True)
    vendor.failures = [httpx.Response(503, json=FULL, headers={"retry-after": "7"})]
    started = anyio.current_time()
    response = await send(tier("flex")(openai(vendor)))
    assert (asked(vendor), given_up(response)) == (["flex", "flex"], [])
    assert anyio.current_time() - started == 7
    assert [entry.state for entry in response.trace.entries] == ["failed", "ok"]
    assert response.trace.entries[1].wait == 7


async def test_auto_goes_back_to_the_accounts_setting_while_time_is_left() -> None:
    vendor = OpenAIVendor(breakpoints=True)
    vendor.failures = [httpx.Response(429, json=FULL, headers={"retry-after": "200"})]
    started = anyio.current_time()
    response = await send(tier(flex_tries=5)(openai(vendor)), seconds=1000)
    # A second try after 200 s would leave too little: it is not waited for.
    assert (asked(vendor), given_up(response)) == (["flex", None], [(1, "no capacity")])
    assert anyio.current_time() == started


async def test_a_model_without_flex_is_not_asked_again() -> None:
    vendor = OpenAIVendor(breakpoints=True)
    vendor.failures = [httpx.Response(400, json=UNKNOWN)]
    provider = tier("flex")(openai(vendor))
    assert given_up(await send(provider)) == [(1, "not offered")]
    await anyio.sleep(3600)
    await send(provider)
    assert asked(vendor) == ["flex", "default", "default"]


@pytest.mark.parametrize("wanted", ["flex", "standard", "priority"])
async def test_a_rate_limit_is_no_lack_of_room(wanted: str) -> None:
    vendor = OpenAIVendor(breakpoints=True)
    vendor.failures = [httpx.Response(429, json=LIMIT)]
    with pytest.raises(RateLimited):
        await send(tier(wanted)(openai(vendor)))
    assert len(vendor.requests) == 1


async def test_other_tiers_are_never_given_up() -> None:
    vendor = OpenAIVendor(breakpoints=True)
    vendor.failures = [httpx.Response(429, json=FULL)]
    with pytest.raises(RateLimited):
        await send(tier("priority")(openai(vendor)))
    assert asked(vendor) == ["priority"]


async def test_further_tries_need_leave() -> None:
    vendor = OpenAIVendor(breakpoints=True)
    vendor.failures = [httpx.Response(429, json=FULL)] * 9
    told = context()
    told.call.cap = 2
    with pytest.raises(RateLimited):
        await tier("flex", flex_tries=5)(openai(vendor)).send(WHOLE, told)
    assert len(vendor.requests) == 2
    assert [one.reason for one in told.trace.decisions if isinstance(one, AttemptRefused)] == ["attempts"]


async def test_a_breaker_and_a_retry_outside_see_nothing_of_it() -> None:
    vendor = OpenAIVendor(breakpoints=True)
    vendor.failures = [httpx.Response(429, json=FULL)] * 2
    breaker = CircuitBreaker(consecutive_failures=1, clock=LoopClock())
    provider = Retry(clock=LoopClock())(breaker(tier("flex")(openai(vendor))))
    response = await send(provider)
    assert asked(vendor) == ["flex", "flex", "default"]
    assert (await send(provider)).text == response.text == "Yes."


async def test_embeddings_have_no_tier() -> None:
    vendor = OpenAIVendor(breakpoints=True)
    vendor.answer = lambda request: httpx.Response(200, json={"data": [{"index": 0, "embedding": [1.0]}]})  # type: ignore[method-assign]
    await send(tier("flex")(openai(vendor)), EmbedRequest(inputs=("a",)))
    assert asked(vendor) == [None]


@pytest.mark.parametrize(
    ("option", "value"),
    [("tier", "fast"), ("flex_room", -1), ("flex_tries", 0), ("flex_rest", -1)],
)
def test_wrong_options(option: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as told:
        ServiceTier(**{option: value})
    assert told.value.field == option


def test_where_it_stands() -> None:
    assert ServiceTier.phase is Phase.VENDOR
    assert repr(ServiceTier("flex")) == "ServiceTier(flex)"

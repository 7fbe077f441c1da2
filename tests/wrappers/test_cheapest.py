"""Cheapest: who is asked when a warm prefix is worth money."""

from typing import Any

import anyio
import pytest

from llmprod import Anthropic, EmbedRequest, GenerateRequest, InvalidArgument, LoopClock, Message, OpenAI, Overloaded
from llmprod.decisions import TargetChosen
from llmprod.mechanisms.cache_prices import CachePrices
from llmprod.mechanisms.warmth import Warmth
from llmprod.testing.scripted import Scripted
from llmprod.wrappers.cheapest import Cheapest
from llmprod.wrappers.prompt_caching import PromptCaching
from tests.wrappers.helpers import context
from tests.wrappers.vendors import AnthropicVendor, OpenAIVendor

LONG = "Answer as the handbook says. " * 4000
DEAR = CachePrices(fresh=4, read="0.2", write=5, output=20)
MIDDLE = CachePrices(fresh=2, read="0.1", write="2.5", output=10)


def ask(*said: str, **fields: Any) -> GenerateRequest:
    turns = [Message.assistant(text) if place % 2 else Message.user(text) for place, text in enumerate(said)]
    return GenerateRequest(messages=(Message.system(LONG), *turns), **fields)


async def send(provider: Any, request: Any, **options: Any) -> Any:
    return await (await provider.send(request, context(**options))).read()


def chosen(response: Any) -> list[str]:
    return [one.target for one in response.trace.decisions if isinstance(one, TargetChosen)]


def anthropic(name: str) -> Any:
    vendor = AnthropicVendor()
    return PromptCaching(clock=LoopClock())(Anthropic(name, api_key="k", http=vendor.http()))


def router(*targets: Any, **options: Any) -> Cheapest:
    return Cheapest(*targets, **{"clock": LoopClock(), **options})


async def test_a_warm_dear_model_is_cheaper_than_a_cold_one() -> None:
    opus, sonnet = anthropic("claude-opus-5-5"), anthropic("claude-sonnet-5-5")
    made = router(opus, sonnet, prices=[DEAR, MIDDLE], output=100)
    assert chosen(await send(made, ask("One"))) == ["anthropic:claude-sonnet-5-5"]
    assert chosen(await send(made, ask("One", "Yes.", "Two"))) == ["anthropic:claude-sonnet-5-5"]
    await send(opus, ask("Elsewhere"))  # warms it by another way
    await anyio.sleep(299)
    await send(opus, ask("Elsewhere", "Yes.", "Still"))
    await anyio.sleep(2)  # now the cheaper one is cold
    costs = made.costs(ask("One", "Yes.", "Three"))
    assert costs[0] < costs[1]
    response = await send(made, ask("One", "Yes.", "Three"))
    assert chosen(response) == ["anthropic:claude-opus-5-5"]
    assert response.usage.cache_read > 28_000


async def test_openai_is_warm_without_a_wrapper_and_cools_down() -> None:
    model = OpenAI("gpt-5.4", api_key="k", http=OpenAIVendor(breakpoints=False).http())
    other = Scripted(then="Hi", name="other")
    flat = CachePrices(fresh="0.5", output=1)
    made = router(model, other, prices=[CachePrices(fresh="0.6", read="0.06", output=1), flat], output=1)
    assert chosen(await send(made, ask("One"))) == ["other"]
    await send(router(model, prices=[flat], warmth=made.warmth), ask("One"))  # warms it, and both know
    assert chosen(await send(made, ask("One"))) == ["openai:gpt-5.4"]
    assert chosen(await send(made, ask("Two"))) == ["openai:gpt-5.4"]
    await anyio.sleep(301)
    assert chosen(await send(made, ask("Two"))) == ["other"]


async def test_anthropic_without_marks_is_never_warm() -> None:
    model = Anthropic("claude-sonnet-5-5", api_key="k", http=AnthropicVendor().http())
    made = router(model, Scripted(then="Hi"), prices=[MIDDLE, DEAR], output=0)
    first = made.costs(ask("One"))
    await send(made, ask("One"))
    assert made.costs(ask("One"))[0] == first[0]
    assert len(made.warmth) == 0


async def test_a_miss_is_believed() -> None:
    vendor = OpenAIVendor(breakpoints=False)
    model = OpenAI("gpt-5.4", api_key="k", http=vendor.http())
    made = router(model, Scripted(then="Hi"), prices=[MIDDLE, DEAR])
    await send(made, ask("One"))
    warm = made.costs(ask("One"))[0]
    vendor.entries.clear()
    vendor.lives = lambda key: False  # type: ignore[method-assign]
    for _ in range(2):
        cold = made.costs(ask("Another"))[0]
        await send(made, ask("Another", max_tokens=1))
    assert cold > 5 * warm


async def test_the_next_cheapest_is_asked_after_a_failure() -> None:
    bad, good = Scripted(Overloaded(), name="bad"), Scripted(then="Hi", name="good")
    made = router(good, bad, prices=[DEAR, MIDDLE])
    response = await send(made, ask("One"))
    assert [(entry.target, entry.state) for entry in response.trace.entries] == [("bad", "failed"), ("good", "ok")]


async def test_lengths_of_answers_are_learned() -> None:
    made = router(Scripted(then=["a"] * 50), Scripted(), prices=[MIDDLE, DEAR])
    before = made.costs(ask("One"))[0]
    await send(made, ask("One"))
    after = made.costs(ask("One"))[0]
    assert after < before
    assert made.costs(ask("One", max_tokens=1))[0] < after
    fixed = router(Scripted(then=["a"] * 50), Scripted(), prices=[MIDDLE, DEAR], output=300)
    await send(fixed, ask("One"))
    assert fixed.costs(ask("One"))[0] == before


async def test_embeddings_go_as_given() -> None:
    one, other = Scripted(then="Hi", name="one"), Scripted(then="Hi", name="other")
    await send(router(one, other, prices=[DEAR, MIDDLE]), EmbedRequest(inputs=("a",)))
    assert (one.calls, other.calls) == (1, 0)


def test_shared_warmth() -> None:
    warmth = Warmth()
    assert Cheapest(Scripted(), prices=[DEAR], warmth=warmth).warmth is warmth


@pytest.mark.parametrize(
    ("targets", "options", "field"),
    [
        (1, {"prices": []}, "prices"),
        (1, {"prices": [3]}, "prices"),
        (1, {"prices": 3}, "prices"),
        (2, {"prices": [DEAR]}, "prices"),
        (1, {"prices": [DEAR], "output": -1}, "output"),
        (0, {"prices": []}, "targets"),
    ],
)
def test_wrong_options(targets: int, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as told:
        Cheapest(*[Scripted() for _ in range(targets)], **options)
    assert told.value.field == field


def test_the_same_target_twice() -> None:
    one = Scripted()
    with pytest.raises(InvalidArgument, match="twice"):
        Cheapest(one, one, prices=[DEAR, DEAR])

"""What a caller gets wrong is refused in words that say what to write instead."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmprod import (
    VLLM,
    AsyncClient,
    BudgetLimit,
    Cache,
    Client,
    CostMeter,
    Failover,
    InvalidArgument,
    PriceBook,
    Retry,
    Simulated,
    Structured,
    standard,
)
from llmprod.context import Context
from llmprod.provider import Provider
from llmprod.request import Request
from llmprod.response import Response
from llmprod.wrapper import Phase, WrappedProvider, Wrapper


def ask(**options: object) -> object:
    with Client("simulated:instant") as client:
        return client.generate("Hello", **options)


@pytest.mark.parametrize(
    ("wrong", "field", "told"),
    [
        (lambda: Client("openai/gpt-5"), "model", "'openai:gpt-5'"),
        (lambda: Client("gemini:gemini-2.5-flash"), "model", "'google:gemini-2.5-flash'"),
        (lambda: Client("claude-opus-4-8"), "model", "'anthropic:claude-opus-4-8'"),
        (lambda: Client("OpenAI:gpt-4.1"), "model", "'openai:gpt-4.1'"),
        (lambda: Client("Qwen/Qwen3-8B"), "model", "such as 'openai:gpt-5'"),
        (lambda: Client("openai:"), "model", "prefix:model such as"),
        (lambda: ask(timeout=10), "timeout", "deadline=…"),
        (lambda: ask(max_completion_tokens=10), "max_completion_tokens", "max_tokens=…"),
        (lambda: ask(response_format={}), "response_format", "output=…"),
        (lambda: ask(stream=True), "stream", "client.stream"),
        (lambda: ask(max_token=10), "max_token", "max_tokens, perhaps"),
        (lambda: ask(prompt="greeting"), "prompt", "name and version"),
        (lambda: ask(cache="only"), "cache", "Cache()"),
        (lambda: Client("simulated:instant", wrappers=[Retry]), "wrappers", "Retry()"),
        (lambda: Retry()("openai:gpt-5"), "inner", "OpenAI("),
        (lambda: Failover("openai:gpt-5"), "targets", "OpenAI("),
        (lambda: standard("openai:gpt-5"), "primary", "OpenAI("),
        (lambda: standard(Simulated("instant"), ["openai:gpt-5"]), "fallbacks[0]", "OpenAI("),
        (lambda: standard(Simulated("instant"), "openai:gpt-5"), "fallbacks", "a list"),
        (lambda: standard(Simulated("instant"), extra=[Cache]), "extra[0]", "Hedge()"),
        (lambda: BudgetLimit("5", per="user"), "per", "by="),
        (lambda: PriceBook({"openai:gpt-5": (1, 2)}), "overrides['openai:gpt-5']", "Price(input="),
        (lambda: VLLM("m", max_modellen=5), "max_modellen", "max_model_len, perhaps"),
        (lambda: VLLM("m", tensor_parallel_size=2), "tensor_parallel_size", "Parallel(tensor=…)"),
        (lambda: VLLM("m", temperature=0), "temperature", "generate(…, temperature=…)"),
        (lambda: VLLM("m", what=0), "what", "engine_args={…}"),
        (lambda: VLLM("m", runner="pooling", tool_call_parser="hermes"), "tool_call_parser", "runner='generate'"),
        (lambda: Cache(prices=PriceBook()), "prices", "PriceBook().cost"),
        (lambda: CostMeter(on_cost=5), "on_cost", "CostEntry"),
        (Structured, "structured", "json_schema, regex, choice, grammar"),
    ],
)
def test_an_error_says_what_to_write_instead(wrong: Callable[[], object], field: str, told: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        wrong()
    assert caught.value.field == field
    assert told in str(caught.value)


@pytest.mark.anyio
async def test_a_wrong_option_of_a_completion_is_named() -> None:
    with pytest.raises(InvalidArgument, match=r"temprature.*temperature, perhaps.*extra=\{…\}"):
        await VLLM("m").complete("Hello", temprature=0)


class _Own(Wrapper):
    phase = Phase.CACHE

    def wrap(self, inner: Provider) -> Provider:
        return _OwnProvider(inner, self)


class _OwnProvider(WrappedProvider):
    async def send(self, request: Request, context: Context) -> Response:
        assert context.cache == "only"
        return await self.inner.send(request, context)


@pytest.mark.anyio
async def test_from_the_cache_alone_needs_a_cache_of_whatever_make() -> None:
    async with AsyncClient(Failover(Simulated("instant"))) as client:
        with pytest.raises(InvalidArgument, match="Cache"):
            await client.generate("Hello", cache="only")
        assert (await client.generate("Hello", cache="bypass")).complete
        assert (await client.generate("Hello", cache="refresh")).complete
    async with AsyncClient(Failover(_Own()(Simulated("instant")))) as client:
        assert (await client.generate("Hello", cache="only")).complete


def test_messages_may_be_named() -> None:
    with Client("simulated:instant") as client:
        assert client.generate(messages=[{"role": "user", "content": "Hello"}]).complete
        with client.stream(messages="Hello") as stream:
            assert stream.read().complete
        assert len(client.embed(inputs="Hello").embeddings) == 1

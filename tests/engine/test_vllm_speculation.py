"""Speculation by n-grams on the CPU: the same answers in fewer steps, and the numbers that tell so.

In float32: proposed tokens are computed together and others one by one, which may round bf16's last bits differently,
and of a random model's two likeliest tokens the other one may then be the likelier.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from llmprod import VLLM, AsyncClient, NGram
from tests.engine.engines import OTHER_MODEL, engine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default", "error:::llmprod"),
    pytest.mark.skipif(OTHER_MODEL is not None, reason="what is compared is the tiny model's, in float32"),
]

TOKENS = 61  # no multiple of what a step may accept: the last one must not say too much
PROMPTS = {
    "short": "Count.",
    "repetitive": "the fox saw the hen and the hen saw the fox and " * 12,
    "long": " ".join(f"{number} is not {number + 1}." for number in range(150)),
}
GREEDY: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0, "extra": {"vllm": {"ignore_eos": True}}}


@pytest.fixture(scope="module")
def plain(local: VLLM) -> VLLM:
    """An engine that makes one token at a time."""
    return local


@pytest.fixture(scope="module")
def speculating(tiny_model: Path) -> Iterator[VLLM]:
    """An engine that proposes what followed before."""
    provider = engine(tiny_model, speculative=NGram(tokens=3))
    anyio.run(provider.start)
    yield provider
    anyio.run(provider.stop)


@pytest.mark.parametrize("prompt", list(PROMPTS))
async def test_the_same_answer(plain: VLLM, speculating: VLLM, prompt: str) -> None:
    before = speculating.stats()
    async with AsyncClient(plain) as without, AsyncClient(speculating) as with_it:
        expected = await without.generate(PROMPTS[prompt], logprobs=1, **GREEDY)
        whole = await with_it.generate(PROMPTS[prompt], logprobs=1, **GREEDY)
        async with with_it.stream(PROMPTS[prompt], **GREEDY) as stream:
            await stream.read()
    assert whole.text == stream.text == expected.text
    for answer in (whole, stream, expected):
        assert answer.usage is not None
        assert answer.usage.total_output == TOKENS
        assert answer.finish_reason == "length"
    assert [token.token for token in whole.logprobs] == [token.token for token in expected.logprobs]
    assert [token.logprob for token in whole.logprobs] == pytest.approx(
        [token.logprob for token in expected.logprobs], abs=1e-3
    )
    assert speculating.stats().accepted_tokens > before.accepted_tokens, "nothing was compared"


async def test_the_numbers_tell_what_was_proposed_and_accepted(plain: VLLM, speculating: VLLM) -> None:
    before = speculating.stats()
    async with AsyncClient(speculating) as client:
        await client.generate(PROMPTS["repetitive"], **GREEDY)
    after = speculating.stats()
    proposed = after.draft_tokens - before.draft_tokens
    accepted = after.accepted_tokens - before.accepted_tokens
    assert 0 < accepted <= proposed
    assert accepted < TOKENS, "each step makes one token by itself"
    assert after.acceptance_rate == after.accepted_tokens / after.draft_tokens
    async with AsyncClient(plain) as client:
        await client.generate(PROMPTS["repetitive"], **GREEDY)
    numbers = plain.stats()
    assert (numbers.draft_tokens, numbers.accepted_tokens, numbers.acceptance_rate) == (0, 0, None)


async def test_a_grammar_holds_for_what_is_proposed(speculating: VLLM) -> None:
    before = speculating.stats()
    body = {"structured_outputs": {"regex": "(fox hen ){12}[a-z]{3}"}}
    async with AsyncClient(speculating) as client:
        response = await client.generate("Go on.", max_tokens=200, temperature=0, extra={"vllm": body})
    assert re.fullmatch("(fox hen ){12}[a-z]{3}", response.text)
    assert speculating.stats().draft_tokens > before.draft_tokens


async def test_answers_of_many_at_once(plain: VLLM, speculating: VLLM) -> None:
    """Each with drafts of its own, accepted and refused at different places."""
    prompts = [f"{word} " * 20 + "and" for word in ("fox", "hen", "cow", "dog", "owl", "bee", "ant", "elk")]
    together: dict[str, str] = {}
    async with AsyncClient(plain) as client:
        alone = [(await client.generate(prompt, **GREEDY)).text for prompt in prompts]
    async with AsyncClient(speculating) as client, anyio.create_task_group() as group:

        async def one(prompt: str) -> None:
            together[prompt] = (await client.generate(prompt, **GREEDY)).text

        for prompt in prompts:
            group.start_soon(one, prompt)
    assert [together[prompt] for prompt in prompts] == alone

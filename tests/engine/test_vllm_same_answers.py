"""The same answers: the embedded engine, bare ``AsyncLLM``, and ``vllm serve`` read by us and by OpenAI's own SDK.

Greedy, and one at a time: on the CPU a batch of another size may round the last bits differently.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from llmprod import VLLM, AsyncClient, Message, OpenAICompatible, OutputSchema
from tests.engine.engines import sober
from tests.engine.test_vllm_embedded import ANIMAL, release
from tests.engine.weather import CALL, WEATHER

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default", "error:::llmprod")]

TALK = [Message.user("One?"), Message.assistant("Two."), Message.user("Three?")]
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": ("Count.", {}),
    "system": ("Count.", {"system": "Be brief."}),
    "turns": (TALK, {}),
    "long": ("A long story about a fox. " * 60, {}),
    "stop": ("Count.", {"stop": ["False"]}),
    "penalties": ("Count.", {"frequency_penalty": 0.5, "presence_penalty": 0.2}),
    "logprobs": ("Count.", {"logprobs": 2}),
    "tools auto": ("Weather?", {"tools": [WEATHER], "structured_outputs": {"choice": [CALL]}, "max_tokens": 128}),
    "tools unused": ("Weather?", {"tools": [WEATHER], "tool_choice": "none"}),
    "schema": ("An animal.", {"output": OutputSchema.of(ANIMAL), "max_tokens": 200}),
    "regex": ("A code.", {"structured_outputs": {"regex": "[A-Z]{3}-[0-9]{4}"}}),
}


def asked(case: str, kind: str, bias: dict[str, int]) -> tuple[Any, dict[str, Any]]:
    messages, options = CASES[case]
    options = {"max_tokens": 24, "temperature": 0, **options}
    body: dict[str, Any] = {}
    if "structured_outputs" in options:
        body["structured_outputs"] = options.pop("structured_outputs")
    if case == "schema":
        body["logit_bias"] = bias
    return messages, {**options, "extra": {kind: body}}


def facts(response: Any) -> dict[str, Any]:
    usage = response.usage
    return {
        "text": response.text,
        "calls": [(call.name, call.input) for call in response.tool_calls],
        "finish": response.finish_reason,
        "input": usage.total_input,
        "output": usage.total_output,
        "tokens": [token.token for token in response.logprobs],
        "logprobs": [token.logprob for token in response.logprobs],
    }


def alike(other: dict[str, Any]) -> dict[str, Any]:
    """Return what equals such facts: probabilities but for their last digits."""
    return {**other, "logprobs": pytest.approx(other["logprobs"], abs=1e-3)}


@pytest.mark.parametrize("case", list(CASES))
async def test_embedded_as_served(local: VLLM, vllm_server: str, tiny_model: Path, case: str) -> None:
    bias = sober(tiny_model)
    served = OpenAICompatible("tiny", profile="vllm", base_url=f"{vllm_server}/v1")
    messages, options = asked(case, "vllm", bias)
    async with AsyncClient(local) as client:
        ours = facts(await client.generate(messages, **options))
        async with client.stream(messages, **options) as stream:
            streamed = facts(await stream.read())
    messages, options = asked(case, "vllm-server", bias)
    async with AsyncClient(served) as client:
        theirs = await client.generate(messages, **options)
    assert ours == alike(facts(theirs))
    if release(local) < (0, 32):  # see test_logprobs
        streamed |= {"tokens": ours["tokens"], "logprobs": ours["logprobs"]}
    assert streamed == alike(ours)
    if case == "schema":
        assert theirs.parsed["legs"] >= 0
    if case == "tools auto":
        assert ours["calls"] == [("get_weather", {"city": "Oslo"})]


async def test_embedded_as_the_openai_sdk_reads_the_server(local: VLLM, vllm_server: str) -> None:
    openai = pytest.importorskip("openai")
    async with openai.AsyncOpenAI(base_url=f"{vllm_server}/v1", api_key="none") as sdk, AsyncClient(local) as client:
        theirs = await sdk.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Count."}], max_tokens=24, temperature=0
        )
        ours = await client.generate("Count.", max_tokens=24, temperature=0)
    assert ours.raw["choices"][0]["message"]["content"] == theirs.choices[0].message.content == ours.text
    assert ours.raw["usage"]["prompt_tokens"] == theirs.usage.prompt_tokens
    assert ours.raw["choices"][0]["finish_reason"] == theirs.choices[0].finish_reason


@pytest.mark.parametrize("case", ["plain", "system", "turns", "long"])
async def test_embedded_as_bare_asyncllm(local: VLLM, tiny_model: Path, case: str) -> None:
    """The model's own chat template, applied by its tokenizer, and ``AsyncLLM.generate`` with the ids."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(local.options.model)
    messages, options = CASES[case]
    turns = [{"role": "system", "content": options["system"]}] if "system" in options else []
    if isinstance(messages, str):
        turns.append({"role": "user", "content": messages})
    else:
        turns += [{"role": message.role, "content": message.text} for message in messages]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    current = local._engine.current
    assert current is not None

    async def bare() -> tuple[str, int]:
        sampling = current.modules.SamplingParams(max_tokens=24, temperature=0.0)
        text, count = "", 0
        async with contextlib.aclosing(
            current.engine.generate({"prompt_token_ids": ids}, sampling, f"bare-{case}")
        ) as outputs:
            async for output in outputs:
                text, count = output.outputs[0].text, len(output.outputs[0].token_ids)
        return text, count

    text, count = await current.crossing.call(bare)
    async with AsyncClient(local) as client:
        response = await client.generate(messages, max_tokens=24, temperature=0, **options)
    assert response.usage is not None
    assert (response.text, response.usage.total_output) == (text, count)
    assert response.usage.total_input == len(ids)

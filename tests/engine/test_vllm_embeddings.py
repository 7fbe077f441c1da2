"""Embeddings of the embedded engine are those of ``vllm serve``, read by us and by OpenAI's own SDK.

One text at a time the same kernels do the same sums, so that only the last bits of a float32 may differ, by how it was
written down. In a batch of another make-up, or where the beginning of a text comes from the prefix cache (in blocks of
128 tokens), sums are made in another order and rounded differently in each layer. Vectors of different texts differ by
ten times what is allowed for that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from llmprod import VLLM, AsyncClient, BadRequest, OpenAICompatible
from tests.engine.engines import OTHER_MODEL, engine

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default", "error:::llmprod")]

ALONE, ROUNDED = 1e-6, 1e-4
TEXTS = {
    "word": "fox",
    "sentence": "The fox saw the hen, and the hen saw the fox.",
    "unicode": "Füchse 狐 🦊",
    "long": "A long story about a fox and a hen. " * 40,
}


def served(url: str) -> AsyncClient:
    return AsyncClient(OpenAICompatible("tiny", profile="vllm", base_url=f"{url}/v1"))


def close(vector: Sequence[float], tolerance: float) -> Any:
    return pytest.approx(list(vector), abs=tolerance)


@pytest.mark.parametrize("text", list(TEXTS))
async def test_embedded_as_served(embedding: VLLM, vllm_embedding_server: str, text: str) -> None:
    openai = pytest.importorskip("openai")
    async with (
        AsyncClient(embedding) as client,
        served(vllm_embedding_server) as server,
        openai.AsyncOpenAI(base_url=f"{vllm_embedding_server}/v1", api_key="none") as sdk,
    ):
        ours, theirs = await client.embed(TEXTS[text]), await server.embed(TEXTS[text])
        official = await sdk.embeddings.create(model="tiny", input=TEXTS[text])
    assert ours.embeddings is not None
    assert theirs.embeddings is not None
    (vector,) = ours.embeddings
    assert len(vector) == 256
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-3)
    assert vector == close(theirs.embeddings[0], ALONE)
    # In base64, the SDK's default. The server has read the text before: a long one's beginning is in its cache.
    assert vector == close(official.data[0].embedding, ROUNDED if text == "long" else ALONE)
    assert ours.usage is not None
    assert theirs.usage is not None
    assert ours.usage.total_input == theirs.usage.total_input == official.usage.prompt_tokens > 0


async def test_batches(embedding: VLLM, vllm_embedding_server: str) -> None:
    """In the order of the inputs, and each like its text alone."""
    openai = pytest.importorskip("openai")
    texts = list(TEXTS.values())
    async with (
        AsyncClient(embedding) as client,
        served(vllm_embedding_server) as server,
        openai.AsyncOpenAI(base_url=f"{vllm_embedding_server}/v1", api_key="none") as sdk,
    ):
        embedded, theirs = await client.embed(texts), await server.embed(texts)
        official = await sdk.embeddings.create(model="tiny", input=texts, encoding_format="float")
        alone = [(await client.embed(text)).embeddings or () for text in texts]
    assert embedded.embeddings is not None
    assert theirs.embeddings is not None
    for place, vector in enumerate(embedded.embeddings):
        assert vector == close(theirs.embeddings[place], ROUNDED)
        assert vector == close(official.data[place].embedding, ROUNDED)
        assert vector == close(alone[place][0], ROUNDED)
        others = [other for number, other in enumerate(embedded.embeddings) if number != place]
        assert all(vector != close(other, 10 * ROUNDED) for other in others), "or the order could not be told"


async def test_token_ids(embedding: VLLM, vllm_embedding_server: str, tiny_model: Path) -> None:
    """What vLLM takes and this library has no field for goes through ``extra``."""
    openai = pytest.importorskip("openai")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(OTHER_MODEL or str(tiny_model))
    ids = tokenizer(TEXTS["sentence"]).input_ids
    assert len(ids) > 3
    async with (
        AsyncClient(embedding) as client,
        served(vllm_embedding_server) as server,
        openai.AsyncOpenAI(base_url=f"{vllm_embedding_server}/v1", api_key="none") as sdk,
    ):
        by_text = await client.embed(TEXTS["sentence"])
        by_ids = await client.embed("-", extra={"vllm": {"input": [ids]}})
        of_server = await server.embed("-", extra={"vllm-server": {"input": [ids]}})
        official = await sdk.embeddings.create(model="tiny", input=[ids])
        other = await client.embed("-", extra={"vllm": {"input": [ids[::-1]]}})
    for answer in (by_text, by_ids, of_server, other):
        assert answer.usage is not None
        assert answer.usage.total_input == len(ids)
    vector, *same, reversed_ = [(answer.embeddings or ())[0] for answer in (by_ids, by_text, of_server, other)]
    for known in (*same, official.data[0].embedding):
        assert vector == close(known, ALONE)
    assert vector != close(reversed_, 10 * ROUNDED)


async def test_dimensions_of_a_model_that_has_one_size(embedding: VLLM, vllm_embedding_server: str) -> None:
    openai = pytest.importorskip("openai")
    async with (
        AsyncClient(embedding) as client,
        served(vllm_embedding_server) as server,
        openai.AsyncOpenAI(base_url=f"{vllm_embedding_server}/v1", api_key="none", max_retries=0) as sdk,
    ):
        for one in (client, server):
            with pytest.raises(BadRequest):
                await one.embed("secretword", dimensions=16)
        with pytest.raises(openai.BadRequestError):
            await sdk.embeddings.create(model="tiny", input="secretword", dimensions=16)
        assert (await client.embed("fox")).embeddings


def test_dimensions_of_a_matryoshka_model(tiny_model: Path, vllm_embedding_server: str) -> None:
    """The first components of the server's whole vector, made a vector of length 1 again."""
    provider = engine(
        tiny_model, runner="pooling", convert="embed", engine_args={"hf_overrides": {"is_matryoshka": True}}
    )

    async def both() -> tuple[Any, Any, Any]:
        async with provider, AsyncClient(provider) as client, served(vllm_embedding_server) as server:
            text = TEXTS["sentence"]
            return await client.embed(text, dimensions=16), await client.embed(text), await server.embed(text)

    short, whole, theirs = anyio.run(both)
    (vector,) = short.embeddings
    first = theirs.embeddings[0][:16]
    assert len(vector) == 16
    assert vector == close([value / math.hypot(*first) for value in first], ROUNDED)
    assert whole.embeddings[0] == close(theirs.embeddings[0], ALONE)

"""``OpenAICompatible`` against llama.cpp's own server."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from llmprod import AsyncClient, CallError, OpenAICompatible, TextDelta

pytestmark = pytest.mark.llamacpp


class Flag(BaseModel):
    on: bool


def chat(url: str) -> AsyncClient:
    return AsyncClient(OpenAICompatible("tiny", profile="llamacpp", base_url=f"{url}/v1"))


async def test_stream_equals_whole(llamacpp_server: str) -> None:
    options: dict[str, Any] = {"max_tokens": 24, "temperature": 0, "seed": 3}
    async with chat(llamacpp_server) as client:
        whole = await client.generate("Count.", **options)
        async with client.stream("Count.", **options) as stream:
            pieces = [event.text async for event in stream if isinstance(event, TextDelta)]
    assert whole.text == stream.text == "".join(pieces) != ""
    assert whole.finish_reason == stream.finish_reason
    assert whole.usage is not None
    assert whole.usage.total_output > 0


async def test_json_schema(llamacpp_server: str) -> None:
    async with chat(llamacpp_server) as client:
        response = await client.generate("On or off?", output=Flag, max_tokens=200, temperature=0)
    if response.finish_reason == "stop":
        assert isinstance(response.parsed, Flag)
    else:  # the random model may fill its allowance with the blanks that JSON permits
        assert response.finish_reason == "length"
        assert response.text.lstrip().startswith("{")


async def test_too_long_a_prompt_is_an_error(llamacpp_server: str) -> None:
    async with chat(llamacpp_server) as client:
        with pytest.raises(CallError) as caught:
            await client.generate("word " * 2000, max_tokens=4)
    assert "word" not in str(caught.value)

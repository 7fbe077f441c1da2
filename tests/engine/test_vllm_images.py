"""Images: a tiny random model that sees them, in the embedded engine."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from llmprod import VLLM, AsyncClient, BadRequest, Failover, Image, Message, Static, UnsupportedParameter
from tests.engine.engines import OTHER_MODEL, engine, tool

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default", "error:::llmprod"),
    pytest.mark.skipif(OTHER_MODEL is not None, reason="the numbers of tokens are the tiny model's"),
]

GREEDY: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "logprobs": 1}
MOST = 3
SQUARE, WIDE = 5 * (4 + 2) + 2 + 3, 3 * (4 + 2) + 1 + 3
"""Tokens that an image adds: four and two marks for each tile and for the whole; a line's end after each row of tiles,
before the whole, and before the text; a mark at the end."""


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLM]:
    """An engine that takes up to three images in a prompt."""
    model = tmp_path_factory.mktemp("tiny-vision-model")
    tool("make_tiny_model.py", str(model), "--vision")
    provider = engine(model, limit_mm_per_prompt={"image": MOST})
    anyio.run(provider.start)
    yield provider
    anyio.run(provider.stop)


def picture(color: str, width: int = 100, height: int = 100, kind: str = "png") -> Image:
    """Return a picture: a cross in this colour on white."""
    pillow = pytest.importorskip("PIL.Image")
    drawn = pillow.new("RGB", (width, height), "white")
    drawn.paste(color, (width // 3, 0, width // 2, height))
    drawn.paste(color, (0, height // 3, width, height // 2))
    buffer = io.BytesIO()
    drawn.save(buffer, kind)
    return Image(data=buffer.getvalue(), media_type=f"image/{kind}")


async def facts(client: AsyncClient, *parts: Any) -> tuple[int, list[tuple[str, float]]]:
    """Return the prompt's tokens, and the answer's with their probabilities."""
    response = await client.generate([Message.user(*parts)], **GREEDY)
    assert response.complete
    assert response.usage is not None
    assert response.usage.total_output == len(response.logprobs) > 0
    return response.usage.total_input, [(token.token, token.logprob) for token in response.logprobs]


async def test_the_answer_depends_on_the_image(seeing: VLLM) -> None:
    async with AsyncClient(seeing) as client:
        length, without = await facts(client, "What is it?")
        red = await facts(client, picture("red"), "What is it?")
        blue = await facts(client, picture("blue"), "What is it?")
        again = await facts(client, picture("red"), "What is it?")
    assert red[0] == blue[0] == length + SQUARE
    assert [token for token, _ in red[1]] == [token for token, _ in again[1]]
    assert [number for _, number in red[1]] == pytest.approx([number for _, number in again[1]], abs=1e-2)
    assert red[1][0] != blue[1][0], "nothing of the image has reached the model"
    assert len({red[1][0], blue[1][0], without[0]}) == 3


async def test_the_shape_makes_the_number_of_tokens(seeing: VLLM) -> None:
    async with AsyncClient(seeing) as client:
        length, _ = await facts(client, "What is it?")
        wide, _ = await facts(client, picture("red", 200, 90), "What is it?")
        large, _ = await facts(client, picture("red", 900, 900), "What is it?")
    assert (wide - length, large - length) == (WIDE, SQUARE)


async def test_several_images_in_their_order(seeing: VLLM) -> None:
    red, blue = picture("red"), picture("blue")
    async with AsyncClient(seeing) as client:
        length, _ = await facts(client, "Which is red?")
        one = await facts(client, red, blue, "Which is red?")
        other = await facts(client, blue, red, "Which is red?")
        assert one[0] == other[0]
        assert one[0] - length >= 2 * SQUARE
        assert one[1][0] != other[1][0]
        with pytest.raises(BadRequest):
            await facts(client, *[red] * (MOST + 1), "Which is red?")


async def test_in_a_conversation_and_streamed(seeing: VLLM) -> None:
    talk = [
        Message.user(picture("green", kind="jpeg"), "What is it?"),
        Message.assistant("A cross."),
        Message.user("Its colour?"),
    ]
    async with AsyncClient(seeing) as client:
        whole = await client.generate(talk, **GREEDY)
        async with client.stream(talk, **GREEDY) as stream:
            await stream.read()
    assert whole.text == stream.text
    assert whole.usage is not None
    assert stream.usage is not None
    assert stream.usage.total_input == whole.usage.total_input > SQUARE


async def test_bytes_that_are_no_image(seeing: VLLM) -> None:
    broken = Image(data=b"not an image", media_type="image/png")
    async with AsyncClient(seeing) as client:
        with pytest.raises(BadRequest):
            await facts(client, broken, "What is it?")
        assert await facts(client, picture("red"), "What is it?")
    assert seeing.restarts == 0


async def test_a_model_that_sees_says_so(seeing: VLLM) -> None:
    assert seeing.capabilities.images
    assert not seeing.capabilities.audio
    assert seeing.capabilities.generate


async def test_a_text_model_is_sent_no_image(local: VLLM) -> None:
    assert not local.capabilities.images
    before = local.stats()
    async with AsyncClient(local) as client:
        with pytest.raises(UnsupportedParameter, match="images"):
            await client.generate([Message.user(picture("red"), "What is it?")], max_tokens=4)
    assert (local.stats().finished, local.stats().in_flight) == (before.finished, 0)


async def test_what_a_text_model_cannot_see_goes_to_one_that_can(local: VLLM) -> None:
    async with AsyncClient(Failover(local, Static("a red cross"))) as client:
        seen = await client.generate([Message.user(picture("red"), "What is it?")], max_tokens=4)
        read = await client.generate("What is it?", max_tokens=4)
    assert seen.text == "a red cross"
    assert read.text != "a red cross"

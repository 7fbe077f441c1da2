"""What images, sound and documents count for, by the examples that vendors give."""

import pytest

from llmprod import Audio, File, Image
from llmprod.mechanisms.token_media import audio_tokens, file_tokens, image_tokens
from tests.mechanisms.test_media_size import jpeg, wav

KNOWN = [
    # OpenAI's page on images and vision
    ("openai:gpt-4o", 1024, 1024, None, 765),
    ("openai:gpt-4o", 2048, 4096, None, 1105),
    ("openai:gpt-4o", 4096, 8192, "low", 85),
    ("openai:gpt-4o", 512, 512, None, 255),
    ("openai:gpt-5", 1024, 1024, None, 70 + 4 * 140),
    ("openai:gpt-4o-mini", 1024, 1024, None, 2833 + 4 * 5667),
    ("openai:o3", 1024, 1024, None, 75 + 4 * 150),
    ("openai:gpt-4.1-mini", 1024, 1024, None, 1024 * 1.62),
    ("openai:gpt-4.1-mini", 1800, 2400, None, 1536 * 1.62),
    ("openai:o4-mini", 1024, 1024, None, 1024 * 1.72),
    # Anthropic's: 200x200 about 54, 1000x1000 about 1334, 1092x1092 about 1590
    ("anthropic:claude-sonnet-4-5", 200, 200, None, 54),
    ("anthropic:claude-sonnet-4-5", 1000, 1000, None, 1334),
    ("anthropic:claude-sonnet-4-5", 1092, 1092, None, 1590),
    ("anthropic:claude-sonnet-4-5", 8000, 8000, None, 1600),
    ("anthropic:claude-opus-4-8", 8000, 8000, None, 4784),
    # Google's: 258 up to 384 pixels; 960x540 has a crop unit of 360, so six tiles
    ("google:gemini-2.5-pro", 384, 384, None, 258),
    ("google:gemini-2.5-pro", 960, 540, None, 258 * 6),
    ("google:gemini-3-pro", 960, 540, None, 1120),
    # by patches and tiles
    ("mistral:mistral-small", 1540, 1540, None, 55 * 55 + 55),
    ("vllm:Qwen/Qwen2.5-VL-7B", 280, 280, None, 102),
    ("vllm:meta-llama/Llama-4-Scout", 336, 336, None, 146),
    ("vllm:meta-llama/Llama-4-Scout", 672, 672, None, 144 * 5 + 2),
]


@pytest.mark.parametrize(("model", "width", "height", "detail", "tokens"), KNOWN)
def test_images_by_the_vendor_s_rule(model, width, height, detail, tokens):
    image = Image(data=jpeg(width, height), media_type="image/jpeg", detail=detail)
    found = image_tokens(image, model)
    assert found.tokens == pytest.approx(tokens, rel=0.015)
    assert found.low <= found.tokens <= found.high


@pytest.mark.parametrize("model", sorted({model for model, *_ in KNOWN} | {"simulated:instant"}))
def test_an_unseen_image_may_be_of_any_size(model):
    unseen = image_tokens(Image(url="https://example.com/a.png"), model)
    damaged = image_tokens(Image(data=b"\xff\xd8", media_type="image/jpeg"), model)
    assert unseen == damaged
    large = image_tokens(Image(data=jpeg(8000, 8000), media_type="image/jpeg"), model)
    assert unseen.low < 100 or unseen.low <= large.tokens
    assert unseen.high >= large.tokens * 0.99


def test_sound_by_its_length():
    sound = Audio(data=wav(10), media_type="audio/wav")
    assert audio_tokens(sound, "openai:gpt-4o-audio").tokens == pytest.approx(100)
    assert audio_tokens(sound, "google:gemini-2.5-flash").tokens == pytest.approx(320)
    guessed = audio_tokens(Audio(data=b"OggS" * 40_000, media_type="audio/ogg"), "google:gemini-2.5-flash")
    assert guessed.low < guessed.tokens == 320 < guessed.high
    assert audio_tokens(Audio(url="https://example.com/a.mp3")).high > 10_000


def test_documents_by_pages_text_or_size():
    pages = File(data=b"%PDF-1.4 << /Type /Pages /Count 10 >>", media_type="application/pdf")
    assert file_tokens(pages, "google:gemini-2.5-pro").tokens == 2580
    assert file_tokens(pages, "anthropic:claude-opus-4-8").tokens == 25_000
    text = File(data=b"word " * 1000, media_type="text/plain")
    assert file_tokens(text, "openai:gpt-5").tokens == pytest.approx(1000, rel=0.3)
    large = File(data=b"\0" * 600_000, media_type="application/pdf")
    assert file_tokens(large, "google:gemini-2.5-pro").tokens == 2580
    unseen = file_tokens(File(url="https://example.com/a.pdf"))
    assert unseen.low < unseen.tokens < unseen.high

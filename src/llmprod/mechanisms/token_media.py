"""How many tokens images, sound and documents count for, by each vendor's own rule.

Sizes are read from the first bytes of a file (:mod:`llmprod.mechanisms.media_size`); nothing is decoded or fetched.
What lies behind a URL is taken for a common size, with bounds that say how little is known.

Rules as the vendors document them: OpenAI by tiles of 512 pixels or patches of 32, by model; Anthropic width times
height by 750, of an image made to fit 1,568 pixels (2,576 for models that look closer); Gemini 258 for a tile; Mistral
by patches of 28 pixels, Qwen the same without Mistral's marks between rows; Llama 4 by tiles of 336 pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from math import ceil, floor, sqrt
from typing import NamedTuple

from llmprod.mechanisms.media_size import audio_seconds, image_size, pdf_pages
from llmprod.mechanisms.token_families import Family, family_of, tokenizer_of
from llmprod.mechanisms.token_text import text_tokens
from llmprod.types import Audio, File, Image

__all__ = ["Range", "audio_tokens", "file_tokens", "image_tokens"]


class Range(NamedTuple):
    """An estimate in tokens with what it may be at least and at most."""

    low: float
    tokens: float
    high: float

    def __add__(self, other: object) -> Range:
        """Add bound by bound."""
        if not isinstance(other, Range):
            return NotImplemented
        return Range(self.low + other.low, self.tokens + other.tokens, self.high + other.high)

    def __mul__(self, by: object) -> Range:
        """Multiply all three."""
        if not isinstance(by, (int, float)):
            return NotImplemented
        return Range(self.low * by, self.tokens * by, self.high * by)


NOTHING = Range(0.0, 0.0, 0.0)
_UNSEEN = (1024, 1024)  # of an image behind a URL or of unknown make

# ---- images: OpenAI --------------------------------------------------------------------------------------------------


class _Tiles(NamedTuple):
    base: int
    tile: int


class _Patches(NamedTuple):
    factor: float
    most: int


_OPENAI: tuple[tuple[re.Pattern[str], _Tiles | _Patches], ...] = tuple(
    (re.compile(pattern), rule)
    for pattern, rule in (
        (r"gpt-4\.1-mini", _Patches(1.62, 1536)),
        (r"gpt-4\.1-nano", _Patches(2.46, 1536)),
        (r"o4-mini|codex-mini", _Patches(1.72, 1536)),
        # By OpenAI's page 1.62 and 2.46; by what calls are billed 1.2 and 1.5. The higher, since too little is worse.
        (r"gpt-5(?:\.\d+)?(?:-\w+)*-mini", _Patches(1.62, 1536)),
        (r"gpt-5(?:\.\d+)?(?:-\w+)*-nano", _Patches(2.46, 1536)),
        (r"gpt-5\.[2-9]|gpt-[6-9]", _Patches(1.2, 2500)),
        (r"gpt-5", _Tiles(70, 140)),
        (r"gpt-4o-mini", _Tiles(2833, 5667)),
        (r"(?:^|[/:])o[13]", _Tiles(75, 150)),
        (r"computer-use", _Tiles(65, 129)),
    )
)
_OPENAI_OTHERS = _Tiles(85, 170)


@lru_cache(256)
def _openai_rule(model: str) -> _Tiles | _Patches:
    for pattern, rule in _OPENAI:
        if pattern.search(model.lower()):
            return rule
    return _OPENAI_OTHERS


def _openai(width: int, height: int, model: str, detail: str | None) -> float:
    rule = _openai_rule(model)
    if isinstance(rule, _Patches):
        return min(_patches(width, height, 32), rule.most) * rule.factor
    if detail == "low":
        return rule.base
    scale = min(1.0, 2048 / max(width, height))
    scale = min(scale, 768 / min(width * scale, height * scale) * scale)
    return rule.base + rule.tile * ceil(width * scale / 512 - 1e-9) * ceil(height * scale / 512 - 1e-9)


def _patches(width: float, height: float, side: int) -> int:
    return max(1, ceil(width / side)) * max(1, ceil(height / side))


# ---- images: the others ----------------------------------------------------------------------------------------------

_CLOSER = re.compile(r"claude-(?:opus-4-[7-9]|opus-[5-9]|sonnet-[5-9]|haiku-[5-9])")


def _anthropic(width: int, height: int, model: str, detail: str | None) -> float:
    del detail
    longest, most = (2576, 4784) if _CLOSER.search(model.lower()) else (1568, 1600)
    scale = min(1.0, longest / max(width, height))
    return min(width * scale * height * scale / 750, most)


def _google(width: int, height: int, model: str, detail: str | None) -> float:
    if re.search(r"gemini-[3-9]", model.lower()):
        return 280 if detail == "low" else 1120  # by media_resolution, whatever the size
    if max(width, height) <= 384 or detail == "low":
        return 258
    scale = min(1.0, 3072 / max(width, height))
    width, height = round(width * scale), round(height * scale)
    unit = min(768.0, max(256.0, floor(min(width, height) / 1.5)))
    return 258.0 * ceil(width / unit) * ceil(height / unit)


def _mistral(width: int, height: int, model: str, detail: str | None) -> float:
    del model, detail
    scale = min(1.0, 1540 / max(width, height))
    columns, rows = max(1, ceil(width * scale / 28)), max(1, ceil(height * scale / 28))
    return columns * rows + rows  # a mark after each row


def _qwen(width: int, height: int, model: str, detail: str | None) -> float:
    del model, detail
    most = 1280 * 28 * 28  # pixels
    scale = min(1.0, sqrt(most / (width * height)))
    return max(4, _patches(width * scale, height * scale, 28)) + 2


def _llama(width: int, height: int, model: str, detail: str | None) -> float:
    del model, detail
    tiles = min(16, _patches(width, height, 336))
    return 144 * (tiles + (tiles > 1)) + 2


_IMAGES: dict[Family, Callable[[int, int, str, str | None], float]] = {
    "openai": _openai,
    "anthropic": _anthropic,
    "google": _google,
    "mistral": _mistral,
    "qwen": _qwen,
    "llama": _llama,
}
_MOST: dict[Family, float] = {
    "openai": 3800, "anthropic": 4784, "google": 258 * 24, "mistral": 55 * 56, "qwen": 1282, "llama": 144 * 17 + 2,
}  # fmt: skip


def image_tokens(image: Image, model: str = "") -> Range:
    """Return what ``image`` counts for with ``model``; a vendor whose rule is unknown is taken for OpenAI's GPT-4o."""
    family = family_of(model)
    rule = _IMAGES.get(family, _openai)
    size = image_size(image.data) if image.data is not None else None
    width, height = size or _UNSEEN
    tokens = rule(width, height, model, image.detail)
    if size is None and not (family in ("openai", "other") and image.detail == "low"):
        return Range(min(64.0, tokens), tokens, max(tokens, _MOST.get(family, 4784.0)))
    if family not in _IMAGES:
        return Range(min(64.0, tokens), tokens, max(tokens, width * height / 750))
    return Range(0.7 * tokens, tokens, 1.2 * tokens)


# ---- sound and documents ---------------------------------------------------------------------------------------------

_SECOND: dict[Family, float] = {"openai": 10.0, "google": 32.0, "mistral": 12.5, "qwen": 25.0}
_UNHEARD = 60.0  # seconds, behind a URL


def audio_tokens(audio: Audio, model: str = "") -> Range:
    """Return what ``audio`` counts for: its length times the vendor's tokens a second (25 where unknown)."""
    second = _SECOND.get(family_of(model), 25.0)
    if audio.data is None:
        return Range(second, _UNHEARD * second, 60 * _UNHEARD * second)
    seconds, known = audio_seconds(audio.data, audio.media_type or "")
    return (
        Range(seconds * second, seconds * second, seconds * second) * 1.0
        if known
        else Range(seconds * second / 4, seconds * second, seconds * second * 4)
    )


class _Page(NamedTuple):
    low: float
    tokens: float
    high: float


# Text and picture of a page: Anthropic says 1,500 to 3,000 for text and an image beside it; Gemini 258 and no text.
_PAGES: dict[Family, _Page] = {
    "anthropic": _Page(1000, 2500, 4600),
    "google": _Page(258, 258, 560),
    "openai": _Page(300, 1400, 3000),
}
_OTHER_PAGE = _Page(258, 1200, 4600)
_UNREAD = 4  # pages, of a document behind a URL
_PAGE_BYTES = 60_000


def file_tokens(file: File, model: str = "") -> Range:
    """Return what ``file`` counts for: text as text, a PDF by its pages, others by their size."""
    page = _PAGES.get(family_of(model), _OTHER_PAGE)
    if file.data is None:
        return Range(page.low, _UNREAD * page.tokens, 25 * _UNREAD * page.high)
    kind = file.media_type or ""
    if kind.startswith("text/") or kind in ("application/json", "application/xml"):
        tokens = text_tokens(file.data.decode("utf-8", "replace"), tokenizer_of(model))
        return Range(0.7 * tokens, tokens, 1.5 * tokens)
    pages = pdf_pages(file.data) if kind == "application/pdf" else 0
    if pages:
        return Range(pages * page.low, pages * page.tokens, pages * page.high)
    guess = max(1.0, len(file.data) / _PAGE_BYTES)
    return Range(page.low, guess * page.tokens, 10 * guess * page.high)

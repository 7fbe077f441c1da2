"""Sizes of images, lengths of recordings and pages of documents, from their headers alone: nothing is decoded.

Damaged, cut and foreign files give None or a guess from their length, never an error: they are sent as they are, and it
is the provider's to refuse them. Formats: PNG (RFC 2083), JPEG (ITU-T T.81, SOF markers), GIF89a, WebP (RFC 9649), BMP,
WAV (RIFF), MPEG audio frames (ISO 11172-3).
"""

from __future__ import annotations

import re
from struct import unpack_from

__all__ = ["audio_seconds", "image_size", "pdf_pages"]

_SOF = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # start of frame, less tables and extensions
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
_MARKERS_AT_MOST = 4096
_PADDING = 4096


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels, or None where the header doesn't tell."""
    try:
        size = _image_size(data)
    except Exception:  # noqa: BLE001 - cut or damaged
        return None
    return size if size is not None and size[0] > 0 and size[1] > 0 else None


def _image_size(data: bytes) -> tuple[int, int] | None:
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        width, height = unpack_from(">II", data, 16)
        return width, height
    if data[:2] == b"\xff\xd8":
        return _jpeg(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        width, height = unpack_from("<HH", data, 6)
        return width, height
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[:2] == b"BM":
        width, height = unpack_from("<ii", data, 18)
        return width, abs(height)
    return None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    at = 2
    for _ in range(_MARKERS_AT_MOST):
        at = data.find(b"\xff", at, at + _PADDING)
        if at < 0:
            return None
        marker = data[at + 1]
        at += 1
        if marker == 0xFF:  # padding
            continue
        at += 1
        if marker in _SOF:
            height, width = unpack_from(">HH", data, at + 3)
            return width, height
        if marker in (0xD9, 0xDA):
            return None
        if marker not in _ALONE:
            at += max(2, unpack_from(">H", data, at)[0])
    return None


def _webp(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if len(data) < 30 - 5 * (kind == b"VP8L"):
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


# ---- sound -----------------------------------------------------------------------------------------------------------

_SPEECH = 16_000.0  # bytes a second of compressed speech
_MPEG_RATES = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1, layer 3
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2 and 2.5, layer 3
)


def audio_seconds(data: bytes, media_type: str = "") -> tuple[float, bool]:
    """Return the length in seconds, and whether the file told it (else it is guessed from the number of bytes)."""
    try:
        seconds = _wav(data) if data[:4] == b"RIFF" else _mpeg(data)
    except Exception:  # noqa: BLE001 - cut or damaged
        seconds = None
    if seconds is not None:
        return seconds, True
    if media_type in ("audio/pcm", "audio/pcm16", "audio/l16"):
        return len(data) / 48_000.0, True  # 24 kHz of 16 bits, as the APIs take it
    return len(data) / _SPEECH, False


def _wav(data: bytes) -> float | None:
    at, rate = 12, 0
    for _ in range(64):
        name, size = unpack_from("<4sI", data, at)
        if name == b"fmt ":
            rate = unpack_from("<I", data, at + 16)[0]
        elif name == b"data":
            return min(size, len(data) - at - 8) / rate if rate else None
        at += 8 + size + size % 2
    return None


def _mpeg(data: bytes) -> float | None:
    at = 0
    if data[:3] == b"ID3":
        size = 0
        for byte in data[6:10]:
            size = size << 7 | byte & 0x7F
        at = 10 + size
    if data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:  # sync, layer 3
        return None
    older = data[at + 1] & 0x18 != 0x18
    rate = _MPEG_RATES[older][data[at + 2] >> 4]
    return (len(data) - at) / (rate * 125.0) if rate else None


# ---- documents -------------------------------------------------------------------------------------------------------

_PAGE = re.compile(rb"/Type\s*/Page(?![a-zA-Z])")
_COUNT = re.compile(rb"/Type\s*/Pages\b[^>]{0,200}?/Count\s+(\d{1,6})|/Count\s+(\d{1,6})[^>]{0,200}?/Type\s*/Pages\b")
_READ = 2 * 1024 * 1024  # of the beginning and of the end, where the list of pages stands


def pdf_pages(data: bytes) -> int:
    """Return the number of a PDF's pages; 0 where its list of pages is compressed or it is no PDF."""
    if len(data) > 2 * _READ:
        data = data[:_READ] + data[-_READ:]
    counts = [int(one or other) for one, other in _COUNT.findall(data)]
    return max([len(_PAGE.findall(data)), *counts])

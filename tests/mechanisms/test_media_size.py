"""Sizes from headers: real small files, cut and damaged ones."""

import struct
import wave
import zlib
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod.mechanisms.media_size import audio_seconds, image_size, pdf_pages


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"".join(b"\0" + b"\0" * width for _ in range(height)))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


def jpeg(width: int, height: int, *, marker: int = 0xC0, before: bytes = b"") -> bytes:
    frame = struct.pack(">BBHBHHB", 0xFF, marker, 11, 8, height, width, 1) + b"\x01\x11\x00"
    app = b"\xff\xe0" + struct.pack(">H", 16) + b"JFIF\0\1\1\0\0\1\0\1\0\0"
    return b"\xff\xd8" + app + before + frame + b"\xff\xda\0\x08\1\1\0\0\x3f\0\xff\xd9"


def webp(kind: bytes, data: bytes) -> bytes:
    body = b"WEBP" + kind + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def wav(seconds: float, rate: int = 8000) -> bytes:
    made = BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"\0\0" * int(seconds * rate))
    return made.getvalue()


THUMBNAIL = b"\xff\xe1" + struct.pack(">H", 42) + b"Exif\0\0" + jpeg(8, 9)[:34].ljust(34, b"\0")
IMAGES = {
    "png": png(640, 480),
    "jpeg": jpeg(640, 480),
    "progressive jpeg": jpeg(640, 480, marker=0xC2),
    "jpeg with a thumbnail": jpeg(640, 480, before=THUMBNAIL),
    "padded jpeg": jpeg(640, 480, before=b"\xff\xff\xff"),
    "jpeg with tables": jpeg(640, 480, before=b"\xff\xc4\0\x05\x10\0\0" + b"\xff\xdb\0\x04\0\1"),
    "gif": b"GIF89a" + struct.pack("<HH", 640, 480) + b"\0\0\0",
    "lossy webp": webp(b"VP8 ", b"\x30\1\0\x9d\x01\x2a" + struct.pack("<HH", 640 | 0x4000, 480)),
    "lossless webp": webp(b"VP8L", b"\x2f" + struct.pack("<I", 639 | 479 << 14) + b"\0"),
    "extended webp": webp(b"VP8X", b"\0\0\0\0" + (639).to_bytes(3, "little") + (479).to_bytes(3, "little")),
    "bmp": b"BM" + b"\0" * 12 + struct.pack("<Iii", 40, 640, -480),
}


@pytest.mark.parametrize("data", IMAGES.values(), ids=IMAGES)
def test_width_and_height(data):
    assert image_size(data) == (640, 480)


@pytest.mark.parametrize("data", IMAGES.values(), ids=IMAGES)
def test_cut_anywhere_it_is_the_same_or_unknown(data):
    for end in range(len(data)):
        assert image_size(data[:end]) in (None, (640, 480))


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF....WEBP", b"GIF89a", b"BM"]),
)
def test_anything_else_is_no_error(data, start):
    size = image_size(start + data)
    assert size is None or min(size) > 0
    seconds, _ = audio_seconds(start + data)
    assert seconds >= 0
    assert pdf_pages(start + data) >= 0


def test_a_hostile_file_costs_little():
    # Work is bounded by a number of markers, not by the file's length.
    assert image_size(b"\xff\xd8" + b"\xff" * 5_000_000) is None
    assert image_size(b"\xff\xd8" + b"\0" * 5_000_000) is None
    assert image_size(b"\xff\xd8" + b"\xff\x01" * 2_000_000) is None


def test_recordings():
    assert audio_seconds(wav(2.5)) == (pytest.approx(2.5), True)
    frame = b"\xff\xfb\x90\x00" + b"\0" * 31_996  # 128 kbit/s
    assert audio_seconds(frame) == (pytest.approx(2.0), True)
    tag = b"ID3\4\0\0" + bytes([0, 0, 1, 0]) + b"\0" * 128
    assert audio_seconds(tag + frame) == (pytest.approx(2.0), True)
    assert audio_seconds(b"\0" * 48_000, "audio/pcm") == (1.0, True)
    assert audio_seconds(b"OggS" + b"\0" * 15_996) == (1.0, False)


def test_pages():
    page = b"<< /Type /Page /Parent 1 0 R >>"
    assert pdf_pages(b"%PDF-1.4 << /Type /Pages /Kids [] /Count 7 >>") == 7
    assert pdf_pages(b"%PDF-1.4 " + page * 3) == 3
    assert pdf_pages(b"%PDF-1.5 compressed") == 0
    long = b"%PDF-1.4 " + b"\0" * 20_000_000 + b"<< /Count 12 /Type /Pages >>"
    assert pdf_pages(long) == 12

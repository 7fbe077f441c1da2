"""The parser of server-sent events: any cut of the bytes gives the same events."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmprod.providers._sse import SSEParser

Events = list[tuple[bytes, bytes]]


def parse(pieces: list[bytes], *, end: bool = True) -> Events:
    parser = SSEParser()
    events: Events = []
    for piece in pieces:
        events += parser.feed(piece)
    return events + (parser.end() if end else [])


def reference(text: bytes) -> Events:
    """The standard's algorithm, line by line, on the whole text; a missing blank line at the end is forgiven."""
    events: Events = []
    name, data = b"", list[bytes]()
    lines = re.split(rb"\r\n|\r|\n", text.removeprefix(b"\xef\xbb\xbf"))
    for line in [*lines, b""]:
        if not line:
            if data:
                events.append((name, b"\n".join(data)))
            name, data = b"", []
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return events


lines = st.one_of(
    st.sampled_from([
        b"data: {}", b"data:x", b"data:  two", b"data:", b"data", b"event: delta", b"event:e", b"event", b"id: 7",
        b"retry: 10", b": ping", b":", b"dataset: no", b"", b" data: no", b"data: a: b", b"data: \xc3\xa9",
    ]),
    st.binary(max_size=6).map(lambda text: b"data: " + text.replace(b"\r", b"").replace(b"\n", b"")),
)  # fmt: skip
ends = st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n", b"\r\n\r\n", b"\r\r"])
texts = st.builds(
    lambda bom, pairs, tail: bom + b"".join(line + end for line, end in pairs) + tail,
    st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xef\xbb"]),
    st.lists(st.tuples(lines, ends), max_size=8),
    lines,
)


@given(texts, st.lists(st.integers(0, 200), max_size=12))
@example(b"data: a\r\n\r\ndata: b\r\n\r\n", [8, 9, 10, 11])
@example(b"\xef\xbb\xbfdata: a\n\n", [1, 2, 3])
def test_any_cut_gives_what_the_standard_says(text: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:stop] for start, stop in itertools.pairwise(edges)]
    assert parse(pieces) == reference(text)


@given(texts)
def test_byte_by_byte(text: bytes) -> None:
    assert parse([text[at : at + 1] for at in range(len(text))]) == reference(text)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_is_handed_out_with_its_blank_line(end: bytes) -> None:
    parser = SSEParser()
    assert parser.feed(b"event: e" + end + b"data: 1" + end) == []
    assert parser.feed(end) == [(b"e", b"1")]
    assert parser.feed(b"data: 2" + end + end) == [(b"", b"2")]
    assert parser.end() == []


def test_several_data_lines_are_one_event() -> None:
    assert parse([b"data: a\ndata\ndata: b\n\n"]) == [(b"", b"a\n\nb")]


def test_a_name_without_data_is_no_event_and_names_no_later_one() -> None:
    assert parse([b"event: ping\n\ndata: 1\n\n"]) == [(b"", b"1")]


def test_the_last_event_may_lack_its_blank_line() -> None:
    assert parse([b"data: 1\n\ndata: [DONE]"]) == [(b"", b"1"), (b"", b"[DONE]")]
    assert parse([b"data: 1\n\ndata: [DO"], end=False) == [(b"", b"1")]


def test_nothing() -> None:
    assert parse([]) == parse([b""]) == parse([b"\xef"]) == parse([b"\xef\xbb\xbf"]) == []


def test_a_line_of_megabytes_in_many_pieces() -> None:
    text = b"x" * 4_000_000
    whole = b"data: " + text + b"\n\n"
    assert parse([whole[at : at + 1000] for at in range(0, len(whole), 1000)]) == [(b"", text)]

"""Joining a continuation: the same whatever the pieces that it comes in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod import Text, ToolCall
from llmprod.events import Finish, PartDone, Start, TextDelta, TokenLogprob, ToolCallDelta, ToolCallDone
from llmprod.mechanisms.shown import Shown
from llmprod.mechanisms.splice import Splice, _known, _repeats


def splice(shown: str, **options) -> tuple[Splice, Shown]:
    seen = Shown()
    seen.add(TextDelta(shown))
    prefix = shown.rstrip()
    return Splice(seen, prefix, shown[len(prefix) :], **options), seen


def said(text: str, sizes: list[int]) -> list[TextDelta]:
    """In pieces, each of one token."""
    pieces: list[TextDelta] = []
    while text:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(TextDelta(text[:size], logprobs=(TokenLogprob(text[:size], -0.5),)))
        text = text[size:]
    return pieces


def join(shown: str, events: list, reason: str = "stop") -> tuple[str, list]:
    made, _ = splice(shown)
    out = [joined for event in [*events, Finish(reason)] for joined in made.feed(event)]
    assert out[-1] == Finish(reason)
    return "".join(event.text for event in out if isinstance(event, TextDelta)), out


_words = st.text(alphabet="ab \n", max_size=50)


@given(shown=_words, more=_words, sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_the_pieces_make_no_difference(shown, more, sizes):
    whole, _ = join(shown, said(more, [1000]))
    pieced, out = join(shown, said(more, sizes))
    assert pieced == whole
    assert more.endswith(pieced), "only the beginning is ever dropped"
    tokens = "".join(item.token for event in out if isinstance(event, TextDelta) for item in event.logprobs)
    assert tokens == pieced


@given(
    text=st.text(alphabet="abc \n", min_size=20, max_size=60),
    cut=st.integers(16, 60),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    reason=st.sampled_from(["stop", "length"]),
)
def test_a_repetition_is_dropped_whole_or_not_at_all(text, cut, sizes, reason):
    shown = text[:cut]
    prefix = shown.rstrip()
    if len(prefix) < 16 or _repeats(prefix) or prefix != prefix.lstrip():
        return
    more, _ = join(shown, said(prefix + "zz", sizes), reason)
    assert more == "zz"


@pytest.mark.parametrize(
    ("shown", "space", "dropped"),
    [
        ("", " ", 0),
        ("", "\n\n", 0),
        (" ", "", 0),
        (" ", " ", 1),
        (" ", "  ", 1),
        ("\n", "\n\n", 1),
        ("\n\n", "\n", 1),
        ("\n", " ", 1),
        (" ", "\n", 0),
        (" \n", "\n", 0),
        ("\n", "\t\t", 2),
        ("\n  ", "\n\t", 2),
    ],
)
def test_space_that_was_shown(shown, space, dropped):
    assert _known(shown, space) == dropped


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("abcabc", True),
        ("abcabcab", True),
        ("aaaaaaaaaaaaaaaa", True),
        ("abcdefabc", False),
        ("abcdefgh", False),
        ("| 0 | 0 | 0 | 0 |", True),
        ("The quick brown fox jumps over the lazy dog", False),
    ],
)
def test_what_repeats_itself(text, repeats):
    assert _repeats(text) is repeats


@given(st.text(alphabet="ab", max_size=40))
def test_repeating_is_having_a_short_period(text):
    periods = range(1, len(text) // 2 + 1)
    assert _repeats(text) == any(text.startswith(text[period:]) for period in periods)


def test_other_parts_get_numbers_that_nobody_had():
    made, seen = splice("So")
    assert seen.next_number == 1
    call = ToolCall("c", "f", "{}")
    assert made.feed(Start("m")) == (Start("m"),)
    assert list(made.feed(TextDelta(" I call", 0))) == [TextDelta(" I call", 0)]
    assert made.feed(ToolCallDelta(1, "c", "f")) == (ToolCallDelta(1, "c", "f"),)
    assert made.feed(ToolCallDone(call, 1)) == (ToolCallDone(call, 1),)
    assert list(made.feed(TextDelta("and on", 2))) == [TextDelta("and on", 2)]
    assert made.feed(PartDone(Text(" I call", meta={"a": {}}), 0)) == (PartDone(Text("So I call", meta={"a": {}}), 0),)


def test_what_is_held_comes_before_what_follows_it():
    made, _ = splice("The quick brown fox ")
    assert made.feed(TextDelta("The quick")) == ()
    assert made.feed(ToolCallDelta(1, "c", "f")) == (TextDelta("The quick"), ToolCallDelta(1, "c", "f"))


def test_pieces_whose_tokens_are_not_their_text_lose_their_log_probabilities_with_it():
    made, _ = splice("a ")
    odd = TextDelta(" b", logprobs=(TokenLogprob("\ufffd", -1.0),))
    assert made.feed(odd) == [TextDelta("b")]

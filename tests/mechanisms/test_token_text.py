"""Estimates of text, by what it is made of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod.mechanisms._token_weights import SPREAD, WEIGHTS
from llmprod.mechanisms.token_text import FEATURES, features, text_tokens

ANY = st.text(st.characters(), max_size=400)  # lone surrogates included
TOKENIZERS = st.sampled_from(sorted(WEIGHTS))


def test_every_tokenizer_has_a_weight_for_every_part():
    assert set(SPREAD) == set(WEIGHTS)
    for name, weights in WEIGHTS.items():
        assert len(weights) == len(FEATURES), name
        assert min(weights) >= 0, name
        assert 0 < SPREAD[name][0] < 1 < SPREAD[name][1], name


@given(ANY, TOKENIZERS)
def test_any_string_has_a_count_between_one_and_its_bytes(text, tokenizer):
    count = text_tokens(text, tokenizer)
    assert count == 0 if not text else 1 <= count <= max(1, len(text.encode("utf-8", "surrogatepass")))


@given(ANY, ANY, TOKENIZERS)
def test_appended_text_never_takes_much_away(text, more, tokenizer):
    # Not strictly: a word that is completed is one word still, and the style of the whole weighs its words.
    assert text_tokens(text + more, tokenizer) >= 0.6 * text_tokens(text, tokenizer) - 3


@given(st.text(st.characters(), min_size=1, max_size=40), st.integers(2, 40), TOKENIZERS)
def test_what_is_repeated_costs_as_often(text, times, tokenizer):
    text = f"x{text}y\n"
    assert text_tokens(text * times, tokenizer) == pytest.approx(times * text_tokens(text, tokenizer), rel=0.35, abs=3)


def test_parts_are_told_apart():
    found = dict(zip(FEATURES, features("The HTTP code is 12345:\n\n    return x  # Привет, 世界 ✓"), strict=True))
    assert (found["digits"], found["digit_groups"]) == (5, 2)
    assert (found["upper_runs"], found["upper"]) == (1, 4)
    assert (found["lines"], found["newlines"]) == (1, 2)
    assert (found["blank_runs"], found["blanks"]) == (2, 6)
    assert (found["cyrillic"], found["cyrillic_words"]) == (6, 1)
    assert (found["han"], found["symbol"], found["latin"]) == (2, 1, 0)
    assert sum(value for name, value in found.items() if name.endswith(("to_3", "to_6"))) == pytest.approx(6)
    assert (found["mark_runs"], found["marks"]) == (3, 3)


def test_english_is_told_from_other_latin_text():
    english = features("We have seen that the water would still be there in the morning.")
    german = features("Wir haben gesehen, dass das Wasser am Morgen noch immer da war.")
    assert english[FEATURES.index("other_to_3")] == 0 < english[FEATURES.index("english_to_3")]
    assert german[FEATURES.index("english_to_3")] == 0 < german[FEATURES.index("other_to_3")]


def test_a_long_text_is_looked_at_in_slices():
    text = "".join(f"Line {number} of the log tells nothing new.\n" for number in range(20_000))
    looked_at = sum(text_tokens(text[start : start + 2500], "o200k") for start in range(0, len(text), 2500))
    assert text_tokens(text, "o200k") == pytest.approx(looked_at, rel=0.05)


def test_the_script_decides():
    # By bytes, all are about the same.
    english = text_tokens("There will be more rain in the morning, and then it will stop for the day.", "o200k")
    russian = text_tokens("Утром будет ещё больше дождя, а потом", "o200k")
    chinese = text_tokens("早上会下更多的雨,然后当天就会停下来了不是吗", "o200k")
    assert (english, russian, chinese) == (
        pytest.approx(17, rel=0.2),
        pytest.approx(9, rel=0.5),
        pytest.approx(17, rel=0.3),
    )

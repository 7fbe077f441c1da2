"""How many tokens a text has, without the model's table: by what it is made of.

A tokenizer cuts text into words, groups of digits, runs of punctuation and of blanks, and then looks up how many pieces
of its table each needs. Common words need one; long, rare and foreign ones more, by their length and script. So a text
is described by counts of such parts (:func:`features`), and its tokens are their sum, each weighted by what a tokenizer
of the model's family was found to need (:mod:`llmprod.mechanisms._token_weights`, fitted by ``benchmarks.tokens.fit``).

Letters of Latin words count by how English the text is (by its share of the commonest words) and how much like code (by
its share of punctuation), since that decides how many words the table knows.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from functools import lru_cache
from math import fsum
from operator import mul

from llmprod.mechanisms._token_weights import WEIGHTS
from llmprod.mechanisms.token_families import Tokenizer

__all__ = ["FEATURES", "features", "text_tokens"]

_SCRIPTS: tuple[tuple[int, str], ...] = (
    (0x80, "symbol"), (0xC0, "latin"), (0x2B0, "symbol"), (0x370, "greek"), (0x400, "cyrillic"), (0x530, "rare"),
    (0x590, "hebrew"), (0x600, "arabic"), (0x700, "rare"), (0x750, "arabic"), (0x780, "rare"), (0x8A0, "arabic"),
    (0x900, "devanagari"), (0x980, "bengali"), (0xB80, "tamil"), (0xD80, "rare"), (0xE00, "thai"), (0xE80, "khmer"),
    (0xF00, "rare"), (0x1000, "khmer"), (0x10A0, "rare"), (0x1100, "hangul"), (0x1200, "rare"), (0x1780, "khmer"),
    (0x1800, "rare"), (0x1E00, "latin"), (0x1F00, "greek"), (0x2000, "symbol"), (0x2C00, "rare"), (0x2E00, "symbol"),
    (0x3000, "wide"), (0x3040, "kana"), (0x3100, "rare"), (0x3130, "hangul"), (0x3190, "rare"), (0x31F0, "kana"),
    (0x3200, "symbol"), (0x3400, "rare"), (0x4E00, "han"), (0xA000, "rare"), (0xAC00, "hangul"), (0xD7B0, "rare"),
    (0xFB50, "arabic"), (0xFE00, "symbol"), (0xFE70, "arabic"), (0xFF00, "wide"), (0xFFF0, "symbol"),
    (0x10000, "rare"), (0x1F000, "emoji"), (0x20000, "rare"),
)  # fmt: skip
_STARTS = [start for start, _ in _SCRIPTS]
_CHARACTERS = (
    "latin", "greek", "cyrillic", "hebrew", "arabic", "devanagari", "bengali", "tamil", "thai", "khmer", "hangul",
    "kana", "han", "wide", "symbol", "emoji", "rare",
)  # fmt: skip
_RUNS = (
    "greek",
    "cyrillic",
    "hebrew",
    "arabic",
    "devanagari",
    "bengali",
    "tamil",
    "hangul",
)  # scripts written in spaced words

_LATIN = "\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u1e00-\u1eff"
_PART = re.compile(f"[A-Z]?[a-z{_LATIN}]+|[A-Z]+|[0-9]+|[!-/:-@\\[-`{{-~]+| {{2,}}|\t+|[\r\n]+|[^\x00-\x7f{_LATIN}]+")

# The commonest words of English, less those of other languages and of code.
_COMMON = frozenset((
    "the", "of", "to", "that", "it", "are", "be", "this", "by", "have", "has", "had", "was", "were", "they", "you",
    "your", "we", "our", "can", "will", "would", "should", "could", "which", "when", "what", "where", "who", "there",
    "their", "them", "then", "than", "these", "those", "been", "being", "but", "its", "into", "also", "may", "more",
    "other", "only", "over", "such", "any", "each", "used", "using", "how", "why", "all", "because", "about",
    "between", "after", "before", "does", "did", "make", "made", "many", "most", "must", "and", "or", "is", "for",
    "with", "not",
))  # fmt: skip
_STYLES = ("english", "code", "other")
_BINS = 6  # words up to 3, 6, 9 and 12 letters have a weight each, longer ones have one, and so has each letter beyond

FEATURES: tuple[str, ...] = (
    *(f"{style}_{length}" for style in _STYLES for length in ("to_3", "to_6", "to_9", "to_12", "longer", "beyond")),
    "upper_runs", "upper", "digit_groups", "digits", "mark_runs", "marks", "blank_runs", "blanks", "lines", "newlines",
    *_CHARACTERS, *(f"{script}_words" for script in _RUNS),
)  # fmt: skip
"""What a text is described by, in the order of the weights."""

_CHARACTER_AT = {script: FEATURES.index(script) for script in _CHARACTERS}
_RUN_AT = {script: FEATURES.index(f"{script}_words") for script in _RUNS}
_AFTER_WORDS = len(_STYLES) * _BINS

_WHOLE = 3000  # characters up to which a text is looked at whole
_SLICES, _SLICE = 10, 300


@lru_cache(4096)
def _script(character: str) -> str:
    return _SCRIPTS[bisect_right(_STARTS, ord(character)) - 1][1]


def features(text: str) -> list[float]:
    """Describe ``text`` by counts, in the order of :data:`FEATURES`. Any string will do, lone surrogates included."""
    found = [0.0] * len(FEATURES)
    sizes: dict[int, int] = {}
    words = common = letters = upper_runs = upper = groups = digits = mark_runs = marks = 0
    blank_runs = blanks = lines = newlines = 0
    for part, count in Counter(_PART.findall(text)).items():
        first, size = part[0], len(part)
        if first.isalpha() and (first < "\u02b0" or "\u1e00" <= first < "\u1f00"):
            words += count
            letters += size * count
            sizes[size] = sizes.get(size, 0) + count
            if part in _COMMON:
                common += count
            elif size > 1 and part.isupper():
                upper_runs += count
                upper += size * count
        elif first >= "\x80":
            place = _RUN_AT.get(_script(first))
            if place is not None:
                found[place] += count
        elif first.isdigit():
            groups += (size + 2) // 3 * count
            digits += size * count
        elif first in " \t":
            blank_runs += count
            blanks += size * count
        elif first in "\r\n":
            lines += count
            newlines += size * count
        else:
            mark_runs += count
            marks += size * count
    if words:
        english = min(1.0, common / words / 0.25)
        code = (1.0 - english) * min(1.0, marks / letters / 0.2)
        other = 1.0 - english - code
        for size, count in sizes.items():
            place = 0 if size <= 3 else 1 if size <= 6 else 2 if size <= 9 else 3 if size <= 12 else 4
            for at, share in ((place, english), (place + _BINS, code), (place + 2 * _BINS, other)):
                found[at] += count * share
                if place == 4:
                    found[at + 1] += count * share * (size - 12)
    found[_AFTER_WORDS : _AFTER_WORDS + 10] = [
        upper_runs, upper, groups, digits, mark_runs, marks, blank_runs, blanks, lines, newlines,
    ]  # fmt: skip
    if not text.isascii():
        for character, count in Counter(text).items():
            if character >= "\x80":
                found[_CHARACTER_AT[_script(character)]] += count
    return found


def text_tokens(text: str, tokenizer: Tokenizer = "other") -> float:
    """Return about how many tokens ``text`` has.

    Of a text of more than 3,000 characters ten slices of 300 are looked at, so that it takes a bounded time however
    long it is.

    Args:
        text: any string.
        tokenizer: which family's weights to take.
    """
    if not text:
        return 0.0
    size = len(text)
    if size <= _WHOLE:
        return _weigh(text, tokenizer)
    step = (size - _SLICE) / (_SLICES - 1)
    part = "".join([text[round(at * step) : round(at * step) + _SLICE] for at in range(_SLICES)])
    return _weigh(part, tokenizer) * size / len(part)


def _weigh(text: str, tokenizer: Tokenizer) -> float:
    # No tokenizer needs more than one for a byte.
    most = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return max(1.0, min(float(most), fsum(map(mul, WEIGHTS[tokenizer], features(text)))))

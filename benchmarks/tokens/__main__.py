"""How far estimates are off, by kind of text and tokenizer, and the time of counting: ``python -m benchmarks.tokens``.

Texts are this repository's own and passages written for the purpose; no weight was fitted to any of them. OpenAI's
tables need ``llmprod[tokens]``; the others are compared where ``--tokenizers`` names a folder with their files (see
:mod:`benchmarks.tokens.truth`).
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.tokens.corpus import own
from benchmarks.tokens.truth import tokenizers
from llmprod.mechanisms.token_text import text_tokens

KINDS = (
    "English", "code", "JSON", "tools", "German", "French", "Spanish", "Russian", "Chinese", "Japanese", "Korean",
    "Arabic", "Hindi",
)  # fmt: skip


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizers", type=Path, default=None)
    truth = tokenizers(parser.parse_args().tokenizers)
    if not truth:
        raise SystemExit("no tokenizer to compare with: pip install llmprod[tokens]")
    texts: dict[str, list[str]] = defaultdict(list)
    for kind, text in own():
        texts[kind].extend(pieces(text, 120 if kind in ("Chinese", "Japanese", "Korean") else 300))
    errors(texts, truth)
    if "o200k" in truth:
        speed(truth["o200k"], texts["English"])


def pieces(text: str, size: int = 300) -> list[str]:
    """Cut a text into pieces of at least so many characters, at ends of lines or words."""
    found: list[str] = []
    while text:
        end = text.find("\n", size, 2 * size) + 1 or text.find(" ", size, 2 * size) + 1 or size
        found.append(text[:end])
        text = text[end:]
    return [piece for piece in found if len(piece) > 60]


def errors(texts: dict[str, list[str]], truth: dict[str, Callable[[str], int]]) -> None:
    """Print mean and ninth decile of the relative error, in percent, and that of bytes by four."""
    print(f"| text | pieces | {' | '.join(truth)} | bytes/4, o200k |")
    print(f"|---|---|{'---|' * (len(truth) + 1)}")
    for kind in KINDS:
        told: list[str] = []
        for name, count in truth.items():
            told.append(_told([abs(text_tokens(piece, _as(name)) / count(piece) - 1) for piece in texts[kind]]))
        first = next(iter(truth.values()))
        told.append(_told([abs(len(piece.encode()) / 4 / first(piece) - 1) for piece in texts[kind]]))
        print(f"| {kind} | {len(texts[kind])} | {' | '.join(told)} |")


def _as(name: str) -> Any:
    return name


def _told(off: list[float]) -> str:
    off.sort()
    return f"{100 * sum(off) / len(off):.0f} ({100 * off[int(0.9 * (len(off) - 1))]:.0f})"


def speed(count: Callable[[str], int], english: list[str]) -> None:
    """Print the median time of an estimate beside that of tiktoken's count, in microseconds, in turns."""
    text = "".join(english)
    print("\n| characters | estimate, µs | tiktoken, µs |\n|---|---|---|")
    for size in (100, 1000, 10_000, 100_000, 1_000_000):
        piece = (text * (size // len(text) + 1))[:size]
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(max(5, min(200, 2_000_000 // size))):
            ours.append(_time(partial(text_tokens, piece, "o200k")))
            theirs.append(_time(partial(count, piece)))
        print(f"| {size:,} | {median(ours) * 1e6:,.0f} | {median(theirs) * 1e6:,.0f} |")


def _time(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

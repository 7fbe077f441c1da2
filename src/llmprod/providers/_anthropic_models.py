"""What the Claude models accept, by name: each generation of them has refused something that the one before took."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["ModelRules", "base_model", "rules_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRules:
    """What a model accepts.

    Attributes:
        max_tokens: sent where the request names no limit; the API requires one.
        sampling: ``temperature``, ``top_p`` and ``top_k``.
        prefill: an assistant message at the end of the prompt, to be continued.
        thinking: how it is asked to think: by effort (``adaptive``), by a number of tokens (``budget``), or not.
        always_thinks: thinking can't be turned off.
        forced_tools: the choices ``required`` and a tool's name.
    """

    max_tokens: int = 16_384
    sampling: bool = True
    prefill: bool = True
    thinking: Literal["adaptive", "budget", "none"] = "budget"
    always_thinks: bool = False
    forced_tools: bool = True


_ADAPTIVE = ModelRules(prefill=False, thinking="adaptive")
_NO_SAMPLING = ModelRules(prefill=False, thinking="adaptive", sampling=False)
_ALWAYS_THINKS = ModelRules(prefill=False, thinking="adaptive", sampling=False, always_thinks=True)
_NO_FORCE = ModelRules(prefill=False, thinking="adaptive", sampling=False, always_thinks=True, forced_tools=False)

_ANY = ("opus", "sonnet", "haiku", "fable", "mythos", None)
_TABLE: tuple[tuple[tuple[str | None, ...], tuple[int, int], ModelRules], ...] = (
    # families, from version on, rules; the first row that fits decides
    (("fable", "mythos"), (5, 1), _NO_FORCE),
    (("fable", "mythos"), (0, 0), _ALWAYS_THINKS),
    (_ANY, (5, 5), _NO_FORCE),
    (_ANY, (4, 7), _NO_SAMPLING),
    (_ANY, (4, 6), _ADAPTIVE),
    (_ANY, (3, 7), ModelRules()),
    (_ANY, (0, 0), ModelRules(max_tokens=4096, thinking="none")),
)
_OTHER = ModelRules(max_tokens=4096, prefill=False)
"""Models of other makers behind a server that speaks this format, such as vLLM's."""

_NAME = re.compile(r"claude-(?:(opus|sonnet|haiku|fable|mythos)-)?(?:(\d+)(?:[-.](\d{1,2})(?!\d))?|preview)")


def rules_for(model: str) -> ModelRules:
    """Return the rules for a model id; platform prefixes and date suffixes don't matter."""
    match = _NAME.search(model)
    if match is None:
        return _OTHER
    version = (int(match[2] or 0), int(match[3] or 0))
    return next(rules for families, since, rules in _TABLE if match[1] in families and version >= since)


def base_model(model: str) -> str:
    """Return a model id without its date, so that an alias and what it stands for compare equal."""
    return re.sub(r"[-@](?:\d{8}|latest)$", "", model)

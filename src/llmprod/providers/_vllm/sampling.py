"""How tokens are chosen: options of the token path, checked here, and vLLM's ``SamplingParams`` made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import index
from typing import Any, TypedDict, cast

from llmprod import _validate
from llmprod.errors import InvalidArgument
from llmprod.providers._vllm.compat import VLLMModules, sampling_fields
from llmprod.schema import OutputSchema

__all__ = ["Sampling", "SamplingKeywords", "Structured", "token_ids"]

_GREEDY = 1e-5
"""Below it, vLLM takes a temperature for 0."""


def token_ids(name: str, value: Any, *, empty: bool = False) -> tuple[int, ...]:
    """Require a sequence of token ids.

    Raises:
        InvalidArgument: it is none; the ids are not shown, they may be a prompt.
    """
    allowed = "token ids: integers of 0 or more" + ("" if empty else ", at least one")
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        try:  # arrays are no Sequence
            value = list(value) if not isinstance(value, (str, bytes, Mapping)) else None
        except TypeError:
            value = None
        if value is None:
            raise InvalidArgument(name, "something else", allowed)
    try:
        found = tuple(map(index, cast("Sequence[Any]", value)))
    except TypeError:
        raise InvalidArgument(name, "an item that is no integer", allowed) from None
    if not found and not empty:
        raise InvalidArgument(name, "none", allowed)
    if found and min(found) < 0:
        raise InvalidArgument(name, "a negative one", allowed)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Structured:
    """What a continuation has to look like, from its first token on; give exactly one.

    Attributes:
        json_schema: a JSON Schema as a dict, or a type that has one, such as a pydantic model.
        regex: a regular expression that the whole text matches.
        choice: texts, one of which it is.
        grammar: a context-free grammar in EBNF (GBNF, as the engine's backend takes it).

    Raises:
        InvalidArgument: naming the field.
    """

    json_schema: Mapping[str, Any] | type[Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        given = [item.name for item in fields(self) if getattr(self, item.name) is not None]
        if len(given) != 1:
            raise InvalidArgument(
                "structured",
                " and ".join(given) or "nothing",
                "exactly one of " + ", ".join(item.name for item in fields(self)),
            )
        for name in ("regex", "grammar"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise InvalidArgument(f"structured.{name}", type(value).__name__, "a string that is not empty")
        if self.choice is not None and not _validate.strings("structured.choice", self.choice):
            raise InvalidArgument("structured.choice", "none", "at least one string")

    def fields(self) -> dict[str, Any]:
        """Return the fields of vLLM's ``StructuredOutputsParams``."""
        if self.json_schema is not None:
            return {"json": dict(OutputSchema.of(self.json_schema).schema)}
        if self.choice is not None:
            return {"choice": list(self.choice)}
        return {"regex": self.regex} if self.regex is not None else {"grammar": self.grammar}


class SamplingKeywords(TypedDict, total=False):
    """The fields of :class:`Sampling`, as keywords."""

    n: int
    max_tokens: int | None
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    include_stop: bool
    ignore_eos: bool
    logprobs: int | None
    prompt_logprobs: int | None
    logit_bias: Mapping[int, float] | None
    allowed_token_ids: Sequence[int] | None
    skip_special_tokens: bool
    structured: Structured | None
    extra: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a prompt is continued.

    Attributes:
        n: continuations, written side by side.
        max_tokens: tokens of each at most; None: as many as the context window has room for.
        min_tokens: tokens before which it doesn't end of itself.
        temperature: 0 is greedy; 1 takes the model's own probabilities.
        top_p: sample from the likeliest tokens that together have this probability; 1: all.
        top_k: sample from this many of the likeliest; 0: all.
        min_p: leave out tokens less likely than this share of the likeliest one's probability; 0: none.
        presence_penalty, frequency_penalty: taken from a token's logit once it, or each time it, was written; -2 to 2.
        repetition_penalty: divides the logits of tokens that stand in the prompt or the text; 1: off.
        seed: makes sampling repeatable; of ``n`` continuations each has its own (``seed``, ``seed + 1``, …).
        stop: strings that end it.
        stop_token_ids: tokens that end it.
        include_stop: leave the stop string in the text.
        ignore_eos: go on after the end token.
        logprobs: log probabilities of the tokens written and of this many of the likeliest (0: the written alone).
        prompt_logprobs: the same of the prompt's tokens.
        logit_bias: added to the logits, by token id; -100 to 100.
        allowed_token_ids: write no other tokens.
        skip_special_tokens: leave special tokens out of the text; ``token_ids`` has them anyway.
        structured: what it has to look like.
        extra: further fields of vLLM's ``SamplingParams``, by name.

    Raises:
        InvalidArgument: naming the field.
    """

    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    skip_special_tokens: bool = True
    structured: Structured | None = None
    extra: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _validate.whole("n", self.n, 1)
        _validate.whole("max_tokens", self.max_tokens, 1, optional=True)
        _validate.whole("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidArgument("min_tokens", str(self.min_tokens), f"at most max_tokens, {self.max_tokens}")
        _validate.between("temperature", self.temperature, 0, math.inf)
        if self.n > 1 and self.temperature < _GREEDY:
            raise InvalidArgument("n", f"{self.n} with temperature 0", "1, for greedy continuations are all the same")
        _validate.between("top_p", self.top_p, 1e-9, 1)
        _validate.whole("top_k", self.top_k, 0)
        _validate.between("min_p", self.min_p, 0, 1)
        _validate.between("presence_penalty", self.presence_penalty, -2, 2)
        _validate.between("frequency_penalty", self.frequency_penalty, -2, 2)
        _validate.between("repetition_penalty", self.repetition_penalty, 1e-9, math.inf)
        _validate.whole("seed", self.seed, -(2**63), optional=True)
        for name in ("include_stop", "ignore_eos", "skip_special_tokens"):
            _validate.flag(name, getattr(self, name))
        _validate.whole("logprobs", self.logprobs, 0, optional=True)
        _validate.whole("prompt_logprobs", self.prompt_logprobs, 0, optional=True)
        stop = (self.stop,) if isinstance(self.stop, str) else _validate.strings("stop", self.stop)
        if not all(stop):
            raise InvalidArgument("stop", "an empty string", "strings that are not empty")
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", token_ids("stop_token_ids", self.stop_token_ids, empty=True))
        if self.allowed_token_ids is not None:
            object.__setattr__(self, "allowed_token_ids", token_ids("allowed_token_ids", self.allowed_token_ids))
        self._check_bias()
        if self.structured is not None and not isinstance(self.structured, Structured):
            raise InvalidArgument("structured", type(self.structured).__name__, "a Structured, or None")
        if self.extra is not None and not isinstance(self.extra, Mapping):
            raise InvalidArgument("extra", type(self.extra).__name__, "a dict of fields of SamplingParams, or None")

    def _check_bias(self) -> None:
        bias = self.logit_bias
        if bias is None:
            return
        if not isinstance(cast("object", bias), Mapping):
            raise InvalidArgument("logit_bias", type(bias).__name__, "a dict of numbers by token id, or None")
        items = bias
        token_ids("logit_bias", list(items), empty=True)
        for value in items.values():
            _validate.between("logit_bias", value, -100, 100)

    def for_vllm(self, modules: VLLMModules, *, stream: bool) -> Any:
        """Return the release's ``SamplingParams``; only what differs from the defaults is passed.

        Raises:
            InvalidArgument: ``extra`` names a field that the release doesn't have, or one that has a keyword here.
        """
        given: dict[str, Any] = {
            "max_tokens": self.max_tokens,  # vLLM's own default is 16
            "output_kind": modules.RequestOutputKind.DELTA if stream else modules.RequestOutputKind.FINAL_ONLY,
        }
        for name in _PLAIN:
            value: Any = getattr(self, name)
            if value != _DEFAULTS[name]:
                given[name] = list(value) if name in _LISTS else value
        if self.include_stop:
            given["include_stop_str_in_output"] = True
        if self.structured is not None:
            given["structured_outputs"] = modules.StructuredOutputsParams(**self.structured.fields())
        for name, value in (self.extra or {}).items():
            if name in _OURS:
                raise InvalidArgument("extra", name, f"what has no keyword of its own; pass {_OURS[name]}=…")
            if name not in sampling_fields(modules):
                raise InvalidArgument("extra", repr(name)[:60], f"fields of SamplingParams in vLLM {modules.version}")
            given[name] = value
        return modules.SamplingParams(**given)


_DEFAULTS: dict[str, Any] = {item.name: item.default for item in fields(Sampling)}
_PLAIN = [name for name in _DEFAULTS if name not in ("max_tokens", "include_stop", "structured", "extra")]
_LISTS = {"stop", "stop_token_ids", "allowed_token_ids"}
_OURS: dict[str, str] = {
    **{name: name for name in _DEFAULTS if name != "extra"},
    "include_stop_str_in_output": "include_stop",
    "structured_outputs": "structured",
    "output_kind": "stream_complete",
}

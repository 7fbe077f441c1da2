"""Puts what a provider's prompt cache wants into a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from llmprod.mechanisms.cache_habits import CacheHabits, CacheWorth, Lifetime
from llmprod.mechanisms.cache_plan import Mark, anthropic_marks, breakpoint_marks, has_marks, marked
from llmprod.mechanisms.cache_routing_key import CacheRoutingKey
from llmprod.mechanisms.cache_rules import CacheRules
from llmprod.mechanisms.prefix_chain import Cut
from llmprod.request import GenerateRequest

__all__ = ["Shape", "Shaper", "in_order"]

_SECONDS: Mapping[Lifetime, float] = {"5m": 300.0, "1h": 3600.0}


@dataclass(frozen=True, slots=True)
class Shape:
    """A request as it is sent.

    Attributes:
        request: with marks and keys.
        kept: the cuts up to which the provider's cache will have it, if it is long enough.
        lifetime: seconds for which, from its last use.
        marked: it holds marks of ours, or may be written without any.
    """

    request: GenerateRequest
    kept: Sequence[Cut]
    lifetime: float
    marked: bool = False


class Shaper:
    """Shapes requests for one target.

    Args:
        rules: of its prompt cache.
        extra: its name in ``request.extra``.
        fmt: its wire format's name in ``meta``.
        habits: what was seen of its calls; each call that is shaped is noted.
        key: makes its ``prompt_cache_key``.
        worth: tells whether writing pays.
        ttl, conversations, retention: options of :class:`llmprod.PromptCaching`.
    """

    def __init__(
        self,
        rules: CacheRules,
        extra: str,
        fmt: str,
        habits: CacheHabits,
        key: CacheRoutingKey,
        worth: CacheWorth,
        *,
        ttl: Literal["5m", "1h", "auto"],
        conversations: bool | Literal["auto"],
        retention: str | None,
    ) -> None:
        self._rules = rules
        self._extra = extra
        self._format = fmt
        self._habits = habits
        self._key = key
        self._worth = worth
        self._ttl: Literal["5m", "1h", "auto"] = ttl
        self._conversations: bool | Literal["auto"] = conversations
        self._retention = retention

    def shape(self, request: GenerateRequest, cuts: Sequence[Cut], stable: int) -> Shape:
        """Return the request with all that its target's cache wants."""
        prefix, conversation = cuts[stable].digest, cuts[min(stable + 1, len(cuts) - 1)].digest
        goes_on = self._goes_on(request, prefix)
        lifetimes = self._habits.lifetimes(prefix) if self._ttl == "auto" else (self._ttl, self._ttl)
        self._habits.sent(prefix, conversation, cuts[stable].tokens, cuts[-1].tokens)
        style = self._rules.style
        if style == "anthropic":
            return self._anthropic(request, cuts, stable, goes_on, lifetimes)
        if style in ("openai", "openai-breakpoints", "key"):
            return self._openai(request, cuts, stable, goes_on)
        return Shape(request, cuts, self._rules.lifetime)

    def _goes_on(self, request: GenerateRequest, prefix: str) -> bool:
        if self._conversations != "auto":
            return self._conversations
        # A conversation that has got so far will probably go on; of one that begins the others tell.
        begun = any(message.role == "assistant" for message in request.messages)
        return begun or self._habits.goes_on(prefix, self._rules.write)

    def _anthropic(
        self,
        request: GenerateRequest,
        cuts: Sequence[Cut],
        stable: int,
        goes_on: bool,
        lifetimes: tuple[Lifetime, Lifetime],
    ) -> Shape:
        if has_marks(request, self._format, self._extra, "cache_control"):
            return Shape(request, cuts, _SECONDS["5m"])
        if not self._worth.pays:
            return Shape(request, (), _SECONDS["5m"])
        marks = anthropic_marks(
            request, cuts, stable, minimum=self._rules.minimum, conversation=goes_on, lifetimes=lifetimes
        )
        shaped = marked(request, marks, self._format, "cache_control", _control)
        last = marks[-1] if marks else None
        return Shape(shaped, _upto(cuts, last), _SECONDS[last.lifetime if last is not None else "5m"], last is not None)

    def _openai(self, request: GenerateRequest, cuts: Sequence[Cut], stable: int, goes_on: bool) -> Shape:
        rules, own = self._rules, request.extra.get(self._extra, {})
        fields: dict[str, Any] = {}
        if "prompt_cache_key" not in own:
            # Calls have in common what is stable, if that is long enough to be cached; else what their own turns share.
            shared = cuts[stable] if cuts[stable].tokens >= rules.minimum else cuts[min(stable + 1, len(cuts) - 1)]
            conversation = cuts[min(stable + 1, len(cuts) - 1)].digest
            fields["prompt_cache_key"] = self._key.key(shared.digest, conversation)
        kept: Sequence[Cut] = cuts
        writes = False
        if rules.style == "openai":
            if self._retention is not None and not own.keys() & {"prompt_cache_retention", "prompt_cache_options"}:
                fields["prompt_cache_retention"] = self._retention
        elif rules.style == "openai-breakpoints" and not has_marks(
            request, self._format, self._extra, "prompt_cache_breakpoint"
        ):
            pays = self._worth.pays
            goes_on, writes = goes_on and pays, pays
            marks = breakpoint_marks(request, cuts, stable, minimum=rules.minimum, conversation=goes_on) if pays else []
            request = marked(request, marks, self._format, "prompt_cache_breakpoint", {"mode": "explicit"})
            if not goes_on and "prompt_cache_retention" not in own:
                # Nobody will read the newest message again: it must not be written, which costs a quarter more.
                fields["prompt_cache_options"] = {"mode": "explicit"}
                kept = _upto(cuts, marks[-1] if marks else None)
        if fields:
            request = replace(request, extra={**request.extra, self._extra: {**fields, **own}})
        return Shape(request, kept, rules.lifetime, writes)


def _control(mark: Mark) -> dict[str, str]:
    # Five minutes are the default, and servers that speak this format may not know the field.
    return {"type": "ephemeral"} if mark.lifetime == "5m" else {"type": "ephemeral", "ttl": mark.lifetime}


def _upto(cuts: Sequence[Cut], last: Mark | None) -> Sequence[Cut]:
    """The cuts at or before a mark; the cut after message n is the n + 1st."""
    return () if last is None else cuts[: last.message + 2]


def in_order(request: GenerateRequest) -> GenerateRequest:
    """Return the request with its tools by name and their schemas' keys in order."""
    tools = sorted(request.tools, key=lambda tool: tool.name)
    sorted_tools = tuple(replace(tool, parameters=_sorted(tool.parameters)) for tool in tools)
    return replace(request, tools=sorted_tools) if request.tools else request


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=str)}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return [_sorted(item) for item in value] if isinstance(value, list) else value  # pyright: ignore[reportUnknownVariableType]

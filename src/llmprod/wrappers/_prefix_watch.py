"""Watches for prompts whose beginning changes needlessly, and says so once."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass

from llmprod.context import Context
from llmprod.decisions import PrefixVolatile
from llmprod.mechanisms.prefix_chain import Cut
from llmprod.mechanisms.prefix_lint import compare_prefixes
from llmprod.request import GenerateRequest
from llmprod.schema import Tool
from llmprod.types import Message

__all__ = ["PrefixWatch"]

_PROMPTS = 256
_log = logging.getLogger("llmprod")


@dataclass(slots=True)
class _Prompt:
    digest: str
    tools: tuple[Tool, ...]
    messages: tuple[Message, ...]
    told: bool = False


class PrefixWatch:
    """Compares each prompt's beginning with the one before it, of the same name and version."""

    def __init__(self) -> None:
        self._prompts: OrderedDict[tuple[str, str] | None, _Prompt] = OrderedDict()

    def look(self, request: GenerateRequest, stable: int, cut: Cut, target: str, context: Context) -> None:
        """Tell, the first time for a prompt, what could be avoided; prompts without a name count as one."""
        known = self._prompts.get(context.prompt)
        if known is None:
            self._prompts[context.prompt] = _Prompt(cut.digest, request.tools, request.messages[:stable])
            if len(self._prompts) > _PROMPTS:
                self._prompts.popitem(last=False)
            return
        if known.told or known.digest == cut.digest:
            return
        for finding in compare_prefixes(request.tools, request.messages[:stable], known.tools, known.messages):
            if finding.avoidable:
                known.told, known.tools, known.messages = True, (), ()
                context.decided(PrefixVolatile, target, kind=finding.kind, place=finding.where)
                name = context.prompt[0] if context.prompt is not None else "without a name"
                _log.warning("the beginning of prompt %s changes with each call: %s", name, finding)
                return
        known.digest, known.tools, known.messages = cut.digest, request.tools, request.messages[:stable]

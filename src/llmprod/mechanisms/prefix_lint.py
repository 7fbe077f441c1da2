"""What makes a prompt's beginning another one each time, so that no prompt cache ever finds it again.

The usual culprits: the time or an id in the system message, tools listed in another order, a schema whose keys come in
another order. All of it costs the price of the whole prompt, and Anthropic's or OpenAI's fee for writing it besides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic_core import to_json

from llmprod.mechanisms.prefix_chain import leading_system
from llmprod.request import GenerateRequest
from llmprod.schema import Tool
from llmprod.types import Message

__all__ = ["PrefixFinding", "compare_prefixes", "prefix_lint"]

Kind = Literal["timestamp", "id", "number", "text", "tool order", "tools", "key order", "other content"]

_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
_TIME = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z| ?UTC|[+-]\d\d:?\d\d)?)?"
    rf"|\b{_MONTH}\.? \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}(?:,? (?:at )?\d{{1,2}}:\d\d(?::\d\d)?)?"
    rf"|\b\d{{1,2}}\.? {_MONTH} \d{{4}}(?:,? \d{{1,2}}:\d\d(?::\d\d)?)?"
    r"|\b\d{1,2}[./]\d{1,2}[./]\d{4}\b"
    r"|\b\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?\b"
    r"|\b1[6-9]\d{8}(?:\d{3})?(?:\.\d+)?\b",  # seconds or milliseconds since 1970
)
_CLOCK = re.compile(r"\d:\d\d|1[6-9]\d{8}")
_ID = re.compile(
    r"\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\b"
    r"|\b(?=[0-9a-f]*\d)(?=[0-9]*[a-f])[0-9a-f]{16,}\b"
    r"|\b[0-7][0-9A-HJKMNP-TV-Z]{25}\b"  # ULID
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True, slots=True)
class PrefixFinding:
    """One thing that changes.

    Attributes:
        kind: ``timestamp``, ``id``, ``number`` or ``text`` that differs; ``tool order``, ``tools`` (other ones),
            ``key order`` (of a tool's schema), ``other content`` (images, files, number of messages).
        where: ``messages[0]``, ``tools`` or ``tool NAME``.
        at: characters into the text at which the difference begins; None where it is not one of texts.
        sure: it did change. False for what only looks like it would (there was nothing to compare with).
    """

    kind: Kind
    where: str
    at: int | None = None
    sure: bool = True

    @property
    def avoidable(self) -> bool:
        """The same content could be sent in a way that a cache finds again."""
        return self.kind in ("timestamp", "id", "tool order", "key order")

    def __str__(self) -> str:
        place = self.where if self.at is None else f"{self.where}, character {self.at}"
        return f"{self.kind} {'changes' if self.sure else 'may change'} in {place}"


def prefix_lint(
    request: GenerateRequest, previous: GenerateRequest | None = None, *, stable: int | None = None
) -> list[PrefixFinding]:
    """Tell what keeps a prompt cache from finding the beginning of ``request`` again. No finding holds prompt text.

    Args:
        request: the request.
        previous: an earlier one that ought to begin alike; without it only times and ids are found, and not surely.
        stable: how many leading messages ought to be the same (default: the system messages at the beginning).
    """
    count = leading_system(request) if stable is None else stable
    messages = request.messages[:count]
    if previous is None:
        return [
            PrefixFinding(kind, f"messages[{place}]", found.start(), sure=False)
            for place, message in enumerate(messages)
            for kind, found in _suspects(message.text)
        ]
    before = leading_system(previous) if stable is None else stable
    return compare_prefixes(request.tools, messages, previous.tools, previous.messages[:before])


def _suspects(text: str) -> list[tuple[Kind, re.Match[str]]]:
    times: list[tuple[Kind, re.Match[str]]] = [
        ("timestamp", found) for found in _TIME.finditer(text) if _CLOCK.search(found[0])
    ]
    ids: list[tuple[Kind, re.Match[str]]] = [("id", found) for found in _ID.finditer(text)]
    return times + ids


def compare_prefixes(
    tools: Sequence[Tool], messages: Sequence[Message], tools_before: Sequence[Tool], before: Sequence[Message]
) -> list[PrefixFinding]:
    """Return what differs between two beginnings, the first difference of each message and tool."""
    findings = _tools(tools, tools_before)
    for place, (message, old) in enumerate(zip(messages, before, strict=False)):
        where = f"messages[{place}]"
        found = _texts(message.text, old.text, where)
        if found is not None:
            findings.append(found)
        elif message.role != old.role or message.parts != old.parts:
            findings.append(PrefixFinding("other content", where))
    if len(messages) != len(before):
        findings.append(PrefixFinding("other content", f"messages[{min(len(messages), len(before))}]"))
    return findings


def _tools(tools: Sequence[Tool], before: Sequence[Tool]) -> list[PrefixFinding]:
    findings: list[PrefixFinding] = []
    old = {tool.name: tool for tool in before}
    names = [tool.name for tool in tools]
    if names != list(old):
        findings.append(PrefixFinding("tool order" if sorted(names) == sorted(old) else "tools", "tools"))
    for tool in tools:
        other = old.get(tool.name)
        if other is None:
            continue
        where = f"tool {tool.name}"
        found = _texts(tool.description or "", other.description or "", where)
        if found is not None:
            findings.append(found)
        if tool.parameters != other.parameters:
            findings.append(PrefixFinding("tools", where))
        elif to_json(tool.parameters) != to_json(other.parameters):
            findings.append(PrefixFinding("key order", where))
    return findings


def _texts(text: str, before: str, where: str) -> PrefixFinding | None:
    if text == before:
        return None
    at = _first_difference(text, before)
    patterns: tuple[tuple[Kind, re.Pattern[str]], ...] = (("id", _ID), ("timestamp", _TIME), ("number", _NUMBER))
    for kind, pattern in patterns:
        if _covers(pattern, text, at) and _covers(pattern, before, at):
            return PrefixFinding(kind, where, at)
    return PrefixFinding("text", where, at)


def _first_difference(text: str, before: str) -> int:
    low, high = 0, min(len(text), len(before))
    while low < high:  # by halves: comparing slices is fast, comparing characters is not
        middle = (low + high + 1) // 2
        if text[:middle] == before[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _covers(pattern: re.Pattern[str], text: str, at: int) -> bool:
    around = max(0, at - 60)
    return any(found.start() <= at - around <= found.end() for found in pattern.finditer(text[around : at + 60]))

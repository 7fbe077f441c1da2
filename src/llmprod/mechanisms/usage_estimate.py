"""The usage of an attempt that nobody told the usage of: it broke, lost a race, was cancelled, or closed early.

The prompt: what :class:`TokenEstimate` takes it for, learned from what the target counted. The answer: what was shown
of it. Of a whole answer nothing is shown before its end: as much as the target writes in the time that it had, and at
most what it usually writes. What is thought unseen can't be counted, so a cut answer of a model that thinks is
estimated too low.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from math import ceil

from llmprod.mechanisms.token_estimate import TokenEstimate
from llmprod.request import Request
from llmprod.response import Response
from llmprod.types import Text, Thinking, ToolCall
from llmprod.usage import Usage

__all__ = ["Tokens", "UsageEstimate"]

Tokens = Callable[[Request | str], int]
"""Counts the tokens of a request's prompt, or of a text."""

_BYTES_A_TOKEN = 4.0
_TARGETS = 256
_WEIGHT = 0.05
_ALL_OF, _ONE_IN = 64, 16  # the first answers teach all; later ones are many, and measuring a prompt takes time


class _Pace:
    """What is known of one target."""

    __slots__ = ("rate", "seen", "tokens")

    def __init__(self, tokens: TokenEstimate) -> None:
        self.tokens = tokens
        self.seen = 0
        self.rate: float | None = None  # answer tokens a second, of whole answers

    def learn(self, rate: float) -> None:
        self.rate = rate if self.rate is None else self.rate + (rate - self.rate) * _WEIGHT


class UsageEstimate:
    """Estimates what attempts used, and learns from those whose usage is known.

    Args:
        tokens: counts a prompt's and a text's tokens exactly; takes the place of the estimate from their length.
    """

    def __init__(self, tokens: Tokens | None = None) -> None:
        self._tokens = tokens
        self._targets: OrderedDict[str, _Pace] = OrderedDict()

    def learn(self, target: str, request: Request, usage: Usage, seconds: float | None, *, whole: bool) -> None:
        """Note what a complete answer used, and how long it took."""
        pace = self._of(target)
        pace.seen += 1
        if pace.seen > _ALL_OF and pace.seen % _ONE_IN:
            return
        raw = 0.0 if self._tokens is not None else pace.tokens.raw_input(request)
        prompt = 0 if self._tokens is not None else usage.total_input
        pace.tokens.learn(request, raw, prompt, usage.total_output)
        if whole and seconds and usage.total_output:
            pace.learn(usage.total_output / seconds)

    def shown(self, response: Response) -> int:
        """Count the tokens of what was shown of an answer."""
        text = "".join(map(_written, response.parts))
        if not text:
            return 0
        if self._tokens is not None:
            return self._tokens(text)
        return ceil((len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))) / _BYTES_A_TOKEN)

    def filled(self, target: str, request: Request, told: Usage, response: Response) -> Usage:
        """Return what an answer used, with estimates for a prompt or an answer that was told to have no tokens.

        Some servers count nothing, or nothing of what they had cached, and tell 0 all the same.
        """
        if not told.total_input:
            guess = self.guess(target, request, shown=0, seconds=0.0)
            if guess is not None and guess.input:
                told = replace(told, input=guess.input, estimated=True)
        if not told.total_output:
            told = at_least(told, self.shown(response))
        return told

    def guess(self, target: str, request: Request, *, shown: int | None, seconds: float) -> Usage | None:
        """Estimate a usage; None where there is nothing to go by (a function's call that was never answered before).

        Args:
            target: who was asked.
            request: for what.
            shown: tokens that were shown; None where the answer was to come whole, and none of it did.
            seconds: how long the attempt took.
        """
        pace = self._of(target)
        prompt = round(pace.tokens.input(pace.tokens.raw_input(request)))
        if not prompt and not shown:
            return None
        if shown is None:
            expected = pace.tokens.output(request)
            shown = round(expected if pace.rate is None else min(expected, pace.rate * seconds))
        return Usage(input=prompt, output=shown, estimated=True)

    def _of(self, target: str) -> _Pace:
        pace = self._targets.get(target)
        if pace is None:
            pace = self._targets[target] = _Pace(TokenEstimate(tokens=self._tokens))
            if len(self._targets) > _TARGETS:
                self._targets.popitem(last=False)
        return pace


def at_least(told: Usage, shown: int) -> Usage:
    """Usage that was told before an answer broke off: no less of it than was shown."""
    missing = shown - told.total_output
    return told if missing <= 0 else replace(told, output=told.output + missing, estimated=True)


def _written(part: object) -> str:
    if isinstance(part, (Text, Thinking)):
        return part.text
    return part.name + part.arguments if isinstance(part, ToolCall) else ""

"""An engine's busy time, shared out to its calls by the tokens that were computed for them.

A token costs the busy time of the step that computed it, over the tokens of that step: a full batch makes each cheaper,
and the shares of all calls add up to the busy time. An answer's tokens come one a step (a few with speculation), so a
call pays for them the mean price of the steps from its first token to its last. That is not the time over the tokens of
the same while, which counts a full step more often than an empty one, but each call has its token in both: it charges
too little, by a quarter for calls that come and go one over another.

An engine tells a prompt's tokens with its first token alone, though a long prompt is computed over several steps. Steps
with prompts under way are therefore taken together up to the one that tells them; else the others in the batch would
pay for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice

__all__ = ["CallBill", "EngineShare", "ShareMark"]

_LONGEST_POOL = 128  # steps: no prompt takes longer, whatever the engine says is running
_FIRSTS = 8192  # requests whose first token is remembered
_SAME = 1e-4  # seconds: times of arrival that differ by less are one


@dataclass(frozen=True, slots=True)
class ShareMark:
    """A reading, to be subtracted from a later one.

    Attributes:
        busy: busy seconds shared out so far.
        tokens: tokens computed so far, prompts' and answers'.
        per_token: seconds that a call has paid which had one token in every step so far.
        steps: steps so far that wrote tokens.
    """

    busy: float = 0.0
    tokens: int = 0
    per_token: float = 0.0
    steps: int = 0

    def __add__(self, other: ShareMark) -> ShareMark:
        return ShareMark(
            self.busy + other.busy,
            self.tokens + other.tokens,
            self.per_token + other.per_token,
            self.steps + other.steps,
        )

    def of_prompt(self, later: ShareMark) -> float:
        """Return the seconds that a token took from this reading to ``later``, each token counted; 0 if none was."""
        tokens = later.tokens - self.tokens
        return (later.busy - self.busy) / tokens if tokens > 0 else 0.0

    def of_answer(self, later: ShareMark) -> float:
        """Return the seconds that a token took from this reading to ``later``, each step counted; 0 without a step."""
        steps = later.steps - self.steps
        return (later.per_token - self.per_token) / steps if steps > 0 else 0.0


class CallBill:
    """What a call has to pay for, in busy seconds.

    Args:
        began: the reading when the call began.
    """

    __slots__ = ("__weakref__", "_answer", "_began", "_first", "_prompt", "_seconds")

    def __init__(self, began: ShareMark) -> None:
        self._began = began
        self._first: ShareMark | None = None
        self._seconds = 0.0
        self._prompt = self._answer = 0

    def first_token(self, mark: ShareMark) -> None:
        """Note the reading when the first token had come."""
        self._first = mark

    def add(self, seconds: float, prompt: int, answer: int) -> None:
        """Add what a sequence of the call took, and its tokens; told when the engine is done with it."""
        self._seconds += seconds
        self._prompt += prompt
        self._answer += answer

    def seconds(self, prompt: int, answer: int, now: ShareMark) -> float:
        """Return the busy seconds that the call took: as told, and an estimate for what the engine was not done with.

        Args:
            prompt: prompt tokens that were computed.
            answer: answer tokens.
            now: the reading now.
        """
        first = self._first or self._began
        written = first.of_answer(now) or first.of_prompt(now)
        computed = self._began.of_prompt(self._first or now)
        rest = computed * max(0, prompt - self._prompt) + written * max(0, answer - self._answer)
        return self._seconds + rest


class EngineShare:
    """Shares out the busy time of one engine (of several data-parallel ones, each has its own)."""

    def __init__(self) -> None:
        self._mark = ShareMark()
        self._pool = ShareMark()  # of steps with prompts under way, not yet shared out
        self._firsts: dict[int, tuple[float, ShareMark]] = {}

    @property
    def mark(self) -> ShareMark:
        """The reading now, steps with prompts under way included."""
        pool = self._pool
        if not pool.tokens:
            return self._mark
        return self._mark + replace(pool, per_token=pool.busy / pool.tokens * pool.steps)

    def step(self, seconds: float, prompt: int, answer: int, *, firsts: Iterable[float], under_way: bool) -> None:
        """Share out a step.

        Args:
            seconds: busy seconds since the last step.
            prompt: prompt tokens that it tells.
            answer: answer tokens.
            firsts: when the requests arrived that had their first token in it, by the engine's clock.
            under_way: a prompt was being computed whose tokens it does not tell yet.
        """
        pool = self._pool = self._pool + ShareMark(seconds, prompt + answer, 0.0, int(answer > 0))
        goes_on = under_way and not prompt and pool.steps < _LONGEST_POOL
        if goes_on or not pool.tokens:
            return  # without tokens there is nothing to share it out to yet: the next ones take it over
        rate = pool.busy / pool.tokens
        self._mark, self._pool = self.mark, ShareMark()
        for arrived in firsts:
            self._firsts[round(arrived / _SAME)] = rate, self._mark
        if len(self._firsts) > _FIRSTS:
            for old in list(islice(self._firsts, len(self._firsts) - _FIRSTS)):
                del self._firsts[old]

    def sequence(self, arrived: float | None, prompt: int, answer: int) -> float:
        """Return the busy seconds of a sequence that ended in the step just told.

        Args:
            arrived: when its request arrived, by the engine's clock; None if not told.
            prompt: prompt tokens that were computed for it.
            answer: answer tokens.
        """
        at = None if arrived is None else round(arrived / _SAME)
        known = None if at is None else self._firsts.get(at) or self._firsts.get(at - 1) or self._firsts.get(at + 1)
        mark = self.mark
        if known is None:  # too long ago
            return (mark.busy / mark.tokens if mark.tokens else 0.0) * (prompt + answer)
        rate, first = known
        later = max(0, answer - 1)  # the first token came with the prompt
        return rate * (prompt + answer - later) + (first.of_answer(mark) or rate) * later

    def forget(self) -> None:
        """Drop what was not shared out: the engine that computed it is gone."""
        self._pool = ShareMark()

"""What was seen of how prompts are used again: how long the gaps are, and whether conversations go on.

Both decide what a write into a prompt cache is worth. With the prices of a plain token for 1, of one that is written
``w`` and of one that is read ``r``: an entry that lives for five minutes (``w = 1.25``) is written again, with all that
came to it, after each gap longer than that, and read (``r = 0.1``) otherwise; so is one of an hour (``w = 2``) after a
gap longer than an hour. With one first write for each, the cheaper sum over the gaps that were seen wins. What a turn
adds to a conversation is written in any case, so the hour pays later there than for what never changes.

A message that nobody continues is written for nothing: marking it pays if a share of more than ``(w - 1) / (w - r)`` of
the conversations goes on (22% for five minutes).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from llmprod.clock import SYSTEM_CLOCK, Clock

__all__ = ["CacheHabits", "Lifetime", "Seen"]

Lifetime = Literal["5m", "1h"]

_MINUTES, _HOUR = 300.0, 3600.0
_WRITE_5M, _WRITE_1H, _READ = 1.25, 2.0, 0.1  # Anthropic's; no other API lets one choose
_KEEP = 0.98
"""What one more sample leaves of the weight of those before: the last fifty count."""
_LEAST_GAPS = (1 - _KEEP**3) / (1 - _KEEP)  # three
_LEAST_CONVERSATIONS = (1 - _KEEP**20) / (1 - _KEEP)  # twenty
_ROUNDING = 1e-9


@dataclass(slots=True)
class Seen:
    """Gaps between two uses of one thing, older ones counting less.

    Attributes:
        total: gaps.
        long: of them, those longer than five minutes.
        lost: of them, those longer than an hour.
        grown: sum of what came to it after each, as a share of what was there.
    """

    total: float = 0.0
    long: float = 0.0
    lost: float = 0.0
    grown: float = 0.0

    def add(self, gap: float, grown: float = 0.0) -> None:
        """Note a gap of so many seconds, after which a share of ``grown`` came to it."""
        self.total = self.total * _KEEP + 1
        self.long = self.long * _KEEP + (gap > _MINUTES)
        self.lost = self.lost * _KEEP + (gap > _HOUR)
        self.grown = self.grown * _KEEP + grown

    @property
    def lifetime(self) -> Lifetime:
        """The cheaper one; five minutes until there are gaps to judge by."""
        if self.total < _LEAST_GAPS - _ROUNDING:
            return "5m"
        short = (1 + self.long + self.grown) * _WRITE_5M + (self.total - self.long) * _READ
        hour = (1 + self.lost + self.grown) * _WRITE_1H + (self.total - self.lost) * _READ
        return "1h" if hour < short else "5m"


class _Prefix:
    __slots__ = ("begun", "continued", "last", "prefix", "turns")

    def __init__(self) -> None:
        self.last: float | None = None
        self.prefix = Seen()
        self.turns = Seen()
        self.begun = 0.0
        self.continued = 0.0


@dataclass(slots=True)
class _Talk:
    last: float
    tokens: float
    continued: bool = False


class CacheHabits:
    """Learns from the calls that were sent, for each stable prefix.

    Args:
        at_most: prefixes and conversations that are remembered; the longest unused is forgotten (default 10,000).
        clock: time.
    """

    def __init__(self, *, at_most: int = 10_000, clock: Clock = SYSTEM_CLOCK) -> None:
        self._at_most = at_most
        self._clock = clock
        self._prefixes: OrderedDict[str, _Prefix] = OrderedDict()
        self._conversations: OrderedDict[str, _Talk] = OrderedDict()

    def sent(self, prefix: str, conversation: str, tokens: float) -> None:
        """Note a call.

        Args:
            prefix: digest of what is stable.
            conversation: digest of it and the first message after it.
            tokens: about how many tokens the prompt has; one that is no longer than before is no next turn.
        """
        now = self._clock.now()
        known = self._prefixes.get(prefix)
        if known is None:
            known = self._prefixes[prefix] = _Prefix()
            if len(self._prefixes) > self._at_most:
                self._prefixes.popitem(last=False)
        else:
            self._prefixes.move_to_end(prefix)
        if known.last is not None:
            known.prefix.add(now - known.last)
        known.last = now
        talk = self._conversations.get(conversation)
        if talk is None:
            known.begun = known.begun * _KEEP + 1
            known.continued *= _KEEP
            self._conversations[conversation] = _Talk(now, tokens)
            if len(self._conversations) > self._at_most:
                self._conversations.popitem(last=False)
            return
        if tokens > talk.tokens:
            known.turns.add(now - talk.last, tokens / talk.tokens - 1 if talk.tokens else 0.0)
            talk.tokens = tokens
            if not talk.continued:
                talk.continued = True
                known.continued += 1
        talk.last = now
        self._conversations.move_to_end(conversation)

    def lifetimes(self, prefix: str) -> tuple[Lifetime, Lifetime]:
        """Return the lifetimes for the stable prefix and for the conversation behind it, never the shorter first."""
        known = self._prefixes.get(prefix)
        if known is None:
            return "5m", "5m"
        turns = known.turns.lifetime
        return ("1h", "1h") if turns == "1h" else (known.prefix.lifetime, "5m")

    def goes_on(self, prefix: str, write: float) -> bool:
        """Tell whether enough of the conversations that begin with this prefix have a second turn.

        Args:
            prefix: digest of what is stable.
            write: price of a written token by that of a plain one.
        """
        known = self._prefixes.get(prefix)
        if known is None or known.begun < _LEAST_CONVERSATIONS - _ROUNDING:
            return True
        return known.continued / known.begun > (write - 1) / (write - _READ)

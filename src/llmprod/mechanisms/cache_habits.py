"""What was seen of how prompts are used again: how long the gaps are, and whether conversations go on.

Both decide what a write into a prompt cache is worth. With the price of a plain token for 1, a token that lives for
five minutes costs 1.25 when it is written, and one that lives for an hour 2; reading costs 0.1. So the hour costs 0.75
more for each token that is written, also of conversations that nobody continues, and for each that even an hour was
too short for; it saves 1.15 for each token that is used again after more than five minutes and within an hour. It is
taken where it would have saved more than it cost.

A message that nobody continues is written for nothing: marking it pays if a share of more than ``(w - 1) / (w - r)`` of
the conversations goes on, with the prices ``w`` of writing and ``r`` of reading (22% for five minutes).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from llmprod.clock import SYSTEM_CLOCK, Clock

__all__ = ["CacheHabits", "CacheWorth", "Lifetime", "Seen"]

Lifetime = Literal["5m", "1h"]

_MINUTES, _HOUR = 300.0, 3600.0
_WRITE_5M, _WRITE_1H, _READ = 1.25, 2.0, 0.1  # Anthropic's; no other API lets one choose
_KEEP = 0.98
"""What one more sample leaves of the weight of those before: the last fifty count."""
_LEAST_USES = (1 - _KEEP**3) / (1 - _KEEP)  # three
_LEAST_CONVERSATIONS = (1 - _KEEP**20) / (1 - _KEEP)  # twenty
_ROUNDING = 1e-9
_LEAST_CALLS = 20


@dataclass(slots=True)
class Seen:
    """The uses of what is kept together, older ones counting less; all but ``uses`` in tokens.

    Attributes:
        uses: how often something was used again.
        written: what was new, and had to be written in any case.
        late: what was used again after more than five minutes, and within an hour.
        lost: what was used again later than that.
        newest: what was new the last time.
    """

    uses: float = 0.0
    written: float = 0.0
    late: float = 0.0
    lost: float = 0.0
    newest: float = 0.0

    def add(self, gap: float | None, before: float, new: float) -> None:
        """Note a use.

        Args:
            gap: seconds since the last one; None for the first.
            before: tokens that were there before.
            new: tokens that came to it.
        """
        self.uses = self.uses * _KEEP + (gap is not None)
        self.written = self.written * _KEEP + new
        self.late = self.late * _KEEP + (before if gap is not None and _MINUTES < gap <= _HOUR else 0.0)
        self.lost = self.lost * _KEEP + (before if gap is not None and gap > _HOUR else 0.0)
        self.newest = new or self.newest

    @property
    def lifetime(self) -> Lifetime:
        """The cheaper one; five minutes until there are three uses to judge by."""
        if self.uses < _LEAST_USES - _ROUNDING:
            return "5m"
        # At least the newest has to be written: what was long ago must not decide for ever.
        dearer = (_WRITE_1H - _WRITE_5M) * (max(self.written, self.newest) + self.lost)
        return "1h" if (_WRITE_5M - _READ) * self.late > dearer else "5m"


@dataclass(slots=True)
class _Talk:
    last: float
    tokens: float
    continued: bool = False


class _Prefix:
    __slots__ = ("begun", "continued", "last", "prefix", "turns")

    def __init__(self) -> None:
        self.last: float | None = None
        self.prefix = Seen()
        self.turns = Seen()
        self.begun = 0.0
        self.continued = 0.0


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

    def sent(self, prefix: str, conversation: str, stable: float, tokens: float) -> None:
        """Note a call.

        Args:
            prefix: digest of what is stable.
            conversation: digest of it and the first message after it.
            stable: about how many tokens are stable.
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
        if known.last is None:
            known.prefix.add(None, 0.0, stable)
        else:
            known.prefix.add(now - known.last, stable, 0.0)
        known.last = now
        talk = self._conversations.get(conversation)
        if talk is None:
            known.begun = known.begun * _KEEP + 1
            known.continued *= _KEEP
            known.turns.add(None, 0.0, tokens - stable)
            self._conversations[conversation] = _Talk(now, tokens)
            if len(self._conversations) > self._at_most:
                self._conversations.popitem(last=False)
            return
        if tokens > talk.tokens:
            known.turns.add(now - talk.last, talk.tokens - stable, tokens - talk.tokens)
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


class CacheWorth:
    """Tells whether writing pays at a target at all.

    Where prompts never come again (a time at their beginning, another text each time) every write is a fee for nothing,
    and no single prefix has a history that would tell. So all writes of a while are weighed, long enough for what was
    written at its beginning to be read: if the reads saved less than the writes cost, nothing is written for the next
    while, and then it is tried anew.

    Args:
        window: seconds that are weighed, and then without writing (default 600: twice Anthropic's five minutes).
        clock: time.
    """

    def __init__(self, window: float = 600.0, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._window = window
        self._clock = clock
        self._until = float("-inf")
        self._begun: float | None = None
        self._calls = 0
        self._net = 0.0

    def add(self, read: float, written: float, write: float) -> None:
        """Note a call that was marked.

        Args:
            read: its tokens that were read.
            written: its tokens that were written.
            write: price of a written token by that of a plain one.
        """
        now = self._clock.now()
        if self._begun is None:
            self._begun = now
        self._calls += 1
        self._net += read * (1 - _READ) - written * (write - 1)
        if now - self._begun < self._window or self._calls < _LEAST_CALLS:
            return
        if self._net < 0:
            self._until = now + self._window
        self._begun, self._calls, self._net = None, 0, 0.0

    @property
    def pays(self) -> bool:
        """Write."""
        return self._clock.now() >= self._until

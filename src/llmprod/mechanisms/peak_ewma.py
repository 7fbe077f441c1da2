"""What the next call would cost at a target: its recent first-token time by the calls under way there.

Finagle's and Tower's peak EWMA: ``cost = ewma(rtt) * (pending + 1)``. An RTT above the average becomes the average at
once (the peak rule); one below it moves the average by how much time has passed, ``exp(-dt / decay)``. Reading it is an
observation of 0, so a target that is left alone looks better with time and is tried again.

What differs, because of how models are called:

* The RTT is the time to the *first token*. The time of a whole answer is mostly its length, so both are brought to a
  common measure by :func:`first_token_time`.
* Pending calls count by their tokens, 1 for a typical one, and until the answer's end, not only to its first token.
* A failure counts as a long RTT, twice as long with each further one in a row: peak EWMA by itself loves a target that
  fails fast.
* A call given up before its first token (a hedge's loser) tells at least that it took as long as it did.
* The average never falls below a millisecond, so that pending calls still count after hours of silence.
"""

from __future__ import annotations

import math

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, Clock

__all__ = ["PeakEwma", "Pending", "first_token_time"]

_LEAST = 0.001
_PENALTY_AT_MOST = 60.0
_OUTPUT = 32.0
_INPUT = 4096.0


def first_token_time(seconds: float, prompt: float, answer: float) -> float:
    """Return how long the first token took, or would have taken, after a short prompt.

    A model writes about 32 tokens, and reads about 4,096, in the time that it takes to begin (0.5 s, 64 and 8,192
    tokens a second): the rates need not be a target's own, since they only keep lengths out of the comparison.

    Args:
        seconds: from asking to the committed answer.
        prompt: the prompt's tokens, roughly.
        answer: the tokens that had been written by then: all of a whole answer, none of a stream.
    """
    return seconds / (1.0 + prompt / _INPUT + answer / _OUTPUT)


class Pending:
    """One call under way at a target. Tell how it began, once, and :meth:`end` it, once; the rest is ignored."""

    __slots__ = ("_ewma", "_started", "_told", "weight")

    def __init__(self, ewma: PeakEwma, weight: float, started: float) -> None:
        self._ewma: PeakEwma | None = ewma
        self._started: float = started
        self._told = False
        self.weight: float = weight

    @property
    def elapsed(self) -> float:
        """Seconds since it began; 0 once it has ended."""
        return 0.0 if self._ewma is None else self._ewma.now() - self._started

    def began(self, seconds: float) -> None:
        """The answer is committed; ``seconds`` is :func:`first_token_time`'s."""
        if self._ewma is not None and not self._told:
            self._told = True
            self._ewma.observe(seconds)

    def failed(self) -> None:
        """The target failed it or turned it away, before or after its first token; ends it."""
        ewma, started = self._ewma, self._started
        elapsed = 0.0 if self._told else self.elapsed  # from the first token on, time is the answer's length
        self.end()
        if ewma is not None:
            ewma.penalise(elapsed, started)

    def given_up(self) -> None:
        """The caller stopped waiting for the first token; ends it."""
        ewma, elapsed = self._ewma, self.elapsed
        self.end()
        if ewma is not None and not self._told and elapsed > ewma.estimate:
            ewma.observe(elapsed, good=False)

    def end(self) -> None:
        """It is over; nothing more is learned."""
        ewma, self._ewma = self._ewma, None
        if ewma is not None:
            ewma.leave(self.weight)


class PeakEwma:
    """What calls at one target cost. Share it between stacks by passing the same object.

    Args:
        decay: seconds in which the past loses all but 37% of its weight (default 10, as in Finagle: the first-token
            time of models has a long tail, and a longer memory would let single calls decide for minutes).
        default: seconds that a target is taken for before it was measured (default 1, as in Tower's example).
        penalty: seconds that a failure counts as, doubling with each further one in a row up to 60 (default 10: beside
            targets of half a second that keeps calls off for 30 s, the time of Envoy's ejection). Should lie well above
            the usual first-token time.
        clock: time.

    Attributes:
        pending: calls under way, by weight.
        calls: their number.

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    __slots__ = ("_clock", "_failed_at", "_row", "_rtt", "_stamp", "calls", "decay", "default", "penalty", "pending")

    def __init__(
        self, decay: float = 10.0, *, default: float = 1.0, penalty: float = 10.0, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        _validate.seconds("decay", decay)
        _validate.seconds("default", default)
        _validate.seconds("penalty", penalty)
        self.decay: float = decay
        self.default: float = default
        self.penalty: float = penalty
        self.pending: float = 0.0
        self.calls: int = 0
        self._clock = clock
        self._rtt = default
        self._stamp = clock.now()
        self._row = 0
        self._failed_at = -math.inf

    def now(self) -> float:
        """The clock's time."""
        return self._clock.now()

    @property
    def estimate(self) -> float:
        """Seconds that a first token takes, as it is believed now."""
        self._move(0.0)
        return max(self._rtt, _LEAST)

    @property
    def cost(self) -> float:
        """What one more typical call would cost, in seconds."""
        return self.estimate * (self.pending + 1.0)

    def begin(self, weight: float = 1.0) -> Pending:
        """Note that a call begins; ``weight`` is its size beside that of a typical one."""
        self.pending += weight
        self.calls += 1
        return Pending(self, weight, self._clock.now())

    def leave(self, weight: float) -> None:
        """Note that a call has ended; called by the :class:`Pending`."""
        self.calls -= 1
        self.pending = self.pending - weight if self.calls else 0.0  # sums of floats must not drift

    def observe(self, rtt: float, *, good: bool = True) -> None:
        """Note one measured RTT in seconds; ``good`` ends a row of failures."""
        if good:
            self._row = 0
        self._move(max(0.0, rtt))

    def penalise(self, elapsed: float = 0.0, started: float = math.inf) -> None:
        """Note a failure: a long RTT, and never one that makes the target look better.

        Args:
            elapsed: seconds that it took.
            started: when the call began; one that was under way at the last failure is no further one in the row.
        """
        if started > self._failed_at:
            self._row += 1
            self._failed_at = self._clock.now()
        penalty = min(_PENALTY_AT_MOST, self.penalty * 2.0 ** min(self._row - 1, 30))
        self._move(max(elapsed, self.penalty, penalty, self.estimate))

    def _move(self, rtt: float) -> None:
        now = self._clock.now()
        if rtt > self._rtt:
            self._rtt = rtt
        else:
            kept = math.exp(-max(0.0, now - self._stamp) / self.decay)
            self._rtt = self._rtt * kept + rtt * (1.0 - kept)
        self._stamp = now

    def __repr__(self) -> str:
        return f"<PeakEwma {self.estimate:.3g} s, {self.calls} pending>"

"""Refuses a share of the calls here, so that an overloaded target spends less on refusing them.

The client-side throttle of Google's SRE book (chapter 21): calls are refused with the probability

    max(0, (requests - k * accepts) / (requests + 1))

over the calls of a while, so that about ``k`` times as many reach the target as it accepts. Finagle's
``NackAdmissionFilter`` gives two more rules: a cap on the probability, or nothing would get through to notice that
the target has recovered; and no refusal on few requests.

Two things are done so that it fits model calls:

* A request is counted before it is sent, and *presumed accepted* until the target refuses it. A model call takes
  seconds to minutes, its refusal milliseconds: counted only when it ends, or as not accepted until then, a slow
  answer would look like a refusal, and a start of traffic like an outage (the book demands a window longer than the
  slowest call for that reason).
* So the window may be short, and has to be: in one of two minutes a healthy minute hides an overloaded one, and what
  it takes 90 s to notice it takes as long to forget. Here a count's weight is ``exp(-age / window)``, as in Finagle's
  moving average, with 10 s. A target that loses 70% of its capacity is noticed in ``ln(0.7 / 0.2)`` = 1.25 windows,
  and once it is back, the share of accepts grows from 0.3 to the 0.5 that ends all refusal in ``ln(0.5 / 0.3)`` = 0.5
  windows.
"""

from __future__ import annotations

import math

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, SYSTEM_RANDOM, Clock, Random

__all__ = ["Throttle", "ThrottleTicket"]


class ThrottleTicket:
    """A request that was counted and presumed accepted. Report it once; what comes later changes nothing."""

    __slots__ = ("_throttle", "sent")

    def __init__(self, throttle: Throttle, sent: float) -> None:
        self._throttle: Throttle | None = throttle
        self.sent: float = sent

    def accepted(self) -> None:
        """The target took the call, as was presumed."""
        self._throttle = None

    def refused(self) -> None:
        """The target refused it for want of capacity."""
        throttle, self._throttle = self._throttle, None
        if throttle is not None:
            throttle.correct(self.sent, requests=0)

    def withdraw(self) -> None:
        """The call was cancelled, or failed in a way that says nothing about load: it was never made."""
        throttle, self._throttle = self._throttle, None
        if throttle is not None:
            throttle.correct(self.sent, requests=1)


class Throttle:
    """Decides by chance whether a call may be sent. Share it between stacks by passing the same object.

    Args:
        k: calls sent for each that is accepted (default 2, the SRE book's: half of what reaches the target tells
            that it is still, or no longer, overloaded). Lower protects more, and refuses more.
        window: seconds in which a count falls to 1/e (default 10; SRE book and Finagle 120, see the module).
        at_most: bound of the probability (default 0.75, Finagle's).
        minimum: requests in the window below which nothing is refused (default 10: one a second, in the default
            window; Finagle wants 5 a second).
        clock: time.
        random: chance.

    Attributes:
        refused_at: the probability with which the last call that was refused here was refused.

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    def __init__(
        self,
        *,
        k: float = 2.0,
        window: float = 10.0,
        at_most: float = 0.75,
        minimum: int = 10,
        clock: Clock = SYSTEM_CLOCK,
        random: Random = SYSTEM_RANDOM,
    ) -> None:
        _validate.between("k", k, 1, 100)
        _validate.seconds("window", window)
        _validate.between("at_most", at_most, 0, 0.99)
        _validate.whole("minimum", minimum, 0)
        self.k: float = k
        self.window: float = window
        self.at_most: float = at_most
        self.minimum: int = minimum
        self.refused_at: float = 0.0
        self._clock = clock
        self._random = random
        self._at = clock.now()
        self._requests = 0.0
        self._accepts = 0.0

    @property
    def requests(self) -> float:
        """Requests of the window, those refused here among them, as their weights add up."""
        self._decay(self._clock.now())
        return self._requests

    @property
    def accepts(self) -> float:
        """Those of them that the target accepted, or has not refused yet."""
        self._decay(self._clock.now())
        return self._accepts

    @property
    def probability(self) -> float:
        """Of refusing a call now."""
        requests, accepts = self.requests, self.accepts
        if requests < self.minimum:
            return 0.0
        return min(self.at_most, max(0.0, (requests - self.k * accepts) / (requests + 1.0)))

    def acquire(self) -> ThrottleTicket | None:
        """Count a request; None if it is not to be sent."""
        probability = self.probability
        self._requests += 1.0
        if probability > 0 and self._random.random() < probability:
            self.refused_at = probability
            return None
        self._accepts += 1.0
        return ThrottleTicket(self, self._at)

    def correct(self, sent: float, *, requests: int) -> None:
        """Take back an accept, and ``requests``, of a call counted at ``sent``; called by the ticket."""
        self._decay(self._clock.now())
        weight = math.exp((sent - self._at) / self.window)
        self._accepts = max(0.0, self._accepts - weight)
        self._requests = max(self._accepts, self._requests - requests * weight)

    def _decay(self, now: float) -> None:
        if now > self._at:
            weight = math.exp((self._at - now) / self.window)
            self._requests *= weight
            self._accepts *= weight
            self._at = now

    def __repr__(self) -> str:
        return f"<Throttle at {self.probability:.0%}>"

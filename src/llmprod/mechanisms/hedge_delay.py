"""How long to wait for the first request before a second one is worth its price.

A percentile of what was observed (Dean and Barroso, "The Tail at Scale", 2013: the 95th, so that about 5% of the calls
are asked twice), as Finagle's BackupRequestFilter has it: nothing before there is data, and a failure does not make the
delay shorter. Three kinds of request have windows of their own, since their times have nothing to do with one another:
streams (to the first token), whole answers, embeddings.
"""

from __future__ import annotations

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.mechanisms.attempt_time import STREAM_SHARE, WHOLE_SHARE
from llmprod.mechanisms.latency_window import LatencyWindow
from llmprod.request import EmbedRequest, Request

__all__ = ["HedgeDelay"]

_UPPER = 1.05**0.5
"""From the middle of one of the window's buckets, which it tells, to its end: a target that always takes the same time
would have half of its calls, or all, beyond the middle."""


class HedgeDelay:
    """The ``percentile`` of the seconds that answers took to be committed.

    Args:
        percentile: share of answers that are there within the delay (default 0.95).
        minimum: answers in the window below which there is no delay (default 20).
        window: seconds that an answer counts (default 60).
        clock: time.

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    __slots__ = ("_embed", "_stream", "_whole", "percentile")

    def __init__(
        self, percentile: float = 0.95, *, minimum: int = 20, window: float = 60.0, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        _validate.between("percentile", percentile, 0.5, 1)
        self.percentile: float = percentile
        self._stream = LatencyWindow(window, minimum=minimum, clock=clock)
        self._whole = LatencyWindow(window, minimum=minimum, clock=clock)
        self._embed = LatencyWindow(window, minimum=minimum, clock=clock)

    def record(self, request: Request, seconds: float) -> None:
        """Note that the answer to ``request`` was committed after ``seconds``."""
        self._of(request).record(seconds)

    def at_least(self, request: Request, seconds: float) -> None:
        """Note that no answer had come after ``seconds``: the attempt lost, timed out or failed.

        That is a lower bound. Above the delay it stands on the right side of it, which is all that a percentile needs.
        Below, nobody knows on which side the answer would have come, and to count it would shorten the delay: it is
        left out (a fast failure, too).
        """
        delay = self.seconds(request)
        if delay is not None and seconds >= delay:
            self._of(request).record(seconds)

    def seconds(self, request: Request) -> float | None:
        """Return the delay before a second attempt at ``request``; None while too little was seen."""
        known = self._of(request).quantile(self.percentile)
        return None if known is None else known * _UPPER

    def least(self, request: Request) -> float:
        """Return the seconds that an attempt needs: half of the streams, a twentieth of the others took no longer.

        0 while too little was seen. The same measure as :class:`~llmprod.mechanisms.attempt_time.AttemptTime`'s.
        """
        return self._of(request).quantile(STREAM_SHARE if request.stream else WHOLE_SHARE) or 0.0

    def _of(self, request: Request) -> LatencyWindow:
        if request.stream:
            return self._stream
        return self._embed if isinstance(request, EmbedRequest) else self._whole

    def __repr__(self) -> str:
        return f"<HedgeDelay p{self.percentile * 100:g}: {self._stream!r} {self._whole!r} {self._embed!r}>"

"""How long an attempt takes at least, so that none is started that can't be over before the deadline."""

from __future__ import annotations

from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.mechanisms.latency_window import LatencyWindow
from llmprod.request import Request

__all__ = ["AttemptTime"]

STREAM_SHARE = 0.5
WHOLE_SHARE = 0.05


class AttemptTime:
    """Observed seconds from asking a target to its committed answer, streams and whole answers apart.

    A stream's first token takes about the same time each call, so half of them is a fair measure. How long a whole
    answer takes depends on its length, so only the quickest count: an attempt is hopeless when even they took longer.

    Args:
        clock: time.
    """

    __slots__ = ("_stream", "_whole")

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._stream = LatencyWindow(clock=clock)
        self._whole = LatencyWindow(clock=clock)

    def record(self, request: Request, seconds: float) -> None:
        """Note that an answer to ``request`` was committed after ``seconds``."""
        (self._stream if request.stream else self._whole).record(seconds)

    def least(self, request: Request) -> float:
        """Seconds that an attempt needs; 0 while too little was seen."""
        if request.stream:
            return self._stream.quantile(STREAM_SHARE) or 0.0
        return self._whole.quantile(WHOLE_SHARE) or 0.0

"""Look at calls from outside: ``with capture() as calls`` collects the record of every decorated call made within."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from llmprod.response import Outcome, Response
from llmprod.trace import Trace
from llmprod.usage import Usage

__all__ = ["CallRecord", "capture", "note"]


@dataclass(slots=True, eq=False)
class CallRecord:
    """One call of a decorated function.

    Attributes:
        function: the function's name.
        trace: every attempt, with its time, wait and verdict.
        response: what was read from the answer: ``.text``, ``.usage``, ``.model``, ``.timing`` …, and what the function
            returned as ``.raw``. None where no attempt gave an answer.
        error: what the caller saw instead of an answer.
    """

    function: str
    trace: Trace
    response: Response | None = None
    error: BaseException | None = None

    @property
    def text(self) -> str:
        """The answer's text, as far as it was recognised and has arrived."""
        return self.response.text if self.response is not None else ""

    @property
    def usage(self) -> Usage | None:
        """Tokens of the answer; None where nothing told."""
        return self.response.usage if self.response is not None else None

    def ended(self, outcome: Outcome) -> None:
        """Note how a stream ended; the callback for ``response.on_close``."""
        self.error = outcome.error

    def __repr__(self) -> str:
        ended = type(self.error).__name__ if self.error is not None else "answered"
        return f"<CallRecord {self.function}: {len(self.trace.attempts)} attempts, {ended}>"


_listening: ContextVar[tuple[list[CallRecord], ...]] = ContextVar("llmprod_capture", default=())


@contextmanager
def capture() -> Generator[list[CallRecord]]:
    """Collect a record of every decorated call that returns or fails inside the block.

    It sees what belongs to the block: calls in functions called from it, and in tasks and threads that were started
    in it with its context (``asyncio.gather``, task groups, ``asyncio.to_thread``). The last call is ``calls[-1]``. The
    record of a stream is there once the stream is open, and grows while it is read.
    """
    calls: list[CallRecord] = []
    token = _listening.set((*_listening.get(), calls))
    try:
        yield calls
    finally:
        _listening.reset(token)


def note(record: CallRecord) -> None:
    """Hand ``record`` to every block around the call."""
    for calls in _listening.get():
        calls.append(record)

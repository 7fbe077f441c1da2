"""Few requests at a time on their way through vLLM's application to its engine.

Each request takes a dozen turns of the loop until the engine has it. When 32 come together and all take turns, the
engine gets the first one hardly before the last, has nothing to do until then, and all answers begin and end together,
so that it happens again. One after the other, the engine is at work on the first while the next are prepared. A request
that waits for something else than the processor, such as an image, does not hold up the others for long.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any

__all__ = ["Intake", "Passage"]

_AT_ONCE = 2
"""One more than one, since tokenizing happens in a thread of vLLM's."""
_PATIENCE = 0.02

_underway: ContextVar[Passage | None] = ContextVar("llmprod_intake", default=None)


class Passage:
    """One request's way to the engine.

    Args:
        intake: whose.
        begin: starts its task, at once or later, in a context of its own.
    """

    __slots__ = ("_begin", "_intake", "_timer")

    def __init__(self, intake: Intake, begin: Callable[[], object]) -> None:
        self._intake = intake
        self._begin = begin
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin."""
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE, self.over)
        Context().run(self._start)

    def _start(self) -> None:
        _underway.set(self)
        self._begin()

    def over(self) -> None:
        """The engine has it, or it has ended; more than once is once."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            self._intake.next()


class Intake:
    """The requests that are on their way; lives on the engine's loop."""

    def __init__(self) -> None:
        self._waiting: deque[Passage] = deque()
        self._places = _AT_ONCE

    def enter(self, begin: Callable[[], object]) -> Passage:
        """Call ``begin``, which starts a request's task, as soon as there is a place."""
        passage = Passage(self, begin)
        if self._places:
            self._places -= 1
            passage.start()
        else:
            self._waiting.append(passage)
        return passage

    def next(self) -> None:
        """Give a place that has fallen free to the next one."""
        if self._waiting:
            self._waiting.popleft().start()
        else:
            self._places += 1

    def watch(self, engine: Any) -> None:
        """Note when ``engine``, an ``AsyncLLM``, has been given a request."""
        add = engine.add_request

        async def add_request(*args: Any, **kwargs: Any) -> Any:
            try:
                return await add(*args, **kwargs)
            finally:
                passage = _underway.get()
                if passage is not None:
                    passage.over()

        engine.add_request = add_request

"""A clock that tests move by hand."""


class HandClock:
    """Time is what ``time`` says."""

    def __init__(self) -> None:
        self.time = 1_000.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("a mechanism never sleeps")

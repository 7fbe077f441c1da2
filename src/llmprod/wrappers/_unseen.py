"""The trace of a stream that broke while its first events were held back."""

from __future__ import annotations

from llmprod.context import Context

__all__ = ["unseen"]


def unseen(error: Exception, context: Context) -> None:
    """Note that nothing was shown of the attempt that ``error`` has just interrupted: it failed."""
    name = type(error).__name__
    for attempt in reversed(context.trace.entries):
        if attempt.state == "interrupted" and attempt.error == name:
            usage = attempt.usage
            attempt.failed(error, context.elapsed)
            attempt.usage = attempt.usage or usage
            return

"""Counts and rates of a batch, and the line that shows them."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from typing import TextIO

from llmprod.batch.records import BatchProgress, BatchResult
from llmprod.clock import Clock
from llmprod.usage import Usage

__all__ = ["Line", "Meter", "shower"]

_SAMPLES = 60


class Meter:
    """Counts what ends.

    Args:
        clock: time.
        total: items in all, if known.
        show: told of every item that ends, and once at the end (``last`` is True).
    """

    def __init__(self, clock: Clock, total: int | None, show: Callable[[Meter, bool], None] | None = None) -> None:
        self._clock = clock
        self._began = 0.0
        self._usage = Usage()
        self._cost = Decimal(0)
        self._unpriced = 0
        self._show = show
        # A sample about every second: when, items run, tokens.
        self._samples: deque[tuple[float, int, int]] = deque([(0.0, 0, 0)], maxlen=_SAMPLES)
        self._begun = False
        self.total: int | None = total
        self.done: int = 0
        self.failed: int = 0
        self.restored: int = 0
        self.in_flight: int = 0
        self._tokens = 0

    def begin(self) -> None:
        """Start the time."""
        self._begun = True
        self._began = self._clock.now()
        self._samples[0] = (self._began, 0, 0)

    def ended(self, result: BatchResult) -> None:
        """Count ``result`` and show it."""
        self.done += 1
        self.failed += not result.ok
        self.restored += result.restored
        if not result.restored:
            self._cost += result.cost or 0
            self._unpriced += result.cost is None
        if result.usage is not None and not result.restored:
            self._usage += result.usage
            self._tokens += result.usage.total_output if result.embeddings is None else result.usage.total_input
        now = self._clock.now()
        if now - self._samples[-1][0] >= 1:
            self._samples.append((now, self.done - self.restored, self._tokens))
        self.show()

    def show(self, *, last: bool = False) -> None:
        """Hand this to whoever shows it."""
        if self._show is not None:
            self._show(self, last)

    def progress(self, *, whole: bool = False) -> BatchProgress:
        """The state now; with ``whole`` the rates are those of the whole run."""
        now = self._clock.now() if self._begun else 0.0
        then, items, tokens = (self._began, 0, 0) if whole else self._samples[0]
        ran, took = self.done - self.restored, now - then
        per_second = (ran - items) / took if took > 0 and ran > items else None
        left = None if self.total is None else max(0, self.total - self.done)
        eta = 0.0 if left == 0 else None if left is None or per_second is None else left / per_second
        return BatchProgress(
            done=self.done,
            failed=self.failed,
            restored=self.restored,
            in_flight=self.in_flight,
            total=self.total,
            usage=self._usage,
            seconds=now - self._began,
            items_per_second=per_second,
            tokens_per_second=None if per_second is None else (self._tokens - tokens) / took,
            eta=eta,
            cost=self._cost,
            unpriced=self._unpriced,
        )


class Line:
    """Shows progress on a stream: rewritten on a terminal and in a notebook, a line now and then elsewhere.

    Args:
        stream: where to; standard error by default.
        clock: time.
    """

    def __init__(self, clock: Clock, stream: TextIO | None = None) -> None:
        self._clock = clock
        self._stream = stream if stream is not None else sys.stderr
        # A notebook's stream is no terminal, and yet shows what follows a carriage return in place of what was there.
        notebook = type(self._stream).__module__.partition(".")[0] == "ipykernel"
        self._rewrites = notebook or self._stream.isatty()
        self._every = 0.5 if notebook else 0.1 if self._rewrites else 30.0
        self._wide = 100 if notebook else 0
        self._next: float | None = None
        self._shown = 0

    def __call__(self, meter: Meter, last: bool) -> None:
        """Show ``meter``, unless it was shown a moment ago."""
        now = self._clock.now()
        if self._next is None:
            self._next = now if self._rewrites else now + self._every
        if not last and now < self._next:
            return
        self._next = now + self._every
        text = line(meter.progress(whole=last), last=last)
        if self._rewrites:
            width = self._wide or shutil.get_terminal_size().columns - 1
            text = text if len(text) <= width else text[: max(0, width - 1)] + "…"
            # Blanks rather than an escape sequence, which not every notebook knows.
            padded = text.ljust(min(self._shown, width))
            self._shown = len(text)
            text = f"\r{padded}" + ("\n" if last else "")
        else:
            text = f"{text}\n"
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more; that is no reason to end the run
            self._stream.write(text)
            self._stream.flush()


def shower(progress: bool | Callable[[BatchProgress], object], clock: Clock) -> Callable[[Meter, bool], None] | None:
    """What shows progress as it was asked for."""
    if isinstance(progress, bool):
        return Line(clock) if progress and sys.stderr is not None else None
    return _teller(progress)


def _teller(tell: Callable[[BatchProgress], object]) -> Callable[[Meter, bool], None]:
    def show(meter: Meter, last: bool) -> None:
        tell(meter.progress(whole=last))

    return show


def line(progress: BatchProgress, *, last: bool = False) -> str:
    """One line of text."""
    done, total = progress.done, progress.total
    words = [f"{done:,}" if total is None else f"{done:,}/{total:,}"]
    if total:
        words[0] += f" {100 * done // total}%"
    if progress.restored:
        words.append(f"{progress.restored:,} restored")
    if progress.failed:
        words.append(f"{progress.failed:,} failed")
    if not last:
        words.append(f"{progress.in_flight:,} in flight")
    if progress.items_per_second is not None:
        words.append(f"{_short(progress.items_per_second)} items/s")
    if progress.tokens_per_second:
        words.append(f"{_short(progress.tokens_per_second)} tokens/s")
    if progress.cost:
        words.append(f"{'≥ ' if progress.unpriced else ''}${progress.cost:,.4f}")
    if last:
        words.append(f"took {_time(progress.seconds)}")
    elif progress.eta is not None:
        words.append(f"ETA {_time(progress.eta)}")
    return "  ".join(words)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _time(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02} h" if hours else f"{rest // 60}:{rest % 60:02} min"

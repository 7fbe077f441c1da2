"""What became of the calls of one side, judged against what the servers really said."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from .traffic import LAST_RESORT, Call


class Ending(Enum):
    """How a call ended, as its caller sees it."""

    RIGHT = "right, from a model"
    LAST_RESORT = "last resort, marked as such"
    PARTIAL = "broke mid-answer, said so"
    ERROR = "clear error"
    SILENT = "SILENTLY WRONG"


@dataclass(frozen=True, slots=True)
class Step:
    """One attempt, or a target that was passed over, for display."""

    target: str
    label: str
    state: Literal["ok", "failed", "skipped"]
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """One call's end. ``note`` names the error, or what is wrong with the answer."""

    call: Call
    ending: Ending
    seconds: float
    ttft: float | None = None
    served_by: str | None = None
    note: str = ""
    steps: tuple[Step, ...] = ()

    @property
    def attempts(self) -> int:
        return sum(step.state != "skipped" for step in self.steps)

    @property
    def failed_over(self) -> bool:
        """Another target than the first answered."""
        return self.served_by is not None and self.served_by != "openai"


@dataclass(slots=True)
class Score:
    """All results of one side."""

    name: str
    results: list[Result] = field(default_factory=list)
    endings: Counter[Ending] = field(default_factory=Counter)
    by_call: dict[int, Result] = field(default_factory=dict)
    troubled: deque[Result] = field(default_factory=lambda: deque(maxlen=60))
    steps: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    in_flight: int = 0

    def add(self, result: Result) -> None:
        self.results.append(result)
        self.endings[result.ending] += 1
        self.by_call[result.call.number] = result
        for step in result.steps:
            self.steps[step.target][step.state] += 1
        if len(result.steps) > 1 or result.ending is not Ending.RIGHT:
            self.troubled.append(result)

    @property
    def calls(self) -> int:
        return len(self.results)

    def share(self, ending: Ending) -> float:
        return self.endings[ending] / self.calls if self.calls else 0.0

    @property
    def silent(self) -> int:
        return self.endings[Ending.SILENT]

    @property
    def attempts_per_call(self) -> float:
        return sum(result.attempts for result in self.results) / self.calls if self.calls else 0.0

    @property
    def right(self) -> set[int]:
        """Numbers of the calls that were answered rightly."""
        return {result.call.number for result in self.results if result.ending is Ending.RIGHT}

    def times(self, calls: Set[int] | None = None) -> list[float]:
        """Seconds of the calls that were answered rightly; of those of them in ``calls`` only, if given."""
        chosen = self.right if calls is None else calls
        return [result.seconds for result in self.results if result.call.number in chosen]

    def ttfts(self) -> list[float]:
        """Seconds to the first text of the streams that were answered rightly."""
        return [r.ttft for r in self.results if r.ending is Ending.RIGHT and r.ttft is not None]

    def served_by(self) -> Counter[str]:
        return Counter(result.served_by for result in self.results if result.served_by)

    def notes(self, ending: Ending) -> Counter[str]:
        return Counter(result.note for result in self.results if result.ending is ending)


def judge(call: Call, text: str, routes: Sequence[str]) -> tuple[Ending, str]:
    """Compare an answer that came without an error with what was really said."""
    right = [call.answer(route) for route in routes]
    if text in right:
        return Ending.RIGHT, ""
    if text == LAST_RESORT:
        return Ending.LAST_RESORT, ""
    if not text.strip():
        return Ending.SILENT, "empty answer"
    if any(answer.startswith(text) for answer in right):
        return Ending.SILENT, "truncated answer"
    return Ending.SILENT, "another text"


def percentile(values: Sequence[float], share: float) -> float | None:
    """Nearest rank; None of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None

"""What a run says: figures for the table and series for the figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.overload.plan import Plan

Calls = Sequence[tuple[float, float, str]]
"""Of each call: when it began, how long it took, the class of its error or nothing."""

_WINDOW = 5
"""Seconds over which recovery is judged."""
_SHARE = 0.95


def measure(plan: Plan, calls: Calls, arrived: Sequence[float], refused: Sequence[float]) -> dict[str, Any]:
    """Return the figures of one contestant's run."""
    done = [started + took for started, took, error in calls if not error]
    begun = [started for started, *_ in calls]
    late = sorted(max(0.0, began - due) for began, due in zip(begun, plan.arrivals(), strict=True))
    # From one deadline after the drop on: nothing that was begun before it, at full capacity, counts.
    settled = plan.before + plan.deadline
    return {
        "calls": len(calls),
        "answered": len(done) / len(calls),
        "goodput_before": _within(done, 0, plan.before) / _within(begun, 0, plan.before),
        "goodput_drop": _within(done, settled, plan.restored) / (plan.restored - settled) / plan.reduced,
        "attempts_all": len([at for at in arrived if at >= 0]) / len(calls),
        "attempts_drop": _within(arrived, plan.before, plan.restored) / _within(begun, plan.before, plan.restored),
        "refused": len([at for at in refused if at >= 0]) / len(calls),
        "recovery": recovery(plan, calls),
        "errors": dict(Counter(error for *_, error in calls if error).most_common()),
        "errors_median_seconds": _median([took for _, took, error in calls if error]),
        "late": late[len(late) * 99 // 100],
        "series": {
            "goodput": _rates(done, plan),
            "attempts": _rates(arrived, plan),
            "offered": _rates(begun, plan),
        },
    }


def recovery(plan: Plan, calls: Calls) -> float | None:
    """Return seconds after restoration from which calls are answered again for good, None if they are not.

    For good: of the calls that begin in any five seconds from then to the end, at least 95% are answered in time.
    """
    seconds = int(plan.length - plan.restored)
    asked, answered = [0] * seconds, [0] * seconds
    for started, _, error in calls:
        second = int(started - plan.restored)
        if started >= plan.restored and second < seconds:
            asked[second] += 1
            answered[second] += not error
    width = min(_WINDOW, seconds)
    good = [sum(answered[at : at + width]) >= _SHARE * sum(asked[at : at + width]) for at in range(seconds - width + 1)]
    if not good[-1]:
        return None
    return float(max((at + 1 for at, fine in enumerate(good) if not fine), default=0))


def _within(times: Sequence[float], start: float, end: float) -> int:
    return sum(start <= at < end for at in times)


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def _rates(times: Sequence[float], plan: Plan) -> list[int]:
    """Events in each second of the plan, and of the deadline after it."""
    found = [0] * int(plan.length + plan.deadline)
    for at in times:
        if 0 <= at < len(found):
            found[int(at)] += 1
    return found


def table(plan: Plan, found: dict[str, dict[str, Any]]) -> str:
    """Return one scenario's figures as a Markdown table.

    Goodput is a share of the capacity left; attempts are for each call begun in the drop (in the whole run); ``late``
    is how far behind its plan a process began its calls, at the 99th percentile: much says that it was out of CPU.
    """
    lines = [
        "| | goodput in the drop | attempts a call | recovery | answered in all | an error takes | late | errors |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        recovered = f"not in {plan.after:.0f} s" if row["recovery"] is None else f"{row['recovery']:.0f} s"
        errors = ", ".join(f"{count} {kind}" for kind, count in list(row["errors"].items())[:4]) or "none"
        wait = row["errors_median_seconds"]
        lines.append(
            f"| {name} | {row['goodput_drop']:.0%} | {row['attempts_drop']:.2f} ({row['attempts_all']:.2f}) "
            f"| {recovered} | {row['answered']:.0%} | {'' if wait is None else f'{wait:.1f} s'} "
            f"| {row['late']:.2f} s | {errors} |"
        )
    return "\n".join(lines)

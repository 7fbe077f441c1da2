"""What a run says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.rate_limits.plan import Plan


def measure(plan: Plan, log: dict[str, Any], clients: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of one contestant's run."""
    took = sorted(seconds for client in clients for seconds in client["took"])
    errors = sum((Counter(client["errors"]) for client in clients), Counter[str]())
    whole = (0.0, plan.length)
    steady = (plan.warm_up, plan.length)
    return {
        "calls": len(took),
        "utilisation": utilisation(plan, log, *steady),
        "refused": _refused(log, *whole),
        "refused_steady": _refused(log, *steady),
        "median_seconds": took[len(took) // 2] if took else None,
        "p95_seconds": took[len(took) * 95 // 100] if took else None,
        "calls_by_process": [len(client["took"]) for client in clients],
        "errors": dict(errors.most_common()),
        "series": {
            "tokens": [_sum(log["charged"], at, at + 1) for at in range(int(plan.length))],
            "refused": [_count(log["refused"], at, at + 1) for at in range(int(plan.length))],
            "admitted": [_count(log["admitted"], at, at + 1) for at in range(int(plan.length))],
        },
    }


def parts(plan: Plan, log: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the figures before, while and after Redis is dead."""
    lost, back = plan.outage
    spans = {"before": (plan.warm_up, lost), "dead": (lost, back), "after": (back, plan.length)}
    return {
        name: {"utilisation": _used(plan, log, *span), "refused": _refused(log, *span)} for name, span in spans.items()
    }


def utilisation(plan: Plan, log: dict[str, Any], start: float, end: float) -> float:
    """Return the share of the allowance that was used, of tokens or of requests, whichever is scarcer.

    What a bucket held at the beginning and does not at the end was allowed too, so that a burst saved up before
    flatters nobody. Of windows only whole ones count.
    """
    if plan.mode == "window":
        first = log["windows"] % plan.period
        while first < start:
            first += plan.period
        last = first + plan.period * int((end - first) / plan.period)
        return _used(plan, log, first, last)
    seconds = end - start
    before, after = log["held"]
    tokens = plan.tokens / 60 * seconds + max(0.0, before["tokens"] - after["tokens"])
    requests = plan.requests / 60 * seconds + max(0.0, before["requests"] - after["requests"])
    return max(_sum(log["charged"], start, end) / tokens, _count(log["admitted"], start, end) / requests)


def _used(plan: Plan, log: dict[str, Any], start: float, end: float) -> float:
    minutes = (end - start) / 60
    tokens = _sum(log["charged"], start, end) / (plan.tokens * minutes)
    return max(tokens, _count(log["admitted"], start, end) / (plan.requests * minutes))


def _refused(log: dict[str, Any], start: float, end: float) -> float:
    refused = _count(log["refused"], start, end)
    return refused / max(1, refused + _count(log["admitted"], start, end))


def _sum(charged: Sequence[tuple[float, float]], start: float, end: float) -> float:
    return sum(tokens for at, tokens in charged if start <= at < end)


def _count(times: Sequence[float], start: float, end: float) -> int:
    return sum(start <= at < end for at in times)


def table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return utilisation and refusals as a Markdown table, a column a way of counting."""
    modes = list(found)
    names = list(dict.fromkeys(name for rows in found.values() for name in rows))
    lines = ["| | " + " | ".join(modes) + " |", "|---|" + "---|" * len(modes)]
    for name in names:
        cells = [_cell(found[mode].get(name)) for mode in modes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    failed = sum(row["errors"].values())
    return f"{row['utilisation']:.1%} used, {row['refused']:.1%} refused" + (f", {failed} failed" if failed else "")


def parts_table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return what happened around Redis's death, as a Markdown table."""
    lines = ["| | before | Redis dead | after |", "|---|---|---|---|"]
    for mode, rows in found.items():
        for name, row in rows.items():
            if "parts" in row:
                cells = [
                    f"{part['utilisation']:.1%} used, {part['refused']:.1%} refused" for part in row["parts"].values()
                ]
                lines.append(f"| {mode}: {name} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else ""

"""Pay for a trace: ``python -m benchmarks.savings TRACE [--json FILE] [--figure FILE]``.

TRACE is Mooncake's ``conversation_trace.jsonl`` (also gzipped), from github.com/kvcache-ai/Mooncake. Takes a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.savings.replay import PRICES_OF, TARGETS, WITH_HOURS, Bill, Target, asked, pay
from benchmarks.savings.trace import Call, read

HOUR = 3600.0
WAYS: dict[str, dict[str, Any]] = {
    "nothing": {"cache": None, "together": False, "caching": False},
    "exact cache": {"cache": HOUR, "together": False, "caching": False},
    "single-flight": {"cache": None, "together": True, "caching": False},
    "prompt caching": {"cache": None, "together": False, "caching": True},
    "all three": {"cache": HOUR, "together": True, "caching": True},
}


def told(bill: Bill) -> dict[str, Any]:
    """A bill as JSON."""
    kinds = {name: float(round(getattr(bill, name), 2)) for name in ("fresh", "written", "read", "output")}
    usage = bill.usage
    return {
        "calls": bill.calls,
        "dollars": float(round(bill.total, 2)),
        **kinds,
        "tokens": {"fresh": usage.input, "written": usage.cache_written, "read": usage.cache_read},
    }


def bills(calls: list[Call], target: Target, ways: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the bill of each way."""
    rows: dict[str, Any] = {}
    for name, way in ways.items():
        reach = asked(calls, cache=way["cache"], together=way["together"])
        rows[name] = told(pay(calls, reach, target, caching=way["caching"]))
        print(f"{target.title}: {name}: {rows[name]['dollars']}", file=sys.stderr)
    return rows


def table(found: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = ["| model | way | calls | $ | saved | prompt read |", "|---|---|---|---|---|---|"]
    for title, rows in found["bills"].items():
        for name, row in rows.items():
            whole = found["bills"][title.partition(",")[0]]["nothing"]["dollars"]
            share = row["tokens"]["read"] / sum(row["tokens"].values())
            cells = [title, name, f"{row['calls']:,}", f"{row['dollars']:,.2f}", f"{1 - row['dollars'] / whole:.1%}"]
            lines.append(f"| {' | '.join(cells)} | {share:.0%} |")
    return "\n".join(lines)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path, nargs="?", help="Mooncake's conversation_trace.jsonl")
    parser.add_argument("--json", type=Path, help="write the figures here, or read them from here without a trace")
    parser.add_argument("--figure", help="draw them here")
    options = parser.parse_args()
    found: dict[str, Any]
    if options.trace is None:
        found = json.loads(options.json.read_text())
    else:
        calls = read(options.trace)
        found = {
            "calls": len(calls),
            "turns": sum(call.turn > 0 for call in calls),
            "prompt_tokens": sum(call.prompt for call in calls),
            "answer_tokens": sum(call.output for call in calls),
            "prices_of": PRICES_OF,
            "bills": {target.title: bills(calls, target, WAYS) for target in TARGETS},
        }
        only = {"prompt caching": WAYS["prompt caching"]}
        found["bills"][WITH_HOURS.title] = bills(calls, WITH_HOURS, only)
        if options.json is not None:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    if options.figure is not None:
        from benchmarks.savings.figure import draw

        draw(options.figure, found)


if __name__ == "__main__":
    main()

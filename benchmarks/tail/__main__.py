"""Run the tail experiment: ``python -m benchmarks.tail [--quick] [--json FILE | --read FILE] [--figure FILE]``.

Two deployments, each of which is now and then much slower, without knowing of the other. Over sockets in real time,
then in virtual time for many more calls; about two minutes on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from benchmarks.tail import sockets, virtual
from benchmarks.tail.latency import Plan

_KINDS = {"stream": "first token of a stream", "whole": "whole answer"}
_SHARES = [0.0, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.10]
_SETTINGS: dict[str, dict[str, Any]] = {
    "p95, 5%": {},
    "p95, 8%": {"budget": 0.08},
    "p90, 10%": {"percentile": 0.9, "budget": 0.1},
}


def measure(*, quick: bool) -> dict[str, Any]:
    """Run everything and return the figures."""
    found: dict[str, Any] = {"sockets": {}, "virtual": {}, "shares": []}
    real = Plan(calls=200 if quick else 1200, rate=50, median=0.08)
    hour = Plan(calls=2000 if quick else 10_000, rate=5, median=0.4)
    for kind in _KINDS:
        stream = kind == "stream"
        found["sockets"][kind] = sockets.measure(real, stream=stream)
        print(f"sockets, {kind}: done", file=sys.stderr)
        found["virtual"][kind] = {
            name: virtual.measure(hour, stream=stream, hedged=name == "with") for name in ("without", "with")
        }
        print(f"virtual time, {kind}: done", file=sys.stderr)
    for share in _SHARES[::4] if quick else _SHARES:
        plan = Plan(calls=1000 if quick else 2500, rate=5, median=0.4, tail=share)
        row = {"share": share, "without": _brief(virtual.measure(plan, stream=True, hedged=False))}
        for name, options in _SETTINGS.items():
            row[name] = _brief(virtual.measure(plan, stream=True, hedged=True, **options))
        found["shares"].append(row)
    return found


def _brief(figures: dict[str, Any]) -> dict[str, float]:
    return {name: figures[name] for name in ("p50", "p95", "p99", "extra_attempts", "extra_cost")}


def table(found: dict[str, Any]) -> str:
    """Return the main figures as a Markdown table."""
    lines = [
        "| | hedge | calls | p50 | p95 | p99 | p99.9 | further attempts | further tokens | further cost |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for where, name in (("sockets", "sockets"), ("virtual", "virtual time")):
        for kind, told in _KINDS.items():
            for hedge, row in found[where][kind].items():
                times = [_time(row[key]) for key in ("p50", "p95", "p99", "p999")]
                extra = [f"{row[key]:.1%}" for key in ("extra_attempts", "extra_tokens", "extra_cost")]
                shown = [
                    f"{told}, {name}",
                    hedge,
                    f"{row['calls']:,}",
                    *times,
                    *(extra if hedge == "with" else ["", "", ""]),
                ]
                lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def shares(found: dict[str, Any]) -> str:
    """Return the p99 by the share of slow calls as a Markdown table."""
    lines = [
        f"| slow calls | p99 without | {' | '.join(f'p99 with {name} | further attempts' for name in _SETTINGS)} |",
        "|---|---|" + "---|---|" * len(_SETTINGS),
    ]
    for row in found["shares"]:
        cells = [f"{row['share']:.0%}", _time(row["without"]["p99"])]
        for name in _SETTINGS:
            cells += [_time(row[name]["p99"]), f"{row[name]['extra_attempts']:.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def main() -> None:
    """Measure and print; exits with 1 if hedging took nothing off the tail, or cost more than its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a sixth of the calls")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    parser.add_argument("--read", metavar="FILE", help="print figures written earlier, run nothing")
    parser.add_argument("--figure", metavar="FILE", help="draw them there (needs matplotlib)")
    options: Any = parser.parse_args()
    if options.read:
        with open(options.read) as file:
            found = json.load(file)
    else:
        found = measure(quick=options.quick)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file)
            file.write("\n")
    if options.figure:
        from benchmarks.tail.figure import draw

        draw(options.figure, found)
    print(table(found), shares(found), sep="\n\n")
    streams = [found[where]["stream"] for where in ("sockets", "virtual")]
    sys.exit(
        any(row["with"]["p99"] > 0.7 * row["without"]["p99"] or row["with"]["extra_attempts"] > 0.05 for row in streams)
    )


if __name__ == "__main__":
    main()

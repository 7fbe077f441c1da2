"""Run the fault wall and print the table: ``python -m benchmarks.faults [--json FILE | --read FILE] [library …]``.

Every scenario runs in real time, all of one library's at once: about a minute and a half a library.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from typing import Any

import anyio

from benchmarks.faults.run import MakeCaller, Result, run
from llmprod.testing.scenarios import SCENARIOS

_MARKS = {"pass": "pass", "safe": "safe", "fail": "**fail**"}


def _makers() -> dict[str, MakeCaller]:
    from benchmarks.faults import ours
    from benchmarks.faults.peers import PEERS

    return {"llmprod": ours.make, **PEERS}


def measure(names: list[str]) -> dict[str, list[Result]]:
    """Run every scenario against each library that is installed."""
    results: dict[str, list[Result]] = {}
    for name, make in _makers().items():
        if names and name not in names:
            continue
        try:
            make("http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1")
        except ImportError as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
            continue
        results[name] = anyio.run(run, make)
        print(f"{name}: done", file=sys.stderr)
    return results


def rows(results: dict[str, list[Result]]) -> dict[str, dict[str, dict[str, str]]]:
    """Return ``{library: {"S01 whole": {"grade": …, "why": …, "seconds": …}}}``."""
    return {
        name: {
            f"{result.scenario.id} {'stream' if result.stream else 'whole'}": {
                "grade": result.judgement.grade,
                "why": result.judgement.why,
                "seconds": f"{max(call.seconds for call in result.calls):.1f}",
            }
            for result in listed
        }
        for name, listed in results.items()
    }


def table(found: dict[str, dict[str, dict[str, str]]]) -> str:
    """Return the grades as a Markdown table; a failure or a mere safety tells why."""
    lines = ["| | scenario | | " + " | ".join(found) + " |", "|---|---|---|" + "---|" * len(found)]
    for scenario in SCENARIOS.values():
        for mode in ("whole", "stream"):
            cells = [_cell(listed.get(f"{scenario.id} {mode}")) for listed in found.values()]
            if any(cells):
                lines.append(f"| {scenario.id} | {scenario.title} | {mode} | {' | '.join(cells)} |")
    return "\n".join(lines)


def totals(found: dict[str, dict[str, dict[str, str]]]) -> str:
    """Return how often each library passed, was safe and failed, as a Markdown table."""
    lines = ["| pass / safe / fail | " + " | ".join(found) + " |", "|---|" + "---|" * len(found)]
    for mode in ("whole", "stream"):
        cells: list[str] = []
        for listed in found.values():
            grades = [cell["grade"] for key, cell in listed.items() if key.endswith(mode)]
            cells.append(f"{grades.count('pass')} / {grades.count('safe')} / {grades.count('fail')}")
        lines.append(f"| {mode} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(cell: dict[str, str] | None) -> str:
    if cell is None:
        return ""
    why = f": {cell['why']}" if cell["why"] else ""
    return f"{_MARKS[cell['grade']]}{why} ({cell['seconds']} s)"


def main() -> None:
    """Measure and print; exits with 1 if our own row has a failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    parser.add_argument("--read", metavar="FILE", help="print the table of results written earlier, run nothing")
    parser.add_argument("libraries", nargs="*", metavar="library")
    options: Any = parser.parse_args()
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    logging.disable(logging.CRITICAL)
    if options.read:
        with open(options.read) as file:
            found = json.load(file)
    else:
        found = rows(measure(options.libraries))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)
    print(totals(found), table(found), sep="\n\n")
    sys.exit(any(cell["grade"] == "fail" for cell in found.get("llmprod", {}).values()))


if __name__ == "__main__":
    main()

"""Run the overload experiment: ``python -m benchmarks.overload [--quick] [--json FILE] [--figure FILE] [contestant…]``.

The whole takes about a quarter of an hour: 110 seconds for each of four contestants in each of two scenarios.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from benchmarks.loopback import Child
from benchmarks.overload.contestants import CONTESTANTS
from benchmarks.overload.measures import measure, table
from benchmarks.overload.plan import QUICK, SCENARIOS, Plan


def run(name: str, plan: Plan) -> dict[str, Any] | None:
    """Run one contestant against a fresh server; None if it can't start."""
    server = Child("benchmarks.overload.server", plan.to_json())
    client = Child("benchmarks.overload.client", name, plan.to_json(), server.hear())
    try:
        if client.hear() != "ready":
            return None
        began = time.monotonic() + 0.2  # one clock for all processes of a machine
        for child in (server, client):
            child.tell(repr(began))
        calls = json.loads(client.hear())
        server.tell("end")
        return measure(plan, calls, **json.loads(server.hear()))
    finally:
        client.end()
        server.end()


def measure_all(names: list[str], plans: dict[str, Plan]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return figures by scenario and contestant; what is not installed is left out."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for scenario, plan in plans.items():
        for name in names:
            result = run(name, plan)
            if result is None:
                print(f"{name}: left out, it did not start", file=sys.stderr)
                continue
            found.setdefault(scenario, {})[name] = result
            print(f"{scenario}: {name}: done", file=sys.stderr)
    return found


def report(plans: dict[str, Plan], found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return the tables as Markdown."""
    return "\n\n".join(
        f"**{scenario}**: {plans[scenario].queue:g} s of full capacity may queue.\n\n{table(plans[scenario], rows)}"
        for scenario, rows in found.items()
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the time, to see that it works")
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="default: both")
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    parser.add_argument("--read", metavar="FILE", help="report results written earlier, run nothing")
    parser.add_argument("--figure", metavar="FILE", help="also draw them, as SVG (needs matplotlib)")
    parser.add_argument("contestants", nargs="*", metavar="contestant", help=f"of {', '.join(CONTESTANTS)}")
    options: Any = parser.parse_args()
    if unknown := set(options.contestants) - set(CONTESTANTS):
        parser.error(f"no such contestant: {', '.join(sorted(unknown))}")
    chosen = QUICK if options.quick else SCENARIOS
    plans = {name: chosen[name] for name in options.scenario or chosen}
    if options.read:
        with open(options.read) as file:
            found = json.load(file)
    else:
        found = measure_all(options.contestants or list(CONTESTANTS), plans)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)
            file.write("\n")
    print(report(plans, found))
    if options.figure:
        from benchmarks.overload.figure import draw

        draw(options.figure, plans, found)


if __name__ == "__main__":
    main()

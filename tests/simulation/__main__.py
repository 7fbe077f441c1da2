"""``python -m tests.simulation --seeds 0:1000``: run scenarios on both backends, report what they showed.

A failing seed is printed with the command that runs it alone; ``--explain`` then tells its whole story.
"""

import argparse
import json
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.simulation.check import explain
from tests.simulation.plan import plan
from tests.simulation.scenario import Finding, investigate


@dataclass
class Figures:
    """Sums over many scenarios."""

    scenarios: int = 0
    calls: int = 0
    attempts: int = 0
    failures: list[Finding] = field(default_factory=list)
    wrappers: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)

    def add(self, found: Finding) -> None:
        self.scenarios += 1
        self.calls += found.calls
        self.attempts += found.attempts
        self.wrappers.update(found.wrappers)
        self.ends.update(found.ends)
        self.decisions.update(found.decisions)
        self.states.update(found.states)
        if found.violations:
            self.failures.append(found)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="0:1000", help="from:to, or one seed")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--explain", action="store_true", help="tell what happened, call by call")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--keep-going", type=int, default=20, help="stop after as many failing seeds (default 20)")
    options = parser.parse_args()
    first, _, end = options.seeds.partition(":")
    seeds = range(int(first), int(end) if end else int(first) + 1)
    figures, began = Figures(), time.perf_counter()
    with ProcessPoolExecutor(options.jobs) as pool:
        for found in pool.map(investigate, seeds, chunksize=16) if options.jobs > 1 else map(investigate, seeds):
            figures.add(found)
            if found.violations:
                print(found)
                if options.explain:
                    print(explain(plan(found.seed), found.result))
                if len(figures.failures) >= options.keep_going:
                    break
            elif options.explain:
                print(explain(plan(found.seed), found.result))
        else:
            options.keep_going = 0
        if options.keep_going:
            pool.shutdown(cancel_futures=True)
    seconds = time.perf_counter() - began
    told = {
        "seeds": options.seeds,
        "scenarios": figures.scenarios,
        "seconds": round(seconds, 1),
        "scenarios_per_second": round(figures.scenarios / seconds, 1),
        "jobs": options.jobs,
        "backends": ["asyncio", "trio"],
        "failing": [found.seed for found in figures.failures],
        "calls": figures.calls,
        "attempts": figures.attempts,
        "scenarios_with": dict(figures.wrappers.most_common()),
        "calls_ended": dict(figures.ends.most_common()),
        "attempts_ended": dict(figures.states.most_common()),
        "decisions": dict(figures.decisions.most_common()),
    }
    print(json.dumps(told, indent=2))
    if options.json:
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    return 1 if figures.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())

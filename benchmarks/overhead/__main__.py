"""Measure and print the table: ``python -m benchmarks.overhead [--rounds N] [--json FILE] [library …]``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from benchmarks.overhead.targets import TARGETS

_COUNTS = {"whole": 200, "stream": 30}


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.PIPE,
    )


def _ask(process: subprocess.Popen[str], line: str) -> float:
    assert process.stdin and process.stdout
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def measure(names: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Return CPU seconds a call by library and mode: the best of ``rounds``."""
    # Whole answers come at once; between the tokens of a stream is a pause, so that each arrives in a read of its own.
    serve = ("llmprod.testing.fault_server", "--words", "64", "--keep", "10")
    servers = [_start(*serve), _start(*serve, "--token-delay", "0.001")]
    urls = [server.stdout.readline().strip() for server in servers if server.stdout is not None]
    best: dict[str, dict[str, float]] = {}
    children: dict[str, subprocess.Popen[str]] = {}
    try:
        for name in names:
            child = _start("benchmarks.overhead.child", name, *urls)
            assert child.stdout and child.stderr
            if child.stdout.readline().strip() != "ready":
                print(
                    f"{name}: left out: {(child.stderr.read().strip().splitlines() or ['did not start'])[-1]}",
                    file=sys.stderr,
                )
                continue
            children[name] = child
        for number in range(rounds):
            for name, child in children.items():
                for mode, count in _COUNTS.items():
                    seconds = _ask(child, f"{mode} {count}")
                    best.setdefault(name, {})[mode] = min(seconds, best.get(name, {}).get(mode, seconds))
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    finally:
        for process in (*children.values(), *servers):
            process.kill()
            process.communicate()
    return best


def table(best: dict[str, dict[str, float]]) -> str:
    """Return the figures as a Markdown table, as multiples of bare httpx."""
    base = best["httpx"]
    lines = ["| library | whole | × httpx | 64-token stream | × httpx |", "|---|---|---|---|---|"]
    for name, figures in best.items():
        cells = [f"{figures[mode] * 1000:.2f} ms | {figures[mode] / base[mode]:.2f}" for mode in _COUNTS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("libraries", nargs="*", metavar="library", help=f"of {', '.join(TARGETS)}; default all")
    options: Any = parser.parse_args()
    names = list(dict.fromkeys(["httpx", *(options.libraries or TARGETS)]))
    best = measure(names, options.rounds)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(best, file, indent=1)
    print(table(best))


if __name__ == "__main__":
    main()

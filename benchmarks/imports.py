"""CPU and modules of an import, beside ``import openai``: ``python -m benchmarks.imports``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

_CHILD = """
import json, sys, time, threading, socket
opened = []
original = socket.socket.connect
socket.socket.connect = lambda self, *a: (opened.append(1), original(self, *a))[1]
before = time.process_time()
{statement}
took = time.process_time() - before
print(json.dumps([took, len(sys.modules), threading.active_count(), len(opened)]))
"""

STATEMENTS = {
    "import llmprod": "import llmprod",
    "from llmprod import Client": "from llmprod import Client",
    "import httpx": "import httpx",
    "import openai": "import openai",
}


def cost(statement: str, rounds: int = 7) -> tuple[float, int, int, int]:
    """Return the least CPU seconds of ``rounds`` fresh processes, and modules, threads and connections after it."""
    best: list[float] = []
    # With bytecode for all, as installed packages have; the first round writes it.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = os.path.join(tempfile.gettempdir(), f"llmprod-benchmark-{os.getuid()}")
    for _ in range(rounds):
        done = subprocess.run(
            [sys.executable, "-c", _CHILD.format(statement=statement)],
            capture_output=True, text=True, check=True, env=env,
        )  # fmt: skip
        figures = json.loads(done.stdout)
        best = figures if not best or figures[0] < best[0] else best
    seconds, modules, threads, sockets = best
    return seconds, int(modules), int(threads), int(sockets)


def main() -> None:
    """Print the table."""
    figures = {name: cost(statement) for name, statement in STATEMENTS.items()}
    base = figures["import openai"][0]
    print("| statement | CPU | × import openai | modules | threads | connections |\n|---|---|---|---|---|---|")
    for name, (seconds, modules, threads, sockets) in figures.items():
        print(f"| `{name}` | {seconds * 1000:.0f} ms | {seconds / base:.2f} | {modules} | {threads} | {sockets} |")


if __name__ == "__main__":
    main()

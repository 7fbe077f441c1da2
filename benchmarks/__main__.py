"""All benchmarks, one after the other: ``python -m benchmarks``."""

from __future__ import annotations

import subprocess
import sys

for name in (
    "imports",
    "overhead",
    "wrappers",
    "cache",
    "streams",
    "tail",
    "rate_limits",
    "overload",
    "tokens",
    "stores",
    "faults",
):
    print(f"\n## {name}\n", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False)

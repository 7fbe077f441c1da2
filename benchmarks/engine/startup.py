"""How long an engine takes to start, step by step: python -m benchmarks.engine.startup [--model FOLDER] [--every] …

Each row is a fresh process with its own options. What is kept between starts is put into folders of our own, so that
nothing on the machine is removed and the first row finds nothing:

* **bytecode** (``PYTHONPYCACHEPREFIX``): ``none`` is an empty folder that nothing is written to, as on a machine with
  ``PYTHONDONTWRITEBYTECODE`` or packages that were never compiled; ``kept`` is what earlier rows left.
* **caches** (``VLLM_CACHE_ROOT``, ``TORCHINDUCTOR_CACHE_DIR``): ``cold`` is an empty folder: vLLM inspects the model's
  class in another process, and compiles; ``warm`` is what earlier rows left. The files themselves are in the page cache
  in any case: a disk's speed is not measured.

CPU seconds are those of all processes of a start; with other work on the machine they say more than the clock does.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

STEPS = ("import_vllm", "configure", "engine", "application", "warm")
BYTECODE, CACHES, METHODS = ("none", "kept"), ("cold", "warm"), ("spawn", "fork")
_LIMIT = 900.0


@dataclass(frozen=True)
class Start:
    """One way to start."""

    method: str
    eager: bool
    bytecode: str
    caches: str


CHOSEN = (
    Start("spawn", eager=True, bytecode="kept", caches="cold"),  # the first: the folders are empty, and are filled
    Start("spawn", eager=True, bytecode="none", caches="warm"),
    Start("spawn", eager=True, bytecode="kept", caches="warm"),
    Start("fork", eager=True, bytecode="none", caches="warm"),
    Start("fork", eager=True, bytecode="kept", caches="cold"),
    Start("fork", eager=True, bytecode="kept", caches="warm"),
    Start("fork", eager=False, bytecode="kept", caches="cold"),
    Start("fork", eager=False, bytecode="kept", caches="warm"),
)
"""The first, then by pairs that differ in one thing. ``--every`` runs all sixteen combinations after the first."""


def starts(every: bool) -> Iterator[Start]:
    """Yield what is measured, the one that fills the folders first."""
    yield from CHOSEN[: 1 if every else None]
    if every:
        for method, eager, bytecode, caches in itertools.product(METHODS, (True, False), reversed(BYTECODE), CACHES):
            yield Start(method, eager, bytecode, caches)


async def one(model: str, options: dict[str, Any]) -> dict[str, float]:
    """Start an engine in this process, ask it once and stop it; returns the seconds of each step."""
    began = time.monotonic()
    from llmprod import VLLM, AsyncClient

    engine = VLLM(model, progress=False, **options)
    imported = time.monotonic() - began
    await engine.start()
    times = engine.start_times
    assert times is not None
    began = time.monotonic()
    response = await AsyncClient(engine).generate("Hello.", max_tokens=2)
    assert response.usage is not None
    asked = time.monotonic()
    await engine.stop()
    return {
        "llmprod": imported,
        **{step: getattr(times, step) for step in STEPS},
        "first_answer": asked - began,
        "stop": time.monotonic() - asked,
    }


def measure(start: Start, model: str, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run one start in a fresh process.

    Raises:
        RuntimeError: it failed; the message ends with what it said.
    """
    with tempfile.TemporaryDirectory(dir=folder) as empty:
        caches = folder / ("caches-eager" if start.eager else "caches-compiled")
        if start.caches == "cold" and caches.exists():  # the first of its kind fills what is then kept
            caches = Path(empty) / "caches"
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {
            "VLLM_CACHE_ROOT": str(caches),
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
            "PYTHONPYCACHEPREFIX": str(folder / "bytecode" if start.bytecode == "kept" else Path(empty) / "bytecode"),
            "HF_HUB_OFFLINE": "1",
        }
        if start.bytecode == "none":
            env["PYTHONDONTWRITEBYTECODE"] = "1"
        options = {**options, "start_method": start.method, "enforce_eager": start.eager}
        log = Path(empty) / "log"
        with log.open("w+b") as said:
            began, before = time.monotonic(), os.times()
            command = [sys.executable, "-m", "benchmarks.engine.startup", "--one", json.dumps([model, options])]
            done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=said, timeout=_LIMIT, check=False)
            took, after = time.monotonic() - began, os.times()
        if done.returncode:
            raise RuntimeError(f"{start} failed:\n{log.read_text(errors='replace')[-2000:]}")
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        steps: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**asdict(start), **steps, "start": sum(steps[step] for step in STEPS), "process": took, "cpu": cpu}


def line(row: dict[str, Any]) -> str:
    """Return a row of the table, in seconds."""
    what = [row["method"], "eager" if row["eager"] else "compiled", row["bytecode"], row["caches"]]
    times = [f"{row[name]:.1f}" for name in (*STEPS, "start", "cpu")]
    return "| " + " | ".join([*what, *times]) + " |"


def table_head() -> str:
    """Return the table's first lines."""
    names = ["start method", "model", "bytecode", "caches", "import", "configure", "engine", "application", "warm"]
    return "| " + " | ".join([*names, "in all", "CPU"]) + " |\n" + "|---" * 11 + "|"


def main() -> None:
    parser = argparse.ArgumentParser(description="Start times of the embedded engine, in fresh processes.")
    parser.add_argument("--model", help="a folder or a name (default: the tiny random model)")
    parser.add_argument("--options", type=json.loads, default={}, help="more options of VLLM as JSON")
    parser.add_argument("--every", action="store_true", help="all combinations rather than those that tell the most")
    parser.add_argument("--out", type=Path, help="a file for all numbers, as JSON")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(asyncio.run(one(*arguments.one))))
        return
    options = {"max_model_len": 2048, "kv_cache_gib": 1, **arguments.options}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.model
        if model is None:
            from benchmarks.engine.__main__ import make_tiny

            model = str(folder / "model")
            make_tiny(model)
        print(table_head(), flush=True)
        for start in starts(arguments.every):
            rows.append(measure(start, model, options, folder))
            print(line(rows[-1]), flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

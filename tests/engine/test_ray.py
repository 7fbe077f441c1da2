"""Ray Data on one machine: both ways to an engine give the answers of an engine of this process, and leave nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmprod import VLLM, Client

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default", "error:::llmprod"),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray"),
]
ROOT = Path(__file__).resolve().parents[2]
MARK = "LLMPROD_RAY_JOB"
Job = dict[str, Any]


def marked(value: str) -> list[int]:
    """Return the living processes whose environment has the mark, whoever their parents are by now."""
    wanted = f"{MARK}={value}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def job(tiny_model: Path) -> Job:
    mark = str(os.getpid())
    env = {**os.environ, MARK: mark, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "engine" / "ray_job.py"), str(tiny_model)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    for _ in range(1200):  # Ray's own processes take a moment to end
        if not marked(mark):
            break
        time.sleep(0.1)
    assert marked(mark) == []
    found: Job = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def expected(local: VLLM, job: Job) -> list[str]:
    with Client(local) as client:
        results = list(client.map(job["questions"], max_tokens=8, temperature=0))
    assert all(result.ok for result in results)
    return [result.text for result in results]


@pytest.mark.parametrize("way", ["ray", "ours"])
def test_answers_are_those_of_an_engine_of_this_process(way: str, job: Job, expected: list[str]) -> None:
    assert [row["id"] for row in job[way]] == list(range(len(expected)))
    answered = [row for row in job[way] if not row.get("error")]
    assert len(answered) >= len(expected) - 1
    assert [row["text"] for row in answered] == [expected[row["id"]] for row in answered]
    assert len({row["text"] for row in answered}) > 1


def test_a_row_that_fails_is_a_row_and_the_others_go_on(job: Job) -> None:
    failed = {row["id"]: row["error"] for row in job["ours"] if row["error"]}
    assert failed == {job["too_long"]: "ContextTooLong"}

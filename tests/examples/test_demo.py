"""The demo runs, and its numbers hold together."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmprod.testing.fault_server import Answer, Behaviour, ErrorReply, FaultServer

pytest.importorskip("rich")

ROOT = Path(__file__).parents[2]


def demo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    keys = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "OPENAI_BASE_URL")
    clean = {name: value for name, value in os.environ.items() if name not in keys}
    return subprocess.run(
        [sys.executable, "-m", "examples.demo", *arguments],
        cwd=ROOT,
        env={**clean, "COLUMNS": "100", **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def row(output: str, label: str) -> list[int]:
    """The counts of llmprod and of the bare client in a row of the summary."""
    found = re.search(rf"^ *{label}[^\d\n]+(\d+) +[\d.]+% +(\d+) +[\d.]+%", output, re.MULTILINE)
    assert found is not None, output
    return [int(found[1]), int(found[2])]


def test_a_short_run_is_never_silently_wrong_and_beats_the_bare_client() -> None:
    done = demo("--seconds", "4", "--no-live", OPENAI_API_KEY="sk-not-to-be-used")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    right = row(done.stdout, "right, from a model")
    rest = [row(done.stdout, label) for label in ("last resort", "broke mid-answer", "clear error", "SILENTLY WRONG")]
    calls = int(re.search(r"^(\d+) calls, the same", done.stdout, re.MULTILINE)[1])  # type: ignore[index]
    assert right[0] > right[1]
    assert rest[-1][0] == 0
    for side in (0, 1):
        assert right[side] + sum(counts[side] for counts in rest) == calls
    assert float(re.search(r"attempts per call +([\d.]+) +1\.00", done.stdout)[1]) > 1  # type: ignore[index]
    assert "OPENAI_API_KEY is set; this run does not use it" in done.stdout
    assert "sk-not-to-be-used" not in done.stdout


def test_a_provider_shows_answers_and_traces() -> None:
    script = [Behaviour(error=ErrorReply(status=500)), Behaviour(answer=Answer(text="Because they displace water."))]
    with FaultServer(script) as server:
        done = demo("--provider", f"openai-compatible:m@{server.url}/v1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Because they displace water.") == 3
    assert "failed: ServerError 500" in done.stdout
    assert "tokens in / out" in done.stdout


@pytest.mark.parametrize(
    ("model", "told"), [("openai:gpt-5", "OPENAI_API_KEY"), ("nothing:x", "prefix"), ("openai", "prefix:model")]
)
def test_a_provider_that_cannot_be_used_is_told_clearly(model: str, told: str) -> None:
    done = demo("--provider", model)
    assert done.returncode == 2
    assert told in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_seconds_out_of_range_are_refused() -> None:
    done = demo("--seconds", "0")
    assert done.returncode == 2
    assert "from 2 to 3600" in done.stderr

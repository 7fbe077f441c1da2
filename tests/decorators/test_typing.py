"""mypy and pyright see a decorated function as the function that it was."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "tests" / "typing" / "decorators.py"
ENVIRONMENT = {**os.environ, "MYPYPATH": str(ROOT / "src"), "PYTHONPATH": str(ROOT / "src")}


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy comes with the extra dev")
def test_mypy():
    said = run("mypy", "--strict", "--follow-imports=silent", str(PAGE))
    assert "Success" in said, said


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright comes with the extra dev")
def test_pyright(tmp_path):
    project = {"include": [str(PAGE)], "extraPaths": [str(ROOT / "src")], "typeCheckingMode": "strict"}
    project["reportUnnecessaryTypeIgnoreComment"] = "none"
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(project))
    said = run("pyright", "-p", str(tmp_path), "--pythonpath", sys.executable)
    assert "0 errors" in said, said

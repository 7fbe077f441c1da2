"""Every example runs as its README says: without a key, without network, in seconds."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest

from tests.side_by_side import side_by_side

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
NEEDS_VLLM = {"embedded_vllm"}  # of the notebooks; they are run with it (`make test-vllm`)
TIMEOUT_S = 270

EXECUTE = """\
import sys
import nbformat
from nbclient import NotebookClient
NotebookClient(nbformat.read(sys.argv[1], 4), timeout=int(sys.argv[2]), kernel_name="python3").execute()
"""


def run(*arguments: str, cwd: Path, timeout: float = TIMEOUT_S, **more: str) -> str:
    """Run Python without keys and proxies, and with ``more`` in its environment; return what it printed."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().endswith(("_API_KEY", "_PROXY", "_TOKEN", "_BASE_URL")) and not name.startswith("COV_")
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**environment, "PYTHONIOENCODING": "utf-8", **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


Printed = Callable[[Path], str]


@pytest.fixture(scope="module")
def printed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Printed]:
    """What a program printed."""
    yield from side_by_side(
        request,
        tmp_path_factory,
        test_program_runs,
        lambda path, cwd: run("-W", "error", str(path), cwd=cwd),
    )


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_program_runs(path: Path, printed: Printed) -> None:
    assert printed(path).strip()


@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.stem not in NEEDS_VLLM], ids=lambda path: path.stem
)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    run("-c", EXECUTE, str(path), "240", cwd=tmp_path)


@pytest.mark.vllm
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem in NEEDS_VLLM], ids=lambda path: path.stem)
def test_notebook_runs_with_vllm(path: Path, tmp_path: Path) -> None:
    run(str(ROOT / "tools" / "make_tiny_model.py"), "tiny-random", cwd=tmp_path)
    offline = {"LLMPROD_VLLM_MODEL": "tiny-random", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run("-c", EXECUTE, str(path), "600", cwd=tmp_path, timeout=900, **offline)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_as_it_ran(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("text/html" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)
    # An engine's start is told on stderr.
    assert all(output.text.startswith("llmprod: ") for output in outputs if output.get("name") == "stderr")


def test_every_example_is_in_the_index() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| \[([^\]]+)\]", text, re.MULTILINE))
    there = {path.name for path in [*PROGRAMS, *NOTEBOOKS]} | {"demo/"}
    assert listed == there


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_program_tells_how_it_is_run(path: Path) -> None:
    assert f"python examples/{path.name}" in path.read_text(encoding="utf-8")

"""The scripts of the GPU run, as far as they can be tried without a GPU."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "gpu"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the engine runs on Linux alone")
needs_xz = pytest.mark.skipif(shutil.which("xz") is None, reason="xz is not installed")


def call(script: str, *arguments: str, timeout: float = 600, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(TOOLS / script), *arguments],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def packed(folder: Path, parts: int) -> list[Path]:
    """Write what ``pack.sh`` writes: one module, in so many parts."""
    folder.mkdir()
    module = b"ANSWER = 42\n" + b"".join(b"# %d\n" % number for number in range(3000))
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("module.py")
        entry.size = len(module)
        tar.addfile(entry, io.BytesIO(module))
    whole = lzma.compress(archive.getvalue())
    size = -(-len(whole) // parts)
    paths: list[Path] = []
    for number in range(parts):
        paths.append(folder / f"part.{number:02d}")
        paths[-1].write_bytes(whole[number * size : (number + 1) * size])
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths)
    (folder / "SHA256SUMS").write_text(sums)
    return paths


@pytest.mark.parametrize("script", sorted(path.name for path in TOOLS.glob("*.sh")))
def test_it_is_a_program(script: str) -> None:
    assert os.access(TOOLS / script, os.X_OK)
    subprocess.run(["bash", "-n", str(TOOLS / script)], check=True)
    done = call(script)
    assert done.returncode == 2
    assert done.stderr.startswith("usage:")


def test_what_is_there_is_told_for_packing() -> None:
    said = call("setup.sh", "--have").stdout.splitlines()
    assert f"# python {sys.version_info[0]}.{sys.version_info[1]}" in said
    assert any(line.startswith("# glibc 2") for line in said)
    assert f"pytest=={pytest.__version__}" in said


def test_packing_wants_to_know_the_machine(tmp_path: Path) -> None:
    have = tmp_path / "have.txt"
    have.write_text("torch==2.11.0\n")
    done = call("pack.sh", str(have), str(tmp_path / "packed"))
    assert done.returncode == 1
    assert "does not tell the machine's python" in done.stderr
    assert not (tmp_path / "packed").exists()


@needs_xz
def test_parts_may_come_one_by_one_and_only_whole_ones_count(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first, second = packed(tmp_path / "all", 2)

    def bring(*paths: Path, damaged: bool = False) -> subprocess.CompletedProcess[str]:
        shutil.rmtree(tmp_path / "brought", ignore_errors=True)
        (tmp_path / "brought").mkdir()
        for path in (*paths, tmp_path / "all" / "SHA256SUMS"):
            shutil.copy(path, tmp_path / "brought")
        if damaged:
            with (tmp_path / "brought" / paths[0].name).open("r+b") as part:
                part.write(b"x")
        return call("setup.sh", str(tmp_path / "brought"), LLMPROD_GPU_HOME=str(home))

    assert "1 of 2 parts are here; still to come: part.00" in bring(second).stdout
    refused = bring(first, damaged=True)
    assert refused.returncode == 1
    assert "damaged on the way: part.00" in refused.stderr
    assert not (home / "site").exists()
    assert "ready" in bring(first).stdout
    found = subprocess.run(
        [sys.executable, "-c", "import module; print(module.ANSWER)"], env={"PYTHONPATH": str(home / "site")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout == "42\n"
    assert list((home / "site" / "__pycache__").iterdir()), "compiled"


@pytest.mark.parametrize(
    ("cuda", "why"), [("'13.0'", "torch 2.11.0 sees no GPU"), ("None", "torch 2.11.0 is built without CUDA")]
)
def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path, cuda: str, why: str) -> None:
    for name, text in (
        ("torch", f"__version__ = '2.11.0'\nclass version:\n    cuda = {cuda}\nclass cuda:\n    is_available = bool\n"),
        ("vllm", ""),
    ):
        (tmp_path / "fake" / name).mkdir(parents=True)
        (tmp_path / "fake" / name / "__init__.py").write_text(text)
    done = call(
        "run.sh", "smoke", PYTHONPATH=str(tmp_path / "fake"), OUT=str(tmp_path / "out"), LLMPROD_GPU_HOME=str(tmp_path)
    )
    assert done.returncode == 1
    assert done.stderr == f"The GPU run can't start: {why}\n"
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.vllm
def test_it_runs_on_the_cpu(tmp_path: Path) -> None:
    done = call("run.sh", "--cpu", "smoke", OUT=str(tmp_path / "out"), LLMPROD_GPU_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "smoke: first call Timing(" in done.stdout
    found = json.loads((tmp_path / "out" / "smoke.json").read_text())
    assert 0 < found["start"]["engine"] < found["start"]["total"]

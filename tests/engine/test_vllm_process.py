"""The embedded engine and its process: what it leaves as it was, and that nothing outlives it, however it ends."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engine.engines import ROOT, alive, gone

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default", "error:::llmprod")]

SCRIPT = """
import logging, os, signal, sys, threading, time, warnings
print("runs")  # and is not flushed: a forked process must not print it again
def surroundings():
    root = logging.getLogger()
    return dict(os.environ), root.level, list(root.handlers), list(warnings.filters), sys.excepthook
before = surroundings()
from llmprod import VLLM, Client
handlers = [signal.getsignal(number) for number in signal.valid_signals()]
local = VLLM({model!r}, max_model_len=512, enforce_eager=True, kv_cache_gib=1, start_method={method!r}, progress=False)
client = Client(local)
answer = client.generate("Hello.", max_tokens=4, temperature=0)
assert handlers == [signal.getsignal(number) for number in signal.valid_signals()], "a foreign signal handler"
after = surroundings()
for environment, *_ in (before, after):
    environment.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)  # stays: PyTorch asks for it whenever it looks for a GPU
assert {{*after[0].items()}} == {{*before[0].items()}}, {{*after[0].items()}} ^ {{*before[0].items()}}
assert after[1:] == before[1:], (before[1:], after[1:])
print("engine", *local._engine.current.pids, flush=True)
{end}
"""
ENDS = {
    "normally": "",
    "closed": "client.close()",
    "sys.exit": "sys.exit(3)",
    "exception": "raise RuntimeError('on purpose')",
    "os._exit": "os._exit(4)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL); time.sleep(60)",
    "mid-stream": "stream = client.stream('Go on.', max_tokens=400); next(iter(stream)); os.kill(os.getpid(), 9)",
}


TIMEOUT_S = 600
"""What no program takes, even on a busy machine; most end after 20 seconds."""


def run(source: str, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program that has no ``__main__`` guard."""
    return subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=TIMEOUT_S, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, **options,
    )  # fmt: skip


def run_script(model: Path, tmp_path: Path, end: str, method: str, *, how: str = "file") -> tuple[str, list[int]]:
    """Run a script without a ``__main__`` guard; return what it printed and the ids of its engine's processes."""
    source = textwrap.dedent(SCRIPT).format(model=str(model), method=method, end=ENDS[end])
    script = tmp_path / "script.py"
    script.write_text(source)
    command = {"file": [str(script)], "stdin": ["-"], "-c": ["-c", source]}[how]
    done = subprocess.run(
        [sys.executable, *command], input=source if how == "stdin" else None, capture_output=True, text=True,
        timeout=TIMEOUT_S, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, cwd=tmp_path,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines.count("runs") == 1, f"the script ran {lines.count('runs')} times\n{done.stderr[-3000:]}"
    engines = [line for line in lines if line.startswith("engine ")]
    assert engines, done.stderr[-3000:]
    assert lines == ["runs", engines[0]], "stdout is the application's"
    return done.stderr, [int(pid) for pid in engines[0].split()[1:]]


@pytest.fixture(scope="module")
def ended(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[tuple[str, list[int]]]]]:
    """The scripts of the tests that were chosen, two at a time: alone, each would wait for one core."""
    chosen: list[Any] = [item for item in request.session.items if "ended" in getattr(item, "fixturenames", ())]
    ends = [item.callspec.params["end"] for item in chosen]
    with ThreadPoolExecutor(2) as pool:
        yield {end: pool.submit(run_script, tiny_model, tmp_path_factory.mktemp("ended"), end, "fork") for end in ends}


@pytest.mark.parametrize("end", list(ENDS))
def test_no_process_is_left_behind(ended: dict[str, Future[tuple[str, list[int]]]], end: str) -> None:
    errors, pids = ended[end].result()
    assert pids
    gone(pids)
    if end != "exception":
        assert errors == "", "stderr is quiet"


@pytest.mark.parametrize(("end", "how"), [("SIGKILL", "file"), ("normally", "stdin"), ("SIGTERM", "-c")])
def test_spawned_processes_need_no_guard_and_end_too(tiny_model: Path, tmp_path: Path, end: str, how: str) -> None:
    errors, pids = run_script(tiny_model, tmp_path, end, "spawn", how=how)
    gone(pids)
    # multiprocessing's tracker tidies up after a process that was killed, and says so.
    assert [
        line for line in errors.splitlines() if "resource_tracker" not in line and "warnings.warn" not in line
    ] == []


STARTING = """
import multiprocessing, os, signal, sys, threading, time
from llmprod import VLLM, Client
local = VLLM({model!r}, max_model_len=512, enforce_eager=True, kv_cache_gib=1, start_method={method!r}, progress=False)
client = Client(local)
threading.Thread(target=client.generate, args=("Hello.",), daemon=True).start()
while not multiprocessing.active_children():
    time.sleep(0.01)
print("engine", *[child.pid for child in multiprocessing.active_children()], flush=True)
{end}
"""


@pytest.mark.parametrize(("end", "method"), [("normally", "fork"), ("SIGKILL", "spawn")])
def test_the_process_ends_while_an_engine_starts(tiny_model: Path, tmp_path: Path, end: str, method: str) -> None:
    source = STARTING.format(model=str(tiny_model), method=method, end=ENDS[end])
    done = run(source, tmp_path)
    pids = [int(pid) for pid in done.stdout.split()[1:]]
    assert pids, done.stderr[-3000:]
    gone(pids)


INTERRUPT = """
import os, signal, threading, time
from llmprod import VLLM, Client
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
local = VLLM({model!r}, max_model_len=2048, enforce_eager=True, kv_cache_gib=1, start_method={method!r}, progress=False)
client = Client(local)
client.generate("Hello.", max_tokens=4)
pids = local._engine.current.pids
def interrupt():
    while not local.stats().running:
        time.sleep(0.01)
    os.killpg(os.getpgrp(), signal.SIGINT)  # Ctrl-C: the whole process group
before = local.stats().generated_tokens
try:
    threading.Thread(target=interrupt).start()
    client.generate("Go on.", max_tokens=1900, extra={{"vllm": {{"ignore_eos": True}}}})
except KeyboardInterrupt:
    print("interrupted")
assert client.generate("Still here?", max_tokens=4).complete
assert (local.restarts, local._engine.current.pids) == (0, pids), "the engine has died of it"
while local.stats().in_flight:
    time.sleep(0.01)
assert local.stats().generated_tokens - before < 1900, "what was interrupted went on to its end"
print("engine", *pids, flush=True)
os.killpg(os.getpgrp(), signal.SIGINT)
time.sleep(60)
"""


def test_ctrl_c_reaches_the_application_and_not_the_engine(tiny_model: Path, tmp_path: Path) -> None:
    done = run(INTERRUPT.format(model=str(tiny_model), method="fork"), tmp_path, start_new_session=True)
    lines = done.stdout.splitlines()
    assert lines[:1] == ["interrupted"], done.stderr[-3000:]
    assert done.returncode in (1, -signal.SIGINT)  # Python 3.11 says 1 after ``-c``
    assert done.stderr.count("Traceback") == 1, "KeyboardInterrupt alone"
    gone([int(pid) for pid in lines[1].split()[1:]])


FORK = """
import multiprocessing, os, sys
from llmprod import VLLM, Client, ForkedProcess
options = dict(max_model_len=512, enforce_eager=True, kv_cache_gib=1, start_method="fork", progress=False)
local = VLLM({model!r}, **options)
client = Client(local)
client.generate("Hello.", max_tokens=4)
def refused():
    try:
        client.generate("Hello.", max_tokens=4)
    except ForkedProcess:
        sys.exit(7)
child = os.fork()
if child == 0:
    refused()  # ends as a program does: with all handlers and finalisers
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
process = multiprocessing.get_context("fork").Process(target=refused)
process.start()
process.join()
assert process.exitcode == 7, process.exitcode
assert client.generate("Still here?", max_tokens=4).complete
def own():
    mine = Client(VLLM({model!r}, **options))
    assert mine.generate("Hello.", max_tokens=4).complete
    mine.close()
process = multiprocessing.get_context("fork").Process(target=own)
process.start()
process.join()
assert process.exitcode == 0, process.exitcode
assert client.generate("Still here?", max_tokens=4).complete
assert local.restarts == 0
client.close()
print("all are right")
"""


def test_a_forked_child_is_refused_and_the_parent_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    done = run(FORK.format(model=str(tiny_model)), tmp_path)
    assert done.stdout.splitlines()[-1:] == ["all are right"], done.stderr[-3000:]
    assert done.stderr == ""


def test_on_a_terminal_a_start_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    source = SCRIPT.replace("progress=False", "progress=True").format(
        model=str(tiny_model), method="spawn", end="client.close()"
    )
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", source], stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # what Linux says at a terminal's end
        while piece := os.read(ours, 4096):
            written += piece
    os.close(ours)
    assert child.wait(TIMEOUT_S) == 0
    text = written.decode()
    (line,) = text.splitlines()[-1:]
    steps = text.split("\r\x1b[K")
    assert text.count("\n") == 1, text
    assert all(step.startswith("llmprod: starting vLLM with ") for step in steps[1:]), text
    assert steps[0] == ""
    assert "loading the model" in text
    assert "ready in" in line


def test_in_a_notebook_and_when_its_kernel_is_killed(tiny_model: Path, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    manager_of = pytest.importorskip("jupyter_client").KernelManager
    client_of = pytest.importorskip("nbclient").NotebookClient
    cells = [
        (
            "from llmprod import VLLM, AsyncClient\n"
            f"local = VLLM({str(tiny_model)!r}, max_model_len=512, enforce_eager=True, kv_cache_gib=1)\n"
            "client = AsyncClient(local)"
        ),
        "response = await client.generate('Hello.', max_tokens=4, temperature=0)\nprint(len(response.text) > 0)",
        "print('engine', *local._engine.current.pids)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    manager = manager_of(kernel_name="python3")
    limits = {"timeout": TIMEOUT_S, "startup_timeout": TIMEOUT_S}
    runner = client_of(notebook, km=manager, resources={"metadata": {"path": str(tmp_path)}}, **limits)
    with runner.setup_kernel(env={**os.environ, "PYTHONPATH": str(ROOT / "src")}):
        for number, cell in enumerate(notebook.cells):
            runner.execute_cell(cell, number)
        said = ["".join(part.get("text", "") for part in cell.outputs) for cell in notebook.cells]
        assert "True" in said[1]
        assert "ready in" in said[1], "the start is told in the notebook"
        pids = [int(pid) for pid in said[2].split()[1:]]
        assert pids
        assert all(map(alive, pids))
        kernel, channels = manager.provisioner.process, runner.kc
        kernel.kill()
        kernel.wait()
        gone(pids)
    channels.stop_channels()  # nbclient leaves what belongs to a dead kernel open
    manager.cleanup_resources()

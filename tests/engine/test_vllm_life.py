"""The embedded engine's life: shared, aborted, killed, restarted, drained, and gone with its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from llmprod import (
    VLLM,
    AsyncClient,
    CallError,
    Client,
    EngineDied,
    EngineNotReady,
    EngineStartFailed,
    InvalidArgument,
    RestartPolicy,
    StreamInterrupted,
    standard,
)
from tests.engine.engines import ROOT, engine, processes

# What vLLM and torch warn of inside this process is theirs; ours stay errors.
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default", "error:::llmprod")]

LONG: dict[str, Any] = {"max_tokens": 1500, "extra": {"vllm": {"ignore_eos": True}}}


@pytest.fixture
def own(tiny_model: Path, request: pytest.FixtureRequest) -> Iterator[VLLM]:
    """An engine for one test alone, which it may kill."""
    provider = engine(tiny_model, seed=abs(hash(request.node.name)) % 10_000, restart=RestartPolicy(attempts=2))
    anyio.run(provider.start)
    yield provider
    anyio.run(lambda: provider.stop(grace=0))


def kill_engine(provider: VLLM) -> None:
    current = provider._engine.current
    assert current is not None
    for pid in current._pids:
        os.kill(pid, signal.SIGKILL)


async def until(true: Any, seconds: float = 30.0) -> None:
    with anyio.fail_after(seconds):
        while not true():  # noqa: ASYNC110 - a state that is told nowhere
            await anyio.sleep(0.05)


async def idle(provider: VLLM) -> None:
    """Require that the engine itself says that nothing runs or waits in it."""
    await until(lambda: provider.stats().in_flight == 0)
    async with AsyncClient(provider, wrappers=[]) as client:  # one more step, so that its last word is fresh
        await client.generate("Done?", max_tokens=1)
    stats = provider.stats()
    assert (stats.running, stats.waiting, stats.in_flight) == (0, 0, 0)


# ---- cancellation is abort ------------------------------------------------------------------------------------------


async def test_cancelled_calls_and_closed_streams_free_the_engine(local: VLLM) -> None:
    async with AsyncClient(local) as client:
        finished = local.stats().generated_tokens
        async with anyio.create_task_group() as group:

            async def streamed() -> None:
                async with client.stream("Go on.", **LONG) as stream:
                    await stream.read()

            async def whole() -> None:
                await client.generate("Go on.", **LONG)

            for _ in range(32):
                group.start_soon(streamed)
                group.start_soon(whole)
            await until(lambda: local.stats().running >= 32)
            group.cancel_scope.cancel()
        with anyio.fail_after(5):
            await idle(local)
        assert local.stats().generated_tokens - finished < 64 * 1500 / 2, "they were not computed to their ends"

        for _ in range(8):
            async with client.stream("Go on.", **LONG) as stream:
                await stream.__anext__()
        with anyio.fail_after(5):
            await idle(local)
        with pytest.raises(CallError):
            await client.generate("Go on.", deadline=0.3, **LONG)
        with anyio.fail_after(5):
            await idle(local)


# ---- death ----------------------------------------------------------------------------------------------------------


async def test_death_is_told_at_once_and_mended(own: VLLM) -> None:
    async with AsyncClient(own, wrappers=[]) as client:
        async with client.stream("Go on.", **LONG) as stream:
            await stream.__anext__()
            errors: list[BaseException] = []

            async def whole() -> None:
                try:
                    await client.generate("Go on.", **LONG)
                except Exception as error:
                    errors.append(error)

            async with anyio.create_task_group() as group:
                group.start_soon(whole)
                await anyio.sleep(0.2)
                kill_engine(own)
                with anyio.fail_after(3), pytest.raises(StreamInterrupted) as caught:
                    await stream.read()
            assert isinstance(caught.value.__cause__, EngineDied)
            assert isinstance(errors[0], EngineDied)
        assert (await client.generate("Back?", max_tokens=4)).text is not None  # it waits for the restart
        assert own.restarts == 1
        assert own.state == "ready"


async def test_a_retry_rides_over_a_death_and_too_many_are_given_up(own: VLLM) -> None:
    client = AsyncClient(standard(own))
    async with anyio.create_task_group() as group:

        async def kill() -> None:
            await until(lambda: own.stats().running > 0)
            kill_engine(own)

        group.start_soon(kill)
        response = await client.generate("Go on.", max_tokens=800, extra={"vllm": {"ignore_eos": True}})
    assert response.complete
    assert len(response.trace.attempts) == 2
    kill_engine(own)  # while it is idle
    await until(lambda: own.restarts == 2)
    await until(lambda: own.state == "ready")
    kill_engine(own)
    await until(lambda: own.state == "failed")
    with pytest.raises(EngineStartFailed, match="given up after 2 restarts"):
        await client.generate("Hello.", max_tokens=4)
    await own.start()  # by hand it is tried again
    assert (await client.generate("Hello.", max_tokens=4)).complete


# ---- stop -----------------------------------------------------------------------------------------------------------


async def test_drain_lets_calls_end_and_refuses_new_ones(own: VLLM) -> None:
    async with AsyncClient(own, wrappers=[]) as client:
        done: list[int] = []
        async with anyio.create_task_group() as group:

            async def one() -> None:
                response = await client.generate("Go on.", max_tokens=300, extra={"vllm": {"ignore_eos": True}})
                assert response.usage is not None
                done.append(response.usage.total_output)

            for _ in range(4):
                group.start_soon(one)
            await until(lambda: own.stats().running == 4)
            group.start_soon(own.stop)
            await until(lambda: own.state == "stopping")
            with pytest.raises(EngineNotReady):
                await client.generate("Too late?", max_tokens=4)
        assert done == [300] * 4
        assert own.state == "stopped"
        pids = processes()
        assert (await client.generate("Again?", max_tokens=4)).complete  # the next call starts it anew
        assert set(processes()) - set(pids)


def test_clients_hold_the_engine_and_the_last_one_stops_it(tiny_model: Path) -> None:
    first, second = engine(tiny_model, seed=77), engine(tiny_model, seed=77)
    assert first._engine is second._engine, "equal options, one engine"
    one, two = Client(first), Client(second)
    assert one.generate("Hello.", max_tokens=4).complete
    assert two.generate("Hello.", max_tokens=4).complete
    assert (first.state, first.restarts) == ("ready", 0)
    one.close()
    assert two.generate("Still?", max_tokens=4).complete
    two.close()
    assert first.state == second.state == "stopped"


async def test_what_vllm_refuses_is_told_quickly_and_by_name(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no_such_argument"):
        await engine(tiny_model, engine_args={"no_such_argument": 1}).start()
    with pytest.raises(InvalidArgument, match="hermes"):
        await engine(tiny_model, tool_call_parser="hermez").start()
    with pytest.raises(EngineStartFailed, match="configuration"):
        await engine(tiny_model, quantization="awq").start()
    failing = engine(tiny_model, engine_args={"block_size": 7})
    with pytest.raises((EngineStartFailed, InvalidArgument)):
        await failing.start()
    assert failing.state == "failed"
    with pytest.raises(EngineStartFailed):
        await AsyncClient(failing).generate("Hello.")


# ---- its processes end with ours ------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, threading, time
print("runs", flush=True)
from llmprod import VLLM, Client
handlers = [signal.getsignal(number) for number in signal.valid_signals()]
local = VLLM({model!r}, max_model_len=512, enforce_eager=True, kv_cache_gib=1, start_method={method!r}, progress=False)
client = Client(local)
answer = client.generate("Hello.", max_tokens=4, temperature=0)
assert handlers == [signal.getsignal(number) for number in signal.valid_signals()], "a foreign signal handler"
print("engine", *local._engine.current._pids, flush=True)
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


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def left_of(pids: list[int]) -> list[int]:
    """Wait until the processes have ended, ten seconds at most; end and return those that have not."""
    limit = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < limit:
        time.sleep(0.05)
    left = [pid for pid in pids if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def run_script(model: Path, tmp_path: Path, end: str, method: str, *, how: str = "file") -> tuple[str, list[int]]:
    """Run a script without a ``__main__`` guard; return what it printed and the ids of its engine's processes."""
    source = textwrap.dedent(SCRIPT).format(model=str(model), method=method, end=ENDS[end])
    script = tmp_path / "script.py"
    script.write_text(source)
    command = {"file": [str(script)], "stdin": ["-"], "-c": ["-c", source]}[how]
    done = subprocess.run(
        [sys.executable, *command], input=source if how == "stdin" else None, capture_output=True, text=True,
        timeout=180, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, cwd=tmp_path,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines.count("runs") == 1, f"the script ran {lines.count('runs')} times\n{done.stderr[-3000:]}"
    engines = [line for line in lines if line.startswith("engine ")]
    assert engines, done.stderr[-3000:]
    return done.stderr, [int(pid) for pid in engines[0].split()[1:]]


@pytest.mark.parametrize("end", list(ENDS))
def test_no_process_is_left_behind(tiny_model: Path, tmp_path: Path, end: str) -> None:
    errors, pids = run_script(tiny_model, tmp_path, end, "fork")
    assert pids
    assert left_of(pids) == []
    if end == "closed":
        assert "Traceback" not in errors


@pytest.mark.parametrize(("end", "how"), [("SIGKILL", "file"), ("normally", "stdin"), ("SIGTERM", "-c")])
def test_spawned_processes_need_no_guard_and_end_too(tiny_model: Path, tmp_path: Path, end: str, how: str) -> None:
    _, pids = run_script(tiny_model, tmp_path, end, "spawn", how=how)
    assert left_of(pids) == []


FORK = """
import os
from llmprod import VLLM, Client, ForkedProcess
local = VLLM({model!r}, max_model_len=512, enforce_eager=True, kv_cache_gib=1, start_method="fork", progress=False)
client = Client(local)
client.generate("Hello.", max_tokens=4)
child = os.fork()
if child == 0:
    try:
        client.generate("Hello.", max_tokens=4)
    except ForkedProcess:
        os._exit(7)
    os._exit(1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
assert client.generate("Still here?", max_tokens=4).complete
client.close()
print("both are right")
"""


def test_a_forked_child_is_refused_and_the_parent_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK.format(model=str(tiny_model))], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["both are right"], done.stderr[-3000:]


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
        "print('engine', *local._engine.current._pids)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    manager = manager_of(kernel_name="python3")
    runner = client_of(notebook, km=manager, timeout=180, resources={"metadata": {"path": str(tmp_path)}})
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
        assert left_of(pids) == []
    channels.stop_channels()  # nbclient leaves what belongs to a dead kernel open
    manager.cleanup_resources()

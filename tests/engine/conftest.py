"""vLLM's and llama.cpp's own servers on this machine's CPU, with tiny random models made on the spot."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from benchmarks.engine.targets import server_module
from llmprod import VLLM
from tests.engine.engines import OTHER_MODEL, PLACES, engine, tool

ROOT = Path(__file__).resolve().parents[2]
_START = 600.0

GENERATE = [
    "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
    "--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True}),
    "--enable-prompt-tokens-details",
]  # fmt: skip
EMBED = ["--runner", "pooling", "--convert", "embed"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-model")
    subprocess.run([sys.executable, str(ROOT / "tools" / "make_tiny_model.py"), str(folder)], check=True)
    return folder


@contextlib.contextmanager
def _port() -> Iterator[int]:
    """Hold a free port for a server: while it starts, nobody else is given it, and the server may bind it too."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


def _serve(command: list[str], port: int, log: Path, ready: str, env: dict[str, str]) -> Iterator[str]:
    """Run a server until its user is done; yields its address once ``ready`` answers 200."""
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **env})
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + _START
        while not _answers(url + ready):
            if server.poll() is not None or time.monotonic() > end:
                pytest.fail(f"the server did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _vllm(model: Path, log: Path, *options: str) -> Iterator[str]:
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with _port() as port:
        command = [
            sys.executable, "-m", server_module(), "--model", str(model),
            "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager",
            "--dtype", "float32", "--max-model-len", "2048", *options,
        ]  # fmt: skip
        yield from _serve(command, port, log, "/health", env)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="session")
def vllm_server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that generates."""
    yield from _vllm(tiny_model, tmp_path_factory.mktemp("vllm") / "log", *GENERATE)


@pytest.fixture(scope="session")
def vllm_embedding_server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that embeds."""
    yield from _vllm(tiny_model, tmp_path_factory.mktemp("vllm-embed") / "log", *EMBED)


@pytest.fixture(scope="session")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of two LoRA adapters for the tiny model."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("red", "blue"), start=1):
        tool("make_tiny_lora.py", OTHER_MODEL or str(tiny_model), str(folder / name), "--seed", str(seed))
    return {name: str(folder / name) for name in ("red", "blue")}


@pytest.fixture(scope="session")
def local(tiny_model: Path, adapters: dict[str, str]) -> Iterator[VLLM]:
    """An engine of this process that generates, with tools, priorities and two adapters."""
    provider = engine(
        tiny_model, tool_call_parser="hermes", scheduling_policy="priority", loras=adapters, price_per_hour="3.6",
        max_num_seqs=PLACES,
    )  # fmt: skip
    anyio.run(provider.start)
    yield provider
    anyio.run(provider.stop)


@pytest.fixture(scope="session")
def thinking(tiny_model: Path) -> Iterator[VLLM]:
    """An engine that thinks."""
    provider = engine(tiny_model, reasoning_parser="qwen3")
    anyio.run(provider.start)
    yield provider
    anyio.run(provider.stop)


@pytest.fixture(scope="session")
def embedding(tiny_model: Path) -> Iterator[VLLM]:
    """An engine that embeds."""
    provider = engine(tiny_model, runner="pooling", convert="embed")
    anyio.run(provider.start)
    yield provider
    anyio.run(provider.stop)


@pytest.fixture(scope="session")
def llamacpp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of llama.cpp's server, by its Python package."""
    folder = tmp_path_factory.mktemp("llamacpp")
    model = folder / "tiny.gguf"
    subprocess.run([sys.executable, str(ROOT / "tools" / "make_tiny_gguf.py"), str(model)], check=True)
    with _port() as port:
        command = [
            sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--model_alias", "tiny", "--n_ctx", "512",
            "--host", "127.0.0.1", "--port", str(port),
        ]  # fmt: skip
        yield from _serve(command, port, folder / "log", "/v1/models", {})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"

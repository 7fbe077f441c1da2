"""A thousand streams at once in one process, against a server in another: none is lost, cut or mixed up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import anyio
import pytest

from benchmarks.streams import measure

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [sys.executable, "-m", "llmprod.testing.fault_server", "--words", "64", "--token-delay", "0.03"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.terminate()


@pytest.mark.parametrize(("engine", "backend"), [("httpx", "asyncio"), ("httpx", "trio"), ("pyreqwest", "asyncio")])
def test_a_thousand_streams_at_once(url: str, engine: str, backend: str) -> None:
    figures = anyio.run(measure, url, 1000, engine, backend=backend)
    assert figures["whole"] == 1000

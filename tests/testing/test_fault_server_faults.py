"""Each fault, as it is on the wire."""

import asyncio
import asyncio.selector_events
import http.client
import json
import random
import socket
import time

import httpx
import pytest

from llmprod.testing.fault_server import (
    Answer,
    Behaviour,
    Cut,
    Drip,
    ErrorReply,
    FaultServer,
    Lognormal,
    Malformed,
    RawReply,
    Stall,
    StreamError,
)

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
GEMINI = "/v1beta/models/g:streamGenerateContent?alt=sse"
STREAMS = [CHAT, RESPONSES, MESSAGES, GEMINI]


def open_raw(server: FaultServer, path: str = CHAT, *, stream: bool = True) -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60)
    body = json.dumps({"model": "m", "stream": stream}).encode()
    raw.sendall(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(body), body))
    return raw


def wire(
    behaviour: Behaviour, path: str = CHAT, *, stream: bool = True, shown: bytes | None = None
) -> tuple[bytes, str]:
    """All bytes up to the connection's end, and how it ended; 'open' if nothing more comes after ``shown``."""
    with FaultServer(behaviour) as server, open_raw(server, path, stream=stream) as raw:
        received = b""
        while True:
            raw.settimeout(0.2 if shown is not None and shown in received else 60)
            try:
                piece = raw.recv(65536)
            except ConnectionResetError:
                return received, "reset"
            except TimeoutError:
                return received, "open"
            if not piece:
                return received, "fin"
            received += piece


def post(behaviour: Behaviour, path: str = CHAT, **fields: object) -> httpx.Response:
    with FaultServer(behaviour) as server:
        return httpx.post(server.url + path, json={"model": "m", **fields})


# Cuts


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("after", [0, 2, 99])
def test_cut_by_reset(path, after):
    received, ending = wire(Behaviour(cut=Cut(after=after, how="reset"), token_delay=0.001), path)
    assert ending == "reset"
    body = received.partition(b"\r\n\r\n")[2]
    shown = [word for word in ("All ", "quiet ", "on ", "the ", "loopback ", "front.") if word.encode() in body]
    assert len(shown) == min(after, 6)
    assert not body.endswith(b"0\r\n\r\n")
    assert not any(mark in received for mark in (b"[DONE]", b"message_stop", b"response.completed", b'"STOP"'))


def test_cut_by_fin_without_the_last_chunk():
    received, ending = wire(Behaviour(cut=Cut(after=2, how="close")))
    assert ending == "fin"
    assert b"quiet" in received
    assert not received.endswith(b"0\r\n\r\n")


def test_cut_cleanly_without_a_finish_keeps_the_connection():
    with FaultServer(Behaviour(cut=Cut(after=2, how="clean"))) as server, httpx.Client() as client:
        first = client.post(server.url + CHAT, json={"stream": True})
        client.post(server.url + CHAT, json={"stream": True})
        assert server.connections == 1
        assert {record.outcome for record in server.requests} == {"cut"}
    assert "quiet" in first.text
    assert '"finish_reason":"' not in first.text
    assert "[DONE]" not in first.text


def test_cut_and_left_open():
    received, ending = wire(Behaviour(cut=Cut(after=1, how="open")), shown=b"All")
    assert ending == "open"
    assert b"quiet" not in received


@pytest.mark.parametrize(("how", "ending"), [("reset", "reset"), ("close", "fin")])
def test_a_whole_body_cut_half_way(how, ending):
    received, seen = wire(Behaviour(cut=Cut(after=0, how=how)), stream=False)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    assert seen == ending
    assert len(body) == length // 2


def test_a_whole_body_cut_cleanly_is_half_an_object():
    response = post(Behaviour(cut=Cut(after=0, how="clean")))
    with pytest.raises(json.JSONDecodeError):
        response.json()


@pytest.mark.parametrize(("connection", "ending"), [("reset", "reset"), ("close", "fin"), ("silence", "open")])
@pytest.mark.parametrize("stream", [True, False])
def test_no_answer(connection, ending, stream):
    shown = b"" if ending == "open" else None
    assert wire(Behaviour(connection=connection), stream=stream, shown=shown) == (b"", ending)


# Ends


def test_no_done_but_a_proper_end():
    response = post(Behaviour(done=False), stream=True, stream_options={"include_usage": True})
    assert '"finish_reason":"stop"' in response.text
    assert '"total_tokens":18' in response.text
    assert "[DONE]" not in response.text


def test_no_done_and_the_connection_left_open():
    received, ending = wire(Behaviour(done=False, end="open"), shown=b'"finish_reason":"stop"')
    assert ending == "open"
    assert not received.endswith(b"0\r\n\r\n")


def test_no_done_and_the_connection_closed():
    received, ending = wire(Behaviour(done=False, end="close"))
    assert ending == "fin"
    assert b'"finish_reason":"stop"' in received


def test_no_message_stop():
    text = post(Behaviour(done=False), MESSAGES, stream=True).text
    assert "message_delta" in text
    assert "message_stop" not in text


# Errors


@pytest.mark.parametrize(
    ("path", "kind", "status", "words_in_body"),
    [
        (CHAT, "quota", 429, ["insufficient_quota"]),
        (CHAT, "context_length", 400, ["context_length_exceeded"]),
        (CHAT, "overloaded", 503, ["server_error"]),
        (RESPONSES, "rate_limit", 429, ["rate_limit_exceeded"]),
        (MESSAGES, "overloaded", 529, ["overloaded_error", '"type":"error"']),
        (MESSAGES, "quota", 429, ["enforced_spend_limit_reached"]),
        (MESSAGES, "prefill_rejected", 400, ["prefill"]),
        (GEMINI, "quota", 429, ["RESOURCE_EXHAUSTED", "PerDay"]),
        (GEMINI, "authentication", 400, ["API_KEY_INVALID", "ErrorInfo"]),
    ],
)
def test_an_error_has_the_form_of_its_api(path, kind, status, words_in_body):
    response = post(Behaviour(error=ErrorReply(kind=kind)), path, stream=True)
    assert response.status_code == status
    assert all(word in response.text for word in words_in_body)
    assert response.json()["error"]["message"]


def test_an_error_may_be_spelled_out():
    error = ErrorReply(
        status=418, type="teapot", code="short", message="and stout", headers=(("x-should-retry", "false"),)
    )
    response = post(Behaviour(error=error))
    assert response.status_code == 418
    assert response.headers["x-should-retry"] == "false"
    assert response.json() == {"error": {"message": "and stout", "type": "teapot", "param": None, "code": "short"}}
    assert post(Behaviour(error=ErrorReply(status=502, body=b"Bad Gateway"))).content == b"Bad Gateway"


def test_retry_after_in_all_its_forms():
    def headers(**fields) -> httpx.Headers:
        return post(Behaviour(error=ErrorReply(status=429, **fields))).headers

    assert headers(retry_after=3600)["retry-after"] == "3600"
    assert headers(retry_after=0.02)["retry-after"] == "0.020"
    assert headers(retry_after="Wed, 21 Oct 2026 07:28:00 GMT")["retry-after"].startswith("Wed")
    assert headers(retry_after_ms=20)["retry-after-ms"] == "20"
    google = post(Behaviour(error=ErrorReply(status=429, retry_after=14)), GEMINI)
    assert google.json()["error"]["details"][0]["retryDelay"] == "14s"
    assert "retry-after" not in google.headers


@pytest.mark.parametrize(
    ("path", "mark"),
    [(CHAT, 'data: {"error":'), (RESPONSES, "event: error"), (MESSAGES, "overloaded_error"), (GEMINI, "UNAVAILABLE")],
)
@pytest.mark.parametrize("at", [0, 3])
def test_an_error_event_in_a_200(path, mark, at):
    response = post(Behaviour(stream_error=StreamError(at=at)), path, stream=True)
    assert response.status_code == 200
    assert mark in response.text
    assert ("on " in response.text) is (at == 3)
    assert "loopback" not in response.text
    if at == 0:
        assert response.text.count("data:") == 1


def test_an_error_in_the_body_of_a_whole_200():
    response = post(Behaviour(stream_error=StreamError()))
    assert response.status_code == 200
    assert response.json()["error"]["code"] == "server_is_overloaded"


def test_a_malformed_event_in_place_of_another_and_beside_it():
    def broken(malformed: Malformed) -> list[str]:
        lines = post(Behaviour(malformed=malformed), stream=True).text.splitlines()
        found = []
        for line in lines:
            if line.startswith("data: {"):
                try:
                    json.loads(line[6:])
                except json.JSONDecodeError:
                    found.append(line)
        assert any("front." in line for line in lines)
        assert any('"quiet "' in line for line in lines) is not malformed.replace
        return found

    assert len(broken(Malformed(at=1))) == 1
    assert len(broken(Malformed(at=1, replace=False))) == 1


def test_pages_and_empty_bodies_with_a_200():
    page = post(Behaviour(reply=RawReply()), stream=True)
    assert (page.status_code, page.text[:15]) == (200, "<!DOCTYPE html>")
    empty = post(Behaviour(reply=RawReply(body=b"", content_type="text/event-stream")), stream=True)
    assert (empty.status_code, empty.content) == (200, b"")


# Time


def elapsed(behaviour: Behaviour, *, stream: bool) -> tuple[float, float, float]:
    """Seconds to the headers, to the first body byte after the opening, and to the end."""
    with FaultServer(behaviour) as server:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
        started = time.monotonic()
        connection.request("POST", CHAT, body=json.dumps({"stream": stream}))
        response = connection.getresponse()
        headers = time.monotonic() - started
        first = 0.0
        while line := response.readline():
            if b"All" in line:
                first = time.monotonic() - started
        total = time.monotonic() - started
        connection.close()
    return headers, first, total


def test_delays_of_a_stream():
    headers, first, total = elapsed(Behaviour(header_delay=0.04, first_token_delay=0.06, token_delay=0.01), stream=True)
    assert headers >= 0.04
    assert first >= 0.10
    assert total >= 0.15


def test_headers_come_before_the_first_word():
    headers, first, _ = elapsed(Behaviour(first_token_delay=0.5), stream=True)
    for _ in range(10):  # on a busy machine they may be seen late
        if first - headers >= 0.4:
            break
        headers, first, _ = elapsed(Behaviour(first_token_delay=0.5), stream=True)
    assert first - headers >= 0.4


def test_a_whole_answer_takes_as_long_before_its_headers():
    headers, _, _ = elapsed(Behaviour(header_delay=0.02, first_token_delay=0.02, token_delay=0.01), stream=False)
    assert headers >= 0.09


@pytest.mark.parametrize("stream", [True, False])
def test_stall(stream):
    _, _, total = elapsed(Behaviour(stall=Stall(after=3, seconds=0.1)), stream=stream)
    assert total >= 0.1
    received, ending = wire(Behaviour(stall=Stall(after=3)), stream=stream, shown=b"on " if stream else b"")
    assert ending == "open"
    assert b"front." not in received or not stream


def test_a_stall_after_the_last_word_holds_back_the_finish():
    received, ending = wire(Behaviour(stall=Stall(after=6)), shown=b"front.")
    assert ending == "open"
    assert b'"finish_reason":"stop"' not in received


def reads(server: FaultServer) -> list[bytes]:
    """What each read of one stream gives; read as fast as it comes."""
    pieces = []
    with open_raw(server) as raw:
        while not b"".join(pieces).endswith(b"\r\n0\r\n\r\n"):
            pieces.append(raw.recv(65536))
    return pieces


@pytest.fixture
def written(monkeypatch):
    """What is written to sockets, each time."""
    written = []
    transport = asyncio.selector_events._SelectorSocketTransport  # type: ignore[attr-defined]
    write = transport.write
    monkeypatch.setattr(transport, "write", lambda self, data: (written.append(data), write(self, data))[1])
    return written


def test_drip_writes_a_few_bytes_at_a_time(written):
    with FaultServer(Behaviour(drip=Drip(gap=0.001, size=40), answer=Answer(text="one two"))) as server:
        whole = b"".join(reads(server))
    assert b"".join(written) == whole
    assert len(written) > 10


def test_keepalives_while_nothing_else_comes():
    slow = Behaviour(first_token_delay=0.5, keepalive=0.01)
    assert post(slow, stream=True).text.count(": keep-alive\n\n") >= 3
    assert post(slow, MESSAGES, stream=True).text.count("event: ping") >= 4


def test_random_delays_are_the_seeds():
    def times(seed: int) -> float:
        with FaultServer(Behaviour(first_token_delay=Lognormal(median=0.02, cap=0.2)), seed=seed) as server:
            httpx.post(server.url + CHAT, json={})
            (record,) = server.requests
            assert record.ended is not None
            return record.ended - record.time

    expected = Lognormal(median=0.02, cap=0.2).sample(random.Random("7/0"))
    took = times(7)
    for _ in range(10):  # a busy machine adds to it
        if took < expected + 0.1:
            break
        took = min(took, times(7))
    assert expected <= took < expected + 0.1
    assert Lognormal(median=1, sigma=9, cap=2).sample(random.Random(4)) <= 2


@pytest.mark.parametrize(("flush_each", "writes"), [(True, 10), (False, 1)])
def test_each_event_is_its_own_write_when_asked(written, flush_each, writes):
    with FaultServer(flush_each=flush_each) as server:
        reads(server)
    assert len(written) == writes  # the head, the opening, six words, the finish, and the end with [DONE]


def test_events_are_chunks_of_their_own_in_one_write():
    received, _ = wire(Behaviour(), shown=b"\r\n0\r\n\r\n")
    assert received.count(b"data: ") == 9
    assert received.count(b"\r\ndata: ") == 9


def test_capacity():
    behaviour = Behaviour(capacity=1, first_token_delay=60, over_capacity=ErrorReply(status=503))
    with FaultServer(behaviour) as server, open_raw(server, stream=False):
        while server.in_flight == 0:
            time.sleep(0.001)
        assert httpx.post(server.url + CHAT, json={}).status_code == 503
        assert server.in_flight == 1


def test_opening_frames_may_wait_for_the_first_word():
    received, ending = wire(Behaviour(first_token_delay=90, opening_first=False), MESSAGES, shown=b"\r\n\r\n")
    assert (received[-4:], ending) == (b"\r\n\r\n", "open")
    received, ending = wire(Behaviour(first_token_delay=90), MESSAGES, shown=b"message_start")
    assert ending == "open"

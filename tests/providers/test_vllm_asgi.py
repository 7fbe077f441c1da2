"""The application called in memory: bodies as they come, failures, and callers that leave."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmprod import AsyncClient, EngineDied, ReadError
from llmprod.providers._vllm.asgi import InMemory, InMemoryReply
from llmprod.providers.vllm import VLLM
from tests.providers.fake_engine import Stage, stage, until

__all__ = ["stage"]

URL = "http://vllm/v1/chat/completions"
START = {"type": "http.response.start", "status": 200, "headers": [(b"X-Name", b"caf\xe9")]}


def body(data: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def posted(stage: Stage, app: Any) -> InMemoryReply:
    stage.app = app
    engine = stage.engine()
    return await InMemory(await engine.ready()).post(URL, [("x-a", "b")], b"question", None)


async def rest(reply: InMemoryReply) -> bytes:
    data = b""
    while chunk := await reply.chunk():
        data += chunk
    return data


async def test_the_request_is_whole_and_the_answer_too(stage: Stage) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([scope, await receive()])
        await send({**START, "status": 418})
        await send(body(b"a"))
        await send(body(b""))
        await asyncio.sleep(0.01)
        await send(body(b"b", more=False))

    reply = await posted(stage, app)
    assert (reply.status, reply.headers) == (418, {"x-name": "café"})
    assert await rest(reply) == b"ab"
    assert await reply.chunk() == b""
    scope, message = seen
    assert (scope["method"], scope["path"]) == ("POST", "/v1/chat/completions")
    assert (b"x-a", b"b") in scope["headers"]
    assert (b"content-length", b"8") in scope["headers"]
    assert message == {"type": "http.request", "body": b"question", "more_body": False}
    await reply.aclose()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.tuples(st.binary(max_size=20), st.booleans()), max_size=12))
def test_a_body_split_anywhere_is_the_same_body(stage: Stage, pieces: list[tuple[bytes, bool]]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        for data, pause in pieces:
            await send(body(data))
            if pause:
                await asyncio.sleep(0)
        await send(body(b"", more=False))

    async def go() -> bytes:
        if not stage.engines:
            stage.engine()
        incarnation = await stage.engines[0].ready()
        incarnation.app = app
        return await rest(await InMemory(incarnation).post(URL, [], b"", None))

    assert anyio.run(go) == b"".join(data for data, _ in pieces)


async def test_an_application_that_fails_before_and_after_its_status(stage: Stage) -> None:
    async def before(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("a secret prompt")

    with pytest.raises(ReadError, match="vLLM raised ValueError") as caught:
        await posted(stage, before)
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    with pytest.raises(ReadError, match="without an answer") as nothing:
        await posted(stage, silent)
    assert nothing.value.silent

    async def after(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"half"))
        raise ValueError("later")

    reply = await posted(stage, after)
    assert await reply.chunk() == b"half", "what came before it is read first"
    with pytest.raises(ReadError) as late:
        await reply.chunk()
    assert late.value.in_stream
    assert await reply.chunk() == b""
    assert all(engine.meter.in_flight == 0 for engine in stage.engines)


async def test_an_answer_cut_off_without_a_last_message_ends(stage: Stage) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"cut"))

    assert await rest(await posted(stage, app)) == b"cut"


class Leaving:
    """An application that never answers, and notes whether its client has left."""

    def __init__(self, *, status: bool) -> None:
        self.status = status
        self.left = self.began = self.cancelled = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        self.began = True
        if self.status:
            await send(START)
            await send(body(b"first"))
        try:
            self.left = (await receive())["type"] == "http.disconnect"
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def test_a_cancelled_call_is_a_client_that_left(stage: Stage) -> None:
    app = Leaving(status=False)
    async with anyio.create_task_group() as group:
        group.start_soon(posted, stage, app)
        await until(lambda: app.began)
        assert stage.engines[0].meter.in_flight == 1
        group.cancel_scope.cancel()
    await until(lambda: stage.engines[0].meter.in_flight == 0)
    assert app.left
    assert not app.cancelled, "vLLM would leave a cancelled handler's request running"


@pytest.mark.parametrize("how", ["closed", "abandoned"])
async def test_a_reply_nobody_reads_is_a_client_that_left(stage: Stage, how: str) -> None:
    app = Leaving(status=True)
    reply = await posted(stage, app)
    if how == "closed":
        await reply.aclose()
    else:
        await anyio.to_thread.run_sync(reply.abandon)
    reply.abandon()
    assert await reply.chunk() == b""
    await until(lambda: app.left)
    await until(lambda: stage.engines[0].meter.in_flight == 0)


async def test_a_stream_that_is_dropped_unread_is_a_client_that_left(stage: Stage) -> None:
    app = Leaving(status=True)

    async def chat(scope: Any, receive: Any, send: Any) -> None:
        async def told(message: Any) -> None:
            if message.get("body"):
                delta = b'{"id":"x","object":"chat.completion.chunk","created":1,"model":"fake","choices":[{"index":0,'
                message = {**message, "body": b"data: " + delta + b'"delta":{"content":"a"}}]}\n\n'}
            elif "status" in message:
                message = {**message, "headers": [(b"content-type", b"text/event-stream")]}
            await send(message)

        await app(scope, receive, told)

    stage.app = chat
    local = VLLM("fake", seed=11, progress=False)
    stage.engines.append(local._engine)
    async with AsyncClient(local, wrappers=[]) as client:
        stream = client.stream("Hello.")
        response = await stream.__aenter__()
        assert local.stats().in_flight == 1
        with pytest.warns(ResourceWarning, match="dropped unread"):  # noqa: PT031
            del stream, response
            gc.collect()
        await until(lambda: app.left)
        await until(lambda: local.stats().in_flight == 0)


async def test_death_before_the_status_and_of_a_handler_that_never_ends(stage: Stage) -> None:
    stuck = asyncio.Event

    async def app(scope: Any, receive: Any, send: Any) -> None:
        app_began.append(1)
        await stuck().wait()

    app_began: list[int] = []
    errors: list[BaseException] = []

    async def call() -> None:
        try:
            await posted(stage, app)
        except EngineDied as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await until(lambda: app_began)
        stage.kill()
    (error,) = errors
    assert isinstance(error, EngineDied)
    assert error.silent, "not one byte had come"
    await until(lambda: stage.engines[0].meter.in_flight == 0)

"""Calls made with the vendors' own SDKs, decorated, against a server that breaks: answers, usage, errors, streams."""

from __future__ import annotations

from contextlib import AsyncExitStack, aclosing

import anthropic
import anyio
import httpx2
import openai
import pytest
from google import genai
from google.genai import errors as google_errors
from google.genai import types

import llmprod
from llmprod import AllTargetsFailed, AttemptTimeout, FirstTokenTimeout, StreamInterrupted, Usage, capture, resilient
from llmprod.testing.fault_server import (
    Answer,
    Behaviour,
    Cut,
    ErrorReply,
    FaultServer,
    Malformed,
    RawReply,
    StreamError,
    TokenCounts,
    ToolCall,
)
from tests.decorators.scripted import aread_into, read_into, retry

TEXT = "Grüße, wie geht's? 🙂 Fine."
ANSWER = Answer(text=TEXT, reasoning="think first", usage=TokenCounts(input=100, output=40, cache_read=25, reasoning=4))
APART = Usage(input=75, cache_read=25, output=36, reasoning=4)
WITHIN = Usage(input=75, cache_read=25, output=40)
USAGE = {"chat": APART, "responses": APART, "google": APART, "messages": WITHIN}  # the server's Messages count it so
OK = Behaviour(answer=ANSWER)
TURN = [{"role": "user", "content": "my secret question"}]


def chunks_of_chat(chunks):
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def chunks_of_responses(events):
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def chunks_of_messages(events):
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    return "".join(delta.text for delta in deltas if delta.type == "text_delta")


def chunks_of_google(chunks):
    parts = [part for chunk in chunks for c in chunk.candidates or () for part in (c.content and c.content.parts) or ()]
    return "".join(part.text for part in parts if part.text and not part.thought)


class Calls:
    """One API of one SDK: whole and streamed calls, synchronous and not, and how to read what comes."""

    def __init__(self, url):
        self.url = url
        self.limits = {"max_retries": 0, "timeout": 5}
        self.made = {}

    def __getitem__(self, sdk):
        if sdk not in self.made:
            url, limits = self.url, self.limits
            self.made[sdk] = {
                "openai": lambda: openai.OpenAI(base_url=f"{url}/v1", api_key="none", **limits),
                "anthropic": lambda: anthropic.Anthropic(base_url=url, api_key="none", **limits),
                "google": lambda: genai.Client(
                    api_key="none", http_options=types.HttpOptions(base_url=url, timeout=1000 * limits["timeout"])
                ),
            }[sdk]()
        return self.made[sdk]

    def close(self):
        for client in self.made.values():
            client.close()

    def whole(self, api):
        c = self
        return {
            "chat": lambda: c["openai"].chat.completions.create(model="m", messages=TURN),
            "responses": lambda: c["openai"].responses.create(model="m", input="my secret question"),
            "messages": lambda: c["anthropic"].messages.create(model="m", max_tokens=99, messages=TURN),
            "google": lambda: c["google"].models.generate_content(model="m", contents="my secret question"),
        }[api]

    def stream(self, api):
        c = self
        usage = {"include_usage": True}
        return {
            "chat": lambda: c["openai"].chat.completions.create(
                model="m", messages=TURN, stream=True, stream_options=usage
            ),
            "responses": lambda: c["openai"].responses.create(model="m", input="secret", stream=True),
            "messages": lambda: c["anthropic"].messages.create(model="m", max_tokens=99, messages=TURN, stream=True),
            "google": lambda: c["google"].models.generate_content_stream(model="m", contents="secret"),
        }[api]

    async def in_async(self, api, use):
        """Call ``use(whole, stream)`` with asynchronous functions of ``api``."""
        async with AsyncExitStack() as stack:
            o = a = g = None
            if api in ("chat", "responses"):
                o = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", **self.limits)
                await stack.enter_async_context(o)
            elif api == "messages":
                a = anthropic.AsyncAnthropic(base_url=self.url, api_key="none", **self.limits)
                await stack.enter_async_context(a)
            else:
                g = await stack.enter_async_context(self["google"].aio)
            usage = {"include_usage": True}
            calls = {
                "chat": (
                    lambda: o.chat.completions.create(model="m", messages=TURN),
                    lambda: o.chat.completions.create(model="m", messages=TURN, stream=True, stream_options=usage),
                ),
                "responses": (
                    lambda: o.responses.create(model="m", input="secret"),
                    lambda: o.responses.create(model="m", input="secret", stream=True),
                ),
                "messages": (
                    lambda: a.messages.create(model="m", max_tokens=99, messages=TURN),
                    lambda: a.messages.create(model="m", max_tokens=99, messages=TURN, stream=True),
                ),
                "google": (
                    lambda: g.models.generate_content(model="m", contents="secret"),
                    lambda: g.models.generate_content_stream(model="m", contents="secret"),
                ),
            }

            async def whole():
                return await calls[api][0]()

            async def stream():
                return await calls[api][1]()

            return await use(whole, stream)


READ = {
    "chat": (lambda value: value.choices[0].message.content, chunks_of_chat),
    "responses": (lambda value: value.output_text, chunks_of_responses),
    "messages": (lambda value: "".join(b.text for b in value.content if b.type == "text"), chunks_of_messages),
    "google": (lambda value: value.text, chunks_of_google),
}
APIS = tuple(READ)
RATE_LIMIT = {
    "chat": openai.RateLimitError,
    "responses": openai.RateLimitError,
    "messages": anthropic.RateLimitError,
    "google": google_errors.ClientError,
}
pytestmark = pytest.mark.filterwarnings("ignore:there are non-text parts", "ignore::ResourceWarning")


@pytest.fixture
def server():
    with FaultServer(OK) as running:
        yield running


@pytest.fixture
def calls(server):
    made = Calls(server.url)
    yield made
    made.close()


def failing(kind, times=2, **error):
    return [*[Behaviour(error=ErrorReply(kind=kind, **error))] * times, OK]


# ---- whole answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS)
def test_whole(server, calls, api):
    server.behave(failing("overloaded"))
    with capture() as records:
        value = resilient(retry())(calls.whole(api))()
    assert READ[api][0](value) == TEXT
    response = records[-1].response
    assert response.raw is value
    assert (response.text, response.usage, response.finish_reason, response.model) == (TEXT, USAGE[api], "stop", "m")
    assert [attempt.error for attempt in response.trace.attempts] == ["Overloaded", "Overloaded", None]
    assert response.trace.attempts[-1].usage == USAGE[api]
    assert server.request_count == 3


@pytest.mark.parametrize("api", APIS)
def test_whole_async(server, calls, api):
    server.behave(failing("server_error"))

    async def use(whole, _):
        return await resilient(retry())(whole)()

    with capture() as records:
        value = anyio.run(calls.in_async, api, use)
    assert READ[api][0](value) == TEXT
    assert (records[-1].text, records[-1].usage) == (TEXT, USAGE[api])
    assert [attempt.error for attempt in records[-1].trace.attempts] == ["ServerError", "ServerError", None]


def test_the_sdks_own_methods_can_be_decorated(server, calls):
    server.behave(failing("overloaded"))
    create = resilient(retry())(calls["openai"].chat.completions.create)
    assert create(model="m", messages=TURN).choices[0].message.content == TEXT

    async def use(*_):
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            create = resilient(retry())(client.chat.completions.create)
            whole = await create(model="m", messages=TURN)
            stream = await create(model="m", messages=TURN, stream=True)
            return whole.choices[0].message.content, chunks_of_chat([chunk async for chunk in stream])

    assert anyio.run(use) == (TEXT, TEXT)


@pytest.mark.parametrize("api", APIS)
def test_tool_calls_are_read(server, calls, api):
    tools = (ToolCall(id="t1", name="look", arguments={"at": "sky"}), ToolCall(id="t2", name="now"))
    server.behave(Behaviour(answer=Answer(text="", tool_calls=tools)))
    with capture() as records:
        resilient(retry())(calls.whole(api))()
        assert list(resilient(retry())(calls.stream(api))())
    whole, streamed = (record.response for record in records)
    assert whole.finish_reason == streamed.finish_reason == "tool_calls"
    if api != "google":
        assert [call.name for call in whole.tool_calls] == ["look", "now"]


def test_embeddings(calls):
    with capture() as records:
        value = resilient(retry())(lambda: calls["openai"].embeddings.create(model="e", input="a"))()
    assert len(value.data) == 1
    assert records[-1].usage == Usage(input=value.usage.prompt_tokens)


# ---- errors ---------------------------------------------------------------------------------------------------------

ERRORS = {
    "rate_limit": "RateLimited",
    "quota": "QuotaExhausted",
    "context_length": "ContextTooLong",
    "authentication": "AuthenticationFailed",
    "permission": "PermissionDenied",
    "not_found": "NotFound",
    "invalid_request": "BadRequest",
    "overloaded": "Overloaded",
    "server_error": "ServerError",
}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("api", APIS)
def test_errors_are_understood_and_the_sdks_own_is_raised(server, calls, api, kind):
    server.behave(Behaviour(error=ErrorReply(kind=kind)))
    with capture() as records, pytest.raises(Exception) as caught:
        resilient(retry(2))(calls.whole(api))()
    assert type(caught.value).__module__.partition(".")[0] in ("openai", "anthropic", "google")
    attempts = records[-1].trace.attempts
    assert {attempt.error for attempt in attempts} == {ERRORS[kind]}
    transient = kind in ("rate_limit", "overloaded", "server_error")
    assert len(attempts) == server.request_count == (2 if transient else 1)
    assert caught.value.llmprod_trace is records[-1].trace
    assert "secret" not in caught.value.__notes__[-1]
    assert str(attempts[0].status) in caught.value.__notes__[-1]


@pytest.mark.parametrize("api", APIS)
def test_existing_except_clauses_keep_working(server, calls, api):
    server.behave(Behaviour(error=ErrorReply(kind="rate_limit")))
    with pytest.raises(RATE_LIMIT[api]):
        resilient(retry(2))(calls.whole(api))()


@pytest.mark.parametrize("api", APIS)
def test_retry_after_is_read(server, calls, api):
    server.behave(Behaviour(error=ErrorReply(kind="rate_limit", retry_after=3600)))
    with pytest.raises(RATE_LIMIT[api]):
        resilient(retry(3))(calls.whole(api))()
    assert server.request_count == 1  # an hour is more than anybody waits for


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("connection", ["close", "reset"])
def test_broken_connections(server, calls, api, connection):
    server.behave([Behaviour(connection=connection), OK])
    with capture() as records:
        assert READ[api][0](resilient(retry())(calls.whole(api))()) == TEXT
    assert records[-1].trace.attempts[0].error == "ReadError"


@pytest.mark.parametrize("api", APIS)
def test_a_server_that_is_not_there(api):
    calls = Calls("http://127.0.0.1:9")
    with capture() as records, pytest.raises(Exception):  # noqa: B017
        resilient(retry(2))(calls.whole(api))()
    assert [attempt.error for attempt in records[-1].trace.attempts] == ["ConnectError"] * 2
    calls.close()


@pytest.mark.parametrize("api", APIS)
def test_the_sdks_own_timeout_moves_on_to_the_fallback(server, calls, api):
    server.behave([Behaviour(connection="silence"), OK])
    calls.limits["timeout"] = 1
    with capture() as records:
        value = resilient(retry(), fallbacks=[calls.whole(api)])(calls.whole(api))()
    assert READ[api][0](value) == TEXT
    assert records[-1].trace.attempts[0].error == "CallTimeout"


def test_a_body_that_is_no_json(server, calls):
    server.behave([Behaviour(reply=RawReply(body=b'{"id": ', content_type="application/json")), OK])
    with capture() as records:
        assert resilient(retry())(calls.whole("chat"))().choices[0].message.content == TEXT
    assert records[-1].trace.attempts[0].error == "ProtocolError"


def test_other_clients_errors():
    def over(module):
        def ask():
            response = module.Response(503, headers={"retry-after": "0"})
            raise module.HTTPStatusError("no", request=module.Request("GET", "http://x"), response=response)

        return ask

    with capture() as records, pytest.raises(httpx2.HTTPStatusError):
        resilient(retry(2))(over(httpx2))()
    assert [attempt.error for attempt in records[-1].trace.attempts] == ["Overloaded"] * 2


def test_another_vendors_fallback(server, calls):
    server.behave({"m": Behaviour(error=ErrorReply(kind="overloaded")), "other": OK})
    ask = resilient(
        retry(2),
        AttemptTimeout(total=5),
        fallbacks=[
            lambda: calls["anthropic"].messages.create(model="m", max_tokens=9, messages=TURN),
            lambda: calls["google"].models.generate_content(model="other", contents="x"),
        ],
    )(calls.whole("chat"))
    with capture() as records:
        assert ask().text == TEXT
    assert [attempt.error for attempt in records[-1].trace.attempts] == ["Overloaded", "Overloaded", None]

    server.behave(Behaviour(error=ErrorReply(kind="overloaded")))
    with pytest.raises(AllTargetsFailed):
        ask()


# ---- streams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS)
def test_stream(server, calls, api):
    server.behave(failing("overloaded"))
    with capture() as records:
        stream = resilient(retry())(calls.stream(api))()
        chunks = list(stream)
    assert READ[api][1](chunks) == TEXT
    response = records[-1].response
    assert (response.text, response.usage, response.finish_reason, response.model) == (TEXT, USAGE[api], "stop", "m")
    assert response.complete
    assert [attempt.state for attempt in response.trace.attempts] == ["failed", "failed", "ok"]
    assert response.trace.attempts[-1].ttft is not None


@pytest.mark.parametrize("api", APIS)
def test_stream_passes_every_chunk_unchanged(calls, api):
    bare = [type(chunk).__name__ for chunk in calls.stream(api)()]
    assert [type(chunk).__name__ for chunk in resilient(retry())(calls.stream(api))()] == bare


@pytest.mark.parametrize("api", APIS)
def test_stream_async(server, calls, api):
    server.behave(failing("overloaded"))

    async def use(_, stream):
        return [chunk async for chunk in await resilient(retry())(stream)()]

    with capture() as records:
        chunks = anyio.run(calls.in_async, api, use)
    assert READ[api][1](chunks) == TEXT
    assert (records[-1].text, records[-1].usage) == (TEXT, USAGE[api])


@pytest.mark.parametrize("where", ["sync", "async"])
@pytest.mark.parametrize("api", APIS)
def test_a_cut_before_the_first_text_is_retried_unseen(server, calls, api, where):
    cut = Behaviour(answer=Answer(text=TEXT), cut=Cut(after=0, how="clean"))
    server.behave([cut, OK])
    if where == "sync":
        chunks = list(resilient(retry())(calls.stream(api))())
    else:

        async def use(_, stream):
            return [chunk async for chunk in await resilient(retry())(stream)()]

        chunks = anyio.run(calls.in_async, api, use)
    assert READ[api][1](chunks) == TEXT
    assert server.request_count == 2


@pytest.mark.parametrize("how", ["clean", "reset", "close"])
@pytest.mark.parametrize("where", ["sync", "async"])
@pytest.mark.parametrize("api", APIS)
def test_a_cut_in_the_text_is_never_taken_for_an_end(server, calls, api, how, where):
    server.behave(Behaviour(answer=Answer(text="one two three four"), cut=Cut(after=2, how=how), token_delay=0.01))
    seen = []

    def check(caught):
        assert caught.value.partial.text == READ[api][1](seen)
        assert caught.value.partial.text.startswith("one")
        assert server.request_count == 1

    if where == "sync":
        with pytest.raises(StreamInterrupted) as caught:
            read_into(seen, resilient(retry())(calls.stream(api))())
        return check(caught)

    async def use(_, stream):
        opened = await resilient(retry())(stream)()
        with pytest.raises(StreamInterrupted) as caught:
            await aread_into(seen, opened)
        return caught

    return check(anyio.run(calls.in_async, api, use))


def test_the_check_can_be_left_out(server, calls):
    server.behave(Behaviour(answer=Answer(text="one two three"), cut=Cut(after=2, how="clean")))
    chunks = list(resilient(retry(), check_complete=False)(calls.stream("chat"))())
    assert chunks_of_chat(chunks) == "one two "


@pytest.mark.parametrize("api", APIS)
def test_an_error_inside_a_stream(server, calls, api):
    server.behave([Behaviour(stream_error=StreamError(at=0)), OK])
    with capture() as records:
        assert READ[api][1](list(resilient(retry())(calls.stream(api))())) == TEXT
    assert records[-1].trace.attempts[0].error == "Overloaded"

    server.behave(Behaviour(answer=Answer(text="one two three"), stream_error=StreamError(at=2)))
    with pytest.raises(StreamInterrupted) as caught:
        list(resilient(retry())(calls.stream(api))())
    assert caught.value.partial.text == "one two "
    assert isinstance(caught.value.__cause__, llmprod.Overloaded)


@pytest.mark.parametrize("api", APIS)
def test_a_malformed_event(server, calls, api):
    server.behave([Behaviour(malformed=Malformed(at=0)), OK])
    with capture() as records:
        assert READ[api][1](list(resilient(retry())(calls.stream(api))())) == TEXT
    assert records[-1].trace.attempts[0].error == "ProtocolError"


@pytest.mark.parametrize("api", APIS)
def test_a_stream_without_a_first_token(server, calls, api):
    server.behave([Behaviour(first_token_delay=2), OK])
    with pytest.raises(FirstTokenTimeout):
        resilient(AttemptTimeout(first_token=0.2), stream=True)(calls.stream(api))()


def test_leaving_a_stream_releases_its_connection(server, calls):
    server.behave(Behaviour(answer=Answer(text="one two three"), token_delay=0.5))
    decorated = resilient(retry())(calls.stream("chat"))
    with decorated() as stream:
        next(stream)
    with capture() as records, decorated() as stream:
        next(stream)
    assert records[-1].trace.attempts[0].state == "closed"


@pytest.mark.parametrize(("api", "what"), [("chat", "completion"), ("messages", "message"), ("responses", "response")])
def test_the_sdks_stream_helpers(server, calls, api, what):
    server.behave(failing("overloaded", 1))
    c = calls
    opens = {
        "chat": lambda: c["openai"].chat.completions.stream(model="m", messages=TURN),
        "responses": lambda: c["openai"].responses.stream(model="m", input="secret"),
        "messages": lambda: c["anthropic"].messages.stream(model="m", max_tokens=99, messages=TURN),
    }[api]
    with capture() as records, resilient(retry())(opens)() as stream:
        final = getattr(stream, f"get_final_{what}")()
    assert READ[api][0](final) == TEXT
    assert records[-1].text == TEXT
    assert len(records[-1].trace.attempts) == 2
    assert records[-1].response.complete


def test_the_text_stream_of_anthropics_helper(server, calls):
    server.behave(failing("overloaded", 1))
    client = calls["anthropic"]
    ask = resilient(retry())(lambda: client.messages.stream(model="m", max_tokens=99, messages=TURN))
    with ask() as stream:
        assert "".join(stream.text_stream) == TEXT
        assert stream.get_final_text() == TEXT
        assert stream.response.status_code == 200
        with pytest.raises(AttributeError):
            _ = stream.no_such_thing

    async def use(*_):
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none") as client:

            @resilient(retry())
            async def ask():
                return client.messages.stream(model="m", max_tokens=99, messages=TURN)

            async with await ask() as stream:
                text = "".join([text async for text in stream.text_stream])
                return text, await stream.get_final_text()

    server.behave(failing("overloaded", 1))
    assert anyio.run(use) == (TEXT, TEXT)


def test_a_generator_over_an_sdks_stream(server, calls):
    server.behave(failing("overloaded"))

    @resilient(retry())
    def ask():
        for chunk in calls.stream("chat")():
            yield chunk.choices[0].delta.content if chunk.choices else ""

    with capture() as records:
        assert "".join(text or "" for text in ask()) == TEXT
    assert records[-1].text == TEXT


def test_an_asynchronous_generator_over_an_sdks_stream(server):
    server.behave(failing("overloaded"))

    async def main():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            @resilient(retry())
            async def ask():
                async for chunk in await client.chat.completions.create(model="m", messages=TURN, stream=True):
                    yield chunk

            async with aclosing(ask()) as stream:
                return chunks_of_chat([chunk async for chunk in stream])

    assert anyio.run(main) == TEXT


def test_on_trio(server):
    server.behave(failing("overloaded"))

    async def main():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            create = resilient(retry())(client.chat.completions.create)
            whole = await create(model="m", messages=TURN)
            stream = await create(model="m", messages=TURN, stream=True)
            return whole.choices[0].message.content, chunks_of_chat([chunk async for chunk in stream])

    assert anyio.run(main, backend="trio") == (TEXT, TEXT)

"""The vendors' own SDKs read what the fault server writes."""

import anthropic
import openai
import pytest
from google import genai
from google.genai import types

from llmprod.testing.fault_server import Answer, Behaviour, FaultServer, TokenCounts, ToolCall

TEXT = "Grüße, wie geht's? 🙂 Fine."
ANSWER = Answer(
    text=TEXT,
    reasoning="first think then speak",
    tool_calls=(ToolCall(id="t1", name="look", arguments={"at": "sky"}), ToolCall(id="t2", name="now")),
    usage=TokenCounts(input=100, output=40, cache_read=25, reasoning=4),
)
TURN = {"role": "user", "content": "hello"}


@pytest.fixture(params=[False, True], ids=["joined", "flush_each"])
def server(request):
    with FaultServer(Behaviour(answer=ANSWER), flush_each=request.param) as running:
        yield running


@pytest.fixture
def openai_client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_chat(openai_client):
    whole = openai_client.chat.completions.create(model="gpt-x", messages=[TURN])
    message = whole.choices[0].message
    assert message.content == TEXT
    assert [(call.id, call.function.name) for call in message.tool_calls] == [("t1", "look"), ("t2", "now")]
    assert whole.choices[0].finish_reason == "tool_calls"
    assert whole.usage.prompt_tokens_details.cached_tokens == 25
    assert whole._request_id == "req_000000"


def test_openai_chat_stream(openai_client):
    options = {"include_usage": True}
    with openai_client.chat.completions.stream(model="gpt-x", messages=[TURN], stream_options=options) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == TEXT
    calls = final.choices[0].message.tool_calls
    assert [(call.id, call.function.arguments) for call in calls] == [("t1", '{"at": "sky"}'), ("t2", "{}")]
    assert final.usage.total_tokens == 140


def test_openai_responses(openai_client):
    whole = openai_client.responses.create(model="gpt-x", input="hello")
    assert whole.output_text == TEXT
    assert [item.type for item in whole.output] == ["reasoning", "message", "function_call", "function_call"]
    assert whole.usage.output_tokens_details.reasoning_tokens == 4


def test_openai_responses_stream(openai_client):
    with openai_client.responses.stream(model="gpt-x", input="hello") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == TEXT
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TEXT
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert final.output[2].arguments == '{"at": "sky"}'


def test_openai_embeddings_in_both_encodings(openai_client):
    packed = openai_client.embeddings.create(model="e", input=["a", "b"])
    plain = openai_client.embeddings.create(model="e", input=["a", "b"], encoding_format="float", dimensions=8)
    assert [item.embedding for item in packed.data] == [pytest.approx(item.embedding) for item in plain.data]
    assert packed.data[0].embedding != packed.data[1].embedding
    assert sum(value * value for value in plain.data[0].embedding) == pytest.approx(1, abs=1e-6)
    assert len(openai_client.embeddings.create(model="e", input="a", dimensions=3).data[0].embedding) == 3


def test_openai_models_and_errors(server, openai_client):
    assert [model.id for model in openai_client.models.list()] == ["fault-model"]
    server.down()
    with pytest.raises(openai.InternalServerError):
        openai_client.models.list()


@pytest.fixture
def anthropic_client(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def check_message(message: anthropic.types.Message) -> None:
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert message.content[0].thinking == "first think then speak"
    assert message.content[0].signature
    assert message.content[1].text == TEXT
    assert [block.input for block in message.content[2:]] == [{"at": "sky"}, {}]
    assert message.stop_reason == "tool_use"
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (75, 25)
    assert message.usage.output_tokens == 40


def test_anthropic(anthropic_client):
    check_message(anthropic_client.messages.create(model="claude-x", max_tokens=64, messages=[TURN]))


def test_anthropic_stream(anthropic_client):
    with anthropic_client.messages.stream(model="claude-x", max_tokens=64, messages=[TURN]) as stream:
        check_message(stream.get_final_message())


@pytest.fixture
def google_client(server):
    client = genai.Client(api_key="none", http_options=types.HttpOptions(base_url=server.url))
    yield client
    client.close()


def test_gemini(google_client):
    whole = google_client.models.generate_content(model="gemini-x", contents="hello")
    assert whole.text == TEXT
    assert [(call.name, call.args) for call in whole.function_calls] == [("look", {"at": "sky"}), ("now", {})]
    assert whole.usage_metadata.thoughts_token_count == 4
    assert whole.candidates[0].finish_reason == types.FinishReason.STOP


def test_gemini_stream(google_client):
    chunks = list(google_client.models.generate_content_stream(model="gemini-x", contents="hello"))
    parts = [part for chunk in chunks for part in chunk.candidates[0].content.parts or []]
    assert "".join(part.text for part in parts if part.text and not part.thought) == TEXT
    assert "".join(part.text for part in parts if part.text and part.thought) == "first think then speak"
    assert chunks[-1].candidates[0].finish_reason == types.FinishReason.STOP
    assert chunks[-1].usage_metadata.total_token_count == 140


def test_gemini_embeddings(google_client):
    answer = google_client.models.embed_content(model="embed-x", contents=["a", "b"])
    assert [len(item.values) for item in answer.embeddings] == [8, 8]

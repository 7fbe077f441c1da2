"""A request may ask that its last message be continued; only a target that can is asked."""

import pytest

from llmprod import Capabilities, Context, Failover, GenerateRequest, InvalidArgument, Message, UnsupportedParameter
from llmprod.providers._openai_profile import PROFILES
from llmprod.providers.anthropic import AnthropicCodec
from llmprod.providers.openai_chat import ChatCodec
from llmprod.testing.scripted import Scripted
from llmprod.types import ToolCall

BEGUN = (Message.user("Hi"), Message.assistant("Once upon"))
ASKED = GenerateRequest(messages=BEGUN, prefill=True)
PREFILL = Capabilities(prefill=True)


@pytest.mark.parametrize(
    "messages", [BEGUN[:1], (*BEGUN, Message.user("and")), (BEGUN[0], Message.assistant(ToolCall("c", "f")))]
)
def test_there_must_be_something_to_continue(messages):
    with pytest.raises(InvalidArgument) as caught:
        GenerateRequest(messages=messages, prefill=True)
    assert caught.value.field == "prefill"


def test_it_is_asked_of_the_capabilities_and_never_left_out():
    assert Capabilities().missing(ASKED) == ("prefill",)
    assert PREFILL.missing(ASKED) == ()
    lenient = GenerateRequest(messages=BEGUN, prefill=True, drop_unsupported=True)
    assert Capabilities().missing(lenient) == ("prefill",)
    with pytest.raises(UnsupportedParameter) as caught:
        Capabilities().fit(lenient, "t")
    assert caught.value.fields == ("prefill",)
    assert ASKED.used() == {"prefill"}
    assert "prefill" in repr(ASKED)


def test_a_last_message_of_the_assistants_alone_asks_for_nothing():
    plain = GenerateRequest(messages=BEGUN)
    assert plain.used() == set()
    assert Capabilities().missing(plain) == ()


async def test_a_router_passes_over_those_that_can_not():
    a, b = Scripted(name="a"), Scripted(["a time"], name="b", capabilities=PREFILL)
    response = await Failover(a, b).send(ASKED, Context.new())
    assert (response.text, a.calls) == ("a time", 0)
    assert response.trace.entries[0].reason == "lacks prefill"


def test_on_the_wire():
    vllm = ChatCodec("m", PROFILES["vllm"]).encode(ASKED).body
    assert (vllm["continue_final_message"], vllm["add_generation_prompt"]) == (True, False)
    assert vllm["messages"][-1] == {"role": "assistant", "content": "Once upon"}
    claude = AnthropicCodec("claude-haiku-4-5").encode(ASKED).body
    assert claude["messages"][-1] == {"role": "assistant", "content": [{"type": "text", "text": "Once upon"}]}
    for body in (vllm, claude, ChatCodec("m", PROFILES["llamacpp"]).encode(ASKED).body):
        assert "prefill" not in body

"""ContextWindow with OpenAI's tables, in real time: near the window the exact count decides, off the event loop."""

import threading

import pytest

from llmprod import Capabilities, Context, ContextTooLong, GenerateRequest, Message
from llmprod.testing.scripted import Scripted
from llmprod.tokens import TokenCounter, tables
from llmprod.wrappers.context_window import ContextWindow

pytestmark = pytest.mark.skipif(tables.encoding("o200k_base") is None, reason="needs llmprod[tokens]")


@pytest.mark.parametrize(("short", "refused"), [(-30, False), (30, True)])
async def test_the_exact_count_decides_near_the_window(short, refused, monkeypatch):
    text = "The water stood ankle-deep in the lanes of the old town. " * 40
    exact = TokenCounter().count([Message.user(text)], model="openai:gpt-5").tokens
    count, threads = tables.Encoding.count, []
    monkeypatch.setattr(
        tables.Encoding, "count", lambda self, text: threads.append(threading.current_thread()) or count(self, text)
    )
    window = round(exact * 1.035) - short if not refused else round(exact * 0.96) - short
    model = Scripted("Hi", name="openai:gpt-5", capabilities=Capabilities(context_window=window))
    provider = ContextWindow(counter=TokenCounter())(model)
    request = GenerateRequest(messages=(Message.user(text),))
    if refused:
        with pytest.raises(ContextTooLong) as caught:
            await provider.send(request, Context.new())
        assert caught.value.tokens == exact
        assert model.requests == []
    else:
        await (await provider.send(request, Context.new())).read()
        assert model.requests == [request]
    assert threads
    assert threading.current_thread() not in threads

"""Counting for users, and what it learns."""

import threading

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod import EmbedRequest, GenerateRequest, InvalidArgument, Message, Static, Usage
from llmprod.tokens import TokenCounter, count_tokens, count_tokens_async, default_counter, tables
from llmprod.tokens import counter as module

HAS_TABLES = tables.encoding("o200k_base") is not None
needs_tables = pytest.mark.skipif(not HAS_TABLES, reason="needs llmprod[tokens]")
TEXT = "The water stood ankle-deep in the lanes of the old town."


def rough(**options):
    return TokenCounter(tables="none", **options)


# ---- counting --------------------------------------------------------------------------------------------------------


@needs_tables
def test_plain_text_is_exact_where_the_table_is_at_hand():
    counted = count_tokens(TEXT, model="openai:gpt-5")
    assert (counted.tokens, counted.exact, counted.method) == (14, True, "o200k_base")
    assert counted.lower_bound == counted.upper_bound == int(counted) == 14
    assert counted.parts == {"text": 14}
    embedded = count_tokens(EmbedRequest(inputs=(TEXT, TEXT)), model="openai:text-embedding-3-small")
    assert (embedded.exact, embedded.method) == (True, "cl100k_base")


@needs_tables
def test_messages_are_text_and_a_chat_format_that_is_known_a_little_less_well():
    counted = count_tokens([{"role": "user", "content": TEXT}], model="openai:gpt-4o")
    assert counted.tokens == 14 + 3 + 3
    assert counted.parts == {"text": 14, "marks": 6}
    assert not counted.exact
    assert counted.method == "o200k_base and chat format"
    assert counted.lower_bound <= 20 <= counted.upper_bound


@pytest.mark.parametrize(
    "what", [TEXT, Message.user(TEXT), [Message.user(TEXT)], GenerateRequest(messages=(Message.user(TEXT),))]
)
@pytest.mark.parametrize("model", ["openai:gpt-5", "anthropic:claude-opus-4-8", "google:gemini-2.5-pro", "x:y", ""])
def test_anything_can_be_counted_for_any_model(what, model):
    counted = rough().count(what, model=model)
    assert 10 <= counted.tokens <= 25
    assert counted.lower_bound <= counted.tokens <= counted.upper_bound
    assert not counted.exact
    assert counted.method.startswith("by script")


def test_tools_and_a_schema_count():
    def look(city: str) -> str:
        """Look at the weather."""
        return city

    plain = count_tokens("Hi", model="openai:gpt-5")
    with_tools = count_tokens("Hi", model="openai:gpt-5", tools=[look], output=dict[str, int])
    assert {"tools", "schema", "marks"} <= set(with_tools.parts)
    assert with_tools.tokens > plain.tokens + 20


def test_a_provider_has_a_name():
    assert count_tokens(TEXT, model=Static("Hi")).model == "static:answer"
    with pytest.raises(InvalidArgument, match="model"):
        count_tokens(TEXT, model=7)


@pytest.mark.parametrize("what", [7, b"bytes", [], [7]])
def test_what_cannot_be_counted_is_an_error_without_its_text(what):
    with pytest.raises(InvalidArgument):
        count_tokens(what, model="openai:gpt-5")


@pytest.mark.parametrize(
    ("field", "options"),
    [("tables", {"tables": "/no/such/folder"}), ("tables", {"tables": 7}), ("models_at_most", {"models_at_most": 0})],
)
def test_options_are_checked(field, options):
    with pytest.raises(InvalidArgument) as caught:
        TokenCounter(**options)
    assert caught.value.field == field


@given(st.text(st.characters(), max_size=200), st.sampled_from(["openai:gpt-5", "anthropic:claude-opus-4-8", "x:y"]))
def test_any_text_is_counted_within_its_bounds(text, model):
    counted = count_tokens(text, model=model)
    assert 0 <= counted.lower_bound <= counted.tokens <= counted.upper_bound


# ---- event loops and threads -----------------------------------------------------------------------------------------


@needs_tables
async def test_a_table_is_not_read_in_an_event_loop(monkeypatch):
    readers, made = [], {}
    read = threading.Event()
    load = tables._load

    def watched(*told):
        readers.append(threading.current_thread())
        read.wait(10)
        return load(*told)

    monkeypatch.setattr(tables, "_made", made)
    monkeypatch.setattr(tables, "_load", watched)
    counter = TokenCounter()
    first = counter.count(TEXT, model="openai:gpt-5")
    again = counter.count(TEXT, model="openai:gpt-5")
    assert (first.exact, again.exact) == (False, False)
    read.set()
    with anyio.fail_after(20):
        counted = await counter.count_async(TEXT, model="openai:gpt-5")
    assert counted.exact
    assert counter.count(TEXT, model="openai:gpt-5").exact
    assert len(readers) == 1
    assert readers[0] is not threading.current_thread()


async def test_counting_in_a_thread_says_the_same():
    for what in (TEXT, [Message.user(TEXT)]):
        for model in ("openai:gpt-5", "anthropic:claude-opus-4-8"):
            there = await count_tokens_async(what, model=model)
            assert (there.tokens, there.exact) == (count_tokens(what, model=model).tokens, there.exact)


async def test_a_provider_with_a_tokenizer_of_its_own_is_asked():
    asked = []

    class Engine(Static):
        async def count_tokens(self, text, *, tools=None):
            asked.append((text, tools))
            return 42

    engine = Engine("Hi")
    counted = await count_tokens_async([Message.user(TEXT)], model=engine)
    assert (counted.tokens, counted.exact, counted.upper_bound) == (42, True, 42)
    assert asked == [((Message.user(TEXT),), None)]
    assert (await count_tokens_async(TEXT, model=engine)).tokens == 42


# ---- learning --------------------------------------------------------------------------------------------------------


def test_estimates_follow_what_the_provider_counts():
    counter = rough()
    model = "anthropic:claude-opus-4-8"
    assert counter.error(model) == (type(counter.error(model)))(None, None, 0)
    before = counter.count([Message.user(TEXT * 20)], model=model)
    for _ in range(40):
        counted = counter.count([Message.user(TEXT * 20)], model=model)
        counter.learn(counted, Usage(input=int(before.raw), cache_read=int(before.raw * 0.3)))
    after = counter.count([Message.user(TEXT * 20)], model=model)
    assert after.tokens == pytest.approx(1.3 * before.tokens, rel=0.02)
    assert after.method.endswith("corrected")
    assert after.raw == before.raw
    assert after.upper_bound - after.tokens < 1.3 * (before.upper_bound - before.tokens)
    error = counter.error(model)
    assert error.count == 40
    assert error.mean < 0.1


def test_models_are_learned_apart():
    counter = rough()
    for _ in range(10):
        counted = counter.count([Message.user(TEXT * 20)], model="a:one")
        counter.learn(counted, int(counted.raw * 1.5))
    assert counter.count(TEXT, model="a:one").tokens > 1.3 * counter.count(TEXT, model="a:two").tokens
    assert counter.error("a:two").count == 0


def test_what_is_estimated_or_exact_teaches_nothing():
    counter = TokenCounter()
    counted = counter.count([Message.user(TEXT)], model="x:y")
    counter.learn(counted, Usage(input=500, estimated=True))
    assert counter.error("x:y").count == 0
    exact = counter.count(TEXT, model="openai:gpt-5")
    if exact.exact:
        counter.learn(exact, 500)
        assert counter.error("openai:gpt-5").count == 0


def test_bounds_narrow_at_most_half_of_the_way():
    counter = rough()
    for _ in range(60):
        counted = counter.count([Message.user(TEXT * 20)], model="x:y")
        counter.learn(counted, round(counted.raw))
    russian = "Утром вода ещё стояла на улицах старого города. " * 10
    before, after = rough().count(russian, model="x:y"), counter.count(russian, model="x:y")
    assert after.tokens == before.tokens
    assert after.upper_bound - after.tokens == pytest.approx((before.upper_bound - before.tokens) / 2, abs=1)


def test_memory_is_bounded():
    counter = rough(models_at_most=4)
    for number in range(100):
        counter.learn(counter.count(TEXT, model=f"x:{number}"), 20)
    assert len(counter._learned) <= 8


def test_many_threads_learn_and_count():
    counter = rough()
    counts = []

    def work(number):
        for _ in range(50):
            counted = counter.count(TEXT * 10, model=f"x:{number % 3}")
            counter.learn(counted, round(counted.raw * 1.2))
            counts.append(counted.tokens)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counts) == 300
    assert sum(counter.error(f"x:{number}").count for number in range(3)) == 300


def test_the_shared_estimator_is_one():
    assert default_counter() is default_counter() is module._default
    assert repr(default_counter()) == "TokenCounter(tables=installed)"

"""What a call is taken for before it was counted, and how that is learned."""

import random

import pytest

from llmprod import EmbedRequest, GenerateRequest, Image, Message, OutputSchema, Tool
from llmprod.mechanisms.token_estimate import TokenEstimate, rough_tokens
from llmprod.types import Audio, File, Text, ToolCall, ToolResult


def ask(*content, **options):
    return GenerateRequest(messages=(Message.user(*content),), **options)


def test_letters_bytes_and_marks():
    assert rough_tokens(ask("a" * 400)) == pytest.approx(104)
    assert rough_tokens(ask("字" * 400)) == pytest.approx(304)
    assert rough_tokens(EmbedRequest(inputs=("a" * 40, "b" * 40))) == 20


def test_everything_that_is_sent_counts():
    tool = Tool(name="look", description="d" * 100, parameters={"type": "object", "properties": {}})
    plain = rough_tokens(ask("Hi"))
    assert rough_tokens(ask("Hi", tools=(tool,))) > plain + 25
    assert rough_tokens(ask("Hi", output=OutputSchema.of(dict[str, int]))) > plain
    assert rough_tokens(ask("Hi", Image(url="https://example.com/a.png"))) == plain + 800
    assert rough_tokens(ask("Hi", Image(url="https://example.com/a.png", detail="low"))) == plain + 85
    assert rough_tokens(ask("Hi", Audio(data=b"x" * 8000, media_type="audio/mp3"))) == plain + 10
    assert rough_tokens(ask("Hi", File(url="https://example.com/a.pdf"))) == plain + 1000
    called = Message("assistant", (ToolCall("1", "look", "{}" * 50),))
    result = Message("tool", (ToolResult("1", (Text("r" * 40), Image(url="https://example.com/a.png"))),))
    assert rough_tokens(GenerateRequest(messages=(called, result))) > 800 + 10 + 25


def test_a_call_that_cannot_be_looked_into_costs_what_such_calls_cost():
    class Opaque:
        stream, max_tokens = False, None

    estimate = TokenEstimate()
    raw = estimate.raw_input(Opaque())
    assert (raw, estimate.input(raw)) == (0, 0)
    estimate.learn(Opaque(), raw, 500, 50)
    assert (estimate.input(raw), estimate.output(Opaque())) == (500, 50)


def test_the_prompt_is_corrected_by_what_the_target_counted():
    estimate, chance = TokenEstimate(), random.Random(1)
    for _ in range(200):
        request = ask("a" * chance.randint(100, 4000))
        raw = estimate.raw_input(request)
        estimate.learn(request, raw, raw * 1.3 * chance.uniform(0.9, 1.1), 10)
    assert estimate.input(1000) == pytest.approx(1300, rel=0.05)


def test_answers_are_taken_for_the_mean_and_never_for_more_than_allowed():
    estimate = TokenEstimate()
    assert estimate.output(ask("Hi")) == 300
    assert estimate.output(ask("Hi", max_tokens=100)) == 100
    for answer in (100, 300):
        estimate.learn(ask("Hi"), 5, 5, answer)
    assert estimate.output(ask("Hi", max_tokens=4096)) == 200
    assert estimate.output(EmbedRequest(inputs=("Hi",))) == 0


def test_old_answers_are_forgotten():
    estimate = TokenEstimate()
    for answer in [100] * 200 + [900] * 200:
        estimate.learn(ask("Hi"), 5, 5, answer)
    assert estimate.output(ask("Hi")) == pytest.approx(900, rel=0.01)


def test_each_prompt_has_answers_of_its_own():
    estimate = TokenEstimate()
    for _ in range(3):
        estimate.learn(ask("Hi"), 5, 5, 20, "title")
        estimate.learn(ask("Hi"), 5, 5, 1000, "essay")
    assert estimate.output(ask("Hi"), "title") == 20
    assert estimate.output(ask("Hi"), "essay") == 1000
    assert estimate.output(ask("Hi"), "unknown") == pytest.approx(510)


def test_prompt_names_do_not_fill_the_memory():
    estimate = TokenEstimate()
    for number in range(1000):
        estimate.learn(ask("Hi"), 5, 5, 20, f"prompt {number}")
    assert len(estimate._routes) == 256


def test_an_exact_count_is_taken_as_it_is():
    estimate = TokenEstimate(tokens=lambda request: 77)
    raw = estimate.raw_input(ask("Hi"))
    estimate.learn(ask("Hi"), raw, 770, 10)
    assert estimate.input(raw) == 77

"""Cache keys: whatever can change the answer changes the key, and nothing else does."""

import enum
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from llmprod import (
    VLLM,
    Anthropic,
    Audio,
    Context,
    EmbedRequest,
    File,
    GenerateRequest,
    Image,
    KeyPool,
    Message,
    Opaque,
    OpenAI,
    OpenAICompatible,
    Refusal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolResult,
)
from llmprod.mechanisms.cache_key import (
    LEFT_OUT,
    CacheKey,
    Unkeyable,
    normalised_prompt,
    rule_identity,
    target_identity,
)
from llmprod.schema import OutputSchema

KEY = CacheKey()
HI = (Message.user("Hi"),)
TOOL = Tool(name="find", description="Finds.", parameters={"type": "object"})
OUTPUT = OutputSchema(name="answer", schema={"type": "object"})
BASE = GenerateRequest(messages=HI, tools=(TOOL,), extra={"openai": {"a": 1}})

# For each field of each kind of object in a request, values of which no two may share a key.
GENERATE: dict[str, list[Any]] = {
    "messages": [
        HI,
        (Message.user("hi"),),
        (Message.user("Hi "),),
        (Message.user("H", "i"),),
        (Message.user("Hi"), Message.user("Hi")),
        (Message.user(""), Message.user("Hi")),
        (Message.system("Hi"),),
        (Message.assistant("Hi"),),
        (Message.user("\ud800"),),
        (Message.user("\U00010000"),),
        (Message.user("\ud800\udc00"),),
        (Message.user('Hi"],["user","there'),),
        (Message.user("Hi", "there"),),
    ],
    "tools": [(TOOL,), (TOOL, replace(TOOL, name="other")), (replace(TOOL, name="other"), TOOL)],
    "tool_choice": [None, "auto", "none", "required", "find"],
    "parallel_tool_calls": [None, True, False],
    "output": [None, OUTPUT],
    "max_tokens": [None, 1, 10, 100],
    "temperature": [None, 0, 0.1, 1, 2],
    "top_p": [None, 0, 0.5, 1],
    "top_k": [None, 1, 2],
    "frequency_penalty": [None, 0, -1, 1],
    "presence_penalty": [None, 0, -1, 1],
    "seed": [None, 0, 1, -1],
    "stop": [(), ("a",), ("b",), ("a", "b"), ("b", "a"), ("ab",), ("a,b",)],
    "logprobs": [None, 0, 5],
    "reasoning_effort": [None, "none", "low", "high"],
    "extra": [
        {}, {"openai": {}}, {"openai": {"a": 1}}, {"openai": {"a": "1"}}, {"openai": {"a": True}},
        {"openai": {"a": None}}, {"openai": {"a": [1]}}, {"openai": {"a": [[1]]}}, {"openai": {"a": {"b": 1}}},
        {"anthropic": {"a": 1}}, {"openai": {"a": b"1"}}, {"openai": {"a": b"2"}}, {"openai": {"a": 1.5}},
        {"openai": {"a": {1: 2}}}, {"openai": {"a": {"": "bytes", "sha256": "00"}}}, {"openai": {"a": ""}},
    ],
    "drop_unsupported": [False, True],
}  # fmt: skip
OTHERS: dict[type, dict[str, list[Any]]] = {
    EmbedRequest: {
        "inputs": [("a",), ("b",), ("a", "b"), ("ab",), ("b", "a"), ("a", "b", "b")],
        "dimensions": [None, 1, 256],
        "extra": [{}, {"openai": {"a": 1}}],
        "drop_unsupported": [False, True],
    },
    Message: {"role": ["user", "assistant", "system"], "parts": [(Text("a"),), (Text("b"),), (Text("a"), Text("b"))]},
    Tool: {
        "name": ["find", "search"],
        "description": ["", "Finds."],
        "parameters": [{"type": "object"}, {"type": "object", "properties": {"a": {"type": "string"}}}],
        "strict": [None, True, False],
        "meta": [{}, {"anthropic": {"cache_control": {"type": "ephemeral"}}}],
    },
    OutputSchema: {
        "name": ["answer", "other"],
        "schema": [{"type": "object"}, {"type": "array"}],
        "strict": [True, False],
    },
    Text: {"text": ["a", "b", ""], "meta": [{}, {"anthropic": {"cache_control": {"type": "ephemeral"}}}]},
    Thinking: {"text": ["a", "b"], "meta": [{}, {"anthropic": {"signature": "x"}}]},
    ToolCall: {
        "id": ["1", "2"],
        "name": ["find", "search"],
        "arguments": ["{}", '{"a":1}', '{"a": 1}'],
        "meta": [{}, {"google": {"thought_signature": "x"}}],
    },
    ToolResult: {
        "call_id": ["1", "2"],
        "content": ["a", "b", (Text("a"),), (Text("a"), Image(url="http://x"))],
        "name": [None, "find"],
        "is_error": [False, True],
        "meta": [{}, {"anthropic": {"x": 1}}],
    },
    Refusal: {"text": ["a", "b"]},
    Opaque: {"kind": ["a", "b"], "meta": [{}, {"anthropic": {"x": 1}}]},
}
MEDIA: dict[type, dict[str, list[Any]]] = {
    Image: {"detail": [None, "low", "high"]},
    Audio: {"transcript": [None, "a", "b"]},
    File: {"name": [None, "a", "b"]},
}
STARTS: dict[type, dict[str, Any]] = {
    EmbedRequest: {"inputs": ("a",)},
    Message: {"role": "user", "parts": (Text("a"),)},
    Tool: {"name": "find", "parameters": {"type": "object"}},
    OutputSchema: {"name": "answer", "schema": {"type": "object"}},
    Text: {"text": "a"},
    Thinking: {"text": "a"},
    ToolCall: {"id": "1", "name": "find"},
    ToolResult: {"call_id": "1", "content": "a"},
    Refusal: {"text": "a"},
    Opaque: {"kind": "a", "meta": {}},
}


def asked(value: Any) -> Any:
    """A request that holds ``value``."""
    if isinstance(value, EmbedRequest):
        return value
    if isinstance(value, Message):
        return GenerateRequest(messages=(value,))
    if isinstance(value, Tool):
        return GenerateRequest(messages=HI, tools=(value,))
    if isinstance(value, OutputSchema):
        return GenerateRequest(messages=HI, output=value)
    return GenerateRequest(messages=(Message("user", (value,)),))


def all_differ(requests: list[Any]) -> None:
    keys = [KEY(request) for request in requests]
    assert len(set(keys)) == len(keys), [(a, b) for a in range(len(keys)) for b in range(a) if keys[a] == keys[b]]


def test_every_field_of_a_request_is_in_the_key_or_left_out_by_name():
    assert {item.name for item in fields(GenerateRequest)} == {*GENERATE, *LEFT_OUT[GenerateRequest], "prefill"}
    for name, values in GENERATE.items():
        all_differ([replace(BASE, **{name: value}) for value in values if name != "tools" or value])
    spoken = GenerateRequest(messages=(*HI, Message.assistant("Hello")))
    all_differ([spoken, replace(spoken, prefill=True)])


def test_streamed_and_whole_share_a_key():
    assert KEY(replace(BASE, stream=True)) == KEY(BASE)


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.__name__)
def test_every_field_of_what_a_request_holds_is_in_the_key_or_left_out_by_name(kind):
    known = OTHERS[kind]
    assert {item.name for item in fields(kind)} == {*known, *LEFT_OUT.get(kind, ())}
    for name, values in known.items():
        all_differ([asked(kind(**{**STARTS[kind], name: value})) for value in values])


@pytest.mark.parametrize("kind", MEDIA, ids=lambda kind: kind.__name__)
def test_media_go_by_their_content(kind):
    known = MEDIA[kind]
    assert {item.name for item in fields(kind)} == {*known, "data", "url", "media_type", "meta"}
    start = {"data": b"abc", "media_type": "x/y"}
    (name,) = known
    all_differ(
        [
            *(asked(kind(**start, **{name: value})) for value in known[name]),
            asked(kind(data=b"abd", media_type="x/y")),
            asked(kind(data=b"abc", media_type="x/z")),
            asked(kind(**start, meta={"openai": {"a": 1}})),
            asked(kind(url="http://a")),
            asked(kind(url="http://b")),
        ]
    )
    assert KEY(asked(kind(**start))) == KEY(asked(kind(data=bytes(bytearray(b"abc")), media_type="x/y")))


def test_one_text_in_different_parts_is_not_one():
    parts = [Text("a"), Thinking("a"), Refusal("a"), ToolCall("", "", "a"), Opaque("a", {}), File(url="http://a")]
    all_differ([asked(part) for part in parts])
    all_differ([GenerateRequest(messages=(Message.user("a"),)), EmbedRequest(inputs=("a",))])


def test_every_field_of_a_context_is_in_the_key_or_known_to_change_no_answer():
    in_the_key = {"tags", "prompt"}  # of the tags, the scope's
    not_in_it = {
        "clock", "random", "call", "deadline", "connect_timeout", "idle_timeout", "lineage", "priority", "listeners",
        "lane", "insist", "alternatives", "cache", "tolls", "meters",
    }  # fmt: skip
    assert {item.name for item in fields(Context)} == in_the_key | not_in_it


def test_scope_prompt_versions_targets_and_rule_are_in_the_key():
    def rule(request):
        return request

    keys = [
        KEY(BASE),
        KEY(BASE, scope="a"),
        KEY(BASE, scope="b"),
        KEY(BASE, prompt=("p", "1")),
        KEY(BASE, prompt=("p", "2")),
        KEY(BASE, prompt=("p1", "")),
        CacheKey(versions={"guard": "1"})(BASE),
        CacheKey(versions={"guard": "2"})(BASE),
        CacheKey(["a"])(BASE),
        CacheKey(["a", "b"])(BASE),
        CacheKey(["b", "a"])(BASE),
        CacheKey(normalise=rule)(BASE),
        CacheKey(prefix="other")(BASE),
    ]
    assert len(set(keys)) == len(keys)


def test_another_schema_version_is_another_cache(monkeypatch):
    before = CacheKey()(BASE)
    monkeypatch.setattr("llmprod.mechanisms.cache_key.SCHEMA", 2)
    assert CacheKey()(BASE) != before


@given(st.dictionaries(st.sampled_from(["tenant", "user", "x"]), st.text(max_size=5)), st.text(max_size=5))
def test_no_two_scopes_share_a_key_or_a_beginning(tags, other):
    scope = tags.get("tenant", "")
    assert (KEY(BASE, scope=scope) == KEY(BASE, scope=other)) == (scope == other)
    assert KEY(BASE, scope=scope).startswith(KEY.of_scope(scope))
    digests = [KEY(BASE, scope=each).rpartition(":")[2] for each in (scope, other)]
    assert (digests[0] == digests[1]) == (scope == other)  # not by the beginning alone, which is short
    assert (KEY.of_scope(scope) == KEY.of_scope(other)) == (scope == other)


def test_keys_hold_no_text_and_are_short():
    key = KEY(GenerateRequest(messages=(Message.user("secret-prompt"),)), scope="secret-tenant", prompt=("secret", "1"))
    assert "secret" not in key
    assert len(key) <= 128
    assert key.isascii()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=4)
    | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


TEXTS = st.lists(st.lists(st.text(st.characters(), max_size=3), min_size=1, max_size=3), min_size=1, max_size=3)


def same(a: Any, b: Any) -> bool:
    """Equal as JSON is: True is not 1, 1 is not 1.0, and a list's order counts."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    return a == b and repr(a) == repr(b)  # -0.0


@settings(max_examples=400)
@given(JSON, JSON)
def test_extras_share_a_key_only_if_they_are_equal(a, b):
    one, other = (GenerateRequest(messages=HI, extra={"x": {"a": value}}) for value in (a, b))
    assert (KEY(one) == KEY(other)) == same(a, b)


@given(TEXTS, TEXTS)
def test_messages_share_a_key_only_if_they_are_equal(a, b):
    one, other = (GenerateRequest(messages=tuple(Message.user(*parts) for parts in texts)) for texts in (a, b))
    assert (KEY(one) == KEY(other)) == (a == b)


def test_order_of_keys_does_not_matter_but_that_of_lists_does():
    one = replace(BASE, extra={"x": {"a": 1, "b": {"c": 1, "d": 2}}})
    other = replace(BASE, extra={"x": {"b": {"d": 2, "c": 1}, "a": 1}})
    assert KEY(one) == KEY(other)
    assert KEY(replace(BASE, extra={"x": {"a": [1, 2]}})) != KEY(replace(BASE, extra={"x": {"a": [2, 1]}}))


def test_the_order_in_which_a_schema_names_its_properties_counts():
    def schema(*names: str) -> dict[str, Any]:
        return {"type": "object", "properties": {name: {"type": "string"} for name in names}}

    orders = (("x", "y"), ("y", "x"))
    nested = [{"type": "array", "items": schema(*names)} for names in orders]
    all_differ(
        [
            *(
                replace(BASE, output=OutputSchema(name="a", schema=schema(*names)))
                for names in (("x", "y"), ("y", "x"))
            ),
            *(replace(BASE, output=OutputSchema(name="a", schema=each)) for each in nested),
            *(replace(BASE, tools=(replace(TOOL, parameters=schema(*names)),)) for names in orders),
            *(replace(BASE, extra={"x": {"response_format": {"schema": each}}}) for each in nested),
            replace(BASE, extra={"x": {"properties": {"": "in order", "of": [["a", 1]]}}}),
            replace(BASE, extra={"x": {"properties": {"a": 1}}}),
        ]
    )
    other = {"properties": schema("x", "y")["properties"], "type": "object"}
    one = replace(BASE, output=OutputSchema(name="a", schema=schema("x", "y")))
    assert KEY(replace(BASE, output=OutputSchema(name="a", schema=other))) == KEY(one)


def test_what_the_scopes_are_of_is_in_the_key():
    keys = [CacheKey(scope_rule=rule)(BASE, scope="42") for rule in (None, "tenant", "user", ("tenant",))]
    assert len(set(keys)) == 4
    assert {CacheKey(scope_rule=rule).of_scope("42") for rule in ("tenant", "user")} == {KEY.of_scope("42")}


def test_rules_are_told_apart_by_name_or_by_what_they_do():
    def folding(number: int):
        return lambda request: replace(request, max_tokens=number)

    class Rule:
        def __init__(self, number: int) -> None:
            self.number = number

        def __call__(self, request):
            return request

    def rule(number, request):
        return replace(request, max_tokens=number)

    def chosen(request):
        return request if request.seed in {1, 2, 3} else BASE

    rules = [
        lambda request: request,
        lambda request: replace(request, seed=None),
        lambda request: replace(request, seed=1),
        folding(1),
        folding(2),
        partial(rule, 1),
        partial(rule, 2),
        partial(rule, number=1),
        Rule(1),
        Rule(2),
        chosen,
        normalised_prompt,
    ]
    told = [repr(rule_identity(each)) for each in rules]
    assert len(set(told)) == len(told)
    assert told[3] == repr(rule_identity(folding(1)))
    assert told[5] == repr(rule_identity(partial(rule, 1)))
    assert told[8] == repr(rule_identity(Rule(1)))
    assert "0x" not in "".join(told)  # nothing that another process would tell otherwise


def test_a_rule_that_calls_itself_or_what_is_not_there_yet_is_told_too():
    again = lambda request: request if request.stream else again(request)  # noqa: E731
    early = rule_identity(lambda request: later(request))
    later = again
    assert rule_identity(again) == rule_identity(again) != early
    assert len(repr(rule_identity(again))) < 2000


def test_what_json_can_hold_by_way_of_pydantic_is_keyed_and_what_it_can_not_is_refused():
    class Model(BaseModel):
        a: int

    @dataclass
    class Plain:
        a: int

    class Colour(enum.Enum):
        RED = "red"
        BLUE = "blue"

    made = [Model(a=1), Model(a=2), Plain(1), Plain(2), Colour.RED, Colour.BLUE, datetime(2026, 1, 1, tzinfo=UTC)]
    all_differ([replace(BASE, extra={"x": {"a": value}}) for value in made])

    loop: dict[str, Any] = {}
    loop["loop"] = loop
    for value in (object(), lambda: 1, loop):
        with pytest.raises(Unkeyable):
            KEY(replace(BASE, extra={"x": {"a": value}}))


def test_a_request_that_is_none_of_a_models_has_no_key():
    with pytest.raises(Unkeyable):
        KEY("text")


def test_targets_are_told_apart_by_kind_address_and_model_but_not_by_credential():
    def told(model="gpt-5", **options):
        return repr(target_identity(OpenAI(model, **{"api_key": "key-one", **options})))

    assert told() == told(api_key="key-two")
    assert "key-" not in told()
    others = {told(), told("gpt-6"), told(base_url="http://a/v1"), told(api="responses")}
    assert len(others) == 4
    pool = KeyPool.of(lambda key: OpenAI("gpt-5", api_key=key), ["key-one", "key-two"])
    assert {repr(target_identity(target)) for target in pool.targets} == {told()}


def test_headers_of_a_target_are_in_its_identity_but_for_credentials():
    def told(**headers: str):
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return repr(target_identity(OpenAICompatible("m", base_url="http://gateway/v1", headers=given)))

    assert len({told(), told(x_tenant="a"), told(x_tenant="b"), told(x_config="a")}) == 4
    assert told(X_Tenant="a") == told(x_tenant="a")
    for name in ("authorization", "Authorization", "x_api_key", "api_key", "cookie"):
        assert told(**{name: "secret"}) == told()
    assert "secret" not in told(x_other="secret")
    claude = [Anthropic("claude-haiku-4-5", api_key="k", headers=each) for each in ({}, {"x-tenant": "a"})]
    assert target_identity(claude[0]) != target_identity(claude[1])


def test_options_of_a_target_that_change_its_answers_are_in_its_identity():
    def anthropic(**options):
        return repr(target_identity(Anthropic("claude-haiku-4-5", api_key="k", **options)))

    assert len({anthropic(), anthropic(max_tokens=10), anthropic(beta=["a"])}) == 3
    keys = [
        CacheKey([target_identity(VLLM("org/model", **options))])(BASE)
        for options in ({}, {"dtype": "float16"}, {"revision": "x"}, {"loras": {"a": "org/adapter"}})
    ]
    assert len(set(keys)) == 4
    assert CacheKey([target_identity(VLLM("org/model", env={"SECRET": "x"}))])(BASE) == keys[0]


# ---- the rule for prompts --------------------------------------------------------------------------------------------


def test_nothing_is_folded_unless_asked_for():
    folding = CacheKey(normalise=normalised_prompt)
    for text in ("hi", " Hi", "HI\n", "Hi  "):
        other = replace(BASE, messages=(Message.user(text),))
        assert KEY(other) != KEY(BASE)
        assert folding(other) == folding(BASE)
    assert folding(BASE) != KEY(BASE)


def test_the_rule_folds_the_last_users_text_alone():
    def request(system="Be brief.", first="One", answer="Two", last="Three"):
        turns = (Message.system(system), Message.user(first), Message.assistant(answer), Message.user(last))
        return GenerateRequest(messages=turns)

    folding = CacheKey(normalise=normalised_prompt)
    assert folding(request(last=" THREE ")) == folding(request())
    for other in (request(system="BE brief."), request(first="one"), request(answer="two"), request(last="Thr ee")):
        assert folding(other) != folding(request())
    with_image = GenerateRequest(messages=(Message.user("Look", Image(url="http://A")),))
    assert folding(replace(with_image, messages=(Message.user("look", Image(url="http://A")),))) == folding(with_image)
    assert folding(replace(with_image, messages=(Message.user("look", Image(url="http://a")),))) != folding(with_image)
    only_system = GenerateRequest(messages=(Message.system("Be"),))
    assert normalised_prompt(only_system) == only_system
    assert folding(EmbedRequest(inputs=("A",))) != folding(EmbedRequest(inputs=("a",)))

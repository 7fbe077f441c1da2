"""Bad input is a clear error that names the field and what is allowed, before anything is sent."""

import dataclasses
from typing import Any

import pytest
from pydantic import BaseModel

import llmprod
from llmprod import (
    AsyncClient,
    AttemptTimeout,
    Capabilities,
    CircuitBreaker,
    Client,
    Context,
    Deadline,
    EmbedRequest,
    Failover,
    GenerateRequest,
    Image,
    InvalidArgument,
    Message,
    MissingKey,
    OutputSchema,
    Retry,
    Simulated,
    Stack,
    Static,
    Tool,
    UnsupportedParameter,
)
from llmprod.testing.scripted import Scripted

HI = (Message.user("Hi"),)
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENROUTER_API_KEY")


def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", ()),
        ("messages", "Hi"),
        ("messages", ["Hi"]),
        ("messages", ("Hi",)),
        ("stream", "yes"),
        ("stream", None),
        ("tools", [add]),
        ("tools", (add,)),
        ("tool_choice", "required"),
        ("tool_choice", "no_such_tool"),
        ("tool_choice", 5),
        ("parallel_tool_calls", "no"),
        ("output", int),
        ("output", {"type": "object"}),
        ("max_tokens", 0),
        ("max_tokens", -5),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", "many"),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_p", 1.1),
        ("top_k", 0),
        ("frequency_penalty", -3),
        ("presence_penalty", 3),
        ("seed", 1.0),
        ("stop", "END"),
        ("stop", ("",)),
        ("stop", (5,)),
        ("logprobs", -1),
        ("logprobs", True),
        ("reasoning_effort", "hard"),
        ("reasoning_effort", 5),
        ("extra", {"openai": 5}),
        ("extra", [("openai", {})]),
        ("drop_unsupported", "maybe"),
    ],
)
def test_a_request_refuses_what_is_out_of_range(field, value):
    with pytest.raises(InvalidArgument) as caught:
        GenerateRequest(**{"messages": HI, field: value})
    assert caught.value.field.partition("[")[0] == field
    assert caught.value.allowed
    assert isinstance(caught.value, ValueError)


def test_two_tools_of_one_name_are_refused():
    tool = Tool.from_function(add)
    with pytest.raises(InvalidArgument, match=r"^tools: got two tools of one name"):
        GenerateRequest(messages=HI, tools=(tool, tool))


@pytest.mark.parametrize(
    ("field", "value"), [("inputs", ()), ("inputs", ("",)), ("inputs", ("a", 5)), ("dimensions", 0), ("extra", 5)]
)
def test_an_embedding_request_refuses_what_is_out_of_range(field, value):
    with pytest.raises(InvalidArgument) as caught:
        EmbedRequest(**{"inputs": ("a",), field: value})
    assert caught.value.field.partition("[")[0] == field


# ---- what the clients are given -------------------------------------------------------------------------------------

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"messages": []}),
    ("messages", {"messages": None}),
    ("messages[0]", {"messages": [5]}),
    ("system", {"system": 5}),
    ("deadline", {"deadline": -1}),
    ("deadline", {"deadline": 0}),
    ("deadline", {"deadline": "soon"}),
    ("tags", {"tags": "user"}),
    ("tags", {"tags": {"user": 5}}),
    ("prompt", {"prompt": "greeting"}),
    ("prompt", {"prompt": ("greeting",)}),
    ("lineage", {"lineage": "doc"}),
    ("lineage", {"lineage": [5]}),
    ("extra", {"extra": 5}),
    ("extra['mistral']", {"extra": {"mistral": {}}}),
    ("extra", {"extra": {"scripted": 5}}),
    ("tools", {"tools": 5}),
    ("tools", {"tools": ["add"]}),
    ("tools", {"tools": "add"}),
    ("output", {"output": 5}),
    ("output", {"output": "no such type"}),
    ("output", {"output": {}}),
    ("output.type", {"output": {"type": "objekt"}}),
    ("output.properties.a", {"output": {"type": "object", "properties": {"a": 5}}}),
    ("output.required", {"output": {"type": "object", "required": "a"}}),
    ("stop", {"stop": 5}),
    ("stop", {"stop": [""]}),
    ("max_tokens", {"max_tokens": -1}),
    ("drop_unsupported", {"drop_unsupported": "yes"}),
    ("max_token", {"max_token": 5}),
]


@pytest.mark.parametrize(("field", "options"), CALLS, ids=lambda item: str(item)[:50])
async def test_a_client_refuses_bad_input_before_anything_is_sent(field, options):
    provider = Scripted(then="unreached")
    client = AsyncClient(provider)
    messages = options.get("messages", "Hi")
    options = {name: value for name, value in options.items() if name != "messages"}
    for call in (client.generate, client.stream):
        with pytest.raises(InvalidArgument) as caught:
            await call(messages, **options)
        assert caught.value.field == field
        assert caught.value.allowed
    assert provider.calls == 0


@pytest.mark.parametrize(
    ("field", "inputs", "options"),
    [
        ("inputs", [], {}),
        ("inputs", 5, {}),
        ("inputs[0]", "", {}),
        ("inputs[1]", ["a", 5], {}),
        ("dimensions", "a", {"dimensions": -1}),
        ("temperature", "a", {"temperature": 1}),
        ("deadline", "a", {"deadline": -1}),
    ],
)
async def test_embedding_input_is_checked(field, inputs, options):
    provider = Scripted(then="unreached")
    with pytest.raises(InvalidArgument) as caught:
        await AsyncClient(provider).embed(inputs, **options)
    assert caught.value.field == field
    assert provider.calls == 0


def unnamed(*items: Any) -> list[Any]:
    """Parameters whose ids are numbers."""
    return [pytest.param(item, id=str(number)) for number, item in enumerate(items)]


@pytest.mark.parametrize("model", ["gpt-5", "opnai:gpt-5", "openai:", ":gpt-5", "", "simulated:tiny"])
def test_an_unknown_model_string_is_refused_with_the_known_prefixes(model):
    with pytest.raises(InvalidArgument, match=r"^model: got .*; allowed: ") as caught:
        Client(model)
    assert "openai" in caught.value.allowed or "small" in caught.value.allowed


@pytest.mark.parametrize("model", ["openai:gpt-5", "anthropic:claude-sonnet-4-5", "google:gemini-2.5-pro"])
def test_a_missing_key_is_told_with_the_variable_that_is_looked_for(model, monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MissingKey, match="API_KEY"):
        Client(model)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("model", {"model": 5}),
        ("model", {"model": None}),
        ("fallbacks", {"fallbacks": "simulated:small"}),
        ("fallbacks", {"fallbacks": 5}),
        ("fallbacks[0]", {"fallbacks": [5]}),
        ("fallbacks", {"fallbacks": ["simulated:small"], "wrappers": []}),
        ("wrappers", {"wrappers": ["retry"]}),
        ("wrappers", {"wrappers": 5}),
        ("api_key", {"model": Static("a"), "api_key": "k"}),
        ("base_url", {"model": Static("a"), "base_url": "http://127.0.0.1"}),
        ("tags", {"tags": "a"}),
    ],
)
def test_a_client_is_made_of_the_right_things(field, arguments):
    with pytest.raises(InvalidArgument) as caught:
        Client(**{"model": "simulated:instant", **arguments})
    assert caught.value.field == field


@pytest.mark.parametrize(
    "make",
    unnamed(
        lambda: Deadline(-1),
        lambda: Deadline(0),
        lambda: Deadline("10"),
        lambda: Deadline(float("inf")),
        lambda: AttemptTimeout(connect=-1),
        lambda: AttemptTimeout(first_token=0),
        lambda: AttemptTimeout(idle=float("nan")),
        lambda: AttemptTimeout(total=-1),
        lambda: AttemptTimeout(total="long"),
        lambda: Retry(0),
        lambda: Retry(2.5),
        lambda: Retry(retry_after_at_most=-1),
        lambda: CircuitBreaker(open_for=-5),
        lambda: CircuitBreaker(failure_ratio=2),
        lambda: Failover(),
        lambda: Failover("openai:gpt-5"),
        lambda: Stack(5),
        lambda: Retry()("openai:gpt-5"),
        lambda: Context.new(seconds=-1),
        lambda: Static(""),
        lambda: Static(5),
        lambda: Simulated(failures={"explosion": 0.1}),
        lambda: Simulated(failures={"slow": 2}),
        lambda: Simulated(failures={"slow": 0.6, "cut": 0.6}),
        lambda: Simulated(ttft=-1),
        lambda: Simulated(capacity=0),
        lambda: Simulated(tokens_per_second=0),
        lambda: Simulated(at_capacity="wait"),
    ),
)
def test_options_of_wrappers_and_providers_are_checked(make):
    with pytest.raises(InvalidArgument, match=r"^[\w\[\]'.]+: got .+; allowed: .+"):
        make()


# ---- tools and schemas ----------------------------------------------------------------------------------------------


def test_a_tool_comes_from_a_function():
    tool = Tool.from_function(add)
    assert (tool.name, tool.description) == ("add", "Add two numbers.")
    assert tool.parameters["required"] == ["a"]
    assert tool.parameters["properties"]["b"] == {"title": "B", "type": "integer", "default": 1}


def test_argument_names_may_be_anything_that_python_allows():
    def search(schema: str, json: bool, _page: int, model_name: str, copy: list[str] | None = None) -> str:
        """Look it up."""

    tool = Tool.from_function(search)
    assert set(tool.parameters["properties"]) == {"schema", "json", "_page", "model_name", "copy"}
    assert tool.parameters["required"] == ["schema", "json", "_page", "model_name"]


def test_a_mutable_default_is_a_default():
    def search(words: list[str] = []) -> str:  # noqa: B006
        """Look it up."""

    assert Tool.from_function(search).parameters["properties"]["words"]["default"] == []


def test_a_default_that_is_no_json_is_left_out():
    def search(words: str = object()) -> str:  # type: ignore[assignment]
        """Look it up."""

    assert Tool.from_function(search).parameters == {
        "properties": {"words": {"title": "Words", "type": "string"}},
        "type": "object",
    }


def test_functions_that_can_be_no_tool_are_refused():
    def variadic(*numbers: int) -> int: ...
    def unknown(a: "NoSuchType") -> int: ...  # noqa: F821

    for function in (variadic, unknown, lambda a: a):
        with pytest.raises(InvalidArgument, match=r"^tool"):
            Tool.from_function(function)


@pytest.mark.parametrize("name", ["", "auto", "required", "two words", "ä", "a" * 65, 5])
def test_tool_names_are_those_that_all_providers_take(name):
    with pytest.raises(InvalidArgument, match=r"^tool\.name"):
        Tool(name=name, parameters={"type": "object"})


def test_parameters_of_a_tool_are_an_object():
    with pytest.raises(InvalidArgument, match=r"^tool f\.parameters\.type: got 'array'; allowed: object"):
        Tool(name="f", parameters={"type": "array"})


class City(BaseModel):
    name: str
    people: int


@pytest.mark.parametrize(
    ("given", "text", "value"),
    [
        (City, '{"name": "Ulm", "people": 126000}', City(name="Ulm", people=126000)),
        (list[int], "[1, 2]", [1, 2]),
        ({"type": "object"}, '{"a": 1}', {"a": 1}),
        ({"title": "x", "enum": ["a"]}, '"a"', "a"),
    ],
)
def test_an_output_schema_parses_what_fits(given, text, value):
    assert OutputSchema.of(given).parse(text) == value


@pytest.mark.parametrize("text", ["", "no JSON", '{"name": "Ulm"}', '{"name": "Ulm", "people": "sesame"}'])
def test_what_does_not_fit_is_told_without_its_text(text):
    with pytest.raises(llmprod.InvalidOutput) as caught:
        OutputSchema.of(City).parse(text)
    assert "sesame" not in f"{caught.value} {caught.value!r}"
    assert caught.value.__cause__ is None


def test_names_of_schemas_are_ones_that_providers_take():
    assert OutputSchema.of(list[City]).name == "list"
    assert OutputSchema.of(City).name == "City"
    assert OutputSchema.of({"type": "object", "title": "A city!"}).name == "A_city_"
    assert OutputSchema.of(City, name="my city").name == "my_city"


# ---- capabilities ---------------------------------------------------------------------------------------------------


def without(*names: str, **more: Any) -> Capabilities:
    return Capabilities(parameters=Capabilities().parameters - set(names), **more)


@pytest.mark.parametrize("field", ["temperature", "seed", "top_p", "logprobs", "frequency_penalty"])
def test_a_zero_asks_for_something_too(field):
    request = GenerateRequest(messages=HI, **{field: 0})
    assert request.used() == {field}
    with pytest.raises(UnsupportedParameter) as caught:
        without(field).fit(request, "a")
    assert caught.value.fields == (field,)
    assert field in str(caught.value)


def test_no_parallel_tool_calls_asks_for_something():
    tool = Tool.from_function(add)
    request = GenerateRequest(messages=HI, tools=(tool,), parallel_tool_calls=False)
    assert request.used() == {"tools", "parallel_tool_calls"}


def test_what_is_supported_passes_untouched():
    request = GenerateRequest(messages=HI, temperature=1.0, stream=True)
    assert Capabilities().fit(request, "a") == (request, ())
    assert without("stream").missing(request) == ()  # a whole answer is a stream of one piece


def test_dropping_leaves_out_only_what_may_be_left_out():
    request = GenerateRequest(
        messages=HI,
        temperature=0.0,
        seed=1,
        stop=("a",),
        max_tokens=5,
        output=OutputSchema.of(City),
        drop_unsupported=True,
    )
    fitted, dropped = without("temperature", "seed", "stop").fit(request, "a")
    assert dropped == ("seed", "stop", "temperature")
    assert fitted == dataclasses.replace(request, temperature=None, seed=None, stop=())
    with pytest.raises(UnsupportedParameter) as caught:
        without("seed", "output", "max_tokens").fit(request, "a")
    assert caught.value.fields == ("max_tokens", "output")


def test_media_and_kinds_of_request_are_capabilities():
    picture = GenerateRequest(messages=(Message.user(Image(url="https://example.com")),), drop_unsupported=True)
    assert without(images=False).missing(picture) == ("images",)
    assert Capabilities(generate=False, embeddings=True).missing(picture) == ("generate",)
    assert Capabilities().missing(EmbedRequest(inputs=("a",))) == ("embeddings",)
    assert Capabilities(embeddings=True).missing(EmbedRequest(inputs=("a",), dimensions=3)) == ()


def test_a_router_can_do_what_one_of_its_targets_can():
    both = without("tools", images=False, context_window=1000) | without("seed", embeddings=True)
    assert both == Capabilities(embeddings=True, context_window=1000)


async def test_what_was_dropped_is_told_by_the_response():
    provider = Scripted(then="Hi", capabilities=without("seed", "top_k"))
    client = AsyncClient(provider)
    with pytest.raises(UnsupportedParameter, match="seed, top_k"):
        await client.generate("Hi", seed=0, top_k=5)
    response = await client.generate("Hi", seed=0, top_k=5, drop_unsupported=True)
    assert response.dropped == ("seed", "top_k")
    assert provider.requests == [GenerateRequest(messages=HI, drop_unsupported=True)]

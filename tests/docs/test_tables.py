"""The documentation's tables say what the code says.

A table between `<!-- table: name -->` and `<!-- /table -->` is made here from the code; as a program this file writes
them anew. A table after `<!-- defaults: Name -->` is written by hand, and its defaults are compared with the code.
"""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import llmprod
import llmprod.decisions
from llmprod import AllTargetsFailed, Capabilities, LLMProdError, Phase, Verdict, Wrapper, classify, errors
from llmprod.provider import PARAMETERS
from llmprod.providers._openai_profile import OPENAI, PROFILES
from llmprod.providers.registry import _COMPATIBLE, PREFIXES

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
TABLE = re.compile(r"(?<=<!-- table: )(?P<name>[\w-]+) -->\n(?P<body>.*?)(?=<!-- /table -->)", re.DOTALL)
DEFAULTS = re.compile(r"<!-- defaults: (?P<name>\w+) -->\n+(?P<body>(?:\|.*\n)+)")
NOT_OPTIONS = {
    "clock",
    "random",
    "classify",
    "primary",
    "fallbacks",
    "breaker",
    "wait",
    "client",
    "server",
    "path",
    "local",
    "limit",
}
"""Parameters that a table of defaults may leave out: what they stand for is no value."""


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# ---- errors ---------------------------------------------------------------------------------------------------------


def instance(kind: type[LLMProdError]) -> LLMProdError:
    """An error of this kind, as simply as it can be made."""
    if kind is AllTargetsFailed:
        raise LookupError
    made = kind.__new__(kind)
    Exception.__init__(made)
    made.__dict__.update({"in_stream": False, "retry_after": None})
    return made


def subclasses(kind: type[LLMProdError], depth: int = 0) -> Iterator[tuple[int, type[LLMProdError]]]:
    yield depth, kind
    # In the order of the module, which is that of the prose.
    known = [value for value in vars(errors).values() if isinstance(value, type) and kind in value.__bases__]
    for child in known:
        yield from subclasses(child, depth + 1)


def errors_table() -> str:
    rows: list[list[str]] = []
    for depth, kind in subclasses(LLMProdError):
        try:
            verdict = classify(instance(kind))
            told = [f"`{verdict.action.name}`", verdict.health]
        except LookupError:
            told = ["by its attempts", "unknown"]
        meaning = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
        meaning = re.sub(r"``([^`]+)``", r"`\1`", meaning)
        name = "&nbsp;&nbsp;&nbsp;" * depth + f"`{kind.__name__}`"
        rows.append([name, meaning, kind.origin, "yes" if kind.transient else "no", *told])
    return table(["error", "what happened", "origin", "transient", "verdict", "health"], rows)


# ---- providers ------------------------------------------------------------------------------------------------------

KEYS = {
    "openai": ("OpenAI Chat Completions", "OPENAI_API_KEY", OPENAI.base_url),
    "openai-responses": ("OpenAI Responses", "OPENAI_API_KEY", OPENAI.base_url),
    "anthropic": ("Anthropic Messages", "ANTHROPIC_API_KEY", "https://api.anthropic.com"),
    "google": ("Google Gemini", "GEMINI_API_KEY, GOOGLE_API_KEY", "https://generativelanguage.googleapis.com/v1beta"),
}
SERVERS = {
    "vllm-server": "vLLM's server",
    "tgi": "Text Generation Inference",
    "trtllm": "TensorRT-LLM's `trtllm-serve`",
    "ollama": "Ollama",
    "llamacpp": "llama.cpp's server",
    "openrouter": "OpenRouter",
    "azure": "Azure OpenAI",
    "openai-compatible": "any other such server",
}
EXAMPLES = {
    "openai": "openai:gpt-5-mini",
    "openai-responses": "openai-responses:gpt-5-mini",
    "anthropic": "anthropic:claude-haiku-4-5",
    "google": "google:gemini-2.5-flash",
    "vllm-server": "vllm-server:Qwen/Qwen3-8B@http://gpu1:8000/v1",
    "tgi": "tgi:tgi@http://gpu1:3000/v1",
    "trtllm": "trtllm:Qwen3-8B@http://gpu1:8000/v1",
    "ollama": "ollama:llama3.2",
    "llamacpp": "llamacpp:default",
    "openrouter": "openrouter:qwen/qwen3-8b",
    "azure": "azure:my-deployment",
    "openai-compatible": "openai-compatible:my-model@http://gpu1:8000/v1",
    "vllm": "vllm:Qwen/Qwen3-8B",
    "simulated": "simulated:small",
    "static": "static:Please try again later.",
}


def model_strings_table() -> str:
    rows: list[list[str]] = []
    for prefix in PREFIXES:
        if prefix in KEYS:
            what, key, url = KEYS[prefix]
        elif prefix in _COMPATIBLE:
            profile = PROFILES[_COMPATIBLE[prefix]]
            what = SERVERS[prefix]
            key = ", ".join(profile.key_env) + ("" if profile.key_needed or not profile.key_env else ", optional")
            url = profile.base_url or (f"${profile.base_url_env}" if profile.base_url_env else "")
        else:
            what = {
                "vllm": "an engine in this process",
                "simulated": "a simulated model; nothing is sent",
                "static": "always this text",
            }[prefix]
            key, url = "", None
        rows.append([
            f"`{EXAMPLES[prefix]}`",
            what,
            ", ".join(f"`{name}`" if name.isupper() else name for name in key.split(", ") if name),
            f"`{url}`" if url else "to be given" if url == "" else "",
        ])  # fmt: skip
    return table(["model string", "speaks to", "key from", "address, unless `@http…` follows"], rows)


def _targets() -> dict[str, Capabilities]:
    from llmprod import Anthropic, Google, OpenAI, OpenAICompatible, Simulated, Static

    key = {"api_key": "none"}
    return {
        "OpenAI chat": OpenAI("m", **key).capabilities,
        "OpenAI Responses": OpenAI("m", api="responses", **key).capabilities,
        "Anthropic": Anthropic("claude-sonnet-4-5", **key).capabilities,
        "Google": Google("gemini-3-flash", **key).capabilities,
        **{name: OpenAICompatible("m", profile=name, base_url="http://x/v1", **key).capabilities for name in PROFILES},
        "Simulated": replace(Simulated("small").capabilities, context_window=None),
        "Static": Static("x").capabilities,
    }


def parameters_table() -> str:
    alike: dict[Capabilities, list[str]] = {}
    for name, target in _targets().items():
        alike.setdefault(target, []).append(name)
    targets = {", ".join(names): target for target, names in alike.items()}
    kinds = ["embeddings", "images", "audio", "files", "prefill"]
    rows = [
        [f"`{name}`", *("yes" if name in target.parameters else "–" for target in targets.values())]
        for name in sorted(PARAMETERS)
    ]
    rows += [[f"*{kind}*", *("yes" if getattr(target, kind) else "–" for target in targets.values())] for kind in kinds]
    return table(["", *targets], rows)


def profiles_table() -> str:
    rows = [
        [
            f"`{name}`",
            f"`{profile.max_tokens_field}`",
            f"`{profile.schema_style}`" + (", told in the prompt too" if profile.schema_in_prompt else ""),
            ", ".join(f"`{field}`" for field in profile.reasoning_fields)
            + (", `<think>` tags" if profile.think_tags else ""),
            profile.echo_reasoning.replace("tool_calls", "with tool calls"),
            "a finish reason, or `[DONE]`" if profile.done_ends else "a finish reason",
        ]
        for name, profile in PROFILES.items()
    ]
    head = ["profile", "limit of the answer as", "output schema as", "reasoning read from", "reasoning sent back"]
    return table([*head, "complete with"], rows)


# ---- wrappers -------------------------------------------------------------------------------------------------------


def phases_table() -> str:
    built: dict[Phase, list[str]] = {}
    for name in llmprod.__all__:
        kind = getattr(llmprod, name, None) if name != "__version__" else None
        phase = getattr(kind, "phase", None) if isinstance(kind, type) else None
        if isinstance(phase, Phase) and kind is not Wrapper:
            built.setdefault(phase, []).append(f"`{name}`")
    scopes = {100: "once a call", 800: "once an attempt", 1100: "for each target"}
    rows: list[list[str]] = []
    scope = ""
    for phase in Phase:
        scope = scopes.get(phase.value, scope)
        rows.append([scope, f"`{phase.name}`", str(phase.value), ", ".join(built.get(phase, ["–"]))])
    return table(["how often", "phase", "number", "built in"], rows)


def decisions_table() -> str:
    rows: list[list[str]] = []
    for name in llmprod.decisions.__all__:
        kind = getattr(llmprod.decisions, name)
        if isinstance(kind, type) and issubclass(kind, llmprod.Decision) and kind is not llmprod.Decision:
            meaning = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
            values = [f"`{item.name}`" for item in fields(kind) if item.name not in ("at", "target")]
            rows.append([f"`{name}`", f"`{kind.wrapper}`", meaning, ", ".join(values)])
    return table(["record", "of", "says", "with"], sorted(rows, key=lambda row: (row[1], row[0])))


def tree(model: str, *fallbacks: str) -> str:
    """What `describe()` prints for a client of these, with simulated models in the places of real ones."""
    from llmprod import Client, Static

    names = [model, *fallbacks]
    targets = [f"simulated:instant/{place}" for place in range(len(names))]
    targets = [name if name.startswith("static:") else target for name, target in zip(names, targets, strict=True)]
    drawn = Client(targets[0], fallbacks=targets[1:]).describe()
    for name, target in zip(names, targets, strict=True):
        drawn = drawn.replace(target, name) if target != name else drawn
    assert Static("x").name in drawn or not any(name.startswith("static:") for name in names)
    return f"```text\n{drawn}\n```\n"


TABLES: dict[str, Callable[[], str]] = {
    "tree": lambda: tree("openai:gpt-5-mini", "anthropic:claude-haiku-4-5"),
    "tree-with-static": lambda: tree("simulated:small", "simulated:large", "static:text"),
    "errors": errors_table,
    "model-strings": model_strings_table,
    "parameters": parameters_table,
    "profiles": profiles_table,
    "phases": phases_table,
    "decisions": decisions_table,
}


def rewrite(text: str) -> str:
    return TABLE.sub(lambda found: f"{found['name']} -->\n\n{TABLES[found['name']]()}\n", text)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_tables_are_as_the_code_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text == rewrite(text), "run: python tests/docs/test_tables.py"


def test_every_table_stands_somewhere() -> None:
    used = {found["name"] for path in PAGES for found in TABLE.finditer(path.read_text(encoding="utf-8"))}
    assert used == set(TABLES)


# ---- defaults -------------------------------------------------------------------------------------------------------


def defaults_of(kind: Any) -> dict[str, Any]:
    if is_dataclass(kind):
        return {
            item.name: item.default if item.default_factory is MISSING else item.default_factory()
            for item in fields(kind)
        }
    parameters = inspect.signature(kind).parameters.values()
    return {item.name: item.default for item in parameters if item.kind is not item.VAR_POSITIONAL}


def claims() -> list[Any]:
    return [
        pytest.param(path, found["name"], found["body"], id=f"{path.stem}-{found['name']}")
        for path in PAGES
        for found in DEFAULTS.finditer(path.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize(("path", "name", "body"), claims())
def test_defaults_are_the_codes(path: Path, name: str, body: str) -> None:
    real = defaults_of(getattr(llmprod, name))
    claimed: dict[str, Any] = {}
    for line in body.splitlines()[2:]:
        option, default = (cell.strip() for cell in line.strip("|").split(" | ")[:2])
        claimed[option.strip(" `")] = ast.literal_eval(default.partition("`")[2].partition("`")[0])
    wanted = {option: real[option] for option in real if option in claimed or option not in NOT_OPTIONS}
    assert claimed == wanted


def test_the_wrappers_have_their_defaults_told() -> None:
    told = {param.values[1] for param in claims()}
    assert told >= {"Deadline", "AttemptTimeout", "Retry", "Backoff", "CircuitBreaker", "HTTPOptions"}


def test_every_public_name_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: llmprod\.(\w+)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(name for name in llmprod.__all__ if name != "__version__")


def test_verdicts_of_the_text_exist() -> None:
    assert {field.name for field in fields(Verdict)} == {"action", "retry_after", "throttled", "prefer_other", "health"}


if __name__ == "__main__":
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        if before != (after := rewrite(before)):
            page.write_text(after, encoding="utf-8")
            print("written:", page.relative_to(ROOT))

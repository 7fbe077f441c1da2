"""The public surface, frozen in api.txt. After a change that is meant, write it anew and review the difference:

python tests/test_public_api.py > tests/api.txt
"""

import ast
import dataclasses
import enum
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llmprod

HERE = Path(__file__).parent
NAMES = [name for name in llmprod.__all__ if name != "__version__"]


# ---- what the surface is --------------------------------------------------------------------------------------------


def surface() -> str:
    """Every public name with what can be done with it, a line each."""
    return "".join(f"{line}\n" for name in sorted(NAMES) for line in lines(name, getattr(llmprod, name)))


def lines(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        yield f"class {name}({bases})" if bases else f"class {name}"
        if issubclass(value, enum.Enum):
            yield from (f"    {name}.{member.name} = {member.value!r}" for member in value)
        elif typing.is_typeddict(value):
            yield from (f"    {name}[{key!r}]" for key in sorted(value.__annotations__))
        else:
            if not getattr(value, "_is_protocol", False):
                yield f"    {name}{signature(value)}"
            yield from members(name, value)
    elif inspect.isfunction(value):
        yield f"def {name}{signature(value)}"
    else:
        yield f"{name} = {stable(repr(value))}"


def members(name: str, kind: type) -> Iterator[str]:
    seen: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        listed_itself = base is not kind and getattr(llmprod, base.__name__, None) is base
        if base.__module__.startswith("llmprod") and not listed_itself:
            seen.update(vars(base))
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    for member, value in sorted(seen.items()):
        if member.startswith("_") or member in fields:
            continue
        if isinstance(value, (classmethod, staticmethod)):
            yield f"    {name}.{member}{signature(getattr(kind, member))}  # {type(value).__name__}"
        elif inspect.isfunction(value):
            yield f"    {'async ' * inspect.iscoroutinefunction(value)}{name}.{member}{signature(value)}"
        elif isinstance(value, (bool, str, int, float)):
            yield f"    {name}.{member} = {value!r}"
        else:
            yield f"    {name}.{member}"


def signature(value: Any) -> str:
    try:
        return stable(str(inspect.signature(value)))
    except ValueError:
        return "(...)"


def stable(text: str) -> str:
    """The same in every process: without addresses, modules, quotes around annotations and a set's chance order."""
    text = re.sub(r"(: |-> )(['\"])(.*?)\2", r"\1\3", text)
    text = re.sub(r"\{([^{}]*)\}", lambda found: f"{{{', '.join(sorted(found[1].split(', ')))}}}", text)
    text = re.sub(r"<(?:function )?([\w.]+)[^<>]*? at 0x[0-9a-f]+>", r"<\1>", text)
    return re.sub(r"(?:\b[a-z_]+\.)+(?=[A-Za-z_])", "", text)


# ---- tests ----------------------------------------------------------------------------------------------------------


def test_the_public_surface_is_the_frozen_one():
    frozen = (HERE / "api.txt").read_text(encoding="utf-8")
    assert surface() == frozen, f"the public surface changed; if that is meant: {__doc__.split(chr(10))[-2]}"


def test_importing_names_and_listing_them_agree():
    assert dir(llmprod) == sorted(llmprod.__all__)
    assert len(set(llmprod.__all__)) == len(llmprod.__all__)
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = llmprod.no_such_name


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(llmprod.__file__).read_text(encoding="utf-8"))
    (checking,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module.removeprefix("llmprod.")
        for node in checking.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: module for module, names in llmprod._HOME.items() for name in names}


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_tells_what_it_is(name):
    value = getattr(llmprod, name)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return  # an alias of types has no place for a docstring
    told = value.__doc__ or ""
    assert told.strip()
    assert not told.startswith(f"{name}("), "this is only what dataclass writes"
    untold = [
        member
        for member, method in vars(value).items() if inspect.isclass(value)
        if not member.startswith("_") and (inspect.isfunction(method) or isinstance(method, (property, classmethod)))
        if not inspect.getdoc(getattr(value, member)) and member not in told
    ]  # fmt: skip
    assert untold == []


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


WATCH = """
import sys, threading
opened = []
sys.addaudithook(lambda event, _: opened.append(event) if event.startswith(("socket.", "subprocess.")) else None)
"""


def test_importing_is_light_opens_nothing_and_starts_nothing():
    run(
        WATCH
        + """
import llmprod
heavy = {"anyio", "asyncio", "httpx", "pydantic", "pydantic_core", "tenacity", "ssl", "socket"} & set(sys.modules)
assert not heavy, heavy
assert not opened, opened
assert threading.active_count() == 1
"""
    )


def test_no_socket_and_no_thread_before_the_first_call():
    run(
        WATCH
        + """
import llmprod
for name in llmprod.__all__:
    if name != "__version__":
        getattr(llmprod, name)
client = llmprod.Client("openai:gpt-5", api_key="k", fallbacks=["simulated:instant"])
vendors = {"openai", "anthropic", "google.genai", "tiktoken", "vllm", "opentelemetry"} & set(sys.modules)
assert not vendors, vendors
assert not opened, opened
assert threading.active_count() == 1
"""
    )


if __name__ == "__main__":
    sys.stdout.write(surface())

"""Checks of a stack's order and options, with failures that show the stack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from llmprod.provider import Provider
from llmprod.wrapper import _children, describe, lint

__all__ = ["StackChecks", "assert_stack"]

_MISSING = object()


class StackChecks:
    """What :func:`assert_stack` returns; each check returns it again, or raises AssertionError with the stack drawn.

    A part is named by its class (``Retry``) or its class's name (``"Retry"``): wrappers, routers such as Failover, and
    providers; a provider also by its name (``"openai:gpt-5"``).

    Args:
        provider: the outermost part.
    """

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._paths = [tuple(path) for path in _paths(provider)]

    def order(self, *parts: str | type) -> Self:
        """These stand inside one another in this order, outermost first; others may stand between."""
        if not any(_in_order(path, parts) for path in self._paths):
            raise self._failure(f"no way through the stack meets {_listed(parts)} in this order")
        return self

    def exactly(self, *parts: str | type) -> Self:
        """These, and nothing else, are met on each way from the outside to a target, the target left out."""
        for path in self._paths:
            if len(path) - 1 != len(parts) or not _in_order(path[:-1], parts):
                met = " → ".join(map(_name, path[:-1])) or "nothing"
                raise self._failure(f"expected {_listed(parts)} around {path[-1].name}; there is {met}")
        return self

    def contains(self, part: str | type, /, **options: Any) -> Self:
        """There is such a part, and one of them has these options: ``contains(Retry, attempts=3)``."""
        found = [node for node in _unique(self._paths) if _is(node, part)]
        if not found:
            raise self._failure(f"there is no {_shown(part)}")
        if not any(all(_option(node, name) == value for name, value in options.items()) for node in found):
            wanted = ", ".join(f"{name}={value!r}" for name, value in options.items())
            have = "; ".join(", ".join(_told(node, name) for name in options) for node in found)
            raise self._failure(f"no {_shown(part)} has {wanted}; there is {have}")
        return self

    def lacks(self, *parts: str | type) -> Self:
        """There is none of these."""
        for part in parts:
            if any(_is(node, part) for node in _unique(self._paths)):
                raise self._failure(f"there is a {_shown(part)}")
        return self

    def around(self, target: str | type, *parts: str | type) -> Self:
        """These stand around each such target, in this order, outermost first; others may stand between."""
        paths = [path for path in self._paths if _is(path[-1], target)]
        if not paths:
            raise self._failure(f"there is no target {_shown(target)}")
        for path in paths:
            if not _in_order(path[:-1], parts):
                around = " → ".join(map(_name, path[:-1])) or "nothing"
                raise self._failure(f"expected {_listed(parts)} around {path[-1].name}; there is {around}")
        return self

    def targets(self, *names: str | type) -> Self:
        """These answer by themselves, in this order, and no others."""
        leaves = [path[-1] for path in self._paths]
        if len(leaves) != len(names) or not all(map(_is, leaves, names)):
            raise self._failure(f"expected the targets {_listed(names, ', ')}; there are {_listed(leaves, ', ')}")
        return self

    def sound(self) -> Self:
        """Nothing stands where it defeats another; see :func:`llmprod.lint`."""
        findings = lint(self._provider)
        if findings:
            raise self._failure("; ".join(findings))
        return self

    def _failure(self, what: str) -> AssertionError:
        return AssertionError(f"{what}\n\n{describe(self._provider)}")

    def __repr__(self) -> str:
        return f"<StackChecks of {_name(self._provider)}>"


def assert_stack(stack: object) -> StackChecks:
    """Check how a client, a provider or a decorated function is composed.

        assert_stack(client).order("Deadline", "Retry", "Failover").contains(Retry, attempts=3)

    Raises:
        TypeError: it is none of them.
    """
    holder = getattr(stack, "__llmprod__", stack)
    provider = getattr(holder, "provider", holder)
    if not isinstance(provider, Provider):
        raise TypeError(
            f"assert_stack: got {type(stack).__name__}; allowed: a client, a provider, a decorated function"
        )
    return StackChecks(provider)


def _paths(provider: Provider) -> Iterator[list[Provider]]:
    children = _children(provider)
    if not children:
        yield [provider]
    for child in children:
        for path in _paths(child):
            yield [provider, *path]


def _unique(paths: list[tuple[Provider, ...]]) -> list[Provider]:
    return list({id(node): node for path in paths for node in path}.values())


def _part(node: Provider) -> object:
    """What a part is known by: the wrapper that made it, or itself."""
    return getattr(node, "wrapper", node)


def _is(node: Provider, part: str | type) -> bool:
    known = _part(node)
    if isinstance(part, type):
        return isinstance(known, part)
    names = {kind.__name__ for kind in type(known).__mro__ if kind is not object}
    return part in names or (known is node and part == node.name)


def _in_order(path: tuple[Provider, ...], parts: tuple[str | type, ...]) -> bool:
    nodes = iter(path)
    return all(any(_is(node, part) for node in nodes) for part in parts)


def _option(node: Provider, name: str) -> object:
    known = _part(node)
    for holder in (known, getattr(known, "options", None), node):
        value: object = getattr(holder, name, _MISSING)
        if value is not _MISSING:
            return value
    return _MISSING


def _told(node: Provider, name: str) -> str:
    value = _option(node, name)
    return f"no option {name}" if value is _MISSING else f"{name}={value!r}"


def _name(node: Provider) -> str:
    return type(_part(node)).__name__


def _shown(part: object) -> str:
    if isinstance(part, str):
        return part
    return part.__name__ if isinstance(part, type) else getattr(part, "name", repr(part))


def _listed(parts: Any, between: str = " → ") -> str:
    return between.join(map(_shown, parts)) or "nothing"

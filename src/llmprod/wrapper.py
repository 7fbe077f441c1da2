"""Wrappers around providers: their order, how they compose, and a description of the result."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from enum import IntEnum
from typing import ClassVar

from llmprod._validate import A_PROVIDER, type_of
from llmprod.context import Context
from llmprod.errors import InvalidArgument
from llmprod.provider import Capabilities, Provider
from llmprod.request import Request
from llmprod.response import Response

__all__ = [
    "Phase", "Stack", "StackOrderWarning", "WrappedProvider", "Wrapper", "deployment", "describe", "leaves", "lint",
]  # fmt: skip


class Phase(IntEnum):
    """Where a wrapper belongs, outermost first. Gaps leave room for wrappers of your own."""

    TELEMETRY = 100
    DEADLINE = 200
    QUOTA = 300
    INPUT_GUARD = 400
    CACHE = 500
    OUTPUT_GUARD = 600
    MAX_TOKENS = 640
    CONTEXT_WINDOW = 650
    BUDGET = 700
    RESUME = 750
    RETRY = 800
    HEDGE = 900
    ROUTE = 1000
    LOAD_SHED = 1050
    RATE_LIMIT = 1100
    BULKHEAD = 1200
    CIRCUIT_BREAKER = 1300
    ATTEMPT_TIMEOUT = 1400
    VENDOR = 1450
    ATTEMPT_SPAN = 1500
    CHAOS = 1600


class StackOrderWarning(UserWarning):
    """Wrappers stand in an order that defeats one of them."""


class Wrapper(ABC):
    """Options of a behaviour, applied to a provider by calling it: ``Retry(attempts=3)(provider)``.

    ``phase`` says where in a stack it belongs.
    """

    phase: ClassVar[Phase]

    @abstractmethod
    def wrap(self, inner: Provider) -> Provider:
        """Return a provider that behaves so around ``inner``."""

    def __call__(self, inner: Provider) -> Provider:
        """Return ``wrap(inner)``.

        Raises:
            InvalidArgument: ``inner`` is no provider.
        """
        if not isinstance(inner, Provider):
            raise InvalidArgument("inner", type(inner).__name__, A_PROVIDER)
        return self.wrap(inner)


class WrappedProvider(ABC):
    """Base of what a wrapper returns: passes name, capabilities and closing through to ``inner``."""

    def __init__(self, inner: Provider, wrapper: Wrapper) -> None:
        self.inner = inner
        self.wrapper = wrapper

    @property
    def name(self) -> str:
        """The inner provider's name."""
        return self.inner.name

    @property
    def capabilities(self) -> Capabilities:
        """The inner provider's capabilities."""
        return self.inner.capabilities

    @abstractmethod
    async def send(self, request: Request, context: Context) -> Response:
        """Ask ``inner``, with the wrapper's behaviour around it."""

    async def aclose(self) -> None:
        """Close the inner provider."""
        await self.inner.aclose()

    def __repr__(self) -> str:
        return f"{self.wrapper!r}({self.inner!r})"


class Stack(Wrapper):
    """Several wrappers as one, outermost first: ``Stack(Deadline(30), Retry(), AttemptTimeout())(provider)``.

    Warns (:class:`StackOrderWarning`) where the order defeats a wrapper.
    """

    def __init__(self, *wrappers: Wrapper) -> None:
        for wrapper in wrappers:
            if not isinstance(wrapper, Wrapper):
                raise InvalidArgument("wrappers", type_of(wrapper), "wrappers such as Retry() or AttemptTimeout()")
        self.wrappers = wrappers
        for finding in _order(
            [(wrapper.phase, _label(wrapper)) for wrapper in wrappers if not isinstance(wrapper, Stack)]
        ):
            warnings.warn(finding, StackOrderWarning, stacklevel=2)

    @property
    def phase(self) -> Phase:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        """The outermost wrapper's phase."""
        return self.wrappers[0].phase if self.wrappers else Phase.CHAOS

    def wrap(self, inner: Provider) -> Provider:
        """Return ``inner`` inside all wrappers."""
        for wrapper in reversed(self.wrappers):
            inner = wrapper(inner)
        return inner

    def __repr__(self) -> str:
        return f"Stack({', '.join(map(repr, self.wrappers))})"


def _children(provider: Provider) -> tuple[Provider, ...]:
    inner = getattr(provider, "inner", None)
    return (inner,) if inner is not None else tuple(getattr(provider, "targets", ()))


def _label(node: object) -> str:
    return repr(node).removeprefix("<").removesuffix(">")


def _node(provider: Provider) -> tuple[Phase | None, str]:
    wrapper = getattr(provider, "wrapper", None)
    if wrapper is not None:
        return wrapper.phase, _label(wrapper)
    phase = getattr(provider, "phase", None)
    return phase, getattr(provider, "label", _label(provider)) if phase else provider.name


def leaves(provider: Provider) -> Iterator[Provider]:
    """Yield the providers that answer by themselves, in order."""
    children = _children(provider)
    if not children:
        yield provider
    for child in children:
        yield from leaves(child)


def caches(provider: Provider) -> bool:
    """Tell whether a wrapper that belongs where caches stand is somewhere in a stack."""
    wrapper = getattr(provider, "wrapper", None)
    return (wrapper is not None and wrapper.phase is Phase.CACHE) or any(map(caches, _children(provider)))


def deployment(provider: Provider) -> Hashable:
    """Return what tells the deployment behind ``provider`` apart: provider, address, model and credential."""
    return tuple(getattr(leaf, "identity", id(leaf)) for leaf in leaves(provider))


def describe(provider: Provider) -> str:
    """Draw a stack as a tree, outermost first."""
    return "\n".join(_tree(provider, "", ""))


def _tree(provider: Provider, first: str, rest: str) -> Iterator[str]:
    yield first + _node(provider)[1]
    children = _children(provider)
    for place, child in enumerate(children):
        last = place == len(children) - 1
        yield from _tree(child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))


def lint(provider: Provider) -> list[str]:
    """Return what is wrong with the order of a stack; empty if nothing is."""
    findings: dict[str, None] = {}

    def walk(node: Provider, above: list[tuple[Phase, str]]) -> None:
        phase, label = _node(node)
        # A router with one retrying target multiplies nothing: the others are its last resort.
        retried = any(outer is Phase.RETRY for outer, _ in above)
        resort = phase is Phase.ROUTE and not retried and sum(map(_retries, _children(node))) == 1
        here = above if phase is None or resort else [*above, (phase, label)]
        if not _children(node):
            findings.update(dict.fromkeys(_order(here)))
        for child in _children(node):
            walk(child, here)

    walk(provider, [])
    return list(findings)


def _retries(provider: Provider) -> bool:
    return _node(provider)[0] is Phase.RETRY or any(map(_retries, _children(provider)))


def _order(chain: list[tuple[Phase, str]]) -> list[str]:
    findings: list[str] = []
    for place, (phase, label) in enumerate(chain):
        for outer_phase, outer_label in chain[:place]:
            if outer_phase > phase:
                here, there = phase.name.lower(), outer_phase.name.lower()
                findings.append(f"{outer_label} stands outside {label}, but {here} belongs outside {there}")
            elif outer_phase == phase == Phase.RETRY:
                findings.append(f"{outer_label} stands around {label}: their attempts multiply; use one")
    return findings

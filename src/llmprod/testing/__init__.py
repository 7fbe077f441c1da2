"""What `llmprod` gives to tests: of itself and of the applications that use it. Nothing is imported until used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._no_waits import NoWaits as NoWaits
    from ._no_waits import no_waits as no_waits
    from ._pair import ScriptedCall as ScriptedCall
    from ._pair import ScriptHandle as ScriptHandle
    from ._pair import scripted_pair as scripted_pair
    from ._stacks import StackChecks as StackChecks
    from ._stacks import assert_stack as assert_stack
    from ._store import StoreConformance as StoreConformance
    from ._toxics import Toxics as Toxics
    from ._virtual import run_virtual as run_virtual
    from ._virtual import virtual_backend as virtual_backend
    from .behaviour import Answer as Answer
    from .behaviour import Behaviour as Behaviour
    from .behaviour import Cut as Cut
    from .behaviour import Drip as Drip
    from .behaviour import ErrorReply as ErrorReply
    from .behaviour import Lognormal as Lognormal
    from .behaviour import Malformed as Malformed
    from .behaviour import Quirks as Quirks
    from .behaviour import RawReply as RawReply
    from .behaviour import Stall as Stall
    from .behaviour import StreamError as StreamError
    from .fault_proxy import FaultProxy as FaultProxy
    from .fault_server import FaultServer as FaultServer
    from .scenarios import SCENARIOS as SCENARIOS
    from .scenarios import Scenario as Scenario
    from .scenarios import scenario as scenario
    from .scripted import CUT as CUT
    from .scripted import HANG as HANG
    from .scripted import Scripted as Scripted

_HOME = {
    "_no_waits": ("NoWaits", "no_waits"),
    "_pair": ("ScriptHandle", "ScriptedCall", "scripted_pair"),
    "_stacks": ("StackChecks", "assert_stack"),
    "_store": ("StoreConformance",),
    "_toxics": ("Toxics",),
    "_virtual": ("run_virtual", "virtual_backend"),
    "behaviour": (
        "Answer", "Behaviour", "Cut", "Drip", "ErrorReply", "Lognormal", "Malformed", "Quirks", "RawReply", "Stall",
        "StreamError",
    ),
    "fault_proxy": ("FaultProxy",),
    "fault_server": ("FaultServer",),
    "scenarios": ("SCENARIOS", "Scenario", "scenario"),
    "scripted": ("CUT", "HANG", "Scripted"),
}  # fmt: skip
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)  # noqa: PLE0605  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    module = _MODULE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    return value


def __dir__() -> list[str]:
    return __all__

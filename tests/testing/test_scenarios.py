"""The catalogue of failures is complete, and each of its scripts does on the wire what its title says."""

import json

import httpx
import pytest

from llmprod.testing.fault_server import FaultServer
from llmprod.testing.scenarios import FALLBACK_TEXT, PRIMARY_TEXT, SCENARIOS

CHAT = "/v1/chat/completions"
SCALE = 0.002


def text_of(response: httpx.Response) -> str:
    events = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content", "") for e in events for choice in json.loads(e)["choices"])


def outcome(client: httpx.Client) -> object:
    """The status and whether the text is whole, or the name of the error."""
    try:
        response = client.post(CHAT, json={"model": "m", "stream": True, "messages": []})
        return response.status_code, text_of(response) == PRIMARY_TEXT
    except (httpx.TransportError, ValueError, KeyError) as error:
        return type(error).__name__


FIRST_TWO = {
    "S01": [(429, False), (200, True)],
    "S02": [(429, False), (429, False)],
    "S03": [(500, False), (200, True)],
    "S04": [(503, False), (503, False)],
    "S05": ["ReadError", (200, True)],
    "S06": ["ReadTimeout", "ReadTimeout"],
    "S07": [(200, True), (200, True)],
    "S08": ["ReadError", "ReadError"],
    "S09": [(200, True), (200, True)],
    "S10": ["JSONDecodeError", "JSONDecodeError"],
    "S11": ["ReadTimeout", "ReadTimeout"],
    "S12": [(400, False), (400, False)],
    "S13": [(400, False), (400, False)],
    "S14": ["ReadError", "ReadError"],
    "S15": [(503, False), (503, False)],
    "S16": [(503, False), (503, False)],
    "X01": [(200, False), (200, False)],
    "X02": [(200, False), (200, False)],
    "X03": ["KeyError", "KeyError"],
    "X04": ["KeyError", "KeyError"],
    "X05": [(429, False), (429, False)],
    "X06": [(429, False), (429, False)],
    "X08": [(200, False), (200, False)],
    "X09": ["JSONDecodeError", "JSONDecodeError"],
    "X10": [(200, False), (200, False)],
}


@pytest.mark.parametrize("name", FIRST_TWO)
def test_what_a_bare_client_meets(name):
    routes = SCENARIOS[name].routes(SCALE)
    timeout = httpx.Timeout(60, read=0.15 if "ReadTimeout" in FIRST_TWO[name] else 60)
    with FaultServer(routes.primary) as server, httpx.Client(base_url=server.url, timeout=timeout) as client:
        met = [outcome(client), outcome(client)]
    assert met == FIRST_TWO[name]


def test_the_catalogue_is_complete():
    assert list(SCENARIOS) == [f"S{n:02}" for n in range(1, 17)] + [f"X{n:02}" for n in range(1, 12)]
    for name, scenario in SCENARIOS.items():
        assert scenario.id == name
        assert scenario.title
        assert scenario.safe
        assert scenario.passes
        assert set(scenario.whole) | set(scenario.stream) <= {"answer", "error", "interrupted"}
    with pytest.raises(TypeError):
        SCENARIOS["S01"] = SCENARIOS["S02"]  # type: ignore[index]
    with pytest.raises(ValueError, match="time_scale"):
        SCENARIOS["S01"].routes(0)


def test_the_outage_ends_and_is_new_for_each_run():
    scenario = SCENARIOS["S15"]
    for _ in range(2):
        with FaultServer(scenario.routes(0.01).primary) as server, httpx.Client(base_url=server.url) as client:
            statuses = [client.post(CHAT, json={}).status_code]
            until = server.clock + 0.6
            while server.clock < until:
                pass
            statuses.append(client.post(CHAT, json={}).status_code)
        assert statuses == [503, 200]


def test_a_fallback_that_rejects_prefill():
    fallback = SCENARIOS["S14"].routes(SCALE).fallback
    user, assistant = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    with FaultServer(fallback) as server, httpx.Client(base_url=server.url) as client:
        assert client.post(CHAT, json={"messages": [user, assistant]}).status_code == 400
        healthy = client.post(CHAT, json={"messages": [assistant, user]}).json()
        contents = [{"role": "user", "parts": []}, {"role": "model", "parts": []}]
        assert client.post("/v1beta/models/g:generateContent", json={"contents": contents}).status_code == 400
    assert healthy["choices"][0]["message"]["content"] == FALLBACK_TEXT


def test_times_are_scaled():
    assert SCENARIOS["S07"].routes(0.5).primary.first_token_delay == 10  # type: ignore[union-attr]
    assert SCENARIOS["S01"].routes(0.5).primary[0].error.retry_after == 1  # type: ignore[index,union-attr]
    assert SCENARIOS["X06"].routes(0.5).primary.error.retry_after == 3600  # type: ignore[union-attr]


def test_the_drip_outlasts_its_deadline():
    scenario = SCENARIOS["X07"]
    assert scenario.deadline is not None
    drip = scenario.routes(1).primary.drip  # type: ignore[union-attr]
    assert drip.gap * len(PRIMARY_TEXT) > scenario.deadline

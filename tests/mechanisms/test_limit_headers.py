"""Rate-limit headers of every provider whose spelling is known, as their servers send them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod.mechanisms.limit_headers import LimitReading, limit_readings

DATE = "Tue, 14 Nov 2023 22:13:20 GMT"  # 1,700,000,000 seconds since 1970


def readings(**fields):
    return {
        (reading.dimension, reading.period): (reading.remaining, reading.limit, reading.reset)
        for reading in limit_readings({name.replace("_", "-"): value for name, value in fields.items()})
    }


def test_openai():
    assert readings(
        x_ratelimit_limit_requests="60",
        x_ratelimit_limit_tokens="150000",
        x_ratelimit_remaining_requests="59",
        x_ratelimit_remaining_tokens="149984",
        x_ratelimit_reset_requests="120ms",
        x_ratelimit_reset_tokens="6m0s",
    ) == {("requests", None): (59, 60, 0.12), ("tokens", None): (149984, 150000, 360)}


def test_groq():
    told = readings(x_ratelimit_remaining_requests="14370", x_ratelimit_reset_requests="2m59.56s")
    assert told == {("requests", None): (14370, None, pytest.approx(179.56))}


def test_anthropic():
    assert readings(
        date=DATE,
        anthropic_ratelimit_requests_limit="50",
        anthropic_ratelimit_requests_remaining="49",
        anthropic_ratelimit_requests_reset="2023-11-14T22:13:21Z",
        anthropic_ratelimit_input_tokens_limit="40000",
        anthropic_ratelimit_input_tokens_remaining="39000",
        anthropic_ratelimit_input_tokens_reset="2023-11-14T22:14:20Z",
        anthropic_ratelimit_output_tokens_remaining="7000",
        anthropic_ratelimit_tokens_remaining="46000",
        anthropic_priority_input_tokens_remaining="1",
    ) == {
        ("requests", None): (49, 50, 1),
        ("input_tokens", None): (39000, 40000, 60),
        ("output_tokens", None): (7000, None, None),
        ("tokens", None): (46000, None, None),
    }


def test_mistral_old_and_new():
    assert readings(
        x_ratelimit_limit_tokens_minute="5000000",
        x_ratelimit_remaining_tokens_minute="4999911",
        x_ratelimit_tokens_query_cost="52",
        x_ratelimit_limit_req_minute="720",
        x_ratelimit_remaining_req_minute="717",
    ) == {("tokens", 60): (4999911, 5000000, None), ("requests", 60): (717, 720, None)}
    assert readings(
        ratelimitbysize_limit="500000",
        ratelimitbysize_remaining="499900",
        ratelimitbysize_reset="28",
        x_ratelimitbysize_remaining_month="9000000",
    ) == {("tokens", None): (499900, 500000, 28), ("tokens", 2592000): (9000000, None, None)}


def test_cerebras():
    assert readings(
        x_ratelimit_limit_requests_day="1440000",
        x_ratelimit_remaining_requests_day="1439999",
        x_ratelimit_reset_requests_day="33011.382867",
        x_ratelimit_remaining_tokens_minute="59000",
        x_ratelimit_reset_tokens_minute="11.38",
    ) == {
        ("requests", 86400): (1439999, 1440000, pytest.approx(33011.382867)),
        ("tokens", 60): (59000, None, pytest.approx(11.38)),
    }


def test_fireworks():
    assert readings(
        x_ratelimit_limit_requests="600",
        x_ratelimit_remaining_requests="599",
        x_ratelimit_limit_tokens_prompt="7200000",
        x_ratelimit_remaining_tokens_prompt="7193993",
        x_ratelimit_remaining_tokens_cache_adjusted_prompt="3",
        x_ratelimit_remaining_tokens_generated="69338",
        x_ratelimit_over_limit="no",
    ) == {
        ("requests", None): (599, 600, None),
        ("input_tokens", None): (7193993, 7200000, None),
        ("output_tokens", None): (69338, None, None),
    }


def test_together():
    assert readings(
        x_ratelimit_limit="60",
        x_ratelimit_remaining="58",
        x_ratelimit_reset="1",
        x_tokenlimit_limit="100000",
        x_tokenlimit_remaining="98500",
        x_tokenlimit_remaining_dynamic="5",
    ) == {("requests", None): (58, 60, 1), ("tokens", None): (98500, 100000, None)}


@pytest.mark.parametrize("reset", ["1700000030", "1700000030000", "2023-11-14T22:13:50+00:00", "30", "30s", "0m30s"])
def test_resets_in_every_notation(reset):
    told = readings(date=DATE, x_ratelimit_remaining="5", x_ratelimit_reset=reset)
    assert told == {("requests", None): (5, None, 30)}


def test_a_date_without_a_present_tells_nothing_but_what_is_left():
    headers = {"x-ratelimit-remaining": "5", "x-ratelimit-reset": "1700000030000"}
    assert limit_readings(headers) == (LimitReading(dimension="requests", remaining=5),)
    assert limit_readings(headers, now=1_700_000_000)[0].reset == 30


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"ratelimit": '"default";r=50;t=30'}, {("requests", None): (50, None, 30)}),
        (
            {"ratelimit": '"burst";r=50;t=30', "ratelimit-policy": '"burst";q=100;w=60,"daily";q=1000;w=86400'},
            {("requests", 60): (50, 100, 30)},
        ),
        ({"ratelimit": "limit=100, remaining=50, reset=5"}, {("requests", None): (50, 100, 5)}),
        (
            {"ratelimit-limit": "100, 100;w=60", "ratelimit-remaining": "50", "ratelimit-reset": "5"},
            {("requests", None): (50, 100, 5)},
        ),
    ],
)
def test_ietf_drafts(headers, expected):
    assert readings(**{name.replace("-", "_"): value for name, value in headers.items()}) == expected


def test_headers_of_other_things_are_none():
    assert limit_readings({"content-type": "text/html", "x-limit": "5", "x-ratelimit-used": "5"}) == ()
    assert limit_readings({"x-ratelimit-limit-requests": "5"}) == (), "what is left is what counts"


GARBAGE = st.sampled_from(
    ["", " ", "-1", "nan", "inf", "1e999", "x", "9" * 400, "1;2", ",", "2023-99-99T", "5h5", "٣", "1s1"]
)
NAMES = st.sampled_from([
    "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests", "x-ratelimit-limit-tokens", "ratelimit",
    "ratelimit-policy", "anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset",
    "x-tokenlimit-remaining",
    "ratelimitbysize-remaining", "x-ratelimit-remaining-minute", "date",
])  # fmt: skip


@given(st.dictionaries(NAMES, GARBAGE | st.text(max_size=30)))
def test_garbage_is_never_an_error_and_never_negative(headers):
    for reading in limit_readings(headers):
        assert reading.remaining >= 0
        assert reading.reset is None or reading.reset >= 0

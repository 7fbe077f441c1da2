"""What changes at the beginning of prompts, and what does not."""

import random
import uuid
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod import GenerateRequest, Message, Tool
from llmprod.mechanisms.prefix_lint import PrefixFinding, prefix_lint
from llmprod.types import Image

BEFORE = "You are the assistant of a bank. Be brief, and never guess. "
AFTER = " Answer in the customer's language. Prices are from 2025-01-01."


def said(text: str, *tools: Tool) -> GenerateRequest:
    return GenerateRequest(messages=(Message.system(text), Message.user("Hello")), tools=tools)


moments = st.datetimes(datetime(2024, 1, 1), datetime(2027, 12, 31))  # noqa: DTZ001 - what prompts hold has no zone
FORMATS = ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%B %d, %Y", "%b %d %Y %H:%M", "%d %B %Y", "%d.%m.%Y", "%H:%M:%S"]


@given(moments, st.timedeltas(timedelta(days=1, seconds=61), timedelta(days=200)), st.sampled_from(FORMATS))
def test_times(moment: datetime, later: timedelta, form: str) -> None:
    one, other = moment.strftime(form), (moment + later).strftime(form)
    findings = prefix_lint(said(f"{BEFORE}It is {one}.{AFTER}"), said(f"{BEFORE}It is {other}.{AFTER}"))
    if one == other:
        assert findings == []
        return
    (found,) = findings
    assert (found.kind, found.where, found.sure, found.avoidable) == ("timestamp", "messages[0]", True, True)
    assert found.at is not None
    assert len(BEFORE) + 6 <= found.at <= len(BEFORE) + 6 + len(one)


@given(st.uuids(version=4), st.uuids(version=4))
def test_ids(one: uuid.UUID, other: uuid.UUID) -> None:
    findings = prefix_lint(said(f"{BEFORE}Session {one}.{AFTER}"), said(f"{BEFORE}Session {other}.{AFTER}"))
    assert [found.kind for found in findings] == ([] if one == other else ["id"])
    (suspect,) = prefix_lint(said(f"{BEFORE}Session {one}.{AFTER}"))
    assert (suspect.kind, suspect.sure, suspect.at) == ("id", False, len(BEFORE) + 8)


def test_seconds_since_1970_and_hex_and_ulid() -> None:
    for one, other, kind in (
        ("1764320000", "1764320007", "timestamp"),
        ("1764320000.5", "1764320000.7", "timestamp"),
        ("9f86d081884c7d659a2feaa0c55ad015", "9f86d081884c7d659a2feaa0c55ad016", "id"),
        ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "01ARZ3NDEKTSV4RRFFQ69G5FAW", "id"),
        ("17", "18", "number"),
        ("Ann", "Bob", "text"),
    ):
        (found,) = prefix_lint(said(f"{BEFORE}{one}{AFTER}"), said(f"{BEFORE}{other}{AFTER}"))
        assert found.kind == kind
        assert found.avoidable is (kind not in ("number", "text"))


def test_a_date_that_stays_is_no_finding() -> None:
    assert prefix_lint(said(BEFORE + AFTER), said(BEFORE + AFTER)) == []
    assert prefix_lint(said(BEFORE + AFTER)) == []  # a date without a time is suspected of nothing
    assert [found.kind for found in prefix_lint(said("It is 10:15."))] == ["timestamp"]


def test_tools() -> None:
    a = Tool(name="a", description="A", parameters={"type": "object", "properties": {}})
    b = Tool(name="b", parameters={"type": "object"})
    turned = Tool(name="a", description="A", parameters={"properties": {}, "type": "object"})
    other = Tool(name="a", description="A", parameters={"type": "object", "properties": {"x": {}}})
    timed = Tool(name="a", description="As of 12:30:01", parameters=a.parameters)
    timed_later = Tool(name="a", description="As of 12:30:02", parameters=a.parameters)

    def kinds(one: tuple[Tool, ...], before: tuple[Tool, ...]) -> list[tuple[str, str]]:
        return [(found.kind, found.where) for found in prefix_lint(said("x", *one), said("x", *before))]

    assert kinds((a, b), (a, b)) == []
    assert kinds((a, b), (b, a)) == [("tool order", "tools")]
    assert kinds((a,), (a, b)) == [("tools", "tools")]
    assert kinds((turned,), (a,)) == [("key order", "tool a")]
    assert kinds((other,), (a,)) == [("tools", "tool a")]
    assert kinds((timed,), (timed_later,)) == [("timestamp", "tool a")]


def test_other_content() -> None:
    one = GenerateRequest(messages=(Message("system", (Image(data=b"a", media_type="image/png"),)), Message.user("x")))
    other = GenerateRequest(
        messages=(Message("system", (Image(data=b"b", media_type="image/png"),)), Message.user("x"))
    )
    assert prefix_lint(one, other) == [PrefixFinding("other content", "messages[0]")]
    more = GenerateRequest(messages=(Message.system("a"), Message.system("b"), Message.user("x")))
    assert prefix_lint(more, said("a")) == [PrefixFinding("other content", "messages[1]")]
    assert prefix_lint(more, said("b"), stable=0) == []


@given(st.text(max_size=60), st.text(max_size=60))
def test_the_first_difference_is_where_it_is(one: str, other: str) -> None:
    findings = prefix_lint(said(one or "x"), said(other or "x"))
    a, b = one or "x", other or "x"
    if a == b:
        assert findings == []
        return
    at = next((place for place, (c, d) in enumerate(zip(a, b, strict=False)) if c != d), min(len(a), len(b)))
    assert findings[0].at == at


def test_findings_hold_no_text() -> None:
    chance = random.Random(1)
    secret = "".join(chance.choices("abcdefghij", k=20))
    (found,) = prefix_lint(said(f"{secret} 10:15:01"), said(f"{secret} 10:15:02"))
    assert str(found) == f"timestamp changes in messages[0], character {found.at}"
    assert secret not in repr(found)


@pytest.mark.parametrize("size", [200_000])
def test_long_prompts_are_compared_in_no_time(size: int) -> None:
    (found,) = prefix_lint(said("a" * size + "b"), said("a" * size + "c"))
    assert found.at == size

"""Sums by labels and time: nothing is lost, whatever is folded together."""

from __future__ import annotations

import threading
from collections import defaultdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprod.cost import Cost
from llmprod.cost_table import CostEntry, CostTotals, money
from llmprod.errors import InvalidArgument
from llmprod.ledger import OTHER, Ledger
from llmprod.trace import Attempt
from llmprod.usage import Usage

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC).timestamp()


def entry(
    cents: int | None = 1,
    *,
    at: float = NOW,
    model: str | None = "m",
    state: Any = "ok",
    estimated: bool = False,
    prompt: tuple[str, str] | None = None,
    **tags: str,
) -> CostEntry:
    cost = (
        Cost(amount=None, reason="no price")
        if cents is None
        else Cost(amount=Decimal(cents) / 100, estimated=estimated, buckets={"input": Decimal(cents) / 100})
    )
    return CostEntry(
        at=datetime.fromtimestamp(at, tz=UTC),
        target="t",
        model=model,
        cost=cost,
        usage=Usage(input=2, cache_read=3, output=4, reasoning=1),
        tags=tags,
        prompt=prompt,
        attempt=Attempt("t", 0.0, state=state),
    )


def test_by_labels_and_prompts() -> None:
    ledger = Ledger(labels=("user", "team"))
    ledger.add(entry(1, user="ann", team="red", prompt=("greet", "1")))
    ledger.add(entry(2, user="ann", prompt=("greet", "2"), state="failed"))
    ledger.add(entry(4, user="bob", tenant="ignored", estimated=True))
    ledger.add(entry(None, user="cid"))
    assert ledger.total == Decimal("0.07")
    assert [(row["user"], row["cost"], row["unpriced"]) for row in ledger.by("user")] == [
        ("bob", Decimal("0.04"), 0),
        ("ann", Decimal("0.03"), 0),
        ("cid", None, 1),
    ]
    whole = ledger.totals
    assert (whole.attempts, whole.failed, whole.unpriced, whole.estimated) == (4, 1, 1, 1)
    assert (whole.input_tokens, whole.cached_tokens, whole.output_tokens) == (20, 12, 20)
    assert {(row["prompt"], row["prompt_version"]) for row in ledger.rows()} == {
        ("greet", "1"), ("greet", "2"), (None, None),
    }  # fmt: skip
    assert len(ledger.by()) == 1
    assert ledger.by().rows()[0]["cost"] == Decimal("0.07")


def test_by_time() -> None:
    ledger = Ledger()
    for minutes in (0, 1, 61, 61, 60 * 25):
        ledger.add(entry(1, at=NOW - 60 * minutes))
    assert [(row["start"].hour, row["attempts"]) for row in ledger.by(per="hour")] == [
        (11, 1),
        (10, 2),
        (11, 1),
        (12, 1),
    ]
    assert [(row["start"].day, row["attempts"]) for row in ledger.by(per="day")] == [(27, 1), (28, 4)]
    # What is a day old is kept by the hour alone.
    assert [(row["start"].minute, row["attempts"]) for row in ledger.by(per="minute")] == [
        (0, 1), (59, 2), (59, 1), (0, 1),
    ]  # fmt: skip


def test_it_prints_and_renders() -> None:
    ledger = Ledger()
    assert str(ledger).splitlines()[-1].split()[:2] == ["total", "0"]
    ledger.add(entry(1, model="gpt<5>"))
    ledger.add(entry(None, model=None))
    lines = str(ledger).splitlines()
    assert [line.split()[0] for line in lines] == ["model", "gpt<5>", "-", "total"]
    assert "$0.01" in lines[1]
    assert "unknown" in lines[2]
    assert "≥ $0.01" in lines[3]
    assert "gpt&lt;5&gt;" in ledger._repr_html_()
    assert repr(ledger) == "<Ledger 2 attempts, ≥ $0.01>"
    assert repr(ledger.by("user")) == "<CostTable by user: 1 rows>"


@pytest.mark.parametrize("per", [None, "day"])
def test_pandas_and_polars_take_the_rows(per: Any) -> None:
    pandas = pytest.importorskip("pandas")
    polars = pytest.importorskip("polars")
    ledger = Ledger()
    ledger.add(entry(1, user="ann"))
    ledger.add(entry(250, user="bob", model="n", prompt=("greet", "1")))
    ledger.add(entry(None, model=None))
    rows = ledger.rows(per)
    frame = pandas.DataFrame(rows)
    assert frame["cost"].sum() == Decimal("2.51")
    assert list(frame.columns) == list(rows[0])
    table = polars.DataFrame(rows)
    assert table["cost"].sum() == Decimal("2.51")
    assert table["attempts"].sum() == 3
    assert table.columns == list(rows[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": "user"}, {"labels": ["model"]}, {"labels": ["user", "user"]}, {"labels": [1]}, {"rows_at_most": 0},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        Ledger(**wrong)


def test_wrong_questions() -> None:
    with pytest.raises(InvalidArgument, match="columns"):
        Ledger().by("colour")
    with pytest.raises(InvalidArgument, match="per"):
        Ledger().by(per="week")  # type: ignore[arg-type]


ages = st.sampled_from([0, 30, 3600, 7300, 86400, 15 * 86400, 400 * 86400])
entries = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(0, 500)),
        ages,
        st.integers(0, 7200),
        st.sampled_from("abc"),
        st.integers(0, 40),
    ),
    max_size=120,
)


@settings(max_examples=150)
@given(told=entries, most=st.sampled_from([1, 2, 5, 20, 20_000]))
def test_nothing_is_lost_and_memory_is_bounded(told: list[tuple[int | None, int, int, str, int]], most: int) -> None:
    ledger = Ledger(rows_at_most=most)
    by_model: dict[str, Decimal] = defaultdict(Decimal)
    for cents, age, more, model, user in told:
        ledger.add(entry(cents, at=NOW - age - more, model=model, user=str(user)))
        by_model[model] += Decimal(cents or 0) / 100
    assert ledger.total == sum(by_model.values())
    assert ledger.totals.attempts == len(told)
    assert ledger.totals.unpriced == sum(cents is None for cents, *_ in told)
    for per in (None, "minute", "hour", "day"):
        table = ledger.by("model", per=per).rows()
        sums: dict[str, Decimal] = defaultdict(Decimal)
        for row in table:
            sums[row["model"]] += row["cost"] or 0
        assert sums == by_model
    counted = sum(len(rows) for periods in ledger._periods.values() for rows in periods.values()) + len(ledger._earlier)
    assert counted == ledger._rows
    # Without labels there is a row by model, and for each of three times, at the most.
    assert counted <= most + 3 * 4


def test_labels_beyond_the_bound_are_not_kept_apart() -> None:
    ledger = Ledger(rows_at_most=10)
    for number in range(1000):
        ledger.add(entry(1, user=f"user {number}"))
    users = ledger.by("user").rows()
    assert users[0]["user"] == OTHER
    assert users[0]["attempts"] == 990
    assert len(users) == 11


def test_a_server_that_makes_up_a_model_for_each_answer_does_not_fill_the_memory() -> None:
    ledger = Ledger(rows_at_most=10)
    for number in range(5000):
        ledger.add(entry(1, model=f"m-{number}", user="ann"))
    assert ledger.total == 50
    models = {row["model"] for row in ledger.by("model")}
    assert OTHER in models
    assert len(models) <= 10 + 1000 + 1


@pytest.mark.parametrize(
    ("dollars", "shown"),
    [
        ("0", "$0.00"),
        ("0.0000001", "$0.0000001"),
        ("0.000000000123", "$0.00000000012"),
        ("0.25", "$0.25"),
        ("3", "$3.00"),
    ],
)
def test_what_is_little_is_not_shown_as_nothing(dollars: str, shown: str) -> None:
    assert money(CostTotals(attempts=1, known=Decimal(dollars))) == shown


def test_threads_lose_nothing() -> None:
    ledger = Ledger()
    ready = threading.Barrier(9)

    def add(user: int) -> None:
        ready.wait()
        for _ in range(2000):
            ledger.add(entry(1, user=str(user)))

    def read() -> None:
        ready.wait()
        for _ in range(50):
            told = ledger.totals  # one reading of the whole: money and count belong together
            assert told.known == told.attempts * Decimal("0.01")

    threads = [threading.Thread(target=add, args=(user,)) for user in range(8)] + [threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.totals.attempts == 16_000
    assert {row["attempts"] for row in ledger.by("user")} == {2000}

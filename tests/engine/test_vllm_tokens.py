"""The token path on a real engine: equal to bare ``AsyncLLM``, scored, streamed, aborted, and used from everywhere."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import TypeAdapter

from llmprod import (
    VLLM,
    AsyncClient,
    BadRequest,
    ContextTooLong,
    DeadlineExceeded,
    EngineDied,
    InvalidArgument,
    Message,
    RestartPolicy,
    UnsupportedParameter,
)
from llmprod.providers._vllm.completion_stream import CompletionStream
from llmprod.providers._vllm.sampling import Structured
from llmprod.providers._vllm.token_records import Completion
from tests.engine.engines import engine, in_order_of_priority, until
from tests.engine.test_vllm_embedded import WEATHER
from tests.engine.test_vllm_life import kill_engine

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default", "error:::llmprod")]

GREEDY: dict[str, Any] = {"max_tokens": 24, "temperature": 0}
PROMPT = "def main(argument):\n    return"


@pytest.fixture(scope="module")
def narrow(tiny_model: Path) -> Iterator[VLLM]:
    """An engine with four places in its batch, which is killed at the end."""
    provider = engine(
        tiny_model, max_num_seqs=4, scheduling_policy="priority", price_per_hour=1, restart=RestartPolicy(attempts=3)
    )
    anyio.run(provider.start)
    yield provider
    anyio.run(lambda: provider.stop(grace=0))


@pytest.fixture(scope="module")
def classifying(tiny_model: Path) -> Iterator[VLLM]:
    provider = engine(tiny_model, runner="pooling", convert="classify", load_format="dummy", warm=False)
    anyio.run(provider.start)
    yield provider
    anyio.run(provider.stop)


async def bare(local: VLLM, prompt: Any, **options: Any) -> Any:
    """Ask ``AsyncLLM`` itself, on its own loop, with nothing of ours between."""
    current = local._engine.current
    assert current is not None
    modules, llm = current.modules, current.engine

    async def ask() -> Any:
        params = modules.SamplingParams(**options, output_kind=modules.RequestOutputKind.FINAL_ONLY)
        async with contextlib.aclosing(llm.generate(prompt, params, f"bare-{os.urandom(8).hex()}")) as outputs:
            return [output async for output in outputs][-1]

    return await current.crossing.call(ask)


def on_cpu(local: VLLM) -> bool:
    current = local._engine.current
    assert current is not None
    return bool(current.modules.on_cpu)


def unfinished(local: VLLM) -> int:
    """Return how many requests vLLM itself holds."""
    current = local._engine.current
    assert current is not None
    return int(current.engine.output_processor.get_num_unfinished_requests())


async def read(stream: CompletionStream) -> None:
    async with stream:
        async for _ in stream:
            pass


async def idle(local: VLLM) -> None:
    await until(lambda: local.stats().in_flight == 0 and unfinished(local) == 0)
    await local.complete("x", max_tokens=1)  # one more step, so that the engine's last word is fresh
    stats = local.stats()
    assert (stats.running, stats.waiting, stats.in_flight) == (0, 0, 0)


# ---- the same as the engine says ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [False, True], ids=["text", "ids"])
async def test_greedy_tokens_are_those_of_bare_async_llm(narrow: VLLM, ids: bool) -> None:
    prompt: Any = await narrow.tokenize(PROMPT) if ids else PROMPT
    ours = await narrow.complete(prompt, logprobs=3, prompt_logprobs=2, **GREEDY)
    theirs = await bare(
        narrow, {"prompt_token_ids": prompt} if ids else PROMPT, logprobs=3, prompt_logprobs=2, **GREEDY
    )
    (choice,) = ours.choices
    written = theirs.outputs[0]
    assert list(choice.token_ids) == list(written.token_ids)
    assert ours.text == choice.text == written.text
    assert list(ours.prompt_token_ids) == theirs.prompt_token_ids == await narrow.tokenize(PROMPT)
    assert choice.finish_reason == "length"
    for token, number, entries in zip(choice.logprobs, written.token_ids, written.logprobs, strict=True):
        assert token.token_id == number
        assert token.logprob == pytest.approx(entries[number].logprob, abs=1e-4)
        assert [one.rank for one in token.top] == [1, 2, 3]
        assert token.top[0].token_id == number, "greedy takes the likeliest"
        assert {one.token_id for one in token.top} <= set(entries)
    assert ours.prompt_logprobs[0] is None
    for place, scored in enumerate(ours.prompt_logprobs[1:], start=1):
        assert scored is not None
        assert scored.token_id == ours.prompt_token_ids[place]
        assert len(scored.top) == 2
        assert scored.logprob == pytest.approx(theirs.prompt_logprobs[place][scored.token_id].logprob, abs=1e-4)


async def test_what_a_completion_tells(local: VLLM) -> None:
    completion = await local.complete(PROMPT, n=2, max_tokens=16, ignore_eos=True)
    assert completion.usage.total_output == 32
    assert completion.usage.total_input == len(completion.prompt_token_ids)
    timing = completion.timing
    await until(lambda: timing.decode is not None)
    assert timing.queue is not None
    assert timing.prefill is not None
    assert completion.cost is not None
    assert 0 < completion.cost < 1
    assert PROMPT not in repr(completion)
    assert completion.text not in repr(completion)
    long = "A long story about a fox that never ends. " * 60
    first = await local.complete(long, max_tokens=1)
    again = await local.complete(long, max_tokens=1)
    assert again.cached > first.cached
    assert again.usage.cache_read == again.cached


async def test_logprobs_equal_the_chat_paths(local: VLLM) -> None:
    talk = [Message.user("Count.")]
    async with AsyncClient(local) as client:
        chat = await client.generate(talk, logprobs=3, max_tokens=8, temperature=0)
    ours = await local.complete(await local.tokenize(talk), logprobs=3, max_tokens=8, temperature=0)
    assert ours.text == chat.text
    tokens = ours.choices[0].logprobs
    assert [token.text for token in tokens] == [token.token for token in chat.logprobs]
    for token, theirs in zip(tokens, chat.logprobs, strict=True):
        assert token.logprob == pytest.approx(theirs.logprob, abs=1e-3)
        assert [one.logprob for one in token.top] == pytest.approx([logprob for _, logprob in theirs.top], abs=1e-3)


async def test_seeded_choices_are_repeatable_and_differ(local: VLLM) -> None:
    one = await local.complete(PROMPT, n=4, seed=7, max_tokens=16)
    two = await local.complete(PROMPT, n=4, seed=7, max_tokens=16)
    other = await local.complete(PROMPT, n=4, seed=70, max_tokens=16)
    tokens = [choice.token_ids for choice in one.choices]
    assert [choice.index for choice in one.choices] == [0, 1, 2, 3]
    assert tokens == [choice.token_ids for choice in two.choices]
    assert len(set(tokens)) == 4
    assert not set(tokens) & {choice.token_ids for choice in other.choices}
    alone = await local.complete(PROMPT, seed=9, max_tokens=16)
    assert alone.token_ids == tokens[2], "of several choices each has the seed that follows"


async def test_stops(local: VLLM) -> None:
    free = await local.complete(PROMPT, seed=3, max_tokens=24, ignore_eos=True)
    number = free.token_ids[8]
    place = free.token_ids.index(number)
    by_id = await local.complete(PROMPT, seed=3, max_tokens=24, ignore_eos=True, stop_token_ids=[number])
    assert by_id.token_ids == free.token_ids[: place + 1]
    assert (by_id.choices[0].finish_reason, by_id.choices[0].stop_reason) == ("stop", number)
    mark = free.text[6:10]
    by_text = await local.complete(PROMPT, seed=3, max_tokens=24, ignore_eos=True, stop=mark)
    assert by_text.choices[0].stop_reason == mark
    assert by_text.text == free.text[: free.text.index(mark)]
    kept = await local.complete(PROMPT, seed=3, max_tokens=24, ignore_eos=True, stop=[mark], include_stop=True)
    assert kept.text == by_text.text + mark


async def test_sampling_reaches_the_engine(local: VLLM) -> None:
    (allowed,) = {(await local.complete(PROMPT, max_tokens=6, allowed_token_ids=[50])).token_ids}
    assert set(allowed) == {50}
    assert set((await local.complete(PROMPT, max_tokens=6, logit_bias={51: 100}, temperature=0)).token_ids) == {51}
    greedy = await local.complete(PROMPT, **GREEDY)
    assert (await local.complete(PROMPT, max_tokens=24, top_k=1)).token_ids == greedy.token_ids
    assert (await local.complete(PROMPT, max_tokens=24, top_p=1e-6)).token_ids == greedy.token_ids
    assert (await local.complete(PROMPT, max_tokens=24, min_p=1.0)).token_ids == greedy.token_ids
    raw = await local.complete(PROMPT, max_tokens=4, extra={"bad_words": ["x"]})
    assert len(raw.token_ids) == 4
    with pytest.raises(InvalidArgument, match=r"extra.*guided_json.*vLLM"):
        await local.complete(PROMPT, extra={"guided_json": {}})
    with pytest.raises(InvalidArgument, match=r"extra.*structured="):
        await local.complete(PROMPT, extra={"structured_outputs": {}})


async def test_structured(local: VLLM) -> None:
    async def text(structured: Structured) -> str:
        completion = await local.complete("A code: ", structured=structured, max_tokens=120)
        assert completion.choices[0].finish_reason == "stop"
        return completion.text

    assert await text(Structured(choice=["yes", "no"])) in ("yes", "no")
    assert re.fullmatch("[A-Z]{3}-[0-9]{4}", await text(Structured(regex="[A-Z]{3}-[0-9]{4}")))
    assert await text(Structured(grammar='root ::= "a" | "bc"')) in ("a", "bc")
    flag = {
        "type": "object",
        "properties": {"sure": {"type": "boolean"}, "grade": {"enum": ["a", "b"]}},
        "required": ["sure", "grade"],
        "additionalProperties": False,
    }
    assert set(TypeAdapter(dict[str, Any]).validate_json(await text(Structured(json_schema=flag)))) == {"sure", "grade"}


# ---- streams --------------------------------------------------------------------------------------------------------


async def test_a_stream_equals_the_whole(narrow: VLLM) -> None:
    options: dict[str, Any] = {"n": 3, "seed": 5, "max_tokens": 20, "logprobs": 2, "prompt_logprobs": 0}
    whole = await narrow.complete(PROMPT, **options)
    async with narrow.stream_complete(PROMPT, **options) as stream:
        deltas = [delta async for delta in stream]
    assert len(deltas) >= 3, "one for each at least; several tokens in one where the reader is slow"
    built = stream.completion
    assert [choice.token_ids for choice in built.choices] == [choice.token_ids for choice in whole.choices]
    assert [choice.text for choice in built.choices] == [choice.text for choice in whole.choices]
    assert [choice.finish_reason for choice in built.choices] == [choice.finish_reason for choice in whole.choices]
    for ours, theirs in zip(built.choices, whole.choices, strict=True):
        assert [one.token_id for one in ours.logprobs] == list(ours.token_ids)
        assert [one.logprob for one in ours.logprobs] == pytest.approx(
            [one.logprob for one in theirs.logprobs], abs=0.05
        )
    assert built.usage.total == whole.usage.total
    assert built.prompt_token_ids == whole.prompt_token_ids
    assert len(built.prompt_logprobs) == len(built.prompt_token_ids)
    assert built.cost is not None
    await until(lambda: built.timing.decode is not None)
    assert stream.completion.request_id in repr(built)


async def test_leaving_a_stream_aborts_it(local: VLLM) -> None:
    before = local.stats().generated_tokens
    long: dict[str, Any] = {"n": 4, "max_tokens": 1900, "ignore_eos": True}
    async with local.stream_complete(PROMPT, **long) as stream:
        async for _ in stream:
            break
        assert unfinished(local) == 4
    await until(lambda: unfinished(local) == 0)
    assert [delta async for delta in stream] == [], "nothing comes after the end"

    async def fail() -> None:
        async with local.stream_complete(PROMPT, **long) as stream:
            await anext(stream)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    forgotten = local.stream_complete(PROMPT, **long)
    await anext(await forgotten.__aenter__())
    del forgotten
    gc.collect()
    await idle(local)
    assert local.stats().generated_tokens - before < 4 * 1900
    with pytest.raises(RuntimeError, match="async with"):
        await anext(local.stream_complete(PROMPT))
    await idle(local)


async def test_cancelled_and_late_calls_are_aborted(local: VLLM) -> None:
    before = local.stats().generated_tokens
    with anyio.move_on_after(0.3) as scope:
        await local.complete(PROMPT, n=4, max_tokens=1900, ignore_eos=True)
    assert scope.cancelled_caught
    await idle(local)
    with pytest.raises(DeadlineExceeded) as late:
        await local.complete(PROMPT, max_tokens=1900, ignore_eos=True, deadline=0.3)
    assert late.value.limit == 0.3
    await idle(local)
    for deadline in (0.3, 1.0, 3.0):  # on a busy machine nothing may come within the first
        stream = local.stream_complete(PROMPT, max_tokens=1900, ignore_eos=True, deadline=deadline)
        with pytest.raises(DeadlineExceeded):
            await read(stream)
        if stream.completion.token_ids:
            break
    assert stream.completion.token_ids, "what came before is kept"
    await idle(local)
    assert local.stats().generated_tokens - before < 6 * 1900 / 2


async def test_64_at_once_with_cancels(local: VLLM) -> None:
    done: list[int] = []
    gone: list[int] = []
    async with anyio.create_task_group() as group:

        async def one(number: int) -> None:
            cut = number % 3 == 0
            with anyio.move_on_after(0.05 * (number % 7) if cut else None) as scope:
                if number % 2:
                    completion = await local.complete(
                        f"Number {number}", max_tokens=800 if cut else 24, ignore_eos=True
                    )
                else:
                    options: dict[str, Any] = {"max_tokens": 800 if cut else 24, "ignore_eos": True}
                    async with local.stream_complete(f"Number {number}", **options) as stream:
                        async for _ in stream:
                            pass
                    completion = stream.completion
                assert len(completion.token_ids) == (800 if cut else 24)
                done.append(number)
            if scope.cancelled_caught:
                gone.append(number)

        for number in range(64):
            group.start_soon(one, number)
    assert len(done) + len(gone) == 64
    assert set(range(64)) - {number for number in range(64) if number % 3 == 0} <= set(done)
    assert len(gone) >= 15
    await idle(local)


async def test_priority_goes_first(narrow: VLLM, thinking: VLLM) -> None:
    async def ask(tokens: int, priority: int) -> None:
        await narrow.complete(PROMPT, priority=priority, max_tokens=tokens, ignore_eos=True)

    await in_order_of_priority(narrow, 4, ask)
    with pytest.raises(InvalidArgument, match=r"priority: got 3 with scheduling_policy='fcfs'"):
        await thinking.complete(PROMPT, priority=3)


# ---- tokens ---------------------------------------------------------------------------------------------------------


async def test_tokens_there_and_back(local: VLLM) -> None:
    for text in ("Hello, world!", "naïve 🦊 日本", " leading and trailing ", "", "<|user|>"):
        assert await local.detokenize(await local.tokenize(text)) == text
    with pytest.raises(InvalidArgument, match="vocabulary"):
        await local.detokenize([10**7])
    long = await local.tokenize("word " * 4000)
    assert len(long) > 2048, "text that is longer than the context window has tokens too"


async def test_counted_is_what_the_chat_costs(local: VLLM) -> None:
    talk = [Message.system("Be brief."), Message.user("One?"), Message.assistant("Two."), Message.user("Three?")]
    async with AsyncClient(local) as client:
        plain = await client.generate(talk, max_tokens=1)
        equipped = await client.generate(talk, tools=[WEATHER], max_tokens=1)
    assert plain.usage is not None
    assert equipped.usage is not None
    assert await local.count_tokens(talk) == plain.usage.total_input
    assert await local.count_tokens(talk, tools=[WEATHER]) == equipped.usage.total_input
    assert await local.count_tokens([{"role": "user", "content": "Hi."}]) == len(
        await local.tokenize([Message.user("Hi.")])
    )
    open_ended = await local.tokenize(talk, add_generation_prompt=False)
    assert (await local.tokenize(talk))[: len(open_ended)] == open_ended
    with pytest.raises(InvalidArgument, match="tools"):
        await local.tokenize("text", tools=[WEATHER])


# ---- scores ---------------------------------------------------------------------------------------------------------


async def test_scores_are_the_sums_of_the_tokens_log_probabilities(narrow: VLLM) -> None:
    head = await narrow.tokenize("The answer is")
    ends = [[50, 51], [917], [48, 227, 113, 50]]
    scores = await narrow.score(head, ends)
    for score, end in zip(scores, ends, strict=True):
        assert [token.token_id for token in score.tokens] == end
        expected, so_far = 0.0, list(head)
        for number in end:  # step by step, as a model would write it
            step = await bare(
                narrow, {"prompt_token_ids": so_far}, max_tokens=1, temperature=0,
                allowed_token_ids=[number], logprobs=0,
            )  # fmt: skip
            whole = await narrow.complete([*so_far, number], max_tokens=1, prompt_logprobs=0)
            scored = whole.prompt_logprobs[-1]
            assert scored is not None
            assert list(step.outputs[0].token_ids) == [number]
            expected += scored.logprob
            so_far.append(number)
        assert score.logprob == pytest.approx(expected, abs=0.05)
        assert score.logprob == pytest.approx(sum(token.logprob for token in score.tokens))
        assert score.per_token == pytest.approx(score.logprob / len(end))
        assert score.from_prompt == 0
    greedy = await narrow.complete(head, **GREEDY)
    likeliest, *_ = await narrow.score(head, [list(greedy.token_ids[:3]), [48]])
    assert likeliest.greedy
    assert not scores[1].greedy


async def test_scores_of_texts_whose_start_merges_with_the_prompt(narrow: VLLM) -> None:
    async def joined(end: str) -> list[int]:
        return await narrow.tokenize("def main" + end)

    clean, other = await narrow.score("def main", ["(self)", " (self)"])
    assert clean.from_prompt == other.from_prompt == 0
    assert [token.token_id for token in clean.tokens] == (await joined("(self)"))[
        len(await narrow.tokenize("def main")) :
    ]
    # " s" is one token: with the blank in the prompt, both are scored from before it.
    prompt = "import "
    merged = await narrow.score(prompt, ["self", "\n"])
    for score, end in zip(merged, ("self", "\n"), strict=True):
        assert score.from_prompt >= 1
        tokens = [token.token_id for token in score.tokens]
        whole = await narrow.tokenize(prompt + end)
        assert whole[-len(tokens) :] == tokens
        assert (await narrow.detokenize(tokens)).endswith(end)
    assert merged[0].from_prompt == merged[1].from_prompt
    with pytest.raises(InvalidArgument, match=r"continuations\[1\]: got no token"):
        await narrow.score("def main", ["(", ""])
    with pytest.raises(InvalidArgument, match="prompt: got no token"):
        await narrow.score("", ["def"])
    with pytest.raises(ContextTooLong):
        await narrow.score("def main", ["(", "secretword " * 3000])


async def test_adapters_have_their_own_completions_and_scores(local: VLLM) -> None:
    answers, scores = set(), set()
    for provider in (local, local.adapter("red"), local.adapter("blue")):
        answers.add((await provider.complete(PROMPT, **GREEDY)).token_ids)
        if on_cpu(local):
            # vLLM's engine would die of it as soon as the batch holds two requests.
            with pytest.raises(UnsupportedParameter, match="prompt_logprobs with adapters"):
                await provider.score(PROMPT, [" self", " x"])
        else:
            (score,) = await provider.score(PROMPT, [" self"])
            scores.add(round(score.logprob, 3))
    assert len(answers) == 3
    assert len(scores) in (0, 3)
    if on_cpu(local):
        async with AsyncClient(local, wrappers=[]) as client:
            with pytest.raises(UnsupportedParameter, match="prompt_logprobs with adapters"):
                await client.generate("Hello.", max_tokens=1, extra={"vllm": {"prompt_logprobs": 1}})
    await idle(local)


async def test_pooling(embedding: VLLM, classifying: VLLM, local: VLLM) -> None:
    texts = ["a cat", "a dog", "def main(): return 7"]
    async with AsyncClient(embedding) as client:
        by_text = (await client.embed(texts)).embeddings
    assert by_text is not None
    by_ids = await embedding.embed_tokens([await embedding.tokenize(text) for text in texts])
    for ours, theirs in zip(by_ids, by_text, strict=True):
        assert ours == pytest.approx(list(theirs), abs=1e-2)
    ranked = await embedding.rank("a cat", ["def main(): return 7", "a cat", "a dog"])
    assert ranked[0].index == 1
    assert ranked[0].score == pytest.approx(1, abs=1e-2)
    assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)
    assert {one.index for one in ranked} == {0, 1, 2}
    assert len(await embedding.rank("a cat", texts, top=2)) == 2
    assert await embedding.rank("a cat", []) == []
    classes = await classifying.classify(["a cat", "a dog", "a cat"])
    assert len(classes) == 3
    for one in classes:
        assert sum(one.probabilities) == pytest.approx(1, abs=1e-3)
        assert one.label.endswith(str(one.probabilities.index(max(one.probabilities))))
    assert classes[0].probabilities == pytest.approx(classes[2].probabilities, abs=1e-3)
    for wrong in (local.rank("q", ["d"]), local.classify(["t"]), local.embed_tokens([[1]]), embedding.complete("x")):
        with pytest.raises(InvalidArgument, match="runner: got"):
            await wrong
    await until(lambda: unfinished(embedding) == 0)
    with pytest.raises(ContextTooLong):
        await embedding.embed_tokens([[5], [7] * 3000])
    await until(lambda: embedding.stats().in_flight == 0 and unfinished(embedding) == 0)


# ---- errors and callers ---------------------------------------------------------------------------------------------


async def test_refusals_tell_no_prompt(local: VLLM) -> None:
    with pytest.raises(ContextTooLong) as too_long:
        await local.complete("secretword " * 4000)
    with pytest.raises(BadRequest) as unknown:
        await local.complete([10**7])
    with pytest.raises(BadRequest) as many:
        await local.complete("secretword", logprobs=500)
    with pytest.raises(BadRequest) as pattern:
        await local.complete("secretword", structured=Structured(regex="(["))
    with pytest.raises(BadRequest):
        await read(local.stream_complete("secretword", structured=Structured(regex="([")))
    for caught in (too_long, unknown, many, pattern):
        error = caught.value
        assert "secretword" not in str(error) + repr(error)
        assert error.__cause__ is None
        assert error.request_id
        assert error.provider == "vllm"
        assert error.provider_message
    with pytest.raises(InvalidArgument, match=r"prompt: got a negative one"):
        await local.complete([-1])
    await idle(local)
    assert local.state == "ready"


async def test_tenants_share_no_prefix(local: VLLM) -> None:
    isolated = VLLM.__new__(VLLM)
    isolated.__dict__.update(local.__dict__)
    isolated.isolate_prefixes_by = "tenant"
    prompt = "What one tenant completed, another must not find by its speed. " * 30
    cached = [
        (await isolated.complete(prompt, max_tokens=1, tags={"tenant": tenant})).cached for tenant in ("a", "a", "b")
    ]
    assert cached[0] == cached[2] == 0
    assert cached[1] > 0


def test_from_asyncio_and_trio_in_threads(narrow: VLLM) -> None:
    found: dict[str, list[Any]] = {"asyncio": [], "trio": []}

    async def work(name: str) -> None:
        completion = await narrow.complete(PROMPT, **GREEDY)
        async with narrow.stream_complete(PROMPT, **GREEDY) as stream:
            pieces = [delta.text async for delta in stream]
        with anyio.move_on_after(0.2):
            await narrow.complete(PROMPT, max_tokens=1900, ignore_eos=True)
        (score,) = await narrow.score(PROMPT, [" self"])
        count = await narrow.count_tokens([Message.user("Hi.")])
        found[name] = [completion.text, "".join(pieces), round(score.logprob, 2), count]

    threads = [threading.Thread(target=lambda name=name: anyio.run(work, name, backend=name)) for name in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert found["asyncio"][:2] == found["trio"][:2]
    assert found["asyncio"][0] == found["asyncio"][1]
    assert found["asyncio"][3] == found["trio"][3]
    anyio.run(idle, narrow)


async def test_an_engines_death_ends_its_requests_at_once_and_the_next_waits_for_another(narrow: VLLM) -> None:
    ended: list[str] = []
    partial: list[Completion] = []
    async with anyio.create_task_group() as group:

        async def whole() -> None:
            with pytest.raises(EngineDied):
                await narrow.complete(PROMPT, max_tokens=1900, ignore_eos=True)
            ended.append("whole")

        async def streamed() -> None:
            stream = narrow.stream_complete(PROMPT, max_tokens=1900, ignore_eos=True)
            with pytest.raises(EngineDied) as died:
                await read(stream)
            assert died.value.in_stream
            partial.append(stream.completion)
            ended.append("stream")

        async def scored() -> None:
            with pytest.raises(EngineDied):
                await narrow.score("x " * 600, [f" {number}" for number in range(200)])
            ended.append("score")

        group.start_soon(streamed)
        await until(lambda: narrow.stats().running == 1)
        group.start_soon(whole)
        group.start_soon(scored)
        await until(lambda: unfinished(narrow) > 50)
        kill_engine(narrow)
        await until(lambda: len(ended) == 3)
        assert narrow._engine.running is None, "they were told before the restart was over"
    assert partial[0].token_ids
    assert partial[0].choices[0].finish_reason is None
    assert narrow.stats().in_flight == 0
    assert len((await narrow.complete(PROMPT, max_tokens=4, ignore_eos=True)).token_ids) == 4
    assert narrow.restarts == 1

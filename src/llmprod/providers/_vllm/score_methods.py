"""Scores by log probability, and what pooling models say: ranks, classes, vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from llmprod import _validate
from llmprod.context import Context
from llmprod.errors import InvalidArgument
from llmprod.providers._vllm.incarnation import Incarnation
from llmprod.providers._vllm.sampling import Sampling, token_ids
from llmprod.providers._vllm.token_base import TokenBase, as_prompt
from llmprod.providers._vllm.token_reading import (
    before,
    check_scorable,
    score_of,
    shared_start,
)
from llmprod.providers._vllm.token_records import Classified, Ranked, Score
from llmprod.providers._vllm.tokens import embedding, generation

__all__ = ["ScoreMethods"]

_PROBE = "a"
_SCORING = Sampling(max_tokens=1, temperature=0.0, prompt_logprobs=0)


class ScoreMethods(TokenBase):
    """The methods of :class:`llmprod.VLLM` that judge texts instead of writing them."""

    async def score(
        self,
        prompt: str | Sequence[int],
        continuations: Sequence[str | Sequence[int]],
        *,
        deadline: float | None = None,
    ) -> list[Score]:
        """Return how likely the model finds each continuation after ``prompt``.

        Texts are tokenized as a whole, prompt and continuation together, as a model has seen them in training. Where
        that merges the end of the prompt with a continuation's start, all continuations are scored from the last token
        of the prompt that none changes (:attr:`Score.from_prompt`), so they compare. With token ids on either side they
        are taken as they are.

        Args:
            prompt: text or token ids.
            continuations: each text or token ids; they are computed together, the prompt once for each.
            deadline: seconds that the call may take in all; None for no limit.

        Raises:
            InvalidArgument: a continuation has no token, or nothing stands before it.
            ContextTooLong: prompt and continuation exceed the context window.
        """
        self._need("generate")
        start_of, ends = as_prompt(prompt), _continuations(continuations)
        with self._within(deadline):
            incarnation = await self._ready(Context.new(seconds=deadline))
            head, wholes = await self._joined(incarnation, start_of, ends)
            start = shared_start(head, wholes)
            check_scorable(head, wholes, start, int(incarnation.config.model_config.max_model_len))
            begins = [generation(whole, _SCORING, stream=False, adapter=self._adapter) for whole in wholes]
            outputs = await self._all(incarnation, begins)
        return [score_of(output, len(head), start) for output in outputs]

    async def _joined(
        self, incarnation: Incarnation, prompt: str | Sequence[int], ends: Sequence[str | Sequence[int]]
    ) -> tuple[Sequence[int], list[Sequence[int]]]:
        """Return the prompt's tokens, and those of prompt and continuation together."""
        ours = [end for end in ends if isinstance(end, str)]
        if isinstance(prompt, str):
            probe, bare, *found = await self._tokenized(
                incarnation, [_PROBE, prompt, *(prompt + end for end in ours)], special=False
            )
            (full,) = await self._tokenized(incarnation, [_PROBE], special=True)
            front: Sequence[int] = before(full, probe)
            head: Sequence[int] = [*front, *bare]
        else:
            found = await self._tokenized(incarnation, ours, special=False)
            front = head = prompt
        texts = iter(found)
        return head, [[*front, *next(texts)] if isinstance(end, str) else [*head, *end] for end in ends]

    async def rank(
        self, query: str, documents: Sequence[str], *, top: int | None = None, deadline: float | None = None
    ) -> list[Ranked]:
        """Order ``documents`` by how relevant they are to ``query``, best first.

        Needs an engine that pools: a reranker (cross-encoder), or an embedding model, whose scores are cosines.

        Args:
            query: the question.
            documents: the texts.
            top: return this many of the best; None: all.
            deadline: seconds that the call may take in all; None for no limit.

        Raises:
            InvalidArgument: an argument is wrong, or the engine generates.
            ContextTooLong: a document is too long.
        """
        self._need("pooling")
        if not isinstance(query, str):
            raise InvalidArgument("query", type(query).__name__, "a string")
        _validate.whole("top", top, 1, optional=True)
        texts = _validate.strings("documents", documents)
        if not texts:
            return []
        told = await self._post("/rerank", {"query": query, "documents": texts, "top_n": top or len(texts)}, deadline)
        ranked = [Ranked(index=int(one["index"]), score=float(one["relevance_score"])) for one in told["results"]]
        return sorted(ranked, key=lambda one: -one.score)

    async def classify(self, texts: Sequence[str], *, deadline: float | None = None) -> list[Classified]:
        """Return the class of each text, by a model that classifies (``runner="pooling"``).

        Raises:
            InvalidArgument: an argument is wrong, or the engine generates.
            NotFound: its model has no classes.
        """
        self._need("pooling")
        given = _validate.strings("texts", texts)
        if not given:
            return []
        told = await self._post("/classify", {"input": given}, deadline)
        return [
            Classified(label=str(one["label"]), probabilities=tuple(map(float, one["probs"])))
            for one in sorted(told["data"], key=lambda one: one["index"])
        ]

    async def embed_tokens(
        self, inputs: Sequence[Sequence[int]], *, deadline: float | None = None
    ) -> list[tuple[float, ...]]:
        """Return the vector of each list of token ids, by a model that embeds (``runner="pooling"``).

        Raises:
            InvalidArgument: an argument is wrong, or the engine generates.
            ContextTooLong: one is too long.
        """
        self._need("pooling")
        ids = [token_ids(f"inputs[{number}]", one) for number, one in enumerate(inputs)]
        with self._within(deadline):
            incarnation = await self._ready(Context.new(seconds=deadline))
            outputs = await self._all(incarnation, [embedding(one, adapter=self._adapter) for one in ids])
        return [tuple(map(float, output.outputs.data.tolist())) for output in outputs]


def _continuations(value: object) -> list[str | tuple[int, ...]]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise InvalidArgument("continuations", type(value).__name__, "a list of texts, or of lists of token ids")
    items = enumerate(cast("Sequence[object]", value))
    return [one if isinstance(one, str) else token_ids(f"continuations[{number}]", one) for number, one in items]

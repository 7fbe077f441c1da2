"""vLLM's outputs, read into the token path's records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from llmprod.errors import ContextTooLong, InvalidArgument, ServerError
from llmprod.providers._openai_usage import FINISH_REASONS
from llmprod.providers._vllm.token_records import CompletionChoice, CompletionDelta, Score, ScoredToken
from llmprod.usage import FinishReason, Usage

__all__ = [
    "Parts",
    "before",
    "check_scorable",
    "piece_of",
    "prompt_tokens_of",
    "score_of",
    "shared_start",
    "usage_of",
]


def _scored(entries: Mapping[int, Any], chosen: int, top: int) -> ScoredToken:
    """Return the token ``chosen``, with the ``top`` likeliest beside it."""
    likeliest: tuple[ScoredToken, ...] = ()
    if top:
        ranked = sorted(entries.items(), key=lambda entry: entry[1].rank or len(entries) + 1)
        likeliest = tuple(_token(number, entry) for number, entry in ranked[:top])
    return _token(chosen, entries[chosen], likeliest)


def _token(number: int, entry: Any, top: tuple[ScoredToken, ...] = ()) -> ScoredToken:
    rank = getattr(entry, "rank", None)
    return ScoredToken(
        token_id=int(number), text=entry.decoded_token or "", logprob=float(entry.logprob), rank=rank, top=top
    )


def _written(output: Any, top: int | None) -> tuple[ScoredToken, ...]:
    if top is None or not output.logprobs:
        return ()
    return tuple(
        _scored(entries, number, top) for entries, number in zip(output.logprobs, output.token_ids, strict=True)
    )


def prompt_tokens_of(output: Any, top: int | None) -> tuple[ScoredToken | None, ...]:
    """Return the log probabilities of the prompt's tokens, None for the first; empty if they were not asked for."""
    if top is None or not output.prompt_logprobs:
        return ()
    return tuple(
        _scored(entries, number, top) if entries else None
        for entries, number in zip(output.prompt_logprobs, output.prompt_token_ids, strict=True)
    )


def _finish(output: Any, *, in_stream: bool) -> FinishReason | None:
    """Return why a sequence ended.

    Raises:
        ServerError: the engine cut it off; what stands there is no answer.
    """
    word = output.finish_reason
    if word is None:
        return None
    reason = FINISH_REASONS.get(str(word), "unknown")
    if reason == "error":
        raise ServerError(detail=f"vLLM ended a sequence with {str(word)[:20]}", in_stream=in_stream)
    return reason


_Piece = TypeVar("_Piece", CompletionChoice, CompletionDelta)


def piece_of(kind: type[_Piece], output: Any, top: int | None) -> _Piece:
    """Return a finished sequence, or what came of one in a step, as ``kind``.

    Raises:
        ServerError: the engine cut it off.
    """
    return kind(
        index=output.index,
        text=output.text,
        token_ids=tuple(output.token_ids),
        logprobs=_written(output, top),
        finish_reason=_finish(output, in_stream=kind is CompletionDelta),
        stop_reason=output.stop_reason,
    )


def usage_of(prompt: int, cached: int, written: int) -> Usage:
    """Return usage; ``cached`` tokens of the prompt were read from the prefix cache."""
    return Usage(input=prompt - cached, cache_read=cached, output=written)


class Parts:
    """A choice that is being written."""

    __slots__ = ("_finish", "_index", "_logprobs", "_stop", "_text", "_tokens")

    def __init__(self, index: int) -> None:
        self._index = index
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[ScoredToken] = []
        self._finish: FinishReason | None = None
        self._stop: int | str | None = None

    def add(self, delta: CompletionDelta) -> None:
        """Add what has come."""
        self._text.append(delta.text)
        self._tokens.extend(delta.token_ids)
        self._logprobs.extend(delta.logprobs)
        if delta.finish_reason is not None:
            self._finish, self._stop = delta.finish_reason, delta.stop_reason

    def choice(self) -> CompletionChoice:
        """Return what there is."""
        return CompletionChoice(
            index=self._index,
            text="".join(self._text),
            token_ids=tuple(self._tokens),
            logprobs=tuple(self._logprobs),
            finish_reason=self._finish,
            stop_reason=self._stop,
        )

    def __len__(self) -> int:
        return len(self._tokens)


def shared_start(prompt: Sequence[int], wholes: Iterable[Sequence[int]]) -> int:
    """Return how many of the prompt's tokens are in all ``wholes`` (prompt and continuation together) as they are.

    A tokenizer may merge the prompt's end with the continuation's start. From the last place that no continuation
    changes, all are scored: so each score is of the same text, less what is common to all.
    """
    start = len(prompt)
    for whole in wholes:
        same = 0
        for ours, theirs in zip(prompt[:start], whole, strict=False):
            if ours != theirs:
                break
            same += 1
        start = min(start, same)
    return start


def before(full: Sequence[int], bare: Sequence[int]) -> list[int]:
    """Return the special tokens that a tokenizer puts before a text: ``full`` has them, ``bare`` is without."""
    for start in range(len(full) - len(bare) + 1):
        if list(full[start : start + len(bare)]) == list(bare):
            return list(full[:start])
    return []


def check_scorable(prompt: Sequence[int], wholes: Sequence[Sequence[int]], start: int, window: int | None) -> None:
    """Require that each continuation has a token, and one before it, and that the whole fits into the window.

    Raises:
        InvalidArgument: it doesn't.
        ContextTooLong: it is too long; one token more is computed than scored.
    """
    if start < 1:
        given = "nothing that all continuations leave as it is" if prompt else "no token"
        raise InvalidArgument("prompt", given, "at least one token before what is scored, such as the start token")
    for number, whole in enumerate(wholes):
        if len(whole) <= start:
            raise InvalidArgument(f"continuations[{number}]", "no token", "at least one token")
        if window is not None and len(whole) >= window:
            raise ContextTooLong(provider="vllm", detail=f"{len(whole)} tokens to score, {window - 1} at most")


def score_of(output: Any, prompt: int, start: int) -> Score:
    """Return the score of a prompt's tokens from ``start`` on; ``prompt`` is how many of them are the prompt's own."""
    tokens = tuple(token for token in prompt_tokens_of(output, 0)[start:] if token is not None)
    return Score(
        logprob=sum(token.logprob for token in tokens),
        tokens=tokens,
        greedy=all(token.rank == 1 for token in tokens),
        from_prompt=prompt - start,
    )

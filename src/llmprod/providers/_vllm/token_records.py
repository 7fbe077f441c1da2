"""What the token path hands out: completions, scores, ranks and classes, with token ids and log probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

from llmprod.response import EngineTiming
from llmprod.usage import FinishReason, Usage

__all__ = ["Classified", "Completion", "CompletionChoice", "CompletionDelta", "Ranked", "Score", "ScoredToken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredToken:
    """A token with its log probability.

    Attributes:
        token_id: its number in the model's vocabulary.
        text: its text alone; a replacement character where it is a part of one.
        logprob: natural logarithm of its probability, given all that stands before it.
        rank: 1 for the likeliest token at this place; None where the engine doesn't tell.
        top: the likeliest tokens at this place, likeliest first, as many as were asked for.
    """

    token_id: int
    text: str
    logprob: float
    rank: int | None = None
    top: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionChoice:
    """One continuation of the prompt.

    Attributes:
        index: its number, from 0.
        text: the text, without the stop string that ended it.
        token_ids: the tokens, those of a stop string and the end token included.
        logprobs: one for each token, if asked for; else empty.
        finish_reason: why it ended: ``stop``, ``length``, or ``unknown``; None while it goes on.
        stop_reason: the stop string or the id of the stop token that ended it; None for the model's own end token.
    """

    index: int
    text: str = field(repr=False)
    token_ids: tuple[int, ...] = field(repr=False)
    logprobs: tuple[ScoredToken, ...] = field(default=(), repr=False)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A prompt's continuations.

    Attributes:
        model: the model or adapter that wrote them.
        choices: as many as ``n`` asked for, by index.
        prompt_token_ids: the prompt's tokens.
        prompt_logprobs: one for each token of the prompt, if asked for, None for the first, which has nothing before
            it; else empty.
        usage: tokens; the prompt counts once, however many choices.
        cached: prompt tokens that the prefix cache had.
        timing: seconds that the engine measured, of the choice that ended last.
        cost: US dollars, if the provider knows the engine's price by the hour; else None.
        request_id: its id in the engine's logs.
    """

    model: str
    choices: tuple[CompletionChoice, ...]
    prompt_token_ids: tuple[int, ...] = field(repr=False)
    prompt_logprobs: tuple[ScoredToken | None, ...] = field(default=(), repr=False)
    usage: Usage
    cached: int = 0
    timing: EngineTiming
    cost: Decimal | None = None
    request_id: str

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text if self.choices else ""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The first choice's tokens."""
        return self.choices[0].token_ids if self.choices else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionDelta:
    """More of one choice.

    Attributes:
        index: the choice's number.
        text: the new text; may be empty, and come later than its tokens, where it could be the start of a stop string.
        token_ids: the new tokens.
        logprobs: one for each new token, if asked for; else empty.
        finish_reason: why the choice ended, with its last delta; else None.
        stop_reason: the stop string or the id of the stop token that ended it.
    """

    index: int
    text: str = field(repr=False)
    token_ids: tuple[int, ...] = field(repr=False)
    logprobs: tuple[ScoredToken, ...] = field(default=(), repr=False)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How likely a model finds a continuation.

    Attributes:
        logprob: natural logarithm of its probability after the prompt: the sum over ``tokens``.
        tokens: the tokens scored.
        greedy: each of them is the likeliest at its place, so a greedy answer would begin so.
        from_prompt: tokens of the prompt that are scored too, because a continuation's start merges with the prompt's
            end into other tokens; the same for all continuations of one call, so their scores compare. 0 mostly.
    """

    logprob: float
    tokens: tuple[ScoredToken, ...] = field(repr=False)
    greedy: bool
    from_prompt: int = 0

    @property
    def per_token(self) -> float:
        """The mean over the tokens, for continuations of different lengths."""
        return self.logprob / len(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A document's place in a ranking.

    Attributes:
        index: the document's place in the list that was passed.
        score: how relevant it is to the query; the scale is the model's.
    """

    index: int
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Classified:
    """What class a text belongs to.

    Attributes:
        label: the likeliest class, by the name that the model's configuration gives it, or ``LABEL_0`` and so on.
        probabilities: of each class, by number.
    """

    label: str
    probabilities: tuple[float, ...]

"""Counts prompts, exactly where OpenAI's table is at hand, and learns from what providers counted."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor
from pathlib import Path
from typing import Any, Literal, TypeAlias

from anyio import to_thread

from llmprod._loops import running_loop
from llmprod.errors import InvalidArgument
from llmprod.mechanisms.token_corrector import TokenCorrector, TokenError
from llmprod.mechanisms.token_families import encoding_of, tokenizer_of
from llmprod.mechanisms.token_media import Range
from llmprod.mechanisms.token_prompt import PromptTokens, prompt_tokens, text_range
from llmprod.provider import Provider
from llmprod.request import EmbedRequest, GenerateRequest, Request
from llmprod.schema import OutputSchema, Tool
from llmprod.tokens import tables as _tables
from llmprod.tokens.count import TokenCount
from llmprod.types import Message, coerce_messages
from llmprod.usage import Usage

__all__ = ["Countable", "TokenCounter", "count_tokens", "count_tokens_async", "default_counter"]

Countable: TypeAlias = str | Message | Sequence[Message | Mapping[str, Any]] | Request
"""What can be counted: a text, messages, or a whole request."""
Tables: TypeAlias = Literal["installed", "none"] | Path

_SURE = 20  # prompts after which learned errors narrow the bounds
_KNOWN_FORMAT = (0.97, 1.06)  # chat formats and OpenAI's tools are counted by rules that models vary a little


class TokenCounter:
    """Counts tokens for any model, offline.

    Safe in threads. One is shared by everything in the process that names none (:func:`default_counter`); make your
    own to keep what one application learns apart from another.

    Args:
        tables: where OpenAI's tables are: ``"installed"`` (default: the extra ``llmprod[tokens]``, if there), a folder
            with ``o200k_base.tiktoken`` and its like, or ``"none"``: always estimate.
        models_at_most: models that are learned about; beyond that the ones longest unused are forgotten (default 256).

    Raises:
        InvalidArgument: naming the option.
    """

    def __init__(self, *, tables: Tables | str = "installed", models_at_most: int = 256) -> None:
        if isinstance(tables, str) and tables not in ("installed", "none"):
            tables = Path(tables)
            if not tables.is_dir():
                raise InvalidArgument("tables", "no such folder", "'installed', 'none', or a folder with tables")
        elif not isinstance(tables, (str, Path)):
            raise InvalidArgument("tables", type(tables).__name__, "'installed', 'none', or a folder with tables")
        if isinstance(models_at_most, bool) or not isinstance(models_at_most, int) or models_at_most < 1:
            raise InvalidArgument("models_at_most", repr(models_at_most)[:40], "an integer of at least 1")
        self._use = tables != "none"
        self._folder = tables if isinstance(tables, Path) else None
        self._at_most = models_at_most
        self._lock = threading.Lock()
        self._learned: OrderedDict[str, TokenCorrector] = OrderedDict()
        self._loading: set[str] = set()

    # ---- counting ---------------------------------------------------------------------------------------------------

    def count(
        self,
        what: Countable,
        *,
        model: str | Provider = "",
        tools: Sequence[Tool | Callable[..., Any]] = (),
        output: OutputSchema | type | None = None,
    ) -> TokenCount:
        """Count ``what``'s tokens for ``model``.

        The first exact count reads a table, which takes 0.2 to 0.4 s. Inside an event loop that is left to a thread in
        the background, and what is counted meanwhile is estimated; ``await`` :meth:`count_async` waits for it instead.

        Args:
            what: a text, messages, or a request.
            model: whose tokens, such as ``openai:gpt-5``; a provider has a name.
            tools: the tools sent with messages.
            output: the output schema sent with messages.

        Raises:
            InvalidArgument: ``what`` is none of these.
        """
        return self.counted(_request(what, tools, output), model, self._encoding(model))

    async def count_async(
        self,
        what: Countable,
        *,
        model: str | Provider = "",
        tools: Sequence[Tool | Callable[..., Any]] = (),
        output: OutputSchema | type | None = None,
    ) -> TokenCount:
        """Count as :meth:`count` does, tables read and texts encoded in a worker thread.

        A provider that counts by itself, as the embedded engine does, is asked, and its word is exact.
        """
        request = _request(what, tools, output)
        own = getattr(model, "count_tokens", None)
        if own is not None and not isinstance(request, EmbedRequest):
            asked, given = (request, ()) if isinstance(request, str) else (request.messages, request.tools)
            tokens = int(await own(asked, tools=given or None))
            return TokenCount(
                tokens=tokens,
                exact=True,
                method="the model's own tokenizer",
                lower_bound=tokens,
                upper_bound=tokens,
                model=_name(model),
                raw=float(tokens),
            )
        if self.table_for(_name(model)) is None:
            return self.counted(request, model, None)
        return await to_thread.run_sync(lambda: self.counted(request, model, self._encoding(model, wait=True)))

    def estimate(self, what: Countable, *, model: str | Provider = "") -> TokenCount:
        """Count by what texts are made of, even where a table is at hand: in bounded time, however long they are."""
        return self.counted(_request(what, (), None), model, None)

    def counted(self, request: Request | str, model: str | Provider, encoding: _tables.Encoding | None) -> TokenCount:
        """Count with this encoding, or by an estimate if it is None."""
        name = _name(model)
        count = encoding.count if encoding is not None else None
        if isinstance(request, str):
            parts = PromptTokens(text=text_range((request,), name, count))
        else:
            parts = prompt_tokens(request, name, count)
        texts = (
            (request,) if isinstance(request, str) else request.inputs if isinstance(request, EmbedRequest) else None
        )
        if encoding is not None and texts is not None:
            exact = all(map(encoding.exact, texts))
            return _made(parts, parts.total, name, encoding.name, exact=exact)
        method = f"{encoding.name} and chat format" if encoding is not None else f"by script ({tokenizer_of(name)})"
        total = parts.total
        if encoding is not None:
            low, high = _KNOWN_FORMAT
            total = Range(total.low * low - 4.0, total.tokens, total.high * high + 8.0)
        with self._lock:
            corrector = self._learned.get(_key(name, encoding))
            if corrector is None or not corrector.count:
                return _made(parts, total, name, method)
            return _made(parts, _narrowed(total, corrector), name, f"{method}, corrected", factor=corrector.factor)

    # ---- learning ---------------------------------------------------------------------------------------------------

    def learn(self, count: TokenCount, real: int | Usage) -> None:
        """Note what the provider counted for a prompt: its usage, or the number of its prompt tokens.

        Args:
            count: what :meth:`count` or :meth:`estimate` said of the prompt.
            real: prompt tokens by the provider's word. A usage that is itself estimated teaches nothing.
        """
        if isinstance(real, Usage):
            if real.estimated:
                return
            real = real.total_input
        if count.exact:
            return
        exact_text = not count.method.startswith("by script")
        with self._lock:
            key = f"{count.model}|{exact_text}"
            corrector = self._learned.get(key)
            if corrector is None:
                corrector = self._learned[key] = TokenCorrector()
                if len(self._learned) > 2 * self._at_most:
                    self._learned.popitem(last=False)
            else:
                self._learned.move_to_end(key)
            corrector.learn(count.raw, real)

    def error(self, model: str | Provider) -> TokenError:
        """Return how far this model's estimates were off: mean and ninth decile of the relative errors.

        Each was taken before the real count was known. With a table at hand, errors are those of the counts made by it.
        """
        name = _name(model)
        with self._lock:
            found = [self._learned.get(f"{name}|{exact_text}") for exact_text in (True, False)]
            best = next((corrector for corrector in found if corrector is not None), None)
            return best.error() if best is not None else TokenError(None, None, 0)

    # ---- tables -----------------------------------------------------------------------------------------------------

    def table_for(self, model: str) -> str | None:
        """Return the name of the table that counts ``model``'s text, if it is used and may be there."""
        name = encoding_of(model) if self._use else None
        if name is None or (_tables.tried(name, self._folder) and _tables.loaded(name, self._folder) is None):
            return None
        return name

    def _encoding(self, model: str | Provider, *, wait: bool = False) -> _tables.Encoding | None:
        table = self.table_for(_name(model))
        if table is None:
            return None
        ready = _tables.loaded(table, self._folder)
        if ready is not None:
            return ready
        if wait or not _in_event_loop():
            return _tables.encoding(table, self._folder)
        with self._lock:
            start = table not in self._loading
            self._loading.add(table)
        if start:
            threading.Thread(
                target=_tables.encoding, args=(table, self._folder), name=f"llmprod {table}", daemon=True
            ).start()
        return None

    def __repr__(self) -> str:
        return f"TokenCounter(tables={'none' if not self._use else 'a folder' if self._folder else 'installed'})"


def _in_event_loop() -> bool:
    try:
        running_loop()
    except Exception:  # noqa: BLE001 - anyio's releases say it by different errors
        return False
    return True


def _key(name: str, encoding: _tables.Encoding | None) -> str:
    return f"{name}|{encoding is not None}"


def _name(model: str | Provider) -> str:
    if isinstance(model, str):
        return model
    name = getattr(model, "name", None)
    if not isinstance(name, str):
        raise InvalidArgument("model", type(model).__name__, "a model's name or a provider")
    return name


def _request(
    what: Any, tools: Sequence[Tool | Callable[..., Any]], output: OutputSchema | type | None
) -> Request | str:
    if isinstance(what, (GenerateRequest, EmbedRequest)) or (isinstance(what, str) and not tools and output is None):
        return what
    return GenerateRequest(
        messages=coerce_messages(what),
        tools=tuple(tool if isinstance(tool, Tool) else Tool.from_function(tool) for tool in tools),
        output=output if output is None or isinstance(output, OutputSchema) else OutputSchema.of(output),
    )


def _narrowed(total: Range, corrector: TokenCorrector) -> Range:
    """Correct an estimate, and bring its bounds closer by what was learned.

    The first and last percent of the errors seen, with a little to spare, take the place of the bounds that hold for
    any text, but at most half of the way: what comes next may be in another language.
    """
    tokens = total.tokens * corrector.factor
    low, high = total.low * corrector.factor, total.high * corrector.factor
    if corrector.count >= _SURE:
        low = min((low + tokens) / 2, tokens * corrector.quantile(0.01) * 0.98)
        high = max((high + tokens) / 2, tokens * corrector.quantile(0.99) * 1.02)
    return Range(low, tokens, high)


def _made(
    parts: PromptTokens, total: Range, model: str, method: str, *, exact: bool = False, factor: float = 1.0
) -> TokenCount:
    tokens = ceil(total.tokens - 1e-9)
    told = {name: round(part.tokens * factor) for name, part in parts._asdict().items() if part.high}
    return TokenCount(
        tokens=tokens,
        exact=exact,
        method=method,
        lower_bound=max(0, min(tokens, floor(total.low))),
        upper_bound=max(tokens, ceil(total.high - 1e-9)),
        parts=told,
        model=model,
        raw=parts.total.tokens,
    )


_default = TokenCounter()


def default_counter() -> TokenCounter:
    """Return the counter that the process shares."""
    return _default


def count_tokens(
    what: Countable,
    *,
    model: str | Provider = "",
    tools: Sequence[Tool | Callable[..., Any]] = (),
    output: OutputSchema | type | None = None,
) -> TokenCount:
    """Count the tokens of a text, messages or a request, offline, with the counter that the process shares.

    The first exact count reads a table, which takes 0.2 to 0.4 s. Inside an event loop that is left to a thread in the
    background, and what is counted meanwhile is estimated; ``await`` :func:`count_tokens_async` waits for it instead.

    Args:
        what: a text, messages (:class:`Message` or OpenAI-style dicts), or a request.
        model: whose tokens, such as ``openai:gpt-5``; a provider has a name. Default: of no particular model.
        tools: the tools sent with messages.
        output: the output schema sent with messages.

    Raises:
        InvalidArgument: ``what`` is none of these.
    """
    return _default.count(what, model=model, tools=tools, output=output)


async def count_tokens_async(
    what: Countable,
    *,
    model: str | Provider = "",
    tools: Sequence[Tool | Callable[..., Any]] = (),
    output: OutputSchema | type | None = None,
) -> TokenCount:
    """Count as :func:`count_tokens`, tables read and texts encoded in a worker thread.

    A provider that counts by itself, as the embedded engine does, is asked, and its word is exact.

    Args:
        what: a text, messages, or a request.
        model: whose tokens, or the provider that is to count.
        tools: the tools sent with messages.
        output: the output schema sent with messages.

    Raises:
        InvalidArgument: ``what`` is none of these.
    """
    return await _default.count_async(what, model=model, tools=tools, output=output)

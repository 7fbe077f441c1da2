"""The token path's methods of :class:`llmprod.VLLM`: complete, stream, tokenize."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Unpack
from uuid import uuid4

from llmprod import _validate
from llmprod.context import Context
from llmprod.errors import InvalidArgument
from llmprod.providers._vllm.completion_stream import CompletionStream, Started
from llmprod.providers._vllm.sampling import Sampling, SamplingKeywords, token_ids
from llmprod.providers._vllm.token_base import TokenBase, as_prompt
from llmprod.providers._vllm.token_reading import (
    piece_of,
    prompt_tokens_of,
    usage_of,
)
from llmprod.providers._vllm.token_records import Completion, CompletionChoice
from llmprod.providers._vllm.tokens import Begin, TokenCall, generation
from llmprod.request import GenerateRequest
from llmprod.schema import Tool
from llmprod.types import coerce_messages

__all__ = ["TokenMethods"]


class TokenMethods(TokenBase):
    """Tokens in, tokens out, as only an engine of this process can.

    All methods wait for the engine to be ready, and start it if need be.
    They may be called from any thread and event loop, asyncio's or trio's. A cancelled call, or one whose ``deadline``
    (seconds for the whole call, the engine's start included) is over, is aborted in the engine.
    """

    # ---- completions ------------------------------------------------------------------------------------------------

    async def complete(
        self,
        prompt: str | Sequence[int],
        *,
        priority: int = 0,
        deadline: float | None = None,
        tags: Mapping[str, str] | None = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> Completion:
        """Continue ``prompt``: text or token ids as they are, without a chat template.

        Args:
            prompt: text, to which the tokenizer adds its start token if it has one, or token ids.
            priority: higher goes first; needs ``scheduling_policy="priority"``.
            deadline: seconds that the call may take in all; None for no limit.
            tags: labels, for ``isolate_prefixes_by``.
            **sampling: how, see :class:`Sampling`; the model's own ``generation_config`` is not applied.

        Raises:
            InvalidArgument: an argument is wrong.
            ContextTooLong: the prompt exceeds the context window.
            BadRequest: vLLM refuses the request.
            EngineDied: the engine ended before the answer did.
            DeadlineExceeded: the time is up.
        """
        begin, options = self._begin(prompt, sampling, priority, tags, stream=False)
        with self._within(deadline):
            started = await self._start(begin, deadline, tags)
            output = await started.call.last()
        prompt_ids, cached = tuple(output.prompt_token_ids or ()), output.num_cached_tokens or 0
        choices = tuple(piece_of(CompletionChoice, one, options.logprobs) for one in output.outputs)
        usage = usage_of(len(prompt_ids), cached, sum(len(choice.token_ids) for choice in choices))
        return Completion(
            model=self.model,
            choices=choices,
            prompt_token_ids=prompt_ids,
            prompt_logprobs=prompt_tokens_of(output, options.prompt_logprobs),
            usage=usage,
            cached=cached,
            timing=started.timing,
            cost=started.cost(usage.input, usage.output),
            request_id=started.call.request_id,
        )

    def stream_complete(
        self,
        prompt: str | Sequence[int],
        *,
        priority: int = 0,
        deadline: float | None = None,
        tags: Mapping[str, str] | None = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> CompletionStream:
        """Continue ``prompt`` and hand out tokens as they come: ``async with local.stream_complete(…) as stream``.

        Args:
            prompt: text or token ids.
            priority: higher goes first; needs ``scheduling_policy="priority"``.
            deadline: seconds from entering the block that all of it may take; None for no limit.
            tags: labels, for ``isolate_prefixes_by``.
            **sampling: how, see :class:`Sampling`.

        Raises:
            InvalidArgument: an argument is wrong.
        """
        _validate.seconds("deadline", deadline, optional=True)
        begin, options = self._begin(prompt, sampling, priority, tags, stream=True)
        return CompletionStream(lambda: self._start(begin, deadline, tags), options, self.model, deadline)

    def _begin(
        self, prompt: object, sampling: SamplingKeywords, priority: int, tags: Mapping[str, str] | None, *, stream: bool
    ) -> tuple[Begin, Sampling]:
        self._need("generate")
        _validate.whole("priority", priority, -(2**31))
        if tags is not None:
            _validate.labels("tags", tags)
        if priority and self.options.scheduling_policy != "priority":
            given = f"{priority} with scheduling_policy={self.options.scheduling_policy!r}"  # vLLM would ignore it
            raise InvalidArgument("priority", given, "0, or an engine with scheduling_policy='priority'")
        others = "; others of vLLM's SamplingParams in extra={…}"
        _validate.known(sampling, SamplingKeywords.__annotations__, {}, others)
        options = Sampling(**sampling)
        begin = generation(
            as_prompt(prompt),
            options,
            stream=stream,
            priority=-priority,  # vLLM runs the lowest first
            adapter=self._adapter,
            salt=self._salt(tags),
        )
        return begin, options

    async def _start(self, begin: Begin, deadline: float | None, tags: Mapping[str, str] | None) -> Started:
        incarnation = await self._ready(Context.new(seconds=deadline, tags=tags))
        meter = incarnation.meter
        request_id = uuid4().hex
        timing, bill = meter.watch(request_id), meter.bill(request_id)

        def cost(computed: int, written: int) -> Decimal | None:
            return self._cost(bill.seconds(computed, written, meter.share_mark()))

        return Started(TokenCall(incarnation, begin, request_id).start(), timing, cost)

    # ---- tokens -----------------------------------------------------------------------------------------------------

    async def tokenize(
        self,
        text: object,
        *,
        tools: Sequence[Tool | Callable[..., Any]] | None = None,
        add_generation_prompt: bool = True,
        add_special_tokens: bool = True,
        deadline: float | None = None,
    ) -> list[int]:
        """Return the tokens of a text, or of messages in the model's chat template.

        Args:
            text: a text, taken as it is, or messages in the forms that ``client.generate`` takes.
            tools: tools that the template shows to the model; for messages.
            add_generation_prompt: end with what begins the assistant's answer, as ``generate`` does; for messages.
            add_special_tokens: add the tokenizer's start token, if it has one; for a text.
            deadline: seconds that the call may take in all; None for no limit.

        Raises:
            InvalidArgument: an argument is wrong.
            BadRequest: vLLM or the template refuses the messages.
        """
        _validate.flag("add_generation_prompt", add_generation_prompt)
        _validate.flag("add_special_tokens", add_special_tokens)
        if isinstance(text, str):
            if tools:
                raise InvalidArgument("tools", "tools for a text", "messages, which have a template that shows them")
            with self._within(deadline):
                incarnation = await self._ready(Context.new(seconds=deadline))
                return (await self._tokenized(incarnation, [text], special=add_special_tokens))[0]
        made = tuple(tool if isinstance(tool, Tool) else Tool.from_function(tool) for tool in tools or ())
        wire = self._codec.encode(GenerateRequest(messages=coerce_messages(text), tools=made)).body
        body: dict[str, Any] = {name: wire[name] for name in ("messages", "tools") if name in wire}
        told = await self._post("/tokenize", {**body, "add_generation_prompt": add_generation_prompt}, deadline)
        return list(map(int, told["tokens"]))

    async def count_tokens(
        self,
        text: object,
        *,
        tools: Sequence[Tool | Callable[..., Any]] | None = None,
        deadline: float | None = None,
    ) -> int:
        """Return how many tokens a text has, or messages as a prompt; see :meth:`tokenize`."""
        return len(await self.tokenize(text, tools=tools, deadline=deadline))

    async def detokenize(self, tokens: Sequence[int], *, deadline: float | None = None) -> str:
        """Return the text of ``tokens``, special tokens included.

        Raises:
            InvalidArgument: they are no token ids of this model.
        """
        ids = token_ids("tokens", tokens, empty=True)
        if not ids:
            return ""
        with self._within(deadline):
            incarnation = await self._ready(Context.new(seconds=deadline))
            size = int(incarnation.config.model_config.get_vocab_size())
            if max(ids) >= size:  # vLLM makes nothing of them, without a word
                raise InvalidArgument("tokens", str(max(ids)), f"ids below {size}, the size of the vocabulary")
            told = await self._post("/detokenize", {"tokens": ids}, None)
        return str(told["prompt"])

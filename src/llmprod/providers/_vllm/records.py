"""Options of an engine that come in groups: speculation, parallelism, adapters, structured outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from llmprod._validate import flag, whole
from llmprod.errors import InvalidArgument

__all__ = ["MTP", "DraftModel", "Eagle", "LoRA", "Medusa", "NGram", "Parallel", "Speculative", "StructuredOutputs"]


def _named(field: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise InvalidArgument(field, repr(value)[:60], "the name of a model on Hugging Face, or a folder")


@dataclass(frozen=True, slots=True, kw_only=True)
class NGram:
    """Propose what followed the last words where they came before, in prompt or answer: for texts that repeat.

    Attributes:
        tokens: tokens proposed at a time.
        lookup_max: words compared at most.
        lookup_min: and at least.

    Raises:
        InvalidArgument: naming the field.
    """

    tokens: int = 3
    lookup_max: int = 4
    lookup_min: int = 2

    def __post_init__(self) -> None:
        whole("speculative.tokens", self.tokens, 1)
        whole("speculative.lookup_min", self.lookup_min, 1)
        whole("speculative.lookup_max", self.lookup_max, self.lookup_min)

    def config(self) -> dict[str, Any]:
        """Return vLLM's ``speculative_config``."""
        return {
            "method": "ngram",
            "num_speculative_tokens": self.tokens,
            "prompt_lookup_max": self.lookup_max,
            "prompt_lookup_min": self.lookup_min,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Eagle:
    """Propose with an EAGLE head trained for the model (Li et al. 2024 and 2025).

    Attributes:
        model: the head's checkpoint.
        tokens: tokens proposed at a time.
        version: 1 or 3.
        tensor_parallel: GPUs that the head is split over; None: as the model.

    Raises:
        InvalidArgument: naming the field.
    """

    model: str
    tokens: int = 3
    version: Literal[1, 3] = 3
    tensor_parallel: int | None = None

    def __post_init__(self) -> None:
        _named("speculative.model", self.model)
        whole("speculative.tokens", self.tokens, 1)
        whole("speculative.tensor_parallel", self.tensor_parallel, 1, optional=True)
        if isinstance(self.version, bool) or self.version not in (1, 3):
            raise InvalidArgument("speculative.version", repr(self.version)[:40], "1 or 3")

    def config(self) -> dict[str, Any]:
        """Return vLLM's ``speculative_config``."""
        method = "eagle" if self.version == 1 else "eagle3"
        config = {"method": method, "model": self.model, "num_speculative_tokens": self.tokens}
        return config | ({"draft_tensor_parallel_size": self.tensor_parallel} if self.tensor_parallel else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Medusa:
    """Propose with Medusa heads trained for the model (Cai et al. 2024).

    Attributes:
        model: the heads' checkpoint.
        tokens: tokens proposed at a time.

    Raises:
        InvalidArgument: naming the field.
    """

    model: str
    tokens: int = 3

    def __post_init__(self) -> None:
        _named("speculative.model", self.model)
        whole("speculative.tokens", self.tokens, 1)

    def config(self) -> dict[str, Any]:
        """Return vLLM's ``speculative_config``."""
        return {"method": "medusa", "model": self.model, "num_speculative_tokens": self.tokens}


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModel:
    """Propose with a smaller model of the same vocabulary (Leviathan et al. 2023).

    Attributes:
        model: the smaller model.
        tokens: tokens proposed at a time.
        quantization: as of the engine; None: by its checkpoint.
        max_model_len: tokens that it can read; None: as the model.
        tensor_parallel: GPUs that it is split over; None: as the model.

    Raises:
        InvalidArgument: naming the field.
    """

    model: str
    tokens: int = 4
    quantization: str | None = None
    max_model_len: int | None = None
    tensor_parallel: int | None = None

    def __post_init__(self) -> None:
        _named("speculative.model", self.model)
        whole("speculative.tokens", self.tokens, 1)
        if self.quantization is not None and (not isinstance(self.quantization, str) or not self.quantization.strip()):
            raise InvalidArgument(
                "speculative.quantization", repr(self.quantization)[:40], "a non-empty string, or None"
            )
        whole("speculative.max_model_len", self.max_model_len, 1, optional=True)
        whole("speculative.tensor_parallel", self.tensor_parallel, 1, optional=True)

    def config(self) -> dict[str, Any]:
        """Return vLLM's ``speculative_config``."""
        wanted = {
            "quantization": self.quantization,
            "max_model_len": self.max_model_len,
            "draft_tensor_parallel_size": self.tensor_parallel,
        }
        return {"method": "draft_model", "model": self.model, "num_speculative_tokens": self.tokens} | {
            name: value for name, value in wanted.items() if value is not None
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MTP:
    """Propose with the model's own heads for several tokens, where its checkpoint has them (DeepSeek-V3 and others).

    Attributes:
        tokens: tokens proposed at a time.

    Raises:
        InvalidArgument: naming the field.
    """

    tokens: int = 1

    def __post_init__(self) -> None:
        whole("speculative.tokens", self.tokens, 1)

    def config(self) -> dict[str, Any]:
        """Return vLLM's ``speculative_config``."""
        return {"method": "mtp", "num_speculative_tokens": self.tokens}


Speculative: TypeAlias = NGram | Eagle | Medusa | DraftModel | MTP
"""How tokens are proposed that the model then checks, several at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """How a model is spread over GPUs and machines.

    Attributes:
        tensor: GPUs that each layer is split over.
        pipeline: groups of GPUs that each hold some of the layers.
        data: copies of the model, among which requests are spread.
        expert: spread the experts of a mixture over the GPUs instead of splitting each.
        executor: ``uni`` (one process), ``mp`` (processes of this machine), ``ray`` (several machines); None: vLLM
            chooses.

    Raises:
        InvalidArgument: naming the field.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: bool = False
    executor: Literal["uni", "mp", "ray"] | None = None

    def __post_init__(self) -> None:
        whole("parallel.tensor", self.tensor, 1)
        whole("parallel.pipeline", self.pipeline, 1)
        whole("parallel.data", self.data, 1)
        flag("parallel.expert", self.expert)
        if self.executor not in (None, "uni", "mp", "ray"):
            raise InvalidArgument("parallel.executor", repr(self.executor)[:40], "uni, mp, ray, or None")
        if self.executor == "uni" and self.tensor * self.pipeline > 1:
            given = f"uni with {self.tensor * self.pipeline} GPUs"
            raise InvalidArgument("parallel.executor", given, "mp or ray for more than one GPU")

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.tensor * self.pipeline * self.data


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRA:
    """An adapter that is loaded with the engine.

    Attributes:
        path: its folder, or its name on Hugging Face.

    Raises:
        InvalidArgument: naming the field.
    """

    path: str

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path.strip():
            raise InvalidArgument("loras", repr(self.path)[:60], "a folder, or a name on Hugging Face")


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """How answers are held to a schema, an expression or a grammar.

    Attributes:
        backend: the library that does it; ``auto``: vLLM chooses by the request.
        disable_any_whitespace: allow no padding between JSON's tokens, with which a weak model can fill its answer to
            the end (needs ``xgrammar`` or ``guidance``).
        enable_in_reasoning: hold the reasoning to it as well.

    Raises:
        InvalidArgument: naming the field.
    """

    backend: Literal["auto", "xgrammar", "guidance", "outlines", "lm-format-enforcer"] = "xgrammar"
    disable_any_whitespace: bool = True
    enable_in_reasoning: bool = False

    def __post_init__(self) -> None:
        backends = ("auto", "xgrammar", "guidance", "outlines", "lm-format-enforcer")
        if self.backend not in backends:
            raise InvalidArgument("structured_outputs.backend", repr(self.backend)[:40], ", ".join(backends))
        flag("structured_outputs.disable_any_whitespace", self.disable_any_whitespace)
        flag("structured_outputs.enable_in_reasoning", self.enable_in_reasoning)
        if self.disable_any_whitespace and self.backend not in ("xgrammar", "guidance"):
            given = f"True with {self.backend}"
            raise InvalidArgument("structured_outputs.disable_any_whitespace", given, "xgrammar or guidance for it")

    def config(self) -> dict[str, Any]:
        """Return vLLM's ``structured_outputs_config``."""
        return {
            "backend": self.backend,
            "disable_any_whitespace": self.disable_any_whitespace,
            "enable_in_reasoning": self.enable_in_reasoning,
        }

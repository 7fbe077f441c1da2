"""What vLLM tells after each step, put into the meter's words. Fields of an unstable interface are read with care."""

from __future__ import annotations

from typing import Any

from llmprod.mechanisms.engine_meter import EngineMeter, EngineStep, FinishedCall
from llmprod.providers._vllm.compat import VLLMModules

__all__ = ["request_of", "step_logger"]


def request_of(name: str) -> str:
    """Return our id within vLLM's name of a request: ``chatcmpl-<id>-<its own suffix>``."""
    pieces = name.split("-")
    return pieces[1] if len(pieces) > 1 else name


def step_logger(modules: VLLMModules, meter: EngineMeter) -> type[Any]:
    """Return a stat logger class for one engine.

    vLLM's own loggers keep their numbers in a registry of the process, from which a second engine removes the first.
    """

    class StepLogger(modules.StatLoggerBase):  # type: ignore[name-defined, misc]
        def __init__(self, vllm_config: Any = None, engine_index: int = 0) -> None:
            self._engine = engine_index

        def record(
            self,
            scheduler_stats: Any = None,
            iteration_stats: Any = None,
            mm_cache_stats: Any = None,
            engine_idx: int = 0,
            **_: Any,
        ) -> None:
            meter.step(_step(scheduler_stats, iteration_stats), engine_idx or self._engine)

        def log_engine_initialized(self) -> None:
            """Nothing to log."""

    return StepLogger


def _step(scheduler: Any, iteration: Any) -> EngineStep:
    values: dict[str, Any] = {}
    if scheduler is not None:
        values["running"] = getattr(scheduler, "num_running_reqs", 0)
        values["waiting"] = getattr(scheduler, "num_waiting_reqs", 0)
        values["kv_cache_use"] = getattr(scheduler, "kv_cache_usage", 0.0)
        prefix = getattr(scheduler, "prefix_cache_stats", None)
        if prefix is not None:
            values["prefix_queries"], values["prefix_hits"] = prefix.queries, prefix.hits
        speculated = getattr(scheduler, "spec_decoding_stats", None)
        if speculated is not None:
            values["draft_tokens"] = speculated.num_draft_tokens
            values["accepted_tokens"] = speculated.num_accepted_tokens
    if iteration is not None:
        values["generated_tokens"] = getattr(iteration, "num_generation_tokens", 0)
        values["preemptions"] = getattr(iteration, "num_preempted_reqs", 0)
        values["prompt_tokens"] = _computed(iteration)
        firsts = tuple(getattr(iteration, "time_to_first_tokens_iter", ()))
        at = getattr(iteration, "iteration_timestamp", None)  # both are counted from a request's arrival to here
        values["first_token_seconds"] = firsts
        if at is not None:
            values["first_arrived"] = tuple(at - seconds for seconds in firsts)
        values["between_tokens_seconds"] = tuple(getattr(iteration, "inter_token_latencies_iter", ()))
        finished = getattr(iteration, "finished_requests", ())
        if finished:
            values["finished"] = tuple(_finished(call, at) for call in finished)
    return EngineStep(**values)


def _computed(iteration: Any) -> int:
    """Return the prompt tokens that the step computed, less what the prefix cache had."""
    told = getattr(iteration, "prompt_token_stats", None)
    computed = getattr(told, "computed", None)
    if isinstance(computed, int):
        return computed
    return int(getattr(iteration, "num_prompt_tokens", 0))


def _finished(call: Any, at: float | None) -> FinishedCall:
    return FinishedCall(
        request=request_of(getattr(call, "request_id", None) or ""),
        queue=getattr(call, "queued_time", 0.0),
        prefill=getattr(call, "prefill_time", 0.0),
        decode=getattr(call, "decode_time", 0.0),
        prompt_tokens=max(0, getattr(call, "num_prompt_tokens", 0) - getattr(call, "num_cached_tokens", 0)),
        generated_tokens=getattr(call, "num_generation_tokens", 0),
        arrived=None if at is None else at - getattr(call, "e2e_latency", 0.0),
        preempted=getattr(call, "num_preemptions", 0),
    )

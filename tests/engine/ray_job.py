"""A Ray job of one machine: the same rows through Ray Data's own LLM processor and through our client in actors.

usage: ray_job.py MODEL    prints the answers as one line of JSON
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.data.llm import build_processor, vLLMEngineProcessorConfig

from llmprod import VLLM, Client, EngineOptions

ROWS = 16
TOO_LONG = 7  # the row whose question has no room
OPTIONS: dict[str, Any] = {"max_model_len": 1024, "enforce_eager": True, "kv_cache_gib": 1}


def question(number: int) -> str:
    return f"Count to {number}."


def by_rays_processor(data: Dataset, model: str) -> Dataset:
    """Let Ray host vLLM's engine, with what our options make of it."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    options = EngineOptions(model, **OPTIONS)
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)} - {"model"}  # no options of `vllm serve`
    config = vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs={name: value for name, value in options.arguments().items() if name in known}
        | {"distributed_executor_backend": "mp"},
        runtime_env={"env_vars": options.cpu_environment()},
        accelerator_type=None,
        placement_group_config={"bundles": [{"CPU": 1}]},
        log_engine_metrics=False,  # they need Ray Serve
        tokenize_stage=False,  # vLLM does both; Ray would end a text with U+FFFD where it is cut within a character
        detokenize_stage=False,
        concurrency=1,
        batch_size=ROWS,
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "id": row["id"],
            "messages": [{"role": "user", "content": question(row["id"])}],
            "sampling_params": {"temperature": 0, "max_tokens": 8},
        },
        postprocess=lambda row: {"id": row["id"], "text": row["generated_text"]},
    )
    return processor(data)


class Generate:
    """One engine for each actor, behind a client's whole stack."""

    def __init__(self, model: str) -> None:
        self.client = Client(VLLM(model, progress=False, **OPTIONS))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        questions = [question(int(number)) * (500 if number == TOO_LONG else 1) for number in batch["id"]]
        results = list(self.client.map(questions, max_tokens=8, temperature=0))
        return {
            "id": batch["id"],
            "text": [result.text for result in results],
            "error": [type(result.error).__name__ if result.error else "" for result in results],
        }


def by_our_client(data: Dataset, model: str) -> Dataset:
    return data.map_batches(
        Generate, fn_constructor_args=(model,), compute=ActorPoolStrategy(size=1), batch_size=ROWS // 2, num_cpus=1
    )


def main(model: str) -> None:
    # Logical ones: each stage of Ray's processor wants one, and with too few they wait for each other for ever.
    ray.init(num_cpus=8, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    DataContext.get_current().enable_progress_bars = False
    found: dict[str, Any] = {"questions": [question(number) for number in range(ROWS)], "too_long": TOO_LONG}
    for name, way in (("ray", by_rays_processor), ("ours", by_our_client)):
        rows = way(ray.data.range(ROWS), model).take_all()
        found[name] = sorted(rows, key=lambda row: row["id"])
    print(json.dumps(found, default=int))


if __name__ == "__main__":
    main(sys.argv[1])

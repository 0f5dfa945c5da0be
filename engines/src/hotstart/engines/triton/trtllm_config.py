"""config.pbtxt of the model ``tensorrt_llm``: TensorRT-LLM's C++ backend, with every parameter that we set. Pure.

Never run by us on a GPU: golden files hold it to what was read of version 1.2.1. What the backend finds no value for it
takes a default for, except three names that it demands although they may be empty (``DEMANDED``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from hotstart.engines.triton.trtllm_tensors import INPUTS, OUTPUTS, Tensor

TRTLLM_MODEL = "tensorrt_llm"
BACKEND = "tensorrtllm"
#: Of guided decoding: without them the backend fails to load with "Cannot find parameter with name".
DEMANDED = ("tokenizer_dir", "xgrammar_tokenizer_info_path", "guided_decoding_backend")
#: Milliseconds; Triton's own edges (100, 500, 2000, 5000) cannot resolve an SLO of 250 ms.
LATENCY_EDGES = (25, 50, 100, 150, 200, 250, 300, 400, 500, 750, 1000, 2000, 5000)
FIRST_RESPONSE = "nv_inference_first_response_histogram_ms"


class SchedulerPolicy(StrEnum):
    """What the batch scheduler promises a sequence that has begun."""

    GUARANTEED_NO_EVICT = "guaranteed_no_evict"  # it gets all KV cache that it may need, and is never paused
    MAX_UTILIZATION = "max_utilization"  # more sequences at once; one may be paused and begun anew


@dataclass(frozen=True)
class EngineBuild:
    """What config.json beside the engine, as trtllm-build writes it, says that serving depends on."""

    batch_size: int
    tensor_parallel: int
    alibi: bool


def read_build(folder: Path) -> EngineBuild:
    """The build of the engine in ``folder``.

    Raises:
        OSError, ValueError, KeyError: config.json is missing, or not what trtllm-build writes.
    """
    value: Mapping[str, Any] = json.loads((folder / "config.json").read_text())
    pretrained = value["pretrained_config"]
    return EngineBuild(
        batch_size=int(value["build_config"]["max_batch_size"]),
        tensor_parallel=int(pretrained["mapping"]["tp_size"]),
        alibi=str(pretrained["position_embedding_type"]).startswith("alibi"),
    )


@dataclass(frozen=True)
class Parameters:
    """Parameters of the backend by their own names; None leaves one out, and the backend to its default.

    gpt_model_path                 folder of the engine: config.json and rank{N}.engine
    gpt_model_type                 the only kind of batching that streams and cancels
    batch_scheduler_policy         no pauses: a paused completion misses its SLO
    kv_cache_free_gpu_mem_fraction share of the memory that is free after the load; 0.9 as the backend's own
    max_tokens_in_paged_kv_cache   bound in tokens beside that share; the lesser holds. None: the share alone
    enable_kv_cache_reuse          blocks of a common prompt's beginning are kept. With ALiBi nobody has verified it
    enable_chunked_context         long prompts are read in pieces between other sequences' tokens; the same
    max_beam_width                 1: completions are sampled or greedy
    exclude_input_in_output        responses hold new tokens only
    multi_block_mode               one sequence on several blocks: faster with long inputs and few sequences
    cuda_graph_mode                off as the backend's own; its gain for this use has not been measured
    cuda_graph_cache_size          graphs kept where they are on
    decoding_mode                  sampling by top k and top p; said, because the backend warns where it guesses
    gpu_device_ids                 the pod's devices, one a rank
    cancellation_check_period_ms   how often the backend looks for clients that left; ``stop`` ends one at once
    stats_check_period_ms          how often its metrics are renewed
    executor_worker_path           the program of the ranks in orchestrator mode, which we do not use
    """

    gpt_model_path: str
    gpt_model_type: str = "inflight_fused_batching"
    batch_scheduler_policy: SchedulerPolicy = SchedulerPolicy.GUARANTEED_NO_EVICT
    kv_cache_free_gpu_mem_fraction: float = 0.9
    max_tokens_in_paged_kv_cache: int | None = None
    enable_kv_cache_reuse: bool = False
    enable_chunked_context: bool = False
    max_beam_width: int = 1
    exclude_input_in_output: bool = True
    multi_block_mode: bool = True
    cuda_graph_mode: bool = False
    cuda_graph_cache_size: int = 0
    decoding_mode: str = "top_k_top_p"
    gpu_device_ids: tuple[int, ...] = (0,)
    cancellation_check_period_ms: int = 20
    stats_check_period_ms: int = 100
    executor_worker_path: str = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"

    def to_strings(self) -> dict[str, str]:
        """Name -> text as the backend parses it."""
        said = {name: _text(value) for name, value in vars(self).items() if value is not None}
        return {**said, **dict.fromkeys(DEMANDED, ""), "FORCE_CPU_ONLY_INPUT_TENSORS": "no"}


def make_engine_parameters(build: EngineBuild, folder: Path) -> Parameters:
    """The parameters for an engine: those of this class but for what its network and its ranks decide."""
    return Parameters(
        gpt_model_path=str(folder),
        enable_kv_cache_reuse=not build.alibi,
        enable_chunked_context=not build.alibi,
        gpu_device_ids=tuple(range(build.tensor_parallel)),
    )


def make_trtllm_config(build: EngineBuild, folder: Path, *, histograms: bool) -> str:
    """The text of config.pbtxt. ``histograms``: for a Triton that knows ``model_metrics`` (newer than 2.51)."""
    parameters = make_engine_parameters(build, folder).to_strings()
    return "\n".join(
        (
            f'name: "{TRTLLM_MODEL}"',
            f'backend: "{BACKEND}"',
            f"max_batch_size: {build.batch_size}",
            "model_transaction_policy { decoupled: true }",
            "dynamic_batching {",
            f"  preferred_batch_size: [ {build.batch_size} ]",
            "  max_queue_delay_microseconds: 0",
            "  default_queue_policy { max_queue_size: 0 }",
            "}",
            *_tensors("input", INPUTS),
            *_tensors("output", OUTPUTS),
            "instance_group [ { kind: KIND_CPU count: 1 } ]",
            *(parameter(name, value) for name, value in sorted(parameters.items())),
            *(make_model_metrics() if histograms else ()),
            "",
        )
    )


def parameter(name: str, value: str) -> str:
    """One parameter in protobuf's text format."""
    return f"parameters {{ key: {quote(name)} value {{ string_value: {quote(value)} }} }}"


def quote(text: str) -> str:
    """``text`` as a string of protobuf's text format."""
    return json.dumps(text, ensure_ascii=True)


def make_model_metrics() -> tuple[str, ...]:
    """The histogram of first responses with edges of our own."""
    edges = ", ".join(str(edge) for edge in LATENCY_EDGES)
    return (
        "model_metrics {",
        "  metric_control: [ {",
        f'    metric_identifier: {{ family: "{FIRST_RESPONSE}" }}',
        f"    histogram_options: {{ buckets: [ {edges} ] }}",
        "  } ]",
        "}",
    )


def _tensors(kind: str, tensors: tuple[Tensor, ...]) -> tuple[str, ...]:
    lines = [f"  {{ {_fields(tensor, is_input=kind == 'input')} }}" for tensor in tensors]
    return (f"{kind} [", ",\n".join(lines), "]")


def _fields(tensor: Tensor, *, is_input: bool) -> str:
    dims = ", ".join(str(dim) for dim in tensor.dims)
    fields = [f'name: "{tensor.name}"', f"data_type: {tensor.data_type}", f"dims: [ {dims} ]"]
    if is_input:
        fields += ["reshape: { shape: [ ] }"] if tensor.scalar else []
        fields += ["allow_ragged_batch: true"] if tensor.ragged else []
        fields += ["optional: true"] if tensor.optional else []
    return " ".join(fields)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return str(value)

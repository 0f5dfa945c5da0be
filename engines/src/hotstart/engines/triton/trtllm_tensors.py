"""The tensors of TensorRT-LLM's C++ backend for Triton, version 1.2.1, as far as a decoder of text has them. Pure.

Names, types and shapes are those that the backend reads and writes (its ``utils.h``); a tensor that it sends and the
configuration lacks is an error to Triton, so that all it may send for one sequence stand here. Shapes are without the
batch's dimension: a request carries ``[1, *dims]``. A scalar is ``[1, 1]`` on the wire, one of a vector in the backend.
"""

from __future__ import annotations

from dataclasses import dataclass

INT32, INT64, UINT64, FP32, BOOL = "TYPE_INT32", "TYPE_INT64", "TYPE_UINT64", "TYPE_FP32", "TYPE_BOOL"

INPUT_IDS = "input_ids"
INPUT_LENGTHS = "input_lengths"
OUTPUT_LENGTH = "request_output_len"
END_ID = "end_id"
PAD_ID = "pad_id"
TOP_K = "runtime_top_k"
TOP_P = "runtime_top_p"
TEMPERATURE = "temperature"
SEED = "seed"
STREAMING = "streaming"
STOP = "stop"
PERF_METRICS = "return_perf_metrics"
OUTPUT_IDS = "output_ids"
SEQUENCE_LENGTH = "sequence_length"
ARRIVAL = "arrival_time_ns"
FIRST_SCHEDULED = "first_scheduled_time_ns"
REUSED_BLOCKS = "kv_cache_reused_blocks"


@dataclass(frozen=True)
class Tensor:
    """One tensor of config.pbtxt. ``ragged``: requests of different lengths go into one batch unpadded."""

    name: str
    data_type: str
    dims: tuple[int, ...] = (1,)
    optional: bool = True
    ragged: bool = False

    @property
    def scalar(self) -> bool:
        """One value for each sequence."""
        return self.dims == (1,)


def _many(data_type: str, *names: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, data_type) for name in names)


INPUTS: tuple[Tensor, ...] = (
    Tensor(INPUT_IDS, INT32, (-1,), ragged=True),
    Tensor(INPUT_LENGTHS, INT32, optional=False),
    Tensor(OUTPUT_LENGTH, INT32, optional=False),
    *_many(INT32, END_ID, PAD_ID),
    Tensor("stop_words_list", INT32, (2, -1), ragged=True),
    Tensor("bad_words_list", INT32, (2, -1), ragged=True),
    *_many(INT32, "beam_width", TOP_K),
    *_many(FP32, TOP_P, TEMPERATURE, "repetition_penalty", "presence_penalty", "frequency_penalty", "len_penalty"),
    *_many(INT32, "min_tokens"),
    *_many(UINT64, SEED),
    *_many(BOOL, "return_log_probs", "return_context_logits", "return_generation_logits", PERF_METRICS),
    *_many(BOOL, "exclude_input_in_output", STOP, STREAMING),
)
OUTPUTS: tuple[Tensor, ...] = (
    Tensor(OUTPUT_IDS, INT32, (-1, -1)),  # [beams, tokens]; streaming: the tokens since the last response
    Tensor(SEQUENCE_LENGTH, INT32, (-1,)),  # [beams]: how many of them
    Tensor("cum_log_probs", FP32, (-1,)),
    Tensor("output_log_probs", FP32, (-1, -1)),
    Tensor("context_logits", FP32, (-1, -1)),
    Tensor("generation_logits", FP32, (-1, -1, -1)),
    *_many(INT32, "batch_index", "sequence_index"),
    *_many(INT32, "kv_cache_alloc_new_blocks", REUSED_BLOCKS, "kv_cache_alloc_total_blocks"),
    *_many(INT64, ARRIVAL, FIRST_SCHEDULED, "first_token_time_ns", "last_token_time_ns"),
    *_many(FP32, "acceptance_rate"),
    *_many(INT32, "total_accepted_draft_tokens", "total_draft_tokens"),
)

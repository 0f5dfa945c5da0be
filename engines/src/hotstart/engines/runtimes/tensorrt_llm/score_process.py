"""The process that loads a TensorRT-LLM engine to ask it for tokens: ``python3 -m ...score_process FOLDER``.

A process of its own, because a load that goes wrong takes its process with it, and because only its end gives the GPU's
memory back. It speaks JSON lines: in ``{"ids": [...], "positions": [...]}``, out ``{"tokens": [...]}`` or
``{"error": "..."}``, the first of them ``{"ready": true}``. Libraries print to standard output as they like, so the
answers go to the file descriptor that it had at the start, and standard output becomes standard error.

``tensorrt_llm``'s LLM class (1.2.1, ``tensorrt_llm._tensorrt_engine``) starts one worker for each rank by itself.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import IO, Any

#: Of the GPU's free memory: the builder may have measured before, and 200 short prompts need little.
KV_CACHE_SHARE = 0.3
NO_END = -1  # no token ends a prompt's one-token answer


def main() -> None:
    """Answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        engine, sampling = load(sys.argv[1])
    except Exception as error:  # noqa: BLE001 - the process's edge: every failure becomes an answer
        say(answers, {"error": f"the engine cannot be loaded: {type(error).__name__}: {error}"})
        return
    say(answers, {"ready": True})
    for line in sys.stdin:
        question = json.loads(line)
        try:
            say(answers, {"tokens": ask(engine, sampling, question["ids"], question["positions"])})
        except Exception as error:  # noqa: BLE001 - as above
            say(answers, {"error": f"the engine cannot be run: {type(error).__name__}: {error}"})


def load(folder: str) -> tuple[Any, Any]:
    """The engine, and parameters for one token, the most likely one."""
    from tensorrt_llm import SamplingParams
    from tensorrt_llm._tensorrt_engine import LLM
    from tensorrt_llm.llmapi import KvCacheConfig

    cache = KvCacheConfig(free_gpu_memory_fraction=KV_CACHE_SHARE, enable_block_reuse=False)
    engine = LLM(model=folder, skip_tokenizer_init=True, kv_cache_config=cache)
    return engine, SamplingParams(max_tokens=1, top_k=1, end_id=NO_END, pad_id=0, detokenize=False)


def ask(engine: Any, sampling: Any, ids: Sequence[int], positions: Sequence[int]) -> list[int]:
    """The most likely token after each ``ids[:position + 1]``."""
    prompts = [{"prompt_token_ids": list(ids[: position + 1])} for position in positions]
    outputs = engine.generate(prompts, sampling_params=sampling, use_tqdm=False)
    return [int(output.outputs[0].token_ids[0]) for output in outputs]


def say(answers: IO[str], value: dict[str, Any]) -> None:
    """One answer."""
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()

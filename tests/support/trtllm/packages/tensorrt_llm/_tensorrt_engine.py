"""See the package. The answers are those of the checkpoint ``OMPI_FAKE_CHECKPOINT`` by the reference network."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.reference.opening import make_reference


class LLM:
    """One engine."""

    def __init__(self, *, model: str, skip_tokenizer_init: bool, kv_cache_config: Any) -> None:
        print("[TensorRT-LLM] a line on standard output, which is no answer")
        if os.environ.get("OMPI_FAKE_LLM") == "broken":
            raise RuntimeError("Failed to deserialize cuda engine")
        if os.environ.get("OMPI_FAKE_LLM") == "dies":
            print("CUDA runtime error in cudaMallocAsync(ptr, n, stream): out of memory", file=sys.stderr, flush=True)
            os._exit(134)
        assert skip_tokenizer_init and (Path(model) / "rank0.engine").is_file()
        self._reference = make_reference(SafetensorsFolder(Path(os.environ["OMPI_FAKE_CHECKPOINT"])))
        self._wrong = int(os.environ.get("OMPI_FAKE_LLM") == "wrong")

    def generate(self, prompts: list[dict[str, list[int]]], *, sampling_params: Any, use_tqdm: bool) -> list[Any]:
        """One token for each prompt."""
        assert sampling_params.max_tokens == sampling_params.top_k == 1
        return [self._answer(prompt["prompt_token_ids"]) for prompt in prompts]

    def _answer(self, ids: list[int]) -> Any:
        token = int(self._reference.logits(ids, [len(ids) - 1])[-1].argmax()) + self._wrong
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=[token])])

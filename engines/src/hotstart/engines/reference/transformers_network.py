"""The reference of networks that only upstream converters know: transformers' own, in float32 on the CPU.

torch and transformers are in the image with TensorRT-LLM and in no other. Weights stay mapped in their 16 bits; each
module's are widened to float32 (exactly) while it computes and narrowed again, so that the peak of memory is the
checkpoint's size and one module. No code of the checkpoint is run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from hotstart.engines.checkpoints.checkpoint import Array
from hotstart.engines.errors import Reason, Terminal

log = logging.getLogger(__name__)
#: Loaded in float32 as a whole, at twice the checkpoint's size: these compute rotary angles in the type that they are
#: loaded in, and 16 bits are too few for angles.
WHOLE = frozenset({"GPTJForCausalLM"})


class TransformersReference:
    """Implements ``Reference`` for a Hugging Face folder; its weights are opened with the first text."""

    name = "transformers"

    def __init__(self, folder: Path, architecture: str) -> None:
        require_transformers(architecture)
        self._folder = folder
        self._architecture = architecture
        self._network: Any = None

    def logits(self, ids: Sequence[int], positions: Sequence[int] | None = None) -> Array:
        import torch

        self._network = self._network or open_network(self._folder, self._architecture)
        if not ids or min(ids) < 0 or max(ids) >= self._network.config.vocab_size:
            raise ValueError(f"tokens must be 0 to {self._network.config.vocab_size - 1}, and there must be one")
        with torch.inference_mode():
            rows: Array = self._network(torch.tensor([list(ids)]), use_cache=False).logits[0].numpy()
        logits: Array = rows if positions is None else rows[list(positions)]
        if not np.isfinite(logits).all():
            raise Terminal(
                Reason.CHECKPOINT_CORRUPT,
                f"The {self._architecture} computes NaN or Inf for a piece of code: weights are not finite or the file "
                "is damaged; use another state of the checkpoint.",
            )
        return logits

    def logits_of_all(
        self, texts: Sequence[Sequence[int]], positions: Sequence[Sequence[int]] | None = None
    ) -> list[Array]:
        wanted = [None] * len(texts) if positions is None else positions
        return [self.logits(ids, rows) for ids, rows in zip(texts, wanted, strict=True)]


def require_transformers(architecture: str) -> None:
    """Raises Terminal (UnsupportedArchitecture) where this image lacks torch or transformers."""
    lacking = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if lacking:
        raise Terminal(
            Reason.UNSUPPORTED_ARCHITECTURE,
            f"What {architecture} should compute is computed with transformers, and this image lacks "
            f"{' and '.join(lacking)}: use the builder image of tensorrt_llm.",
        )


def open_network(folder: Path, architecture: str) -> Any:
    """transformers' network with the weights in ``folder``, ready to compute in float32.

    Raises:
        Terminal: CheckpointCorrupt, transformers does not load it.
    """
    import torch
    import transformers

    whole = architecture in WHOLE
    try:
        network = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder),
            torch_dtype=torch.float32 if whole else "auto",
            attn_implementation="eager",
            local_files_only=True,
            low_cpu_mem_usage=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise Terminal(
            Reason.CHECKPOINT_CORRUPT,
            f"transformers {transformers.__version__} does not load the {architecture}: {error}",
        ) from error
    if not whole:
        widen_while_computing(network, torch.float32)
    log.info("network opened architecture=%s transformers=%s whole=%s", architecture, transformers.__version__, whole)
    return network.eval()


def widen_while_computing(network: Any, dtype: Any) -> None:
    """Each module's own weights are of ``dtype`` while it computes, and of their own type before and after."""
    for module in network.modules():
        own = [parameter for parameter in module.parameters(recurse=False) if parameter.is_floating_point()]
        if own:
            stored = [parameter.dtype for parameter in own]

            def widen(_: Any, __: Any, own: list[Any] = own) -> None:
                for parameter in own:
                    parameter.data = parameter.data.to(dtype)

            def narrow(_: Any, __: Any, ___: Any, own: list[Any] = own, stored: list[Any] = stored) -> None:
                for parameter, kind in zip(own, stored, strict=True):
                    parameter.data = parameter.data.to(kind)

            module.register_forward_pre_hook(widen)
            module.register_forward_hook(narrow)

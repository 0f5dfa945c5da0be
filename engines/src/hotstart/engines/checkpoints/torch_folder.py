"""A Hugging Face checkpoint whose weights are PyTorch files: pytorch_model.bin, shards with an index, one .pt file.

A pickle may hold code. ``torch.load(weights_only=True)`` builds tensors and nothing else, and refuses the rest by name.
Files are mapped and tensors copied one at a time. torch is loaded only here: it weighs more than all of Hotstart, and
of the images only those of TensorRT-LLM have it.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hotstart.engines.checkpoints.checkpoint import Array, Facts, Shape, StoredTensor, decode
from hotstart.engines.checkpoints.choose import TORCH, TORCH_INDEX
from hotstart.engines.checkpoints.facts import make_checkpoint_facts
from hotstart.engines.checkpoints.small_files import read_json, read_texts, refuse_pointer
from hotstart.engines.checkpoints.upstream_config import count_upstream
from hotstart.engines.errors import Reason, Terminal

#: Names of the types that are read, as in safetensors.
DTYPES = {"torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}
#: Where training frameworks put the weights of a checkpoint that holds more than them.
NESTED = ("state_dict", "model", "module")
_GLOBAL = re.compile(r"GLOBAL (\S+)")


class TorchFolder:
    """Implements ``Checkpoint``. Weight files may be sparse (see ``download``) as long as no tensor is read."""

    format = "torch"

    def __init__(self, folder: Path, files: tuple[str, ...]) -> None:
        """``files`` are those that were chosen; with an index only the shards that it names are read."""
        self._folder = folder
        self._files = _weight_files(folder, files)
        require_torch(self._files[0])
        facts = make_checkpoint_facts(read_json(folder, "config.json"))
        texts = read_texts(folder, facts.vocab)
        self.tokenizer_json, self.eos_ids, self.bos_id = texts.tokenizer_json, texts.eos_ids, texts.bos_id
        self._tensors: dict[str, Any] | None = None
        there = all((folder / name).exists() for name in self._files)
        self.facts: Facts = count_upstream(facts, self.shapes) if there else facts

    def shapes(self) -> dict[str, Shape]:
        return {name: tuple(tensor.shape) for name, tensor in self._load().items()}

    def stored(self, name: str) -> StoredTensor:
        import torch

        found = self._load()[name].detach()
        if found.dtype == torch.bfloat16:  # numpy has none
            return StoredTensor("BF16", found.contiguous().view(torch.uint16).numpy())
        return StoredTensor(DTYPES[str(found.dtype)], found.numpy())

    def tensor(self, name: str) -> Array:
        return decode(self.stored(name))

    def _load(self) -> dict[str, Any]:
        if self._tensors is None:
            self._tensors = {}
            for name in self._files:
                self._tensors |= load_tensors(self._folder / name)
        return self._tensors


def require_torch(name: str) -> None:
    """Raises Terminal (UnsupportedRecipe) where this image lacks torch; ``name`` is the file that needs it."""
    if find_spec("torch") is None:
        raise Terminal(
            Reason.UNSUPPORTED_RECIPE,
            f"{name} is read with PyTorch, which this image lacks; the builder image of the runtime tensorrt_llm "
            "(hotstart/builder-trtllm) has it. Save the checkpoint as safetensors, or set engine.runtime.",
        )


def load_tensors(path: Path) -> dict[str, Any]:
    """The floating-point tensors of one file by name, mapped and not read.

    Raises:
        Terminal: CheckpointCorrupt, the file is damaged, of the old format, or needs code to be loaded;
            UnsupportedArchitecture, a tensor is sparse or quantized.
    """
    import torch

    refuse_pointer(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from error
    except (RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError, OSError) as error:
        raise _damaged(path, error) from error
    weights = _find_weights(loaded, path)
    for name, tensor in weights.items():
        known = str(tensor.dtype) in DTYPES or not tensor.dtype.is_floating_point
        if tensor.layout is not torch.strided or tensor.is_quantized or not known:
            raise Terminal(
                Reason.UNSUPPORTED_ARCHITECTURE,
                f"{path.name}: the tensor {name} is sparse or quantized ({tensor.dtype}): upload plain weights.",
            )
    return {name: tensor for name, tensor in weights.items() if tensor.dtype.is_floating_point}


def _find_weights(loaded: Any, path: Path) -> dict[str, Any]:
    import torch

    nested = next((loaded[key] for key in NESTED if isinstance(loaded, Mapping) and key in loaded), None)
    found = nested if isinstance(nested, Mapping) else loaded
    weights = {str(k): v for k, v in found.items() if isinstance(v, torch.Tensor)} if isinstance(found, Mapping) else {}
    if not weights:
        raise Terminal(
            Reason.CHECKPOINT_CORRUPT,
            f"{path.name} holds no weights by name (a state_dict): save model.state_dict(), or as safetensors.",
        )
    return weights


def _weight_files(folder: Path, files: tuple[str, ...]) -> tuple[str, ...]:
    index = read_json(folder, TORCH_INDEX) if TORCH_INDEX in files else {}
    shards = {str(shard) for shard in index.get("weight_map", {}).values()}
    return tuple(sorted(shards or (name for name in files if name.endswith(TORCH))))


def _refused(path: Path, error: pickle.UnpicklingError) -> Terminal:
    text = str(error)
    if "Weights only load failed" not in text:
        return _damaged(path, error)
    found = _GLOBAL.search(text)
    what = f"the code {found[1].rstrip('.,')}" if found else "code"
    return Terminal(
        Reason.CHECKPOINT_CORRUPT,
        f"{path.name} needs {what} to be loaded, and nothing of a checkpoint is ever executed: save the weights alone "
        "(model.state_dict()), or as safetensors.",
    )


def _damaged(path: Path, error: Exception) -> Terminal:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "mmap can only be used with files saved with" in text:
        what = "is no PyTorch file, or of the format before 1.6, which is not read: save it again, or as safetensors"
    else:
        what = f"is cut short or no PyTorch file ({text}): upload it again"
    return Terminal(Reason.CHECKPOINT_CORRUPT, f"{path.name} {what}.")

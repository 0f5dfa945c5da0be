"""A Hugging Face checkpoint whose weights are PyTorch files: pytorch_model.bin, shards with an index, one .pt file.

Names and shapes come from the files' heads (``torch_head``). Weights are read with ``torch.load``, weights only, which
maps the file; tensors are copied one at a time. torch is loaded only for that: it weighs more than all of Hotstart, and
of the images only those of TensorRT-LLM have it.
"""

from __future__ import annotations

import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hotstart.engines.checkpoints.checkpoint import Array, Facts, Shape, StoredTensor, decode
from hotstart.engines.checkpoints.choose import TORCH, TORCH_INDEX
from hotstart.engines.checkpoints.facts import make_checkpoint_facts
from hotstart.engines.checkpoints.small_files import read_json, read_texts, refuse_pointer
from hotstart.engines.checkpoints.torch_head import TorchTensor, find_weights, make_damaged, read_torch_head
from hotstart.engines.checkpoints.upstream_config import count_upstream
from hotstart.engines.errors import Reason, Terminal


class TorchFolder:
    """Implements ``Checkpoint``. Weight files may be sparse (see ``download``) as long as no tensor is read."""

    format = "torch"

    def __init__(self, folder: Path, files: tuple[str, ...]) -> None:
        """``files`` are those that were chosen; with an index only the shards that it names are read."""
        self.folder = folder
        self._paths = _weight_files(folder, files)
        facts = make_checkpoint_facts(read_json(folder, "config.json"))
        texts = read_texts(folder, facts.vocab)
        self.tokenizer_json, self.eos_ids, self.bos_id = texts.tokenizer_json, texts.eos_ids, texts.bos_id
        self._heads: dict[str, TorchTensor] | None = None
        self._tensors: dict[str, Any] | None = None
        self.facts: Facts = count_upstream(facts, self.shapes) if all(p.exists() for p in self._paths) else facts

    def shapes(self) -> dict[str, Shape]:
        if self._heads is None:
            self._heads = {}
            for path in self._paths:
                refuse_pointer(path)
                self._heads |= read_torch_head(path)
        return {name: tensor.shape for name, tensor in self._heads.items()}

    def check_plain(self) -> None:
        """Raises Terminal (UnsupportedArchitecture) where a file holds more than weights by name."""
        for path in self._paths:
            read_torch_head(path, nested=False)

    def stored(self, name: str) -> StoredTensor:
        shapes = self.shapes()  # refuses first what must not be loaded
        if self._tensors is None:
            self._tensors = {}
            for path in self._paths:
                self._tensors |= load_tensors(path)
        if name not in shapes:
            raise KeyError(name)
        return _as_stored(self._tensors[name])

    def tensor(self, name: str) -> Array:
        return decode(self.stored(name))


def require_torch(name: str) -> None:
    """Raises Terminal (UnsupportedRecipe) where this image lacks torch; ``name`` is the file that needs it."""
    if find_spec("torch") is None:
        raise Terminal(
            Reason.UNSUPPORTED_RECIPE,
            f"{name} is read with PyTorch, which this image lacks; the builder image of the runtime tensorrt_llm "
            "(image.builderTrtllm of the chart) has it. Save the checkpoint as safetensors, or set engine.runtime.",
        )


def load_tensors(path: Path) -> dict[str, Any]:
    """The tensors of one file by name, mapped and not read.

    Raises:
        Terminal: CheckpointCorrupt, the file is damaged; UnsupportedRecipe, this image lacks torch.
    """
    require_torch(path.name)
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, TypeError, OSError) as error:
        raise make_damaged(path, str(error)) from error
    return find_weights(loaded, torch.Tensor, path)


def _as_stored(tensor: Any) -> StoredTensor:
    import torch

    names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    plain = tensor.detach()
    if plain.dtype is torch.bfloat16:  # numpy has none
        return StoredTensor("BF16", plain.contiguous().view(torch.uint16).numpy())
    return StoredTensor(names[plain.dtype], plain.numpy())


def _weight_files(folder: Path, files: tuple[str, ...]) -> tuple[Path, ...]:
    index = read_json(folder, TORCH_INDEX) if TORCH_INDEX in files else {}
    shards = {str(shard) for shard in index.get("weight_map", {}).values()}
    return tuple(folder / name for name in sorted(shards or (name for name in files if name.endswith(TORCH))))

"""The tiny checkpoints in PyTorch's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

INDEX = "pytorch_model.bin.index.json"


def to_torch(weights: dict[str, npt.NDArray[np.float32]], dtype: str = "float32") -> dict[str, Any]:
    """The weights as tensors."""
    return {name: torch.from_numpy(value.copy()).to(getattr(torch, dtype)) for name, value in weights.items()}


def write_torch_weights(
    folder: Path, weights: dict[str, npt.NDArray[np.float32]], *, dtype: str = "float32", shards: int = 1
) -> Path:
    """Puts PyTorch files in the place of a checkpoint's safetensors."""
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    tensors = to_torch(weights, dtype)
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder
    names = sorted(tensors)
    files = [f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin" for i in range(shards)]
    for i, file in enumerate(files):
        torch.save({name: tensors[name] for name in names[i::shards]}, folder / file)
    index = {"metadata": {}, "weight_map": {name: files[i % shards] for i, name in enumerate(names)}}
    (folder / INDEX).write_text(json.dumps(index))
    return folder

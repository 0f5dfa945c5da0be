"""The head of a PyTorch file: which tensors it holds, of which type and shape. Without torch, and without running code.

A file of ``torch.save`` is a ZIP archive: ``data.pkl`` describes the objects, ``data/KEY`` holds the bytes of each
storage (https://pytorch.org/docs/stable/notes/serialization.html). Here the pickle may name the few constructors of
plain tensors, which are replaced by records, and nothing else. So an inspection needs no image with torch, and finds at
once a pickle that is more than weights. The weights themselves are read with torch.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hotstart.engines.errors import Reason, Terminal

LARGEST_PICKLE = 64 * 1024 * 1024  # bytes; what a checkpoint of 100,000 tensors needs is a tenth of it
#: Where training frameworks put the weights of a checkpoint that holds more than them.
NESTED = ("state_dict", "model", "module")
#: Types of storage -> type as safetensors names it.
FLOATS = {"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
#: Masks and positions, which are never read -> bytes of one element.
BUFFERS = {"LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1}
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class TorchTensor:
    """One tensor: ``dtype`` as safetensors names it, ``key`` of its storage, that storage's number of elements."""

    dtype: str
    shape: tuple[int, ...]
    key: str
    elements: int


class _Needs(Exception):
    """The pickle names something beyond plain tensors; the text is its name."""


@dataclass(frozen=True)
class _Storage:
    kind: str
    key: str
    elements: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    shape: tuple[int, ...]


def read_torch_head(path: Path, *, nested: bool = True) -> dict[str, TorchTensor]:
    """The floating-point tensors of the file by name, which may be a hole between its two ends (see ``download``).

    Without ``nested`` they must be all that the file holds.

    Raises:
        Terminal: CheckpointCorrupt, the file is damaged, of the format before PyTorch 1.6, or needs code to be loaded;
            UnsupportedArchitecture, a tensor is sparse or quantized, or the weights are within something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            name = next((name for name in sizes if name.endswith("/data.pkl")), "")
            if not name or sizes[name] > LARGEST_PICKLE:
                raise make_damaged(path, "it has no list of tensors")
            with archive.open(name) as file:
                loaded = _Unpickler(file).load()
    except _Needs as needs:
        raise make_refused(path, str(needs)) from needs
    except (zipfile.BadZipFile, pickle.UnpicklingError, struct.error, NotImplementedError, OSError) as error:
        raise make_damaged(path, str(error)) from error
    except (EOFError, KeyError, IndexError, ValueError, TypeError, AttributeError, UnicodeError) as error:
        raise make_damaged(path, f"{type(error).__name__}: {error}") from error
    weights = find_weights(loaded, _Tensor, path)
    if not nested and not any(isinstance(value, _Tensor) for value in loaded.values()):
        raise _make_nested(path)
    tensors = {name: _plain(path, name, tensor) for name, tensor in weights.items()}
    found = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    _check_storages(path, found, sizes, name.removesuffix("data.pkl"))
    return found


def list_storages(file: IO[bytes]) -> dict[str, tuple[str, str, int]]:
    """The storages of a list of tensors by key: the first tensor in each ('': none of the weights), type, bytes.

    The type is '' where it is no floating-point one. Nothing where the list is none.
    """
    unpickler = _Unpickler(file)
    try:
        loaded = unpickler.load()
        tensors = find_weights(loaded, _Tensor, Path("data.pkl"))
    except Exception:  # noqa: BLE001 - whatever a hostile list makes of it: it is refused where the file is opened
        return {}
    names = {tensor.storage.key: name for name, tensor in reversed(tensors.items())}
    return {
        storage.key: (
            names.get(storage.key, ""),
            FLOATS.get(storage.kind, ""),
            storage.elements * (BUFFERS.get(storage.kind) or _WIDTHS[FLOATS[storage.kind]]),
        )
        for storage in unpickler.storages
        if storage.kind in FLOATS or storage.kind in BUFFERS
    }


def find_weights(loaded: Any, kind: type, path: Path) -> dict[str, Any]:
    """The values of type ``kind`` by name, in what was loaded or one level below.

    Raises:
        Terminal: CheckpointCorrupt, there is none.
    """
    nested = next((loaded[key] for key in NESTED if isinstance(loaded, Mapping) and key in loaded), None)
    found = nested if isinstance(nested, Mapping) else loaded
    weights = {str(k): v for k, v in found.items() if isinstance(v, kind)} if isinstance(found, Mapping) else {}
    if not weights:
        raise Terminal(
            Reason.CHECKPOINT_CORRUPT,
            f"{path.name} holds no weights by name (a state_dict): save model.state_dict(), or as safetensors.",
        )
    return weights


def make_refused(path: Path, needed: str) -> Terminal:
    """The error for a pickle that is more than weights; ``needed`` is the name of what it asks for."""
    if needed.startswith("torch._utils._rebuild"):
        return Terminal(
            Reason.UNSUPPORTED_ARCHITECTURE,
            f"{path.name} holds sparse or quantized tensors ({needed}): upload plain weights.",
        )
    return Terminal(
        Reason.CHECKPOINT_CORRUPT,
        f"{path.name} needs the code {needed} to be loaded, and nothing of a checkpoint is ever executed: save the "
        "weights alone (model.state_dict()), or as safetensors.",
    )


def make_damaged(path: Path, what: str) -> Terminal:
    """The error for a file that is no PyTorch file, or not all of one."""
    line = (what.strip().splitlines() or ["unknown"])[0].rstrip(".")
    return Terminal(
        Reason.CHECKPOINT_CORRUPT,
        f"{path.name} is cut short, or no file of PyTorch 1.6 or newer ({line}): upload it again, or save it again "
        "with torch.save or as safetensors.",
    )


def _make_nested(path: Path) -> Terminal:
    return Terminal(
        Reason.UNSUPPORTED_ARCHITECTURE,
        f"{path.name} holds its weights within something else ({', '.join(NESTED)}), and TensorRT-LLM's converter for "
        "this network does not look there: save the weights alone (model.state_dict()), or as safetensors.",
    )


def _plain(path: Path, name: str, tensor: _Tensor) -> TorchTensor | None:
    storage = tensor.storage
    if storage.kind in BUFFERS:
        return None
    if storage.kind not in FLOATS:
        raise Terminal(
            Reason.UNSUPPORTED_ARCHITECTURE,
            f"{path.name}: the tensor {name} is of {storage.kind}; known are {', '.join(FLOATS)}: upload plain "
            "weights.",
        )
    return TorchTensor(FLOATS[storage.kind], tensor.shape, storage.key, storage.elements)


def _check_storages(path: Path, tensors: Mapping[str, TorchTensor], sizes: Mapping[str, int], prefix: str) -> None:
    for name, tensor in tensors.items():
        needed, found = tensor.elements * _WIDTHS[tensor.dtype], sizes.get(f"{prefix}data/{tensor.key}", 0)
        if found < needed:
            raise make_damaged(path, f"the tensor {name} needs {needed} bytes, the file has {found}")


class _Unpickler(pickle.Unpickler):
    """Builds records of tensors; anything else that the pickle names ends it."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.storages: list[_Storage] = []

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if module == "torch" and name.endswith("Storage"):
            return name
        if full not in _CONSTRUCTORS:
            raise _Needs(full)
        return _CONSTRUCTORS[full]

    def persistent_load(self, saved: Any) -> _Storage:
        _, kind, key, _, elements = saved
        storage = _Storage(str(kind), str(key), int(elements))
        self.storages.append(storage)
        return storage


def _rebuild_tensor(storage: _Storage, offset: int, size: Any, stride: Any, *rest: Any) -> _Tensor:
    return _Tensor(storage, tuple(int(length) for length in size))


def _rebuild_parameter(data: _Tensor, *rest: Any) -> _Tensor:
    return data


_CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.Size": tuple,
}

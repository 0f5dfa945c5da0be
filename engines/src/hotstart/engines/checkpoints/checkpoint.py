"""What every checkpoint looks like to a runtime: facts of the network, its tensors by name, its tokenizer.

Names are those of Hugging Face's LLaMA (``model.layers.0.self_attn.q_proj.weight``), whatever the file's format, or
those of MPT (``transformer.blocks.0.attn.Wqkv.weight``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from hotstart.engines.checkpoints.finite import make_not_finite
from hotstart.engines.checkpoints.mpt_config import MptFacts, expected_mpt_shapes
from hotstart.engines.checkpoints.upstream_config import UpstreamFacts
from hotstart.engines.errors import Reason, Terminal

Array = npt.NDArray[np.float32]
Shape = tuple[int, ...]

EMBEDDINGS = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
PROJECTION = "lm_head.weight"


@dataclass(frozen=True)
class RopeScaling:
    """Scaling of rotary positions: ``linear`` divides by ``factor``; ``llama3`` is that of LLaMA 3.1."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True)
class ModelFacts:
    """Sizes and constants of a LLaMA-like network. Lengths are in tokens."""

    architecture: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context_length: int
    rms_epsilon: float
    rope_base: float
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with the names that status, manifest and engine.json use."""
        names = {"kv_heads": "kvHeads", "head_dim": "headDim", "context_length": "contextLength"}
        names |= {"rms_epsilon": "rmsEpsilon", "rope_base": "ropeBase", "rope_scaling": "ropeScaling"}
        names |= {"tied_embeddings": "tiedEmbeddings", "attention_bias": "attentionBias", "mlp_bias": "mlpBias"}
        return {names.get(name, name): value for name, value in asdict(self).items() if value not in (None, False)}


#: Facts of any network: of those that our own converters read, and of those that only upstream's do.
Facts = ModelFacts | MptFacts | UpstreamFacts


class Checkpoint(Protocol):
    """A checkpoint on disk, opened lazily: only ``tensor`` reads weights."""

    @property
    def format(self) -> str:
        """``gguf``, ``safetensors``, ``torch`` or ``tensorrt_llm``."""

    @property
    def facts(self) -> Facts: ...

    @property
    def folder(self) -> Path | None:
        """Where a Hugging Face checkpoint's own files lie, for libraries that read those; None for other forms."""

    @property
    def tokenizer_json(self) -> bytes:
        """The tokenizer as the ``tokenizers`` library reads it; the same bytes for the same checkpoint."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion, the declared one first; never empty."""

    @property
    def bos_id(self) -> int | None:
        """The token that must stand before each prompt, or None where the network was trained without."""

    def shapes(self) -> dict[str, Shape]:
        """Shape of every tensor in the files, by name, without reading weights."""

    def tensor(self, name: str) -> Array:
        """One tensor as float32, rows of a linear layer first (output, input).

        Raises:
            KeyError: there is none of that name.
        """


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as the file has it, usually mapped: ``dtype`` F64, F32, F16, or BF16 (patterns in uint16)."""

    dtype: str
    values: npt.NDArray[Any]


def decode(stored: StoredTensor) -> Array:
    """The tensor as float32; at its peak it takes the memory of the result and no more."""
    if stored.dtype != "BF16":
        return np.array(stored.values, dtype=np.float32)
    wide = stored.values.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


@runtime_checkable
class StoresTensors(Protocol):
    """A checkpoint that can give its tensors without decoding them."""

    def stored(self, name: str) -> StoredTensor:
        """One tensor.

        Raises:
            KeyError: there is none of that name.
        """


def read_stored(checkpoint: Checkpoint, name: str) -> StoredTensor:
    """One tensor as the file has it, where the checkpoint's format allows it, else as float32."""
    if isinstance(checkpoint, StoresTensors):
        return checkpoint.stored(name)
    return StoredTensor("F32", checkpoint.tensor(name))


def llama_facts(checkpoint: Checkpoint) -> ModelFacts:
    """The checkpoint's facts, for code that knows LLaMA-like networks only.

    Raises:
        Terminal: UnsupportedArchitecture, it is of another family.
    """
    if not isinstance(checkpoint.facts, ModelFacts):
        raise _other_family(checkpoint.facts, "LLaMA-like")
    return checkpoint.facts


def mpt_facts(checkpoint: Checkpoint) -> MptFacts:
    """The checkpoint's facts, for code that knows MPT only.

    Raises:
        Terminal: UnsupportedArchitecture, it is of another family.
    """
    if not isinstance(checkpoint.facts, MptFacts):
        raise _other_family(checkpoint.facts, "MPT")
    return checkpoint.facts


def _other_family(facts: Facts, wanted: str) -> Terminal:
    return Terminal(
        Reason.UNSUPPORTED_ARCHITECTURE,
        f"The checkpoint is of {facts.architecture}; this step knows {wanted} networks.",
    )


def expected_shapes(facts: Facts) -> dict[str, Shape]:
    """Every tensor that the network needs, with the shape that its facts say; nothing for a network of upstream's."""
    if isinstance(facts, UpstreamFacts):
        return {}
    return expected_mpt_shapes(facts) if isinstance(facts, MptFacts) else _expected_llama_shapes(facts)


def _expected_llama_shapes(facts: ModelFacts) -> dict[str, Shape]:
    hidden, wide = facts.hidden, facts.intermediate
    queries, keys = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    shapes: dict[str, Shape] = {EMBEDDINGS: (facts.vocab, hidden), FINAL_NORM: (hidden,)}
    if not facts.tied_embeddings:
        shapes[PROJECTION] = (facts.vocab, hidden)
    linear = {"self_attn.q_proj": (queries, hidden), "self_attn.k_proj": (keys, hidden)}
    linear |= {"self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, queries)}
    linear |= {"mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide)}
    for layer in range(facts.layers):
        prefix = f"model.layers.{layer}."
        shapes[f"{prefix}input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
        for name, shape in linear.items():
            shapes[f"{prefix}{name}.weight"] = shape
            if facts.attention_bias if name.startswith("self_attn") else facts.mlp_bias:
                shapes[f"{prefix}{name}.bias"] = shape[:1]
    return shapes


def count_parameters(facts: Facts) -> int:
    """Weights of the network; tied embeddings count once."""
    if isinstance(facts, UpstreamFacts):
        return facts.parameters
    return sum(int(np.prod(shape)) for shape in expected_shapes(facts).values())


def count_embedding_parameters(facts: Facts) -> int:
    """Those of them that are embeddings, and the projection to logits where it has weights of its own."""
    embedding = facts.vocab * facts.hidden
    if isinstance(facts, UpstreamFacts):
        return embedding if facts.tied_embeddings else embedding * 2
    return embedding * 2 if PROJECTION in expected_shapes(facts) else embedding


def check_shapes(checkpoint: Checkpoint) -> None:
    """Compares what the files hold with what the config says.

    Raises:
        Terminal: CheckpointCorrupt, a tensor is missing or has another shape.
    """
    found = checkpoint.shapes()
    for name, shape in expected_shapes(checkpoint.facts).items():
        if name not in found:
            raise Terminal(
                Reason.CHECKPOINT_CORRUPT,
                f"The weights lack the tensor {name}, which the config asks for: upload the whole checkpoint again.",
            )
        if tuple(found[name]) != shape:
            raise Terminal(
                Reason.CHECKPOINT_CORRUPT,
                f"The tensor {name} has shape {list(found[name])}, the config says {list(shape)}: "
                "config and weights are of different models.",
            )


def read_weight(checkpoint: Checkpoint, name: str) -> Array:
    """One tensor, known to be finite.

    Raises:
        Terminal: CheckpointCorrupt, it holds NaN or Inf.
    """
    value = checkpoint.tensor(name)
    if not (np.isfinite(value.min()) and np.isfinite(value.max())):  # a NaN makes both NaN; needs no copy
        raise make_not_finite(name)
    return value

"""A GGUF file of a LLaMA-like network: weights dequantized one at a time, tokenizer rebuilt from tokens and merges.

llama.cpp's converter permutes the rows of query and key projections for its interleaved rotary positions; that is
undone here, so that a runtime sees the same tensors as from the original checkpoint.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from hotstart.engines.architectures import GGUF_ARCHITECTURES
from hotstart.engines.checkpoints.checkpoint import EMBEDDINGS, FINAL_NORM, PROJECTION, Array, ModelFacts, Shape
from hotstart.engines.checkpoints.gguf_head import GgufTensor, read_head
from hotstart.engines.checkpoints.llama_config import check_sizes, make_rope_scaling
from hotstart.engines.checkpoints.tokenizer import end_ids, make_tokenizer_json, parse_tokenizer
from hotstart.engines.errors import Reason, Terminal

_TOP = {"token_embd.weight": EMBEDDINGS, "output_norm.weight": FINAL_NORM, "output.weight": PROJECTION}
_PARTS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"^blk\.(\d+)\.([a-z_]+)\.(weight|bias)$")


class GgufFile:
    """Implements ``Checkpoint``. The file may be sparse behind its head (see ``download``) while no tensor is read."""

    format = "gguf"
    folder = None

    def __init__(self, path: Path) -> None:
        self._path = path
        self._head = read_head(path)
        self._tensors = {_hugging_face_name(name): tensor for name, tensor in self._head.tensors.items()}
        self.facts: ModelFacts = self._make_facts()
        self.tokenizer_json = self._make_tokenizer_json()
        tokenizer = parse_tokenizer(self.tokenizer_json)
        ends = [self._field("tokenizer.ggml.eos_token_id", None), self._field("tokenizer.ggml.eot_token_id", None)]
        self.eos_ids = end_ids(tokenizer, [end for end in ends if end is not None], self.facts.vocab)
        llama3 = self._field("tokenizer.ggml.pre", "gpt-2") == "llama-bpe"  # begun by default (llama_vocab::impl::load)
        begins = self._field("tokenizer.ggml.add_bos_token", llama3)
        self.bos_id: int | None = self._field("tokenizer.ggml.bos_token_id") if begins else None

    def shapes(self) -> dict[str, Shape]:
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def tensor(self, name: str) -> Array:
        found = self._tensors[name]
        try:
            value = gguf.quants.dequantize(self._raw(found), found.type)
        except NotImplementedError as error:
            raise Terminal(
                Reason.UNSUPPORTED_ARCHITECTURE,
                f"{self._path.name}: {found.type.name} quantization of {found.name} cannot be read: "
                "use a GGUF of another quantization, such as Q8_0 or F16.",
            ) from error
        heads = {"q_proj": self.facts.heads, "k_proj": self.facts.kv_heads}.get(name.split(".")[-2])
        value = value if heads is None else unpermute(value.reshape(found.shape), heads)
        return np.ascontiguousarray(value.reshape(found.shape), dtype=np.float32)

    def _raw(self, found: GgufTensor) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor, mapped from disk, one line for each row."""
        rows = int(np.prod(found.shape[:-1]))
        return np.memmap(self._path, np.uint8, "r", found.start, (rows, found.size // rows))

    def _make_facts(self) -> ModelFacts:
        architecture = self._field("general.architecture", "none")
        known = GGUF_ARCHITECTURES.get(architecture)
        if known is None or self._field("llama.expert_count", 0):
            name = architecture if known is None else f"{architecture} with experts"
            raise Terminal(
                Reason.UNSUPPORTED_ARCHITECTURE,
                f"{self._path.name}: the GGUF's architecture is {name}; known is {', '.join(GGUF_ARCHITECTURES)} "
                "without experts.",
            )
        heads, hidden = self._size("llama.attention.head_count"), self._size("llama.embedding_length")
        facts = ModelFacts(
            architecture=known,
            layers=self._size("llama.block_count"),
            hidden=hidden,
            intermediate=self._size("llama.feed_forward_length"),
            heads=heads,
            kv_heads=self._size("llama.attention.head_count_kv", heads),
            head_dim=self._size("llama.attention.key_length", hidden // heads),
            vocab=len(self._field("tokenizer.ggml.tokens", ())) or self._size("llama.vocab_size"),
            context_length=self._size("llama.context_length"),
            # float32 in the file; rounded to what was written in the config that it came from
            rms_epsilon=_shortest(self._field("llama.attention.layer_norm_rms_epsilon", 1e-6)),
            rope_base=_shortest(self._field("llama.rope.freq_base", 10000.0)),
            rope_scaling=self._rope_scaling(),
            tied_embeddings=PROJECTION not in self._tensors,
            attention_bias=any(name.endswith("q_proj.bias") for name in self._tensors),
            mlp_bias=any(name.endswith("gate_proj.bias") for name in self._tensors),
        )
        check_sizes(facts)
        return facts

    def _rope_scaling(self) -> Any:
        if "rope_freqs.weight" in self._head.tensors:
            raise Terminal(
                Reason.UNSUPPORTED_ARCHITECTURE,
                f"{self._path.name}: rotary frequencies scaled as in LLaMA 3.1 cannot be read from a GGUF: "
                "use the safetensors checkpoint.",
            )
        kind = self._field("llama.rope.scaling.type", "none")
        if kind == "none":
            return None
        return make_rope_scaling({"rope_type": kind, "factor": self._field("llama.rope.scaling.factor", 0.0)})

    def _make_tokenizer_json(self) -> bytes:
        model = self._field("tokenizer.ggml.model", "none")
        tokens = self._field("tokenizer.ggml.tokens", ())
        if model != "gpt2" or not tokens:
            raise Terminal(
                Reason.TOKENIZER_MISMATCH,
                f"{self._path.name}: the GGUF's tokenizer is {model!r}; known is a byte-level BPE ('gpt2') with its "
                "merges. Use the safetensors checkpoint with its tokenizer.json.",
            )
        rows = self.shapes().get(EMBEDDINGS, (0,))[0]
        if rows and rows != len(tokens):
            raise Terminal(
                Reason.TOKENIZER_MISMATCH,
                f"{self._path.name}: the tokenizer has {len(tokens)} tokens, the weights {rows}: convert it again.",
            )
        types = self._field("tokenizer.ggml.token_type", ())
        control = [i for i, kind in enumerate(types) if kind == gguf.TokenType.CONTROL]
        whole = [i for i, kind in enumerate(types) if kind == gguf.TokenType.USER_DEFINED]
        merges = self._field("tokenizer.ggml.merges", ())
        return make_tokenizer_json(tokens, merges, control, self._field("tokenizer.ggml.pre", "gpt-2"), whole)

    def _field(self, name: str, *default: Any) -> Any:
        if name in self._head.fields:
            return self._head.fields[name]
        if default:
            return default[0]
        raise Terminal(
            Reason.CHECKPOINT_CORRUPT, f"{self._path.name}: the field {name} is missing in the GGUF: convert it again."
        )

    def _size(self, name: str, *default: int) -> int:
        value = self._field(name, *default)
        if not isinstance(value, int) or value < 1:
            raise Terminal(
                Reason.CHECKPOINT_CORRUPT,
                f"{self._path.name}: {name} is {value!r}, it must be one whole number above 0: convert it again.",
            )
        return value


def unpermute(value: Array, heads: int) -> Array:
    """Undoes ``permute`` of llama.cpp's convert_hf_to_gguf.py: interleaved pairs back to two halves of each head."""
    per_head = value.shape[0] // heads
    return value.reshape(heads, per_head // 2, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def _hugging_face_name(name: str) -> str:
    block = _BLOCK.match(name)
    if block and block[2] in _PARTS:
        return f"model.layers.{block[1]}.{_PARTS[block[2]]}.{block[3]}"
    return _TOP.get(name, name)


def _shortest(value: float) -> float:
    return float(str(np.float32(value)))

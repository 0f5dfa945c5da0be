"""A tiny LLaMA-like checkpoint with weights from a seed, for tests that need an engine in seconds and no download.

It has what a real one has: config.json, generation_config.json, safetensors (one file or shards with an index), and a
byte-level BPE tokenizer trained on the spot, with end-of-text and fill-in-the-middle tokens. Its completions are noise.
``write_tiny_gguf`` writes the same weights as llama.cpp's converter does, with permuted query and key rows.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

Weights = dict[str, npt.NDArray[np.float32]]

END_OF_TEXT = "<|endoftext|>"
FIM_MARKERS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
SPECIAL_TOKENS = (END_OF_TEXT, *FIM_MARKERS)
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_NAMES = (
    *("value", "result", "items", "index", "count", "name", "data", "path", "text", "line", "total", "left"),
    *("right", "node", "key", "size", "start", "end", "other", "buffer", "callback", "depth", "encoder", "filter"),
    *("graph", "handler", "matrix", "offset", "parent", "queue", "request", "session", "token", "user", "vector"),
    *("window", "yield_one", "zone", "balance", "customer", "document", "element", "fraction", "history", "payload"),
)
_TEMPLATES = (
    "def {a}({b}, {c}):\n    return {b} + {c}\n\n",
    "class {a}:\n    def __init__(self, {b}: int = 0) -> None:\n        self.{b} = {b}\n\n",
    "for {a} in range(len({b})):\n    if {a} % 2 == 0:\n        print({c}[{a}])\n",
    "with open({a}) as {b}:\n    {c} = {b}.read()\n",
    "import {a}\nfrom {b} import {c}\n",
    "try:\n    {a} = {b}.{c}()\nexcept ValueError as error:\n    raise RuntimeError from error\n",
)


@dataclass(frozen=True)
class TinyShape:
    """Sizes of the network; ``kv_heads`` below ``heads`` is grouped-query attention."""

    layers: int = 2
    width: int = 64
    intermediate: int = 128
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 512
    context: int = 2048
    rope_base: float = 10000.0
    tied: bool = True


@cache
def make_tokenizer_json(vocab: int = 512) -> str:
    """tokenizer.json of a byte-level BPE with at most ``vocab`` tokens, the same on every machine."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    corpus = [
        template.format(a=a, b=_NAMES[(i + 3) % len(_NAMES)], c=_NAMES[(i + 7) % len(_NAMES)])
        for i, a in enumerate(_NAMES)
        for template in _TEMPLATES
    ]
    tokenizer.train_from_iterator(corpus, trainer)
    return str(tokenizer.to_str())


def make_tiny_weights(shape: TinyShape = TinyShape(), *, seed: int = 0) -> Weights:
    """Weights by their Hugging Face names, float32, the same for the same seed."""
    random = np.random.default_rng(seed)
    kv_width = shape.width // shape.heads * shape.kv_heads

    def matrix(rows: int, columns: int, scale: float | None = None) -> npt.NDArray[np.float32]:
        values = random.standard_normal((rows, columns), dtype=np.float32)
        return values * np.float32(scale if scale is not None else 1.5 / np.sqrt(columns))

    def gain() -> npt.NDArray[np.float32]:
        return 1 + np.float32(0.1) * random.standard_normal(shape.width, dtype=np.float32)

    weights: Weights = {"model.embed_tokens.weight": matrix(shape.vocab, shape.width, 0.5)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.input_layernorm.weight": gain(),
            f"{prefix}.post_attention_layernorm.weight": gain(),
            f"{prefix}.self_attn.q_proj.weight": matrix(shape.width, shape.width),
            f"{prefix}.self_attn.k_proj.weight": matrix(kv_width, shape.width),
            f"{prefix}.self_attn.v_proj.weight": matrix(kv_width, shape.width),
            f"{prefix}.self_attn.o_proj.weight": matrix(shape.width, shape.width),
            f"{prefix}.mlp.gate_proj.weight": matrix(shape.intermediate, shape.width),
            f"{prefix}.mlp.up_proj.weight": matrix(shape.intermediate, shape.width),
            f"{prefix}.mlp.down_proj.weight": matrix(shape.width, shape.intermediate),
        }
    weights["model.norm.weight"] = gain()
    if not shape.tied:
        weights["lm_head.weight"] = matrix(shape.vocab, shape.width)
    return weights


def make_config(shape: TinyShape, architecture: str = "LlamaForCausalLM", dtype: str = "float32") -> dict[str, Any]:
    """config.json as a dictionary."""
    return {
        "architectures": [architecture],
        "model_type": "mistral" if architecture == "MistralForCausalLM" else "llama",
        "hidden_act": "silu",
        "hidden_size": shape.width,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.rope_base,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": dtype,
    }


def write_tiny_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    shards: int = 1,
    dtype: str = "float32",
    architecture: str = "LlamaForCausalLM",
    shape: TinyShape | None = None,
    weights: Weights | None = None,
) -> Path:
    """Writes the checkpoint into ``folder`` (made if need be) and returns it.

    ``dtype`` is float32, float16 or bfloat16; with ``shards`` above 1 there is model.safetensors.index.json. ``shape``
    wins over ``layers``; ``weights`` replaces those of the seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = shape or TinyShape(layers=layers)
    weights = weights if weights is not None else make_tiny_weights(shape, seed=seed)
    names = sorted(weights)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", weights, names, dtype)
    else:
        files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
        for i, file in enumerate(files):
            write_safetensors(folder / file, weights, names[i::shards], dtype)
        index = {"metadata": {}, "weight_map": {name: files[i % shards] for i, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(make_config(shape, architecture, dtype), indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 0}))
    (folder / "tokenizer.json").write_text(make_tokenizer_json(shape.vocab))
    tokenizer_config = {"add_bos_token": False, "eos_token": END_OF_TEXT, "bos_token": END_OF_TEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


def write_tiny_gguf(
    path: Path, *, seed: int = 0, shape: TinyShape | None = None, user_defined: frozenset[str] = frozenset()
) -> Path:
    """The same network as one GGUF file of float32 tensors; its query and key rows are permuted as llama.cpp wants.

    ``user_defined``: tokens that are of that type and not normal or control ones.
    """
    import gguf

    shape = shape or TinyShape()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    tokenizer = json.loads(make_tokenizer_json(shape.vocab))
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    types = dict.fromkeys(SPECIAL_TOKENS, gguf.TokenType.CONTROL) | dict.fromkeys(
        user_defined, gguf.TokenType.USER_DEFINED
    )
    writer.add_token_types([types.get(token, gguf.TokenType.NORMAL) for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    for name, value in make_tiny_weights(shape, seed=seed).items():
        heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(name.split(".")[-2])
        writer.add_tensor(_gguf_name(name), value if heads is None else _permute(value, heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_safetensors(path: Path, weights: Weights, names: list[str], dtype: str) -> None:
    """One file of the tensors ``names``, stored as ``dtype`` (float32, float16 or bfloat16)."""
    header: dict[str, Any] = {}
    blocks: list[bytes] = []
    offset = 0
    for name in names:
        block = _encode(weights[name], dtype)
        spans = [offset, offset + len(block)]
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(weights[name].shape), "data_offsets": spans}
        blocks.append(block)
        offset += len(block)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blocks))


def _encode(value: npt.NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "bfloat16":  # the upper half of a float32, rounded to the nearest
        bits = np.ascontiguousarray(value).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()
    return value.astype(np.dtype(dtype)).tobytes()


def _permute(value: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    rows, columns = value.shape
    return np.ascontiguousarray(
        value.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


_GGUF_PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def _gguf_name(name: str) -> str:
    top = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
    if name in top:
        return f"{top[name]}.weight"
    parts = name.split(".")
    return f"blk.{parts[2]}.{_GGUF_PARTS[parts[-2]]}.weight"

"""The ctranslate2 runtime: a LLaMA-like checkpoint -> a CTranslate2 model directory, without torch.

The layout of the specification is that of CTranslate2's own converter for LLaMA; weights are quantized one tensor at a
time, so that the peak of memory is the engine's size and one float32 tensor, not the whole checkpoint in float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import numpy.typing as npt
from ctranslate2.specs import attention_spec, common_spec, transformer_spec
from hotstart.engines.checkpoints.checkpoint import (
    EMBEDDINGS,
    FINAL_NORM,
    PROJECTION,
    Array,
    Checkpoint,
    ModelFacts,
    expected_shapes,
    llama_facts,
    read_weight,
)
from hotstart.engines.checkpoints.tokenizer import make_vocabulary, parse_tokenizer
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.recipe import CTRANSLATE2_TOOLCHAIN, EngineRecipe, Toolchain
from hotstart.engines.runtimes import ctranslate2_verify
from hotstart.engines.runtimes.runtime import Progress

QUANTIZATIONS = ("int8", "int8_float32", "float32")
_SCALINGS = {
    "linear": attention_spec.RotaryScalingType.Linear,
    "llama3": attention_spec.RotaryScalingType.Llama3,
}


class CTranslate2:
    """Implements ``Runtime``."""

    def toolchain(self) -> Toolchain:
        declared = CTRANSLATE2_TOOLCHAIN
        return Toolchain(declared.converter, declared.converter_version, "ctranslate2", ctranslate2.__version__)

    def convert(self, checkpoint: Checkpoint, recipe: EngineRecipe, folder: Path, progress: Progress) -> None:
        check_recipe(recipe)
        writer = _SpecWriter(checkpoint, recipe.quantization != "float32", progress)
        spec = writer.fill()
        tokenizer = parse_tokenizer(checkpoint.tokenizer_json)
        vocabulary = make_vocabulary(tokenizer, checkpoint.facts.vocab)
        spec.register_vocabulary(vocabulary)
        spec.config.bos_token = vocabulary[checkpoint.eos_ids[0] if checkpoint.bos_id is None else checkpoint.bos_id]
        spec.config.eos_token = vocabulary[checkpoint.eos_ids[0]]
        spec.config.unk_token = ""
        spec.config.layer_norm_epsilon = llama_facts(checkpoint).rms_epsilon
        spec.validate()
        spec.optimize(quantization=None)  # tied embeddings become an alias; quantized already
        spec.save(str(folder))
        (folder / "tokenizer.json").write_bytes(checkpoint.tokenizer_json)
        (folder / "engine.json").write_text(make_engine_json(checkpoint, recipe))

    def verify(self, folder: Path) -> None:
        ctranslate2_verify.verify(folder)


def check_recipe(recipe: EngineRecipe) -> None:
    """Raises Terminal (UnsupportedRecipe) for what this runtime does not build."""
    if recipe.quantization not in QUANTIZATIONS or recipe.dtype != "float32" or recipe.tensor_parallel != 1:
        raise Terminal(
            Reason.UNSUPPORTED_RECIPE,
            f"ctranslate2 takes quantization {', '.join(QUANTIZATIONS)}, dtype float32 and tensorParallel 1; "
            f"the recipe asks for {recipe.quantization}, {recipe.dtype} and {recipe.tensor_parallel}.",
        )


def make_engine_json(checkpoint: Checkpoint, recipe: EngineRecipe) -> str:
    """What the completion model has to know of the engine. Pure."""
    value = {
        "runtime": "ctranslate2",
        "architecture": checkpoint.facts.architecture,
        "context_length": checkpoint.facts.context_length,
        "eos_ids": list(checkpoint.eos_ids),
        "bos_id": checkpoint.bos_id,
        "vocab_size": checkpoint.facts.vocab,
        "quantization": recipe.quantization,
    }
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def quantize_rows(value: Array, block: int = 4096) -> tuple[npt.NDArray[np.int8], Array]:
    """CTranslate2's int8: one scale for each row, 127 over its largest magnitude (docs/quantization.md). Pure.

    Works on ``block`` rows at a time, so that an embedding needs no second float32 copy.
    """
    rows = np.empty(value.shape, dtype=np.int8)
    scales = np.empty(len(value), dtype=np.float32)
    for start in range(0, len(value), block):
        part = value[start : start + block]
        largest = np.abs(part).max(axis=1)
        largest[largest == 0] = 127.0
        largest = np.maximum(largest, np.float32(127) / np.finfo(np.float32).max)  # the scale itself must be finite
        scales[start : start + block] = np.float32(127.0) / largest
        rows[start : start + block] = np.rint(part * scales[start : start + block, None])
    return rows, scales


def make_spec(facts: ModelFacts) -> Any:
    """An empty specification of the network. Pure."""
    scaling = facts.rope_scaling
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        facts.layers,
        facts.heads,
        activation=common_spec.Activation.SWISH,
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=False,
        rotary_scaling_type=_SCALINGS[scaling.kind] if scaling else None,
        rotary_scaling_factor=scaling.factor if scaling else 1,
        rotary_base=facts.rope_base,
        original_max_position_embeddings=scaling.original_context if scaling and scaling.kind == "llama3" else 0,
        num_heads_kv=None if facts.kv_heads == facts.heads else facts.kv_heads,
        head_dim=facts.head_dim if facts.head_dim * facts.heads != facts.hidden else None,
    )
    spec.decoder.scale_embeddings = False
    if scaling and scaling.kind == "llama3":
        for layer in spec.decoder.layer:
            layer.self_attention.rotary_low_freq_factor = np.float32(scaling.low_freq_factor)
            layer.self_attention.rotary_high_freq_factor = np.float32(scaling.high_freq_factor)
            # The runtime reads the factor, but the specification of 4.8 declares it for linear scaling only.
            object.__setattr__(layer.self_attention, "rotary_scaling_factor", np.float32(scaling.factor))
    return spec


class _SpecWriter:
    """Fills a specification tensor by tensor and reports progress by weights."""

    def __init__(self, checkpoint: Checkpoint, quantize: bool, progress: Progress) -> None:
        self._checkpoint = checkpoint
        self._quantize = quantize
        self._progress = progress
        self._shapes = expected_shapes(checkpoint.facts)
        self._total = sum(int(np.prod(shape)) for shape in self._shapes.values())
        self._done = 0

    def fill(self) -> Any:
        facts = llama_facts(self._checkpoint)
        spec = make_spec(facts)
        decoder = spec.decoder
        self._linear(decoder.embeddings, EMBEDDINGS)
        decoder.layer_norm.gamma = self._read(FINAL_NORM)
        if facts.tied_embeddings:
            decoder.projection.weight = decoder.embeddings.weight
            decoder.projection.weight_scale = decoder.embeddings.weight_scale
        else:
            self._linear(decoder.projection, PROJECTION)
        for number, layer in enumerate(decoder.layer):
            self._fill_layer(layer, f"model.layers.{number}.")
        return spec

    def _fill_layer(self, layer: Any, prefix: str) -> None:
        layer.self_attention.layer_norm.gamma = self._read(f"{prefix}input_layernorm.weight")
        layer.ffn.layer_norm.gamma = self._read(f"{prefix}post_attention_layernorm.weight")
        attention = (f"{prefix}self_attn.{name}_proj.weight" for name in "qkv")
        self._linear(layer.self_attention.linear[0], *attention)
        self._linear(layer.self_attention.linear[1], f"{prefix}self_attn.o_proj.weight")
        self._linear(layer.ffn.linear_0, f"{prefix}mlp.gate_proj.weight")
        self._linear(layer.ffn.linear_0_noact, f"{prefix}mlp.up_proj.weight")
        self._linear(layer.ffn.linear_1, f"{prefix}mlp.down_proj.weight")

    def _linear(self, spec: Any, *names: str) -> None:
        """One linear layer (or embedding) of the rows of ``names``, one below the other."""
        weight = self._read(names[0]) if len(names) == 1 else np.concatenate([self._read(name) for name in names])
        if self._quantize:
            spec.weight, spec.weight_scale = quantize_rows(weight)
        else:
            spec.weight = weight
        biases = [name.removesuffix("weight") + "bias" for name in names]
        if biases[0] in self._shapes:
            spec.bias = np.concatenate([self._read(name) for name in biases])

    def _read(self, name: str) -> Array:
        value = read_weight(self._checkpoint, name)
        self._done += value.size
        self._progress(self._done / self._total)
        return value

"""A LLaMA forward pass in plain numpy, written from the papers and independent of every runtime.

RMSNorm (arXiv 1910.07467), rotary positions on the two halves of each head (arXiv 2104.09864, as in transformers),
grouped-query attention (arXiv 2305.13245), SwiGLU (arXiv 2002.05202).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hotstart.engines.checkpoints.checkpoint import ModelFacts, RopeScaling

Float = npt.NDArray[np.float64]


def forward(weights: dict[str, npt.NDArray[np.float32]], facts: ModelFacts, ids: list[int]) -> Float:
    """Logits of every position, shape (tokens, vocabulary), in float64."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    x = w["model.embed_tokens.weight"][ids]
    for layer in range(facts.layers):
        p = f"model.layers.{layer}."
        x = x + _attention(w, facts, p, _norm(x, w[f"{p}input_layernorm.weight"], facts.rms_epsilon))
        h = _norm(x, w[f"{p}post_attention_layernorm.weight"], facts.rms_epsilon)
        gate = h @ w[f"{p}mlp.gate_proj.weight"].T
        up = h @ w[f"{p}mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"{p}mlp.down_proj.weight"].T
    x = _norm(x, w["model.norm.weight"], facts.rms_epsilon)
    return x @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T


def _attention(w: dict[str, Float], facts: ModelFacts, p: str, x: Float) -> Float:
    def project(name: str, heads: int) -> Float:
        y = x @ w[f"{p}self_attn.{name}.weight"].T + w.get(f"{p}self_attn.{name}.bias", np.zeros(1))
        return y.reshape(len(x), heads, facts.head_dim).transpose(1, 0, 2)

    frequencies = rotary_frequencies(facts.head_dim, facts.rope_base, facts.rope_scaling)
    q = _rotate(project("q_proj", facts.heads), frequencies)
    k = _rotate(project("k_proj", facts.kv_heads), frequencies)
    v = project("v_proj", facts.kv_heads)
    group = facts.heads // facts.kv_heads
    k, v = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(facts.head_dim)
    scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    joined = (shares @ v).transpose(1, 0, 2).reshape(len(x), -1)
    return joined @ w[f"{p}self_attn.o_proj.weight"].T + w.get(f"{p}self_attn.o_proj.bias", np.zeros(1))


def rotary_frequencies(head_dim: int, base: float, scaling: RopeScaling | None) -> Float:
    """Radians by position for each pair; llama3 as in transformers' ``_compute_llama3_parameters``."""
    frequencies = base ** (-np.arange(0, head_dim, 2) / head_dim)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    lengths = 2 * np.pi / frequencies
    low, high = scaling.original_context / scaling.low_freq_factor, scaling.original_context / scaling.high_freq_factor
    smooth = (scaling.original_context / lengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    return np.where(lengths > low, frequencies / scaling.factor, np.where(lengths < high, frequencies, between))


def _rotate(x: Float, frequencies: Float) -> Float:
    angles = np.arange(x.shape[1])[:, None] * frequencies
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _norm(x: Float, gain: Float, epsilon: float) -> Float:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * gain

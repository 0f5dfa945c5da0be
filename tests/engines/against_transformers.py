"""The reference networks against those of transformers, by hand: it and torch are no part of the development set.

    pip install "transformers<5" torch && python tests/engines/against_transformers.py

Ours in numpy against theirs, and every family that only upstream converts through ``TransformersReference`` from 16-bit
files against the same network that was loaded in float32 whole; the shapes of its weights against ``upstream_shapes``.

transformers' MPT knows no grouped queries and no biases, and its forward pass leaves ``alibi_bias_max`` out of account;
the slopes are compared with its function for them. Prints the largest difference of logits for each network, and ends
with 1 where one is above 1e-3.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
import torch
import transformers
from hotstart.engines.checkpoints.facts import make_checkpoint_facts
from hotstart.engines.checkpoints.llama_config import make_facts
from hotstart.engines.checkpoints.mpt_config import make_mpt_facts
from hotstart.engines.checkpoints.upstream_config import UpstreamFacts
from hotstart.engines.checkpoints.upstream_shapes import check_upstream_shapes
from hotstart.engines.reference.llama import LlamaReference
from hotstart.engines.reference.mpt import MptReference, alibi_slopes
from hotstart.engines.reference.transformers_network import TransformersReference
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from tests.support.tiny_checkpoint import TinyShape, Weights, make_config, make_tiny_weights
from tests.support.tiny_mpt import TinyMptShape, make_mpt_config, make_tiny_mpt_weights

IDS = [int(token) for token in np.random.default_rng(0).integers(0, 512, 900)]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MPT_SHAPES = (
    TinyMptShape(kv_heads=4, context=1024),
    TinyMptShape(heads=6, kv_heads=6, width=48, layers=3, context=1024),
    TinyMptShape(heads=12, kv_heads=12, width=96, context=1024),
    TinyMptShape(kv_heads=4, clip_qkv=0.4, context=1024),
)
LLAMA_SHAPES = (
    (TinyShape(), None),
    (TinyShape(tied=False, kv_heads=1, layers=3), None),
    (TinyShape(rope_base=5e5), LLAMA3 | {"original_max_position_embeddings": 256}),
    (TinyShape(), {"rope_type": "linear", "factor": 4.0}),
)


def theirs(model: torch.nn.Module, weights: Weights) -> np.ndarray:
    """Logits of transformers' network with these weights."""
    left = model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()}, strict=False)
    if left.unexpected_keys or set(left.missing_keys) - {"lm_head.weight"}:
        sys.exit(f"transformers names its tensors otherwise: {left}")
    model.tie_weights()
    with torch.no_grad():
        return model.eval()(torch.tensor([IDS])).logits[0].numpy()


def mpt_difference(shape: TinyMptShape) -> float:
    """Largest difference of logits for one MPT."""
    weights = make_tiny_mpt_weights(shape, seed=1)
    config = transformers.MptConfig(
        d_model=shape.width,
        n_heads=shape.heads,
        n_layers=shape.layers,
        expansion_ratio=shape.expansion,
        max_seq_len=shape.context,
        vocab_size=shape.vocab,
        attn_config={"attn_type": "multihead_attention", "alibi": True, "clip_qkv": shape.clip_qkv},
    )
    ours = MptReference(make_mpt_facts(make_mpt_config(shape)), weights.__getitem__).logits(IDS)
    return float(np.abs(theirs(transformers.MptForCausalLM(config), weights) - ours).max())


def llama_difference(shape: TinyShape, scaling: dict[str, object] | None) -> float:
    """Largest difference of logits for one LLaMA."""
    weights = make_tiny_weights(shape, seed=2)
    values = make_config(shape) | {"rope_scaling": scaling}
    config = transformers.LlamaConfig(**{k: v for k, v in values.items() if k not in ("architectures", "model_type")})
    ours = LlamaReference(make_facts(values), weights.__getitem__).logits(IDS)
    return float(np.abs(theirs(transformers.LlamaForCausalLM(config), weights) - ours).max())


def family_difference(config: transformers.PretrainedConfig, stored: torch.dtype) -> float:
    """Largest difference of logits between weights that are widened while they compute and weights that always are."""
    torch.manual_seed(0)
    config.initializer_range = 0.1
    with tempfile.TemporaryDirectory() as folder:
        network = transformers.AutoModelForCausalLM.from_config(config).to(stored)
        network.save_pretrained(folder)
        facts = make_checkpoint_facts(json.loads((Path(folder) / "config.json").read_text()))
        assert isinstance(facts, UpstreamFacts)
        check_upstream_shapes(facts, {name: tuple(value.shape) for name, value in network.state_dict().items()})
        arguments = {"torch_dtype": torch.float32, "attn_implementation": "eager"}
        whole = transformers.AutoModelForCausalLM.from_pretrained(folder, **arguments).eval()
        with torch.no_grad():
            expected = whole(torch.tensor([IDS[:200]]), use_cache=False).logits[0].numpy()
        found = TransformersReference(Path(folder), type(network).__name__).logits(IDS[:200])
    return float(np.abs(found - expected).max())


def make_families() -> tuple[transformers.PretrainedConfig, ...]:
    """A small network of each family."""
    old = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    new = old | {"intermediate_size": 96, "num_key_value_heads": 2}
    gpt = {"vocab_size": 512, "n_embd": 64, "n_layer": 2, "n_head": 4}
    return (
        transformers.Qwen2Config(**new),
        transformers.GemmaConfig(**new, head_dim=16),
        transformers.Gemma2Config(**new, head_dim=16),
        transformers.PhiConfig(**old, intermediate_size=96),
        transformers.Phi3Config(**new, pad_token_id=0),
        transformers.GPTBigCodeConfig(**gpt),
        transformers.Starcoder2Config(**new),
        transformers.GPTJConfig(**gpt, rotary_dim=8),
        transformers.GPTNeoXConfig(**old, intermediate_size=96),
        transformers.FalconConfig(**old),
        transformers.FalconConfig(**old, alibi=True),
        transformers.BloomConfig(vocab_size=512, hidden_size=64, n_layer=2, n_head=4),
    )


def main() -> int:
    """1 where anything differs."""
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    found = {f"MPT {shape}": mpt_difference(shape) for shape in MPT_SHAPES}
    found |= {f"LLaMA {shape} {scaling}": llama_difference(shape, scaling) for shape, scaling in LLAMA_SHAPES}
    found |= {
        f"{config.model_type} {number} from {stored}": family_difference(config, stored)
        for number, config in enumerate(make_families())
        for stored in (torch.float16, torch.bfloat16)
    }
    for name, difference in found.items():
        print(f"{difference:.1e}  {name}")
    slopes = max(
        float(np.abs(-build_mpt_alibi_tensor(heads, 2, most).numpy()[:, 0, 0] / alibi_slopes(heads, most) - 1).max())
        for heads in range(1, 65)
        for most in (4, 8, 16)
    )
    print(f"{slopes:.1e}  slopes of 1 to 64 heads, alibi_bias_max 4, 8 and 16, relative")
    return 0 if max(found.values()) < 1e-3 and slopes < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())

"""Sizes of networks that only TensorRT-LLM's own converters read, from config.json as each family writes it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotstart.engines.architectures import CTRANSLATE2, TENSORRT_LLM
from hotstart.engines.builder.prepare import prepare
from hotstart.engines.checkpoints.checkpoint import count_embedding_parameters, count_parameters
from hotstart.engines.checkpoints.facts import architecture_name, make_checkpoint_facts
from hotstart.engines.checkpoints.places import parse_uri
from hotstart.engines.checkpoints.source import HubAccess, open_source
from hotstart.engines.checkpoints.upstream_config import UpstreamFacts, count_layers
from hotstart.engines.errors import EngineError, Reason, Terminal
from hotstart.engines.s3 import StorePlace
from hotstart.exchange.messages import ServingOptions

from tests.support.tiny_checkpoint import make_tokenizer_json, write_safetensors

SERVING = ServingOptions(max_input_tokens=96, max_new_tokens=32)
#: config.json of published models, as their families write it, without what is not read.
FAMILIES: dict[str, tuple[dict[str, Any], UpstreamFacts]] = {
    "Starcoder2ForCausalLM": (
        {"hidden_size": 3072, "intermediate_size": 12288, "num_attention_heads": 24, "num_key_value_heads": 2}
        | {"num_hidden_layers": 30, "vocab_size": 49152, "max_position_embeddings": 16384},
        UpstreamFacts("Starcoder2ForCausalLM", 30, 3072, 12288, 24, 2, 128, 49152, 16384, True),
    ),
    "GPTBigCodeForCausalLM": (
        {"n_embd": 2048, "n_head": 16, "n_inner": 8192, "n_layer": 24, "n_positions": 8192, "vocab_size": 49152}
        | {"multi_query": True},
        UpstreamFacts("GPTBigCodeForCausalLM", 24, 2048, 8192, 16, 1, 128, 49152, 8192, True),
    ),
    "GPTJForCausalLM": (
        {"n_embd": 4096, "n_head": 16, "n_inner": None, "n_layer": 28, "n_positions": 2048, "vocab_size": 50400}
        | {"tie_word_embeddings": False},
        UpstreamFacts("GPTJForCausalLM", 28, 4096, 16384, 16, 16, 256, 50400, 2048),
    ),
    "GPTNeoXForCausalLM": (
        {"hidden_size": 6144, "intermediate_size": 24576, "num_attention_heads": 64, "num_hidden_layers": 44}
        | {"max_position_embeddings": 2048, "vocab_size": 50432, "tie_word_embeddings": False},
        UpstreamFacts("GPTNeoXForCausalLM", 44, 6144, 24576, 64, 64, 96, 50432, 2048),
    ),
    "FalconForCausalLM": (
        {"hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32, "vocab_size": 65024}
        | {"multi_query": True, "new_decoder_architecture": False},
        UpstreamFacts("FalconForCausalLM", 32, 4544, 18176, 71, 1, 64, 65024, 2048, True),
    ),
    "BloomForCausalLM": (
        {"n_embed": 1024, "n_layer": 24, "num_attention_heads": 16, "vocab_size": 250880, "seq_length": 2048},
        UpstreamFacts("BloomForCausalLM", 24, 1024, 4096, 16, 16, 64, 250880, 2048, True),
    ),
    "GemmaForCausalLM": (
        {"hidden_size": 2048, "head_dim": 256, "intermediate_size": 16384, "num_attention_heads": 8}
        | {"num_key_value_heads": 1, "num_hidden_layers": 18, "vocab_size": 256000, "max_position_embeddings": 8192},
        UpstreamFacts("GemmaForCausalLM", 18, 2048, 16384, 8, 1, 256, 256000, 8192, True),
    ),
    "Qwen2ForCausalLM": (
        {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4}
        | {"num_hidden_layers": 28, "vocab_size": 152064, "max_position_embeddings": 32768},
        UpstreamFacts("Qwen2ForCausalLM", 28, 3584, 18944, 28, 4, 128, 152064, 32768),
    ),
    "Phi3ForCausalLM": (
        {"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 32}
        | {"num_hidden_layers": 32, "vocab_size": 32064, "max_position_embeddings": 4096},
        UpstreamFacts("Phi3ForCausalLM", 32, 3072, 8192, 32, 32, 96, 32064, 4096),
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_are_found_under_each_familys_names(name: str) -> None:
    config, expected = FAMILIES[name]
    assert make_checkpoint_facts({"architectures": [name], **config}) == expected


@pytest.mark.parametrize(
    ("changes", "kv_heads"),
    [
        ({"num_kv_heads": 71}, 1),  # as transformers writes a falcon-7b
        ({"multi_query": None}, 71),
        ({"multi_query": False, "num_kv_heads": 71}, 71),
        ({"new_decoder_architecture": True, "num_attention_heads": 128, "num_kv_heads": 8}, 8),
    ],
)
def test_falcons_number_of_key_heads_counts_only_where_it_is_looked_at(changes: dict[str, Any], kv_heads: int) -> None:
    config = {"architectures": ["FalconForCausalLM"], **FAMILIES["FalconForCausalLM"][0], **changes}
    facts = make_checkpoint_facts({"hidden_size": 8192, **config})
    assert isinstance(facts, UpstreamFacts)
    assert facts.kv_heads == kv_heads


REFUSED: dict[str, tuple[dict[str, Any], Reason, str]] = {
    "no size": ({"n_embd": None}, Reason.CHECKPOINT_CORRUPT, "hidden_size is None"),
    "a size of text": ({"n_layer": "24"}, Reason.CHECKPOINT_CORRUPT, "n_layer is '24'"),
    "absurd depth": ({"n_layer": 10**6}, Reason.CHECKPOINT_CORRUPT, "1000000 layers"),
    "heads that do not share": (
        {"num_key_value_heads": 3},
        Reason.CHECKPOINT_CORRUPT,
        "16 attention heads and 3 key-value heads",
    ),
    "quantized": ({"quantization_config": {"bits": 4}}, Reason.UNSUPPORTED_ARCHITECTURE, "already quantized"),
}


@pytest.mark.parametrize(("changes", "reason", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_nonsense_is_named(changes: dict[str, Any], reason: Reason, words: str) -> None:
    name = "GPTBigCodeForCausalLM"
    with pytest.raises(Terminal) as failure:
        make_checkpoint_facts({"architectures": [name], **FAMILIES[name][0], **changes})
    assert failure.value.reason is reason
    assert words in failure.value.message


@pytest.mark.parametrize("config", [{}, {"architectures": []}, {"architectures": None, "model_type": "none"}])
def test_a_config_without_a_name_is_answered_with_what_is_known(config: dict[str, Any]) -> None:
    assert architecture_name(config) == "none"
    with pytest.raises(Terminal, match="architecture is none; known are MPTForCausalLM"):
        make_checkpoint_facts(config)


def test_layers_count_up_to_the_first_gap() -> None:
    assert count_layers(["transformer.h.0.a", "transformer.h.1.a", "lm_head.weight"]) == 2
    assert count_layers(["gpt_neox.layers.0.a", "gpt_neox.layers.2.a"]) == 1
    assert count_layers(["lm_head.weight"]) == 0


def write_bloom(folder: Path, *, layers: int = 2, **changes: Any) -> Path:
    """A Bloom of two layers, of which Hotstart reads no more than names and shapes."""
    folder.mkdir()
    random = np.random.default_rng(0)
    weights = {"word_embeddings.weight": random.standard_normal((512, 64), dtype=np.float32)}
    for layer in range(layers):
        weights[f"h.{layer}.self_attention.query_key_value.weight"] = random.standard_normal(
            (192, 64), dtype=np.float32
        )
    weights |= {changed: np.asarray(value, np.float32) for changed, value in changes.items()}
    write_safetensors(folder / "model.safetensors", weights, sorted(weights), "float16")
    config = {"architectures": ["BloomForCausalLM"], "n_embed": 64, "n_layer": 2, "n_head": 4, "vocab_size": 512}
    (folder / "config.json").write_text(json.dumps(config | {"seq_length": 2048, "eos_token_id": 0}))
    (folder / "tokenizer.json").write_text(make_tokenizer_json(512))
    return folder


def prepare_it(folder: Path, runtime: str, *, heads_only: bool) -> Any:
    target = folder.with_name(f"{folder.name}-{runtime}-{heads_only}")
    target.mkdir()
    source = open_source(parse_uri(f"file://{folder}", local=True), StorePlace(""), HubAccess())
    return prepare(
        source, target, SERVING, on_choice=lambda size: None, on_bytes=lambda count: None,
        heads_only=heads_only, runtime=runtime,
    ).checkpoint  # fmt: skip


def test_a_network_of_upstream_is_prepared_for_tensorrt_llm_with_its_weights_counted(tmp_path: Path) -> None:
    checkpoint = prepare_it(write_bloom(tmp_path / "bloom"), TENSORRT_LLM, heads_only=False)
    assert count_parameters(checkpoint.facts) == sum(map(math.prod, checkpoint.shapes().values()))
    assert count_embedding_parameters(checkpoint.facts) == 512 * 64
    assert checkpoint.facts.to_json()["parameters"] == 512 * 64 + 2 * 192 * 64


def test_another_runtime_is_refused_before_a_weight_is_read(tmp_path: Path) -> None:
    folder = write_bloom(tmp_path / "bloom")
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(Terminal, match="ctranslate2 does not build BloomForCausalLM; tensorrt_llm does"):
        prepare_it(folder, CTRANSLATE2, heads_only=True)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "too few layers": ({"layers": 1}, "have 1 layers, the config says 2"),
    "too many layers": ({"layers": 3}, "have 3 layers, the config says 2"),
    "another vocabulary": ({"word_embeddings.weight": np.ones((500, 64))}, r"No tensor has the shape \[512, 64\]"),
    "NaN": ({"ln_f.weight": [1.0, math.nan]}, r"The tensor ln_f\.weight of model\.safetensors holds NaN or Inf"),
    "too large for its format": (
        {"ln_f.weight": [1.0, 1e6]},
        r"The tensor ln_f\.weight of model\.safetensors holds NaN or Inf",
    ),
}


@pytest.mark.parametrize(("changes", "words"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_what_is_wrong_with_its_weights_is_found_before_a_build(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    folder = write_bloom(tmp_path / "bloom", **changes)
    with pytest.raises(EngineError, match=words) as failure:
        prepare_it(folder, TENSORRT_LLM, heads_only=False)
    assert failure.value.reason is Reason.CHECKPOINT_CORRUPT

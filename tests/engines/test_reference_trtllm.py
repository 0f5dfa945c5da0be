"""The reference of an MPT of which only the TensorRT-LLM checkpoint is there, against that of the original."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.checkpoints.trtllm_folder import TrtllmFolder
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.recipe import EngineRecipe, make_toolchain
from hotstart.engines.reference.opening import make_reference
from hotstart.engines.reference.trtllm_mpt import TrtllmMptReference
from hotstart.engines.runtimes.tensorrt_llm.mpt_convert import convert_mpt
from hotstart.engines.verify.verify import Watched

from tests.support.tiny_mpt import TinyMptShape, write_tiny_mpt
from tests.support.trtllm_checkpoint import write_trtllm_checkpoint

TEXTS = [[5, 17, 300, 44, 44, 129, 8, 501, 260, 77, 31, 90], [1, 2, 3]]


def convert(tmp_path: Path, shape: TinyMptShape, ranks: int) -> tuple[SafetensorsFolder, TrtllmFolder]:
    """A float16 checkpoint, and what our converter makes of it."""
    original = SafetensorsFolder(write_tiny_mpt(tmp_path / "mpt", shape=shape, dtype="float16"))
    converted = tmp_path / "trtllm"
    recipe = EngineRecipe(make_toolchain("tensorrt_llm", "hotstart-mpt"), "float16", "none", ranks)
    convert_mpt(original, recipe, converted, lambda share: None)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(tmp_path / "mpt" / name, converted / name)
    return original, TrtllmFolder(converted)


@pytest.mark.parametrize(
    ("shape", "ranks"),
    [
        (TinyMptShape(), 1),
        (TinyMptShape(), 2),
        (TinyMptShape(), 4),
        (TinyMptShape(heads=8, kv_heads=8, clip_qkv=0.5), 4),
        (TinyMptShape(kv_heads=4, alibi_bias_max=16, vocab=511), 2),
        (TinyMptShape(kv_heads=1, bias=True), 2),
    ],
    ids=["one rank", "two", "two heads for four", "clipped", "odd vocabulary", "biases"],
)
def test_it_computes_what_the_original_does(tmp_path: Path, shape: TinyMptShape, ranks: int) -> None:
    original, converted = convert(tmp_path, shape, ranks)
    expected = make_reference(original).logits_of_all(TEXTS, [[0, 5, 11], [2]])
    shares: list[float] = []
    reference = make_reference(Watched(converted, shares.append))
    assert isinstance(reference, TrtllmMptReference)
    found = reference.logits_of_all(TEXTS, [[0, 5, 11], [2]])
    for left, right in zip(found, expected, strict=True):
        assert left.shape == right.shape
        np.testing.assert_allclose(left, right, atol=2e-2 if shape.bias else 1e-4)  # folded biases are rounded again
    assert shares == sorted(shares)


def test_a_weight_in_the_wrong_place_shows(tmp_path: Path) -> None:
    original, converted = convert(tmp_path, TinyMptShape(), 2)
    expected = make_reference(original).logits(TEXTS[0])
    first, second = (tmp_path / "trtllm" / f"rank{rank}.safetensors" for rank in (0, 1))
    swapped = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(swapped)
    assert np.abs(make_reference(TrtllmFolder(tmp_path / "trtllm")).logits(TEXTS[0]) - expected).max() > 1
    assert converted.layout.tensor_parallel == 2


def test_quantized_ones_are_refused_with_the_way_out(tmp_path: Path) -> None:
    checkpoint = TrtllmFolder(write_trtllm_checkpoint(tmp_path / "packed", packed=True))
    with pytest.raises(Terminal, match=r"int8_weight_only.*cannot be verified.*original checkpoint") as failure:
        make_reference(checkpoint)
    assert failure.value.reason is Reason.UNSUPPORTED_ARCHITECTURE

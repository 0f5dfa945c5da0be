"""What no container with a GPU could ever convert, build or verify is refused by the inspection, with the way out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hotstart.engines.architectures import CTRANSLATE2, TENSORRT_LLM, TENSORRT_LLM_NAMES
from hotstart.engines.errors import Reason, Terminal

from tests.engines.test_upstream_config import prepare_it
from tests.support.tiny_checkpoint import make_tiny_weights, write_tiny_checkpoint
from tests.support.tiny_mpt import TinyMptShape, write_tiny_mpt
from tests.support.torch_checkpoint import to_torch, write_torch_weights
from tests.support.trtllm_checkpoint import write_trtllm_checkpoint


def refusal(folder: Path) -> Terminal:
    with pytest.raises(Terminal) as failure:
        prepare_it(folder, TENSORRT_LLM, heads_only=True)
    assert failure.value.reason is Reason.UNSUPPORTED_ARCHITECTURE
    return failure.value


def llama(folder: Path, write: Callable[[Path], object]) -> Path:
    """LLaMA's weights, which TensorRT-LLM's own converter reads, in another form."""
    write_tiny_checkpoint(folder)
    write(folder)
    return folder


def save_torch(name: str, wrap: Callable[[Any], Any] = lambda weights: weights) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        import torch

        (folder / "model.safetensors").unlink()
        torch.save(wrap(to_torch(make_tiny_weights())), folder / name)

    return write


FORMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file of another name": (
        lambda folder: (folder / "model.safetensors").rename(folder / "run-17.safetensors"),
        "not as run-17.safetensors: call the file model.safetensors",
    ),
    "a lone .pt": (save_torch("model.pt"), "not as model.pt: call the file pytorch_model.bin"),
    "weights within something else": (
        save_torch("pytorch_model.bin", lambda weights: {"state_dict": weights, "epoch": 3}),
        "pytorch_model.bin holds its weights within something else",
    ),
}


@pytest.mark.parametrize(("write", "words"), FORMS.values(), ids=FORMS.keys())
def test_a_form_that_upstream_does_not_load_is_refused(
    tmp_path: Path, write: Callable[[Path], object], words: str
) -> None:
    folder = llama(tmp_path / "c", write)
    assert words in refusal(folder).message
    prepare_it(folder, CTRANSLATE2, heads_only=True)  # our own converter reads it


def test_usual_forms_are_not(tmp_path: Path) -> None:
    prepare_it(write_tiny_checkpoint(tmp_path / "shards", shards=2), TENSORRT_LLM, heads_only=True)
    pytorch = write_torch_weights(write_tiny_checkpoint(tmp_path / "torch"), make_tiny_weights())
    prepare_it(pytorch, TENSORRT_LLM, heads_only=True)


def test_a_pytorch_file_of_another_order_is_scanned_before_upstream_gets_it(tmp_path: Path) -> None:
    import zipfile

    weights = make_tiny_weights()
    weights["model.norm.weight"][3] = float("nan")
    folder = write_torch_weights(write_tiny_checkpoint(tmp_path / "torch"), weights)
    file = folder / "pytorch_model.bin"
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(file, "w") as archive:  # the list of tensors last
        for name in sorted(records, key=lambda name: name.endswith(".pkl")):
            archive.writestr(name, records[name])
    prepare_it(folder, TENSORRT_LLM, heads_only=True)
    with pytest.raises(Terminal, match=r"model\.norm\.weight holds NaN or Inf"):
        prepare_it(folder, TENSORRT_LLM, heads_only=False)


def test_an_mpt_that_tensorrt_llm_cannot_be_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_mpt(tmp_path / "wide", shape=TinyMptShape(expansion=2))
    assert "The MLP is 128 wide, TensorRT-LLM's MPT has 4 times" in refusal(folder).message
    other = write_tiny_mpt(tmp_path / "epsilon")
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace("{", '{"norm_eps": 1e-6,', 1))
    assert "The norms' epsilon is 1e-06" in refusal(other).message
    prepare_it(other, CTRANSLATE2, heads_only=True)


@pytest.mark.parametrize("name", sorted(TENSORRT_LLM_NAMES - {"MPTForCausalLM"}))
def test_a_tensorrt_llm_checkpoint_that_nothing_can_verify_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_trtllm_checkpoint(tmp_path / "c", architecture=name)
    assert "cannot be verified: what it should compute is known of MPT" in refusal(folder).message


def test_so_is_one_that_is_quantized(tmp_path: Path) -> None:
    assert (
        "int8_weight_only) cannot be verified" in refusal(write_trtllm_checkpoint(tmp_path / "c", packed=True)).message
    )
    prepare_it(write_trtllm_checkpoint(tmp_path / "plain"), TENSORRT_LLM, heads_only=True)

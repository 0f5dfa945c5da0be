"""Checkpoints that cannot be what they say: each gets its reason, and a message that names the file or the tensor."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hotstart.engines.checkpoints.checkpoint import check_shapes, read_weight
from hotstart.engines.checkpoints.choose import ListedFile, choose_files
from hotstart.engines.checkpoints.gguf_file import GgufFile
from hotstart.engines.checkpoints.gguf_head import read_head
from hotstart.engines.checkpoints.opening import check_checkpoint, open_checkpoint
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder, read_header
from hotstart.engines.errors import Reason, Terminal
from hotstart.exchange.messages import PromptFormat, ServingOptions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.tiny_checkpoint import (
    FIM_MARKERS,
    TinyShape,
    make_tiny_weights,
    make_tokenizer_json,
    write_tiny_checkpoint,
    write_tiny_gguf,
)

SERVING = ServingOptions(max_input_tokens=96, max_new_tokens=32)


def open_and_check(folder: Path, serving: ServingOptions = SERVING) -> Any:
    files = tuple(ListedFile(path.name, path.stat().st_size) for path in folder.iterdir())
    checkpoint = open_checkpoint(folder, choose_files(files, where=str(folder)))
    check_checkpoint(checkpoint, serving)
    return checkpoint


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))

    return change


def change_bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return write


REFUSED: dict[str, tuple[Callable[[Path], None], Reason, str]] = {
    "another architecture": (
        change_config(architectures=["T5ForConditionalGeneration"]),
        Reason.UNSUPPORTED_ARCHITECTURE,
        "T5ForConditionalGeneration; known are MPTForCausalLM, MptForCausalLM, LlamaForCausalLM, MistralForCausalLM",
    ),
    "no architecture": (change_config(architectures=..., model_type=...), Reason.UNSUPPORTED_ARCHITECTURE, "none"),
    "another activation": (change_config(hidden_act="gelu"), Reason.UNSUPPORTED_ARCHITECTURE, "hidden_act 'gelu'"),
    "weights quantized before": (
        change_config(quantization_config={"quant_method": "gptq"}),
        Reason.UNSUPPORTED_ARCHITECTURE,
        "gptq",
    ),
    "another rotary scaling": (
        change_config(rope_scaling={"rope_type": "yarn", "factor": 4.0}),
        Reason.UNSUPPORTED_ARCHITECTURE,
        "'yarn' (known: linear, llama3)",
    ),
    "a size is missing": (change_config(hidden_size=...), Reason.CHECKPOINT_CORRUPT, "hidden_size is None"),
    "a size is text": (change_config(num_hidden_layers="2"), Reason.CHECKPOINT_CORRUPT, "num_hidden_layers is '2'"),
    "a size is negative": (change_config(vocab_size=-1), Reason.CHECKPOINT_CORRUPT, "vocab_size is -1"),
    "heads do not share": (change_config(num_key_value_heads=3), Reason.CHECKPOINT_CORRUPT, "3 key-value heads"),
    "more layers than weights": (change_config(num_hidden_layers=3), Reason.CHECKPOINT_CORRUPT, "model.layers.2."),
    "another width than the weights": (
        change_config(intermediate_size=256),
        Reason.CHECKPOINT_CORRUPT,
        "mlp.gate_proj.weight has shape [128, 64], the config says [256, 64]",
    ),
    "untied but no projection": (change_config(tie_word_embeddings=False), Reason.CHECKPOINT_CORRUPT, "lm_head.weight"),
    "config is no JSON": (change_bytes("config.json", lambda b: b[:20]), Reason.CHECKPOINT_CORRUPT, "config.json"),
    "config is a list": (change_bytes("config.json", lambda b: b"[]"), Reason.CHECKPOINT_CORRUPT, "no JSON object"),
    "weights cut short": (
        change_bytes("model.safetensors", lambda b: b[:-100]),
        Reason.CHECKPOINT_CORRUPT,
        "model.safetensors is cut short",
    ),
    "weights cut in the header": (
        change_bytes("model.safetensors", lambda b: b[:50]),
        Reason.CHECKPOINT_CORRUPT,
        "model.safetensors is cut short",
    ),
    "weights are something else": (
        change_bytes("model.safetensors", lambda b: b"<html>not found</html>"),
        Reason.CHECKPOINT_CORRUPT,
        "no safetensors file",
    ),
    "a tensor of integers": (
        change_bytes("model.safetensors", lambda b: b.replace(b'"F32"', b'"I32"', 1)),
        Reason.UNSUPPORTED_ARCHITECTURE,
        "(I32)",
    ),
    "the tokenizer is no tokenizer": (
        change_bytes("tokenizer.json", lambda b: b'{"version": "1.0"}'),
        Reason.TOKENIZER_MISMATCH,
        "tokenizer.json cannot be read",
    ),
    "the tokenizer is too small": (
        change_bytes("tokenizer.json", lambda b: make_tokenizer_json(300).encode()),
        Reason.TOKENIZER_MISMATCH,
        "300 tokens",
    ),
    "the tokenizer is too large": (
        change_bytes("tokenizer.json", lambda b: make_tokenizer_json(520).encode()),
        Reason.TOKENIZER_MISMATCH,
        "ids up to 519, the weights have 512",
    ),
    "an end token outside the vocabulary": (
        change_bytes("generation_config.json", lambda b: b'{"eos_token_id": [0, 99999]}'),
        Reason.TOKENIZER_MISMATCH,
        "99999",
    ),
}


@pytest.mark.parametrize(("spoil", "reason", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_a_spoilt_checkpoint_is_refused_by_name(
    tmp_path: Path, spoil: Callable[[Path], None], reason: Reason, words: str
) -> None:
    folder = write_tiny_checkpoint(tmp_path / "c")
    open_and_check(folder)
    spoil(folder)
    with pytest.raises(Terminal) as failure:
        open_and_check(folder)
    assert failure.value.reason is reason
    assert words in failure.value.message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_with_its_tensor(tmp_path: Path, value: float) -> None:
    weights = make_tiny_weights()
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    checkpoint = SafetensorsFolder(write_tiny_checkpoint(tmp_path / "c", weights=weights))
    with pytest.raises(Terminal, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or Inf") as failure:
        read_weight(checkpoint, "model.layers.1.mlp.up_proj.weight")
    assert failure.value.reason is Reason.CHECKPOINT_CORRUPT
    assert read_weight(checkpoint, "model.norm.weight").shape == (64,)


def test_markers_must_be_single_tokens(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "c")
    prefix, suffix, middle = FIM_MARKERS
    fim = SERVING.model_copy(
        update={"prompt_format": PromptFormat.FIM, "fim_prefix": prefix, "fim_suffix": suffix, "fim_middle": middle}
    )
    open_and_check(folder, fim)
    with pytest.raises(Terminal) as failure:
        open_and_check(folder, fim.model_copy(update={"fim_middle": "<|fim_middle|>"}))
    assert failure.value.reason is Reason.MARKERS_NOT_IN_TOKENIZER
    assert "middle '<|fim_middle|>'" in failure.value.message
    with pytest.raises(Terminal, match="suffix ''"):
        open_and_check(folder, fim.model_copy(update={"fim_suffix": ""}))


def test_a_model_may_not_ask_for_more_tokens_than_the_checkpoint_knows(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "c", shape=TinyShape(context=128))
    open_and_check(folder)
    with pytest.raises(Terminal, match="trained for 128") as failure:
        open_and_check(folder, ServingOptions(max_input_tokens=97, max_new_tokens=32))
    assert failure.value.reason is Reason.UNSUPPORTED_RECIPE


def test_a_sliding_window_bounds_the_context(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "c", architecture="MistralForCausalLM")
    change_config(sliding_window=512)(folder)
    checkpoint = open_and_check(folder)
    assert checkpoint.facts.architecture == "MistralForCausalLM"
    assert checkpoint.facts.context_length == 512


def test_rope_parameters_of_newer_configs_are_read(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "c")
    change_config(rope_theta=..., rope_parameters={"rope_type": "default", "rope_theta": 5000.0})(folder)
    facts = open_and_check(folder).facts
    assert (facts.rope_base, facts.rope_scaling) == (5000.0, None)


def test_end_and_start_tokens_come_from_the_checkpoint(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "c")
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    checkpoint = open_and_check(folder)
    assert checkpoint.eos_ids == (7, 9, 0)
    assert checkpoint.bos_id == 0


@pytest.mark.parametrize("dtype", ["BOOL", "U8", "I32", "I64"])
@pytest.mark.parametrize("name", ["attention.bias", "attn.masked_bias", "position_ids"])
def test_masks_and_positions_are_left_out(tmp_path: Path, name: str, dtype: str) -> None:
    path = tmp_path / "model.safetensors"
    write_entries(path, {f"gpt_neox.layers.0.{name}": dtype, "gpt_neox.layers.0.attention.dense.weight": "F32"})
    assert read_header(path).keys() == {"gpt_neox.layers.0.attention.dense.weight"}


def test_packed_weights_are_no_masks(tmp_path: Path) -> None:
    path, name = tmp_path / "model.safetensors", "transformer.h.0.attn.c_attn.qweight"
    write_entries(path, {name: "I32"})
    with pytest.raises(Terminal, match=rf"{name} \(I32\) has an unsupported type"):
        read_header(path)
    assert read_header(path, {"I32"}).keys() == {name}


def write_entries(path: Path, dtypes: dict[str, str]) -> None:
    """A safetensors file of one element a tensor."""
    header: dict[str, Any] = {}
    end = 0
    for name, dtype in dtypes.items():
        begin, end = end, end + {"BOOL": 1, "U8": 1, "I64": 8}.get(dtype, 4)
        header[name] = {"dtype": dtype, "shape": [1], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.9999))
def test_a_gguf_cut_anywhere_is_corrupt(tmp_path: Path, tiny_gguf: bytes, share: float) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_gguf[: int(share * len(tiny_gguf))])
    with pytest.raises(Terminal, match=r"cut\.gguf") as failure:
        GgufFile(path)
    assert failure.value.reason is Reason.CHECKPOINT_CORRUPT


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(4, 30_000), value=st.integers(0, 255))
def test_a_gguf_with_another_byte_in_its_head_opens_or_is_refused(
    tmp_path: Path, tiny_gguf: bytes, at: int, value: int
) -> None:
    path = tmp_path / "changed.gguf"
    path.write_bytes(tiny_gguf[:at] + bytes([value]) + tiny_gguf[at + 1 :])
    try:
        check_shapes(GgufFile(path))
    except Terminal as failure:
        assert failure.message


def test_the_head_is_read_as_the_gguf_package_reads_it(tmp_path: Path, tiny_gguf: bytes) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_gguf)
    ours, theirs = read_head(path), gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.fields == fields
    assert {t.name: (tuple(reversed(t.shape.tolist())), t.data_offset, t.n_bytes) for t in theirs.tensors} == {
        t.name: (t.shape, t.start, t.size) for t in ours.tensors.values()
    }


def write_gguf_with(path: Path, **fields: Any) -> Path:
    writer = gguf.GGUFWriter(path, fields.pop("architecture", "llama"))
    for name, value in fields.items():
        writer.add_key_value(name.replace("__", "."), value, _kind(value))
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _kind(value: Any) -> gguf.GGUFValueType:
    return gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.UINT32


def test_a_gguf_of_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Terminal, match="architecture is qwen2; known is llama") as failure:
        GgufFile(write_gguf_with(tmp_path / "m.gguf", architecture="qwen2"))
    assert failure.value.reason is Reason.UNSUPPORTED_ARCHITECTURE


def test_a_gguf_with_experts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Terminal, match="llama with experts"):
        GgufFile(write_gguf_with(tmp_path / "m.gguf", llama__expert_count=8))


def test_a_gguf_without_a_size_says_which(tmp_path: Path) -> None:
    with pytest.raises(Terminal, match=r"llama\.attention\.head_count is missing") as failure:
        GgufFile(write_gguf_with(tmp_path / "m.gguf"))
    assert failure.value.reason is Reason.CHECKPOINT_CORRUPT

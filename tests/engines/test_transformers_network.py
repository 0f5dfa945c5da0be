"""The reference by transformers: what it is asked for, how its weights are widened, and what goes wrong.

transformers is in no development set: a stand-in for it gives out a network of torch. ``against_transformers.py`` runs
every known family with the real one.
"""

from __future__ import annotations

import json
import sys
from importlib import util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.reference import transformers_network
from hotstart.engines.reference.opening import make_reference
from hotstart.engines.reference.transformers_network import TransformersReference, widen_while_computing

from tests.support.tiny_checkpoint import TinyShape, make_tiny_weights, write_tiny_checkpoint

torch: Any = pytest.importorskip("torch", reason="torch is installed from requirements/torch.lock")
VOCAB, WIDTH = 40, 8


class Network(torch.nn.Module):  # type: ignore[misc]
    """Embedding, one layer, and a head that shares the embedding's weights; it notes in what type each computed."""

    def __init__(self, dtype: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(vocab_size=VOCAB)
        self.embed = torch.nn.Embedding(VOCAB, WIDTH)
        self.layer = torch.nn.Linear(WIDTH, WIDTH)
        self.head = torch.nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.embed.weight
        self.to(dtype)
        self.seen: list[Any] = []

    def forward(self, ids: Any, use_cache: bool) -> Any:
        assert not use_cache
        x = self.embed(ids)
        y = self.layer(x)
        self.seen += [x.dtype, y.dtype]
        assert self.layer.weight.dtype is self.embed.weight.dtype is torch.bfloat16
        return SimpleNamespace(logits=self.head(torch.tanh(y)).float())


@pytest.fixture
def network() -> Network:
    return Network(torch.bfloat16)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, network: Network) -> list[dict[str, Any]]:
    """Stands in for transformers; the arguments of each load."""
    calls: list[dict[str, Any]] = []

    def from_pretrained(folder: str, **arguments: Any) -> Network:
        calls.append({"folder": folder, **arguments})
        if not Path(folder).exists():
            raise OSError(f"no config.json in {folder}")
        return network

    module = ModuleType("transformers")
    module.__spec__ = util.spec_from_loader("transformers", None)
    module.__version__ = "4.57.6"  # type: ignore[attr-defined]
    module.AutoModelForCausalLM = SimpleNamespace(from_pretrained=from_pretrained)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", module)
    return calls


def test_it_computes_in_float32_what_is_stored_in_sixteen_bits(
    tmp_path: Path, asked: list[dict[str, Any]], network: Network
) -> None:
    stored = {name: value.clone() for name, value in network.state_dict().items()}
    wide = {name: value.double().numpy() for name, value in stored.items()}
    found = TransformersReference(tmp_path, "BloomForCausalLM").logits([3, 1, 39])
    x = wide["embed.weight"][[3, 1, 39]] @ wide["layer.weight"].T + wide["layer.bias"]
    np.testing.assert_allclose(found, np.tanh(x) @ wide["embed.weight"].T, atol=1e-5)
    assert found.dtype == np.float32
    assert network.seen == [torch.float32, torch.float32]
    assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())
    assert {value.dtype for value in network.state_dict().values()} == {torch.bfloat16}


def test_the_checkpoint_may_run_no_code_and_the_network_is_opened_once(
    tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    reference = TransformersReference(tmp_path, "BloomForCausalLM")
    assert asked == []
    together = reference.logits_of_all([[1, 2, 3], [4]], [[2, 0], [0]])
    assert [array.shape for array in together] == [(2, VOCAB), (1, VOCAB)]
    np.testing.assert_array_equal(together[0], reference.logits([1, 2, 3])[[2, 0]])
    [call] = asked
    assert call["folder"] == str(tmp_path)
    assert call["trust_remote_code"] is False
    assert call["local_files_only"] is True


def test_a_network_that_would_round_its_angles_is_loaded_in_float32_whole(
    tmp_path: Path, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    widened: list[Any] = []
    monkeypatch.setattr(transformers_network, "widen_while_computing", lambda *arguments: widened.append(arguments))
    for architecture in ("GPTJForCausalLM", "BloomForCausalLM"):
        TransformersReference(tmp_path, architecture).logits([1])
    assert [call["torch_dtype"] for call in asked] == [torch.float32, "auto"]
    assert len(widened) == 1


def test_types_that_differ_come_back_as_they_were(network: Network) -> None:
    network.layer.bias.data = network.layer.bias.data.half()
    widen_while_computing(network, torch.float32)
    with torch.inference_mode():
        network(torch.tensor([[1]]), use_cache=False)
    assert network.layer.bias.dtype is torch.float16
    assert network.layer.weight.dtype is torch.bfloat16


@pytest.mark.parametrize("ids", [[], [VOCAB], [-1]])
def test_tokens_that_cannot_be_are_refused(tmp_path: Path, asked: list[dict[str, Any]], ids: list[int]) -> None:
    with pytest.raises(ValueError, match="0 to 39"):
        TransformersReference(tmp_path, "BloomForCausalLM").logits(ids)


def test_what_is_not_finite_is_the_checkpoints_fault(
    tmp_path: Path, asked: list[dict[str, Any]], network: Network
) -> None:
    network.layer.weight.data[0, 0] = float("nan")
    with pytest.raises(Terminal, match="BloomForCausalLM computes NaN") as failure:
        TransformersReference(tmp_path, "BloomForCausalLM").logits([1])
    assert failure.value.reason is Reason.CHECKPOINT_CORRUPT


def test_what_transformers_does_not_load_is_told_in_its_words(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    with pytest.raises(Terminal, match=r"4\.57\.6 does not load the BloomForCausalLM: no config\.json") as failure:
        TransformersReference(tmp_path / "gone", "BloomForCausalLM").logits([1])
    assert failure.value.reason is Reason.CHECKPOINT_CORRUPT


def write_qwen2(folder: Path) -> SafetensorsFolder:
    """A checkpoint of a family that no code of ours computes."""
    shape = TinyShape()
    write_tiny_checkpoint(folder, shape=shape, weights=make_tiny_weights(shape))
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    (folder / "config.json").write_text(json.dumps(config))
    return SafetensorsFolder(folder)


def test_families_that_are_not_ours_take_it(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    reference = make_reference(write_qwen2(tmp_path / "qwen2"))
    assert isinstance(reference, TransformersReference)
    assert reference.name == "transformers"
    reference.logits([1])
    assert asked[0]["folder"] == str(tmp_path / "qwen2")


def test_an_image_without_it_says_which_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write_qwen2(tmp_path / "qwen2")
    monkeypatch.setattr(transformers_network, "find_spec", lambda name: None)
    with pytest.raises(Terminal, match=r"Qwen2ForCausalLM.*lacks torch and transformers.*tensorrt_llm") as failure:
        make_reference(checkpoint)
    assert failure.value.reason is Reason.UNSUPPORTED_ARCHITECTURE

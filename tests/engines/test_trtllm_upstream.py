"""Upstream's scripts, played with the options of each: what of a checkpoint they get to see, and where they can run."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hotstart.engines.architectures import OURS, TENSORRT_LLM, known_names, require_architecture
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.errors import DriverMissing, EngineError, Reason, Terminal
from hotstart.engines.runtimes.tensorrt_llm import driver
from hotstart.engines.runtimes.tensorrt_llm.driver import find_compat, make_driver_environment
from hotstart.engines.runtimes.tensorrt_llm.model_folder import lay_out_model, without_code
from hotstart.engines.runtimes.tensorrt_llm.quantize import load_quantize
from hotstart.engines.runtimes.tensorrt_llm.tensorrt_llm import CHECKPOINT, MODEL, TensorRTLLM, quantize, run_converter
from hotstart.engines.toolchains import find_toolchain

from tests.engines.test_trtllm_runtime import FP8, LLAMA
from tests.engines.trtllm_world import make_world
from tests.support.tiny_checkpoint import write_tiny_checkpoint

UPSTREAM = [
    name for name in known_names(TENSORRT_LLM) if require_architecture(name).converters[TENSORRT_LLM] not in OURS
]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what the played tools do."""

    def set_world(**what: str) -> None:
        for name, value in make_world(**what).items():
            monkeypatch.setenv(name, value)

    set_world()
    return set_world


def named(architecture: str) -> Any:
    """As much of an opened checkpoint as the choice of the script looks at."""

    class Facts:
        pass

    facts, checkpoint = Facts(), Facts()
    facts.architecture, checkpoint.facts = architecture, facts  # type: ignore[attr-defined]
    return checkpoint


def write_with_code(folder: Path) -> Path:
    """A checkpoint as Phi-3's publisher has it: classes of its own, by name."""
    write_tiny_checkpoint(folder)
    for name, auto_map in (
        ("config.json", {"AutoConfig": "configuration_phi3.Phi3Config"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_phi3.Phi3Tokenizer", None]}),
    ):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(config | {"auto_map": auto_map, "custom_pipelines": {"x": {}}}))
    return folder


@pytest.mark.parametrize("quantization", ["none", "int4_weight_only"])
@pytest.mark.parametrize("name", UPSTREAM)
def test_each_script_takes_the_options_that_it_is_given(
    tmp_path: Path, world: Any, name: str, quantization: str
) -> None:
    recipe = replace(LLAMA, toolchain=find_toolchain(TENSORRT_LLM, name), tensor_parallel=2, quantization=quantization)
    shares: list[float] = []
    run_converter(named(name), recipe, write_tiny_checkpoint(tmp_path / "model"), tmp_path, shares.append)
    assert shares == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert (tmp_path / CHECKPOINT / "rank1.safetensors").is_file()


def test_a_checkpoint_that_names_code_is_converted_without_it(tmp_path: Path, world: Any) -> None:
    source = write_with_code(tmp_path / "source")
    with pytest.raises(EngineError, match=r"does not appear to have a file named configuration_phi3\.py"):
        run_converter(named("LlamaForCausalLM"), LLAMA, source, tmp_path, print)  # as it is
    (tmp_path / "converted").mkdir()
    TensorRTLLM().convert(SafetensorsFolder(source), LLAMA, tmp_path / "converted", lambda share: None, source)
    assert (tmp_path / "converted" / CHECKPOINT / "rank0.safetensors").is_file()


def test_so_is_one_that_is_calibrated(tmp_path: Path, world: Any) -> None:
    source = write_with_code(tmp_path / "source")
    for folder in ("converted", "work"):
        (tmp_path / folder).mkdir()
    TensorRTLLM().convert(SafetensorsFolder(source), FP8, tmp_path / "converted", lambda share: None, source)
    quantize(tmp_path / "converted" / MODEL, FP8, tmp_path / "checkpoint", tmp_path / "work", print)
    assert (tmp_path / "checkpoint" / "rank0.safetensors").is_file()


def test_a_script_sees_the_rest_of_the_config(tmp_path: Path) -> None:
    source = write_with_code(tmp_path / "source")
    lay_out_model(source, tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {path.name for path in source.iterdir()}
    for name in ("config.json", "tokenizer_config.json"):
        before, after = (json.loads((folder / name).read_text()) for folder in (source, tmp_path / "model"))
        assert before.keys() - after.keys() == {"auto_map", "custom_pipelines"}
        assert all(before[field] == value for field, value in after.items())
    assert without_code({"text": [{"auto_map": {}, "x": 1}]}) == {"text": [{"x": 1}]}


def test_a_script_that_wants_a_driver_says_so(tmp_path: Path, world: Any) -> None:
    world(upstream="driver")
    with pytest.raises(DriverMissing, match=r"libcuda\.so\.1") as failure:
        run_converter(named("LlamaForCausalLM"), LLAMA, write_tiny_checkpoint(tmp_path / "model"), tmp_path, print)
    assert failure.value.reason is Reason.ACCELERATOR_MISMATCH


IMPORTS = [
    ("raise ImportError('libcuda.so.1: cannot open shared object file')", DriverMissing, "libcuda"),
    ("class NVMLError(Exception): pass\nraise NVMLError('NVML Shared Library Not Found')", DriverMissing, "NVML"),
    ("raise ImportError('libnvinfer.so.10: cannot open shared object file')", Terminal, "cannot be loaded"),
    ("raise ModuleNotFoundError('no module')", Terminal, "convert in that image"),
]


@pytest.mark.parametrize(("code", "kind", "words"), IMPORTS, ids=[words for _, _, words in IMPORTS])
def test_the_operation_of_weight_only_says_what_its_package_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, kind: type[EngineError], words: str
) -> None:
    (tmp_path / "tensorrt_llm.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt_llm", raising=False)
    monkeypatch.setitem(sys.modules, "torch", sys)
    with pytest.raises(kind, match=words):
        load_quantize("int8_weight_only")


def test_a_container_without_a_driver_lends_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LIBRARY", "libno-such-driver.so.1")
    assert find_compat((tmp_path,)) is None
    (tmp_path / "libno-such-driver.so.1").write_text("")
    assert find_compat((tmp_path / "not there", tmp_path)) == tmp_path
    ours = {"LD_LIBRARY_PATH": "/usr/lib", "PATH": "/bin"}
    assert make_driver_environment(tmp_path, ours) == {"LD_LIBRARY_PATH": f"{tmp_path}:/usr/lib"}
    assert make_driver_environment(None, ours) == {}
    monkeypatch.setattr(driver, "LIBRARY", "libc.so.6")
    assert find_compat((tmp_path,)) is None

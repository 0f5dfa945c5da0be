"""What a build writes, and what is said when disk or memory run out."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from hotstart.engines.builder.progress import MIB, Position, decide_outlook
from hotstart.engines.builder.room import full_disk_errors, needed_bytes, network_sizes
from hotstart.engines.checkpoints.checkpoint import count_parameters
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.errors import HostMemoryFull, Reason, Retryable
from hotstart.engines.recipe import CTRANSLATE2_TOOLCHAIN, EngineRecipe
from hotstart.engines.toolchains import find_toolchain
from hotstart.exchange.messages import BuildPhase

from tests.support.tiny_mpt import write_tiny_mpt

GPU = EngineRecipe(find_toolchain("tensorrt_llm", "MPTForCausalLM"), "float16", "none")
CPU = EngineRecipe(CTRANSLATE2_TOOLCHAIN, "float32", "int8")


def test_a_build_for_gpus_writes_the_weights_twice(tmp_path: Path) -> None:
    facts = SafetensorsFolder(write_tiny_mpt(tmp_path / "tiny")).facts
    weights = count_parameters(facts)
    assert needed_bytes(CPU, facts) == pytest.approx(weights, rel=0.06)
    assert needed_bytes(replace(CPU, quantization="float32"), facts) == pytest.approx(4 * weights, rel=0.06)
    assert needed_bytes(GPU, facts) >= 2 * 2 * weights
    assert network_sizes(facts).embedding_parameters == facts.vocab * facts.hidden  # MPT's are always tied


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_with_sizes(tmp_path: Path, number: int) -> None:
    with pytest.raises(Retryable, match=r"2\.00 GiB are needed") as failure, full_disk_errors(tmp_path, 2 * 1024**3):
        raise OSError(number, "full")
    assert failure.value.reason is Reason.DISK_FULL


def test_memory_that_runs_out_in_this_process_is_out_of_memory(tmp_path: Path) -> None:
    with pytest.raises(HostMemoryFull, match="Unable to allocate") as failure, full_disk_errors(tmp_path, 0):
        raise MemoryError("Unable to allocate 1.50 GiB")
    assert failure.value.reason is Reason.OUT_OF_MEMORY


def test_another_error_of_the_system_is_itself(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), full_disk_errors(tmp_path, 0):
        raise PermissionError("no")


def test_the_build_step_has_the_share_of_its_estimate() -> None:
    def position(phase: BuildPhase, share: float, began: float) -> Position:
        return Position(phase, share, 1000 * MIB, began, 0.0, building_seconds=300.0)

    before = decide_outlook(position(BuildPhase.BUILDING, 0.0, 50.0), 50.0)
    half = decide_outlook(position(BuildPhase.BUILDING, 0.5, 50.0), 200.0)
    after = decide_outlook(position(BuildPhase.VERIFYING, 0.0, 350.0), 350.0)
    assert before.percent < half.percent - 25 < after.percent - 50
    assert before.eta_seconds is not None
    assert half.eta_seconds is not None
    assert before.eta_seconds - half.eta_seconds == pytest.approx(150, abs=1)

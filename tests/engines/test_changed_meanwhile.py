"""A checkpoint that lies on a claim or this disk and is replaced while a build reads it: nothing of it is believed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from hotstart.engines.builder.build import make_engine, make_only_bundle
from hotstart.engines.builder.conversion import EXPECTATIONS, convert_only, find_conversion
from hotstart.engines.builder.inspect import inspect
from hotstart.engines.builder.log_tail import LogTail
from hotstart.engines.builder.settings import BuildSettings, InspectSettings, make_checkpoint_access
from hotstart.engines.builder.state import BuildState
from hotstart.engines.errors import Reason, Retryable
from hotstart.engines.key import key_inputs, make_key
from hotstart.engines.recipe import CTRANSLATE2_TOOLCHAIN, EngineRecipe
from hotstart.engines.verify import verify
from hotstart.exchange.messages import ServingOptions

from tests.support.tiny_checkpoint import write_tiny_checkpoint

RECIPE = EngineRecipe(CTRANSLATE2_TOOLCHAIN, dtype="float32", quantization="float32")
SERVING = ServingOptions(max_input_tokens=96, max_new_tokens=32)
WEIGHTS = "model.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def settings(checkpoint: Path, tmp_path: Path) -> BuildSettings:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    place = {"HOTSTART_CHECKPOINT": json.dumps({"uri": f"file://{checkpoint}"})}
    access = make_checkpoint_access(place, local=True)
    found = inspect(InspectSettings(access, scratch, SERVING, "ctranslate2"))
    return BuildSettings(
        checkpoint=access,
        scratch=scratch,
        serving=SERVING,
        recipe=RECIPE,
        engine_key=make_key(key_inputs(found["digest"], RECIPE)),
        checkpoint_digest=found["digest"],
        tokenizer_digest=found["tokenizerDigest"],
        converted=scratch / "converted",
        calibrator=None,
        pod_uid="",
        keys_file=Path(),
        host="",
        port=0,
    )


def make_state(settings: BuildSettings) -> BuildState:
    return BuildState("", settings.engine_key, LogTail(), heard=False)


def save_next_step(checkpoint: Path) -> None:
    """As a trainer does: other weights of the same sizes take the place of these."""
    other = write_tiny_checkpoint(checkpoint.parent / "other", seed=1)
    (other / WEIGHTS).replace(checkpoint / WEIGHTS)


def convert_first(settings: BuildSettings, work: Path) -> None:
    assert settings.converted is not None
    convert_only(settings, make_state(settings), settings.converted)


def build(settings: BuildSettings, work: Path) -> None:
    make(make_engine, settings, work)


def make_bundle(settings: BuildSettings, work: Path) -> None:
    make(make_only_bundle, settings, work)


def make(step: Callable[[BuildSettings, BuildState, Path, Path], object], settings: BuildSettings, work: Path) -> None:
    (work / "work").mkdir()
    (work / "made").mkdir()
    step(settings, make_state(settings), work / "work", work / "made")


@pytest.mark.parametrize("step", [convert_first, build, make_bundle])
@pytest.mark.parametrize("harm", [False, True])
def test_what_a_replaced_checkpoint_answers_is_not_kept_and_blames_no_engine(
    settings: BuildSettings,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: Callable[[BuildSettings, Path], None],
    harm: bool,
) -> None:
    compute = verify.compute_expectation

    def compute_late(*told: object) -> object:
        save_next_step(checkpoint)
        if harm:
            raise ValueError("half of it is there")
        return compute(*told)  # type: ignore[arg-type]

    monkeypatch.setattr(verify, "compute_expectation", compute_late)
    with pytest.raises(Retryable, match=f"{WEIGHTS} of file://{checkpoint} was replaced") as failure:
        step(settings, tmp_path)
    assert failure.value.reason is Reason.CHECKPOINT_CHANGED
    assert list((settings.scratch / EXPECTATIONS).iterdir()) == []
    assert settings.converted is not None and not settings.converted.exists()


def test_a_conversion_whose_checkpoint_was_replaced_is_not_taken_over(
    settings: BuildSettings, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its files are good, and what is read beside them no longer is."""
    convert_first(settings, tmp_path)
    assert settings.converted is not None
    taken = find_conversion(settings, settings.converted)
    assert taken is not None
    save_next_step(checkpoint)
    with pytest.raises(Retryable, match="was replaced"):
        taken.prepared.check_unchanged()
    with caplog.at_level(logging.WARNING):
        assert find_conversion(settings, settings.converted) is None
    assert f"{WEIGHTS} of file://{checkpoint} was replaced" in caplog.text

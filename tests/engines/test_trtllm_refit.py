"""Refit: the command lines, and the runtime with played tools; what is compiled, what is taken over, what is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hotstart.engines.errors import EngineError
from hotstart.engines.key import key_inputs, make_key
from hotstart.engines.recipe import REFIT, EngineRecipe
from hotstart.engines.runtimes.tensorrt_llm.build_command import BuildPlaces, make_build_command
from hotstart.engines.runtimes.tensorrt_llm.refit import (
    BASE,
    PLAN,
    fits,
    make_refit_command,
    make_strip_command,
    plan_name,
)

from tests.engines.test_trtllm_runtime import MPT, build, convert, places, world

__all__ = ["places", "world"]  # fixtures

RECIPE = replace(MPT, rebuild=REFIT)
PLACES = BuildPlaces("/scratch/checkpoint", "/scratch/plan", "/scratch/timing.cache.new", "/scratch/timing.cache")


def test_the_commands_word_for_word() -> None:
    assert make_refit_command(RECIPE, "/scratch/base", "/scratch/checkpoint", "/scratch/engine").argv == (
        *("trtllm-refit", "--engine_dir", "/scratch/base"),
        *("--checkpoint_dir", "/scratch/checkpoint", "--output_dir", "/scratch/engine"),
    )
    strip = make_strip_command(RECIPE, PLACES)
    assert strip.argv == (*make_build_command(RECIPE, PLACES).argv, "--strip_plan")
    assert make_refit_command(replace(RECIPE, tensor_parallel=2), "b", "c", "e").files == (
        "config.json",
        "rank0.engine",
        "rank1.engine",
    )


def test_a_refit_is_another_engine_and_the_default_changes_no_key() -> None:
    full = key_inputs("ab" * 32, MPT)
    assert "rebuild" not in full["recipe"]
    assert make_key(full) != make_key(key_inputs("ab" * 32, RECIPE))
    assert EngineRecipe.from_dict(RECIPE.to_dict()) == RECIPE
    old = {name: value for name, value in MPT.to_dict().items() if name != "rebuild"}
    assert EngineRecipe.from_dict(old) == MPT, "a recipe of before is read"


def test_files_of_a_plan_go_by_their_names() -> None:
    assert [plan_name(path) for path in ("refit-rank0.engine", "refit-config.json", "rank0.engine", "config.json")] == [
        "rank0.engine",
        "config.json",
        "",
        "",
    ]


def test_only_the_same_network_fits() -> None:
    facts = {"layers": 32, "hidden": 3072}
    assert fits(facts, {"hidden": 3072, "layers": 32})
    assert not fits(facts, {"layers": 32, "hidden": 4096})
    assert not fits(facts, {"layers": 32})


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_first_engine_is_compiled_without_weights_and_filled(
    places: dict[str, Path], world: Any, ranks: int
) -> None:
    recipe = replace(RECIPE, tensor_parallel=ranks)
    convert(places, recipe)
    shares = build(places, recipe)
    assert shares == sorted(shares) and shares[-1] == 1.0
    for rank in range(ranks):
        assert (places["engine"] / f"rank{rank}.engine").read_bytes().startswith(b"stripped plan with ")
        assert (places["engine"] / f"refit-rank{rank}.engine").read_bytes() == b"stripped plan"
    assert (places["engine"] / "refit-config.json").is_file()
    assert (places["engine"] / "tokenizer.json").is_file()
    assert not [path for path in places["engine"].iterdir() if path.is_dir()], "the upload takes files only"


def make_base(places: dict[str, Path], **changes: Any) -> None:
    base = places["work"] / BASE
    base.mkdir()
    (base / "rank0.engine").write_bytes(b"plan of another")
    config = json.loads((places["engine"] / "config.json").read_text())
    config["pretrained_config"] |= changes
    (base / "config.json").write_text(json.dumps(config))


def test_the_next_engine_takes_the_plan_of_the_one_before(places: dict[str, Path], world: Any) -> None:
    convert(places, RECIPE)
    build(places, RECIPE)
    make_base(places)
    (places["work"] / "argv.json").unlink()
    for path in (*places["engine"].iterdir(), *(places["work"] / PLAN).iterdir()):
        path.unlink()
    beside = places["converted"] / "beside"
    (beside / "tokenizer.json").write_text("{}")
    build(places, RECIPE)
    assert not (places["work"] / "argv.json").exists(), "nothing is compiled"
    assert (places["engine"] / "rank0.engine").read_bytes().startswith(b"plan of another with ")
    assert (places["engine"] / "refit-rank0.engine").read_bytes() == b"plan of another"


def test_a_plan_of_another_network_fails_by_the_tool_s_own_word(places: dict[str, Path], world: Any) -> None:
    convert(places, RECIPE)
    build(places, RECIPE)
    make_base(places, num_hidden_layers=99)
    for path in places["engine"].iterdir():
        path.unlink()
    with pytest.raises(EngineError) as failure:
        build(places, RECIPE)
    assert "Weight names in the engine and the checkpoint differ" in failure.value.message

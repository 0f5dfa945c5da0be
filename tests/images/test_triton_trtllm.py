"""The image for GPUs, as far as it can be checked without its base of 14 GB: its words and the packages it takes."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from hotstart.engines.recipe import TENSORRT_LLM_VERSION
from hypothesis import given
from hypothesis import strategies as st

from tests.support.containerfile import read_instructions

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "images" / "triton-trtllm"
LOCK = (ROOT / "requirements" / "trtllm.lock").read_text()


def load_script() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("choose_packages", str(IMAGE / "choose-packages"))
    spec = importlib.util.spec_from_loader("choose_packages", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


choose_packages = load_script()
PACKAGES = choose_packages.parse_lock(LOCK)


def instructions() -> list[tuple[str, str]]:
    return read_instructions(IMAGE / "Containerfile")


def test_it_stands_on_the_pinned_container_and_can_stand_on_another() -> None:
    assert instructions()[:2] == [
        ("ARG", "BASE=nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"),
        ("FROM", "${BASE}"),
    ]
    assert ("ARG", f"TENSORRT_LLM={TENSORRT_LLM_VERSION}") in instructions()


def test_it_ends_as_nobody_and_says_which_runtime_it_serves() -> None:
    last = dict(instructions())
    assert last["USER"] == "65532:65532"
    assert "HOTSTART_RUNTIME=tensorrt_llm" in last["ENV"]
    assert 'dev.hotstart.runtime="tensorrt_llm"' in last["LABEL"]


def test_nothing_is_compiled_and_the_base_is_left_as_it_is() -> None:
    runs = " ".join(value for name, value in instructions() if name == "RUN")
    assert not re.search(r"\b(apt|apt-get|gcc|g\+\+|make|cmake|uninstall|--upgrade|--break-system-packages)\b", runs)
    for flag in ("--no-deps", "--only-binary :all:", "--require-hashes", "--python bin/python"):
        assert flag in runs
    assert "||" not in runs, "a step that fails ends the build"


def test_every_file_that_it_copies_is_there() -> None:
    copied = [word for name, value in instructions() if name == "COPY" for word in value.split()[:-1]]
    missing = [path for path in copied if path != "src" and not (ROOT / path).exists()]
    assert copied and not missing


def test_the_programs_that_pods_and_jobs_start_are_in_it() -> None:
    names = {path.name for folder in ("triton-cpu", "builder") for path in (ROOT / "images" / folder / "bin").iterdir()}
    assert {"hotstart-agent", "hotstart-triton", "hotstart-builder"} <= names


def test_images_build_makes_it_only_by_name() -> None:
    script = (ROOT / "images" / "build").read_text()
    assert "for image in control triton-cpu builder; do" in script
    assert re.search(r"^\s+control \| triton-cpu \| builder \| triton-trtllm\)", script, re.MULTILINE)


def test_the_lock_has_hashes_and_nothing_that_tensorrt_llm_computes_with() -> None:
    assert set(choose_packages.WANTED) <= set(PACKAGES)
    for name, block in PACKAGES.items():
        assert "--hash=sha256:" in block, name
        assert not choose_packages.CONTAINERS_OWN.match(name), name


@pytest.mark.parametrize("name", ["torch", "numpy", "tensorrt-llm", "nvidia-modelopt", "tokenizers", "safetensors"])
def test_a_lock_that_would_touch_them_is_refused(name: str) -> None:
    with pytest.raises(SystemExit, match=name):
        choose_packages.choose({**PACKAGES, name: f"{name}==1"}, lambda package: None)


def test_least_versions_are_those_of_the_project() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*extras["dependencies"], *(line for lines in extras["optional-dependencies"].values() for line in lines)]
    bounds = dict(line.split(">=") for line in wanted if re.fullmatch(r"[a-z0-9-]+>=[\d.]+", line))
    for name, (least, _) in choose_packages.WANTED.items():
        assert bounds[name] == least, name


def test_a_bare_container_gets_the_whole_lock() -> None:
    assert set(choose_packages.choose(PACKAGES, lambda name: None)) == set(PACKAGES)


def test_a_container_that_has_all_gets_nothing() -> None:
    assert choose_packages.choose(PACKAGES, lambda name: "999.0") == ()


def test_what_is_too_old_comes_with_what_belongs_to_it() -> None:
    chosen = choose_packages.choose(PACKAGES, lambda name: "2.9.1" if name == "pydantic" else "999.0")
    assert set(chosen) == {"pydantic", *choose_packages.WANTED["pydantic"][1]} & set(PACKAGES)


@given(st.dictionaries(st.sampled_from(sorted(PACKAGES)), st.sampled_from(["0.1", "999.0"])))
def test_after_it_every_program_finds_a_version_that_it_can_use(installed: dict[str, str]) -> None:
    chosen = choose_packages.choose(PACKAGES, installed.get)
    for name, (least, members) in choose_packages.WANTED.items():
        if name in chosen:
            assert set(members) & set(PACKAGES) <= set(chosen)
        else:
            assert choose_packages.numbers(installed[name]) >= choose_packages.numbers(least)


def test_the_script_prints_a_lock_that_pip_reads(tmp_path: Path) -> None:
    """By an interpreter that has some of it: this project's own environment."""
    lock = tmp_path / "lock"
    lock.write_text(LOCK)
    done = subprocess.run([sys.executable, IMAGE / "choose-packages", lock], capture_output=True, text=True, check=True)
    printed = choose_packages.parse_lock(done.stdout)
    assert set(printed) <= set(PACKAGES)
    assert "pydantic: the container has it" in done.stderr
    assert all(block == PACKAGES[name] for name, block in printed.items())

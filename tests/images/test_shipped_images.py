"""The three images that every installation runs: what their Containerfiles say, and (e2e) what was built of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.containerfile import read_instructions

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ("control", "triton-cpu", "builder")
NOBODY = "65532:65532"
CONTEXT = ("images", "requirements", "operator/src", "router/src", "engines/src")
COMPILERS = re.compile(r"(.*-)?(gcc|g\+\+|cc|c\+\+|clang|make|cmake|ld|as)(-[\d.]+)?")

each_image = pytest.mark.parametrize("image", IMAGES)


def instructions(image: str) -> list[tuple[str, str]]:
    return read_instructions(ROOT / "images" / image / "Containerfile")


@each_image
def test_it_ends_as_nobody(image: str) -> None:
    after_user = [name for name, _ in instructions(image)[instructions(image).index(("USER", NOBODY)) + 1 :]]
    assert set(after_user) == {"WORKDIR", "CMD"}


@each_image
def test_dependencies_come_before_our_code(image: str) -> None:
    found = instructions(image)
    installs = next(index for index, (name, words) in enumerate(found) if name == "RUN" and "pip install" in words)
    before = [words.split()[:-1] for name, words in found[:installs] if name == "COPY"]

    assert len(before) == 1
    assert all(re.match(r"requirements/\S+\.lock$|images/(\S+/)?trim-\S+$", path) for path in before[0])
    assert ("COPY", "src src") in found[installs:]


@each_image
def test_nothing_is_compiled_and_the_only_stage_has_no_build_tools(image: str) -> None:
    found = instructions(image)
    runs = " ".join(words for name, words in found if name == "RUN")

    assert [words for name, words in found if name == "FROM"] == ["${BASE}"]
    assert not re.search(r"\b(apt|apt-get|apk|gcc|g\+\+|make|cmake)\b", runs)
    for flag in ("--no-deps", "--only-binary :all:", "--require-hashes"):
        assert flag in runs
    assert "uninstall --quiet --yes setuptools pip" in runs


@each_image
def test_every_file_that_it_copies_is_there(image: str) -> None:
    copied = [word for name, words in instructions(image) if name == "COPY" for word in words.split()[:-1]]
    assert not [path for path in copied if path != "src" and not (ROOT / path).exists()]


def buildah(*arguments: str) -> str:
    ended = subprocess.run(("buildah", *arguments), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"buildah {' '.join(arguments)}: {ended.stderr}"
    return ended.stdout.strip()


def inspect(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", name))
    return found


def exists(image_id: str) -> bool:
    shown = subprocess.run(("buildah", "inspect", "--type", "image", image_id), capture_output=True, check=False)
    return shown.returncode == 0


@pytest.fixture
def files(image: str) -> Iterator[Path]:
    """The root folder of a built image."""
    container = buildah("from", "--pull-never", f"localhost/hotstart/{image}:dev")
    yield Path(buildah("mount", container))
    buildah("rm", container)


@pytest.mark.e2e
@each_image
def test_a_built_image_runs_as_nobody(image: str) -> None:
    assert inspect(f"localhost/hotstart/{image}:dev")["OCIv1"]["config"]["User"] == NOBODY


@pytest.mark.e2e
@each_image
def test_a_built_image_has_no_compiler(image: str, files: Path) -> None:
    folders = [files / name for name in ("usr/bin", "usr/local/bin", "usr/sbin", "opt/hotstart/bin")]
    programs = [path.name for folder in folders if folder.is_dir() for path in folder.iterdir()]

    assert any(name.startswith("hotstart-") for name in programs), "the image must be one of ours"
    assert not [name for name in programs if COMPILERS.fullmatch(name)]


@pytest.fixture
def registry() -> Iterator[str]:
    """First part of the names of images that are gone after the test."""
    name = f"localhost/hotstart-test-{uuid.uuid4().hex[:8]}"
    yield name
    made = [row for row in buildah("images", "--format", "{{.Name}}:{{.Tag}}").splitlines() if row.startswith(name)]
    for row in made:
        buildah("rmi", row)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of all that images are made of."""
    for folder in CONTEXT:
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def layers(name: str) -> tuple[list[str], int]:
    """The image's layers, bottom first, and how many of them stand when the dependencies are installed."""
    shown = inspect(name)["OCIv1"]
    filled = [row["created_by"] for row in shown["history"] if not row.get("empty_layer")]
    return shown["rootfs"]["diff_ids"], next(index for index, text in enumerate(filled) if "pip install" in text) + 1


@pytest.mark.e2e
def test_a_changed_source_file_leaves_the_dependencies_layers_and_replaces_the_image(
    checkout: Path, registry: str
) -> None:
    name, ids, built = f"{registry}/control:dev", [], []
    for word in ("first", "second"):
        (checkout / "operator/src/hotstart/operator/changed.py").write_text(f'"""{word}"""\n')
        environ = {**os.environ, "REGISTRY": registry, "TAG": "dev", "CONTAINER_TOOL": "buildah"}
        subprocess.run((checkout / "images/build", "control"), env=environ, check=True)
        ids.append(inspect(name)["FromImageID"])
        built.append(layers(name))

    (first, dependencies), (second, _) = built
    assert first[:dependencies] == second[:dependencies]
    assert first != second
    assert not exists(ids[0])
    assert exists(ids[1])

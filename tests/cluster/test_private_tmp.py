"""A program with a /tmp of its own sees the rest of the machine as it is."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import pytest
from hotstart.cluster import private_tmp

pytestmark = pytest.mark.integration


def run(prepare: str, script: str) -> list[str]:
    """The lines that a shell with a /tmp of its own prints, in a mount namespace that was prepared by another one."""
    inside = shlex.join((*private_tmp.COMMAND, "/bin/sh", "-c", script))
    command = ("unshare", "--mount", "--propagation=private", "/bin/sh", "-ec", f"{prepare}; exec {inside}")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("place", ["/mnt", "/mnt/disk"])
def test_what_lies_under_mnt_is_seen(place: str) -> None:
    prepare = (
        "mount -t tmpfs tmpfs /mnt; "
        f"mkdir -p {place}; [ {place} = /mnt ] || mount -t tmpfs tmpfs {place}; echo seen >{place}/file"
    )

    assert run(prepare, f"cat {place}/file") == ["seen"]


def test_what_cannot_be_seen_or_is_gone_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp, aside = tmp_path / "tmp", tmp_path / "aside"
    for name in ("closed", "gone", "seen"):
        (aside / name).mkdir(parents=True)
    tmp.mkdir()
    is_dir, mounted = Path.is_dir, []

    def look(place: Path) -> bool:
        if place.name == "closed":  # as a user's FUSE mount is to root
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        return is_dir(place)

    def mount(command: tuple[str, ...], check: bool) -> None:
        if str(aside / "gone") in command:
            raise subprocess.CalledProcessError(32, command)
        mounted.append(command[-1])

    monkeypatch.setattr(Path, "is_dir", look)
    monkeypatch.setattr(private_tmp.subprocess, "run", mount)
    private_tmp.cover_tmp(tmp, aside)

    assert str(tmp / "seen") in mounted
    said = capsys.readouterr().out
    assert f"{tmp}/closed is left out: " in said
    assert f"{tmp}/gone is left out: " in said


def test_folders_of_tmp_are_seen_and_files_are_not() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, tempfile.NamedTemporaryFile(dir="/tmp") as file:
        (Path(folder) / "inner").write_text("kept\n")

        assert run(":", f"cat {folder}/inner; [ -e {file.name} ] || echo no file") == ["kept", "no file"]

        run(":", f"echo changed >{folder}/inner; touch /tmp/mine")
        assert (Path(folder) / "inner").read_text() == "changed\n"
        assert not Path("/tmp/mine").exists()

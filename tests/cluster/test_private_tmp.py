"""A program with a /tmp of its own sees the rest of the machine as it is."""

from __future__ import annotations

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


def test_folders_of_tmp_are_seen_and_files_are_not() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, tempfile.NamedTemporaryFile(dir="/tmp") as file:
        (Path(folder) / "inner").write_text("kept\n")

        assert run(":", f"cat {folder}/inner; [ -e {file.name} ] || echo no file") == ["kept", "no file"]

        run(":", f"echo changed >{folder}/inner; touch /tmp/mine")
        assert (Path(folder) / "inner").read_text() == "changed\n"
        assert not Path("/tmp/mine").exists()

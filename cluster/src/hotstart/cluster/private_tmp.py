"""Runs a program with a /tmp of its own: `python -m hotstart.cluster.private_tmp PROGRAM [ARGUMENT ...]`.

SeaweedFS puts Unix sockets under fixed names of its ports into /tmp, and removes what stands there: two stores on one
machine would take each other's, and leave them behind. The folders of /tmp stay visible, since the store's data or the
program itself may lie there. Needs a mount namespace of its own, which `COMMAND` makes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ASIDE = Path("/mnt")  # stands on every Debian; covered in this namespace only, and for a moment
COMMAND = ("unshare", "--mount", "--propagation=private", sys.executable, "-m", "hotstart.cluster.private_tmp")


def mount(*arguments: str | Path) -> None:
    subprocess.run(("mount", *map(str, arguments)), check=True)


def cover_tmp(tmp: Path, aside: Path) -> None:
    """An empty tmpfs over /tmp, with the folders that stood there."""
    mount("--rbind", tmp, aside)
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", tmp)
    for entry in sorted(aside.iterdir()):
        try:
            if entry.is_dir() and not entry.is_symlink():
                place = tmp / entry.name
                place.mkdir()
                mount("--rbind", entry, place)
        except (OSError, subprocess.CalledProcessError) as problem:
            # A user's FUSE mount is closed to root, and another program's folder may be gone by now.
            print(f"{tmp / entry.name} is left out: {problem}", flush=True)
    # The program or the store's data may lie below it.
    subprocess.run(("umount", "--lazy", str(aside)), check=True)


def main() -> None:
    cover_tmp(Path("/tmp"), ASIDE)
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()

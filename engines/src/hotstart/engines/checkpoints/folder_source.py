"""A checkpoint in a folder that this process can read: a claim that the Job mounts read-only, or this machine's disk.

Nothing is copied: files are read once for their digests and used where they lie.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from hotstart.engines.checkpoints.choose import ListedFile
from hotstart.engines.checkpoints.places import FolderPlace
from hotstart.engines.checkpoints.source import BLOCK, BrokenStream, pick_files
from hotstart.engines.errors import Reason, Retryable, Terminal


class FolderSource:
    """Implements ``Source``. A file's ``etag`` is its inode, size and time of change."""

    def __init__(self, place: FolderPlace) -> None:
        self._place = place

    @property
    def where(self) -> str:
        return self._place.uri

    def list_files(self) -> tuple[ListedFile, ...]:
        try:
            paths = [path for path in self._place.folder.iterdir() if path.is_file()]
            files = [ListedFile(path.name, path.stat().st_size, _etag(path.stat())) for path in paths]
        except (FileNotFoundError, NotADirectoryError):
            files = []
        except PermissionError as error:
            raise self._denied(error) from error
        return pick_files(self._place, files)

    def blocks(self, file: ListedFile, start: int) -> Iterator[bytes]:
        path = self._path(file)
        try:
            with path.open("rb", buffering=0) as opened:
                self._check_same(file, os.fstat(opened.fileno()))
                opened.seek(start)
                while block := opened.read(BLOCK):
                    yield block
            self._check_same(file, path.stat())
        except PermissionError as error:
            raise self._denied(error) from error
        except FileNotFoundError as error:
            raise self._changed(file) from error
        except OSError as error:  # a network file system
            raise BrokenStream(str(error)) from error

    def local_path(self, file: ListedFile) -> Path | None:
        return self._path(file)

    def check_unchanged(self, file: ListedFile) -> None:
        try:
            self._check_same(file, self._path(file).stat())
        except FileNotFoundError as error:
            raise self._changed(file) from error

    def _path(self, file: ListedFile) -> Path:
        """The file itself, behind any links; those must not lead out of the claim."""
        path = (self._place.folder / file.name).resolve()
        if not path.is_relative_to(self._place.root.resolve()):
            raise Terminal(
                Reason.INVALID_SPEC,
                f"{file.name} of {self._place.uri} is a link that leads out of the claim: copy the file itself.",
            )
        return path

    def _check_same(self, file: ListedFile, now: os.stat_result) -> None:
        if _etag(now) != file.etag:
            raise self._changed(file)

    def _changed(self, file: ListedFile) -> Retryable:
        return Retryable(
            Reason.CHECKPOINT_CHANGED,
            f"{file.name} of {self._place.uri} was replaced while it was read: wait until the copy ends.",
        )

    def _denied(self, error: PermissionError) -> Retryable:
        return Retryable(
            Reason.ACCESS_DENIED,
            f"{self._place.uri} cannot be read ({error.strerror}): its files must be readable for everyone or for the "
            f"user {os.getuid()} that the Job runs as.",
        )


def _etag(stat: os.stat_result) -> str:
    return f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"

"""What the agent keeps on the pod's disk, and where.

/models/state.json            the last assignment and its files: all that a restart needs
/models/engines/KEY/          a whole, verified engine
/models/engines/.KEY.partial/ one on its way
/models/repository/           Triton's model repository
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from hotstart.engines.files import hash_stream, write_atomically
from hotstart.engines.triton.server import KEY_FILE
from hotstart.exchange.messages import EngineFile, Message, PodAssignment
from pydantic import ValidationError


class Remembered(Message):
    """state.json: files without their URLs."""

    assignment: PodAssignment
    files: tuple[EngineFile, ...]


@dataclass(frozen=True)
class Disk:
    """The folders of one pod. ``models`` is shared with Triton, ``run`` holds the key."""

    models: Path
    run: Path

    @property
    def repository(self) -> Path:
        return self.models / "repository"

    def engine(self, key: str) -> Path:
        """Where the engine lies once it is whole."""
        return self.models / "engines" / key

    def partial(self, key: str) -> Path:
        """Where it lies while it is fetched."""
        return self.models / "engines" / f".{key}.partial"

    def prepare(self) -> str:
        """Makes the folders and the pod's key, and returns the key. A restarted agent finds the key that Triton has."""
        for folder in (self.models / "engines", self.repository, self.run):
            folder.mkdir(parents=True, exist_ok=True)
        path = self.run / KEY_FILE
        if path.exists() and (key := path.read_text().strip()):
            return key
        key = secrets.token_hex(32)
        write_atomically(path, key)
        return key

    def remember(self, remembered: Remembered) -> None:
        write_atomically(self.models / "state.json", remembered.model_dump_json())

    def recall(self) -> Remembered | None:
        """The last assignment; None where there is none, or what is there cannot be read."""
        try:
            return Remembered.model_validate_json((self.models / "state.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def keep_only(self, key: str) -> None:
        """Removes other engines, whole and partial ones: the disk of a pod has room for one."""
        kept = {self.engine(key).name, self.partial(key).name}
        for path in (self.models / "engines").iterdir():
            if path.name not in kept:
                shutil.rmtree(path)

    def publish(self, key: str) -> None:
        """Makes the partial engine the whole one, at once."""
        shutil.rmtree(self.engine(key), ignore_errors=True)
        self.partial(key).rename(self.engine(key))

    def discard(self, key: str) -> None:
        """Removes the engine in either form: it is corrupt."""
        shutil.rmtree(self.engine(key), ignore_errors=True)
        shutil.rmtree(self.partial(key), ignore_errors=True)

    def write_repository(self, files: dict[str, str]) -> None:
        """Writes Triton's model repository; path below it -> text."""
        for path, text in files.items():
            write_atomically(self.repository / path, text)


def find_corrupt(folder: Path, files: tuple[EngineFile, ...]) -> str | None:
    """The first file that is missing, of another size, or of another sha256 than it should be. Blocking."""
    for file in files:
        path = folder / file.path
        if not path.is_file() or path.stat().st_size != file.size:
            return file.path
        with path.open("rb") as content:
            if hash_stream(content) != file.sha256:
                return file.path
    return None


def is_whole(folder: Path, files: tuple[EngineFile, ...]) -> bool:
    """Whether all files are there with their sizes."""
    return all((folder / file.path).is_file() and (folder / file.path).stat().st_size == file.size for file in files)

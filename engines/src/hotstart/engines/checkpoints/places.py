"""Where a checkpoint can stand: the URIs of ``checkpoint.uri``, taken apart. Pure.

s3://BUCKET/PREFIX/            a folder of an S3 store, or one GGUF file of it
pvc://CLAIM/PATH               a folder of a PersistentVolumeClaim, which the Job mounts read-only
hf://ORG/NAME@COMMIT           a repository of the Hugging Face hub at one commit of 40 hex digits; /PATH may follow
file:///FOLDER                 a folder of this machine; for the command line alone
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hotstart.engines.errors import Reason, Terminal
from hotstart.exchange.names import CHECKPOINT_MOUNT

#: A URI may name one file instead of a folder; only this kind holds config and tokenizer too.
SINGLE_FILE = ".gguf"
OF_A_FOLDER = (".safetensors", ".bin", ".pt", ".pth")
FORMS = "s3://BUCKET/PREFIX/, pvc://CLAIM/PATH or hf://ORG/NAME@COMMIT"
_CLAIM = re.compile(r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
_REPOSITORY = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")


@dataclass(frozen=True)
class S3Place:
    """``prefix`` ends with a slash or is empty; ``only`` is the one file that the URI names."""

    uri: str
    bucket: str
    prefix: str
    only: str = ""


@dataclass(frozen=True)
class FolderPlace:
    """A folder that this process can read. Links in it may lead anywhere below ``root``."""

    uri: str
    folder: Path
    root: Path
    only: str = ""


@dataclass(frozen=True)
class HubPlace:
    """A repository of the hub at one commit; ``prefix`` is a folder in it, as in ``S3Place``."""

    uri: str
    repository: str  # ORG/NAME
    commit: str
    prefix: str = ""
    only: str = ""


CheckpointPlace = S3Place | FolderPlace | HubPlace


def parse_uri(uri: str, *, local: bool = False, mount: Path = Path(CHECKPOINT_MOUNT)) -> CheckpointPlace:
    """The place that a URI names; ``file://`` only with ``local``. ``mount`` is where the Job has its claim.

    Raises:
        Terminal: InvalidSpec, the URI is of none of the forms.
    """
    scheme, _, path = uri.partition("://")
    if scheme == "s3":
        return _s3(uri, path)
    if scheme == "pvc":
        return _claim(uri, path, mount)
    if scheme == "hf":
        return _hub(uri, path)
    if scheme == "file" and local:
        return _file(uri, path)
    forms = f"{FORMS}, or file:///FOLDER" if local else FORMS
    raise _invalid(uri, f"it must be {forms}")


def _s3(uri: str, path: str) -> S3Place:
    bucket, _, key = path.partition("/")
    if not bucket:
        raise _invalid(uri, "it must be s3://BUCKET/PREFIX/")
    folder, only = _split(uri, key)
    return S3Place(uri, bucket, f"{folder}/" if folder else "", only)


def _claim(uri: str, path: str, mount: Path) -> FolderPlace:
    claim, _, inside = path.partition("/")
    if not _CLAIM.match(claim):
        raise _invalid(uri, "it must be pvc://CLAIM/PATH with the name of a PersistentVolumeClaim of this namespace")
    if ".." in PurePosixPath(inside).parts:
        raise _invalid(uri, "its path must not lead out of the claim")
    folder, only = _split(uri, inside)
    return FolderPlace(uri, mount / folder, mount, only)


def _hub(uri: str, path: str) -> HubPlace:
    repository, _, rest = path.partition("@")
    commit, _, inside = rest.partition("/")
    if not _REPOSITORY.match(repository):
        raise _invalid(uri, "it must be hf://ORG/NAME@COMMIT")
    if not _COMMIT.match(commit):
        raise _invalid(
            uri,
            "it must be hf://ORG/NAME@COMMIT with a commit of 40 hex digits, for a branch or a tag may be moved",
        )
    folder, only = _split(uri, inside)
    return HubPlace(uri, repository, commit, f"{folder}/" if folder else "", only)


def _file(uri: str, path: str) -> FolderPlace:
    if not path.startswith("/"):
        raise _invalid(uri, "it must be file:///FOLDER with the whole path")
    folder, only = _split(uri, path)
    return FolderPlace(uri, Path("/") / folder, Path("/"), only)


def _split(uri: str, path: str) -> tuple[str, str]:
    """Folder and the one file that the path names, or none.

    Raises:
        Terminal: InvalidSpec, it names a file of weights that is no checkpoint by itself.
    """
    if path.endswith(OF_A_FOLDER):
        name = path.rpartition("/")[2]
        raise _invalid(
            uri, f"{name} is weights alone, and config.json and tokenizer.json belong to them: name the folder"
        )
    path = path.strip("/")
    if not path.endswith(SINGLE_FILE):
        return path, ""
    folder, _, only = path.rpartition("/")
    return folder, only


def _invalid(uri: str, what: str) -> Terminal:
    return Terminal(Reason.INVALID_SPEC, f"checkpoint.uri {uri!r} cannot be read: {what}.")

"""The folders that tools of TensorRT-LLM are given: links to a checkpoint's files, and no name of code among them.

Upstream's scripts load config and tokenizer with ``trust_remote_code=True``. Where a config has an ``auto_map``,
transformers imports the code that it names, and nothing of a checkpoint is ever executed: the code is not downloaded,
and so the script would fail. Without the name, transformers takes the class of its own.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hotstart.engines.checkpoints.small_files import read_json
from hotstart.engines.errors import Reason, Terminal

log = logging.getLogger(__name__)
CONFIGS = ("config.json", "tokenizer_config.json")


def lay_out_model(source: Path, folder: Path) -> None:
    """The Hugging Face checkpoint in ``source`` as a script may see it, in the new ``folder``."""
    names = sorted(path.name for path in source.iterdir() if path.is_file())
    link_files(source, folder, [name for name in names if name not in CONFIGS])
    for name in CONFIGS:
        if name in names:
            (folder / name).write_text(json.dumps(without_code(read_json(source, name)), indent=2) + "\n")


def without_code(config: Any) -> Any:
    """The config without the fields that name code of the checkpoint's own. Pure."""
    if isinstance(config, list):
        return [without_code(value) for value in config]
    if not isinstance(config, dict):
        return config
    return {name: without_code(value) for name, value in config.items() if not _names_code(name)}


def link_files(source: Path, folder: Path, names: Sequence[str]) -> None:
    """Links in the new ``folder``, so that a large checkpoint is on the disk once; hard ones where it is the same disk.

    Raises:
        Terminal: CheckpointIncomplete, a file is missing.
    """
    folder.mkdir()
    for name in names:
        if not (source / name).is_file():
            raise Terminal(
                Reason.CHECKPOINT_INCOMPLETE,
                f"The TensorRT-LLM checkpoint has no {name}: engine.tensorParallel must be that of its conversion.",
            )
        whole = (source / name).resolve()
        try:
            os.link(whole, folder / name)
        except OSError as error:  # a claim's files are on another disk, or read-only
            log.info("symbolic link in place of a hard one name=%s error=%s", name, error.strerror)
            (folder / name).symlink_to(whole)


def _names_code(name: str) -> bool:
    return name == "auto_map" or name.startswith("custom_")

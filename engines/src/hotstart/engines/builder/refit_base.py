"""Fetches the plan of another engine, into which new weights go; without one the network is compiled.

The builder has no credentials: URLs come through the exchange. A plan of another network is not taken, and one that
cannot be had whole is none: it saves minutes and never fails a build.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import urllib3
from hotstart.engines.builder.kept import BLOCK, PATIENCE, RETRIES, TIMEOUT
from hotstart.engines.builder.state import BuildState
from hotstart.engines.runtimes.tensorrt_llm.refit import BASE, fits, plan_name
from hotstart.exchange.messages import EngineFile
from urllib3.exceptions import HTTPError

log = logging.getLogger(__name__)


def fetch_refit_base(state: BuildState, work: Path, facts: Mapping[str, Any], *, patience: float = PATIENCE) -> bool:
    """Writes the plan to ``work/base``; False where none stands for this network, or it cannot be had whole."""
    base = state.ask_refit_base(facts, patience)
    if base is None or not base.files:
        log.info("nothing to refit: the network is compiled answered=%s", base is not None)
        return False
    if not fits(facts, base.facts):
        log.info("not refitted: the network of the nearest engine is another engine=%s", base.engine)
        return False
    partial = work / f"{BASE}.partial"
    partial.mkdir()
    try:
        for file in base.files:
            name = plan_name(file.path)
            if not name or "/" in name:
                raise ValueError(f"{file.path} is no file of a plan")
            _download(file, partial / name)
    except (HTTPError, OSError, ValueError) as error:
        log.warning("not refitted: its plan cannot be had engine=%s error=%s", base.engine, error)
        shutil.rmtree(partial)
        return False
    partial.rename(work / BASE)
    log.info("plan fetched engine=%s files=%d", base.engine, len(base.files))
    return True


def _download(file: EngineFile, target: Path) -> None:
    """Raises HTTPError, OSError or ValueError: it cannot be had, or is not what the manifest says."""
    answer = urllib3.request("GET", file.url, preload_content=False, timeout=TIMEOUT, retries=RETRIES)
    digest, size = hashlib.sha256(), 0
    try:
        if answer.status != 200:
            raise ValueError(f"the store answers {answer.status}")
        with target.open("wb") as out:
            for block in answer.stream(BLOCK):
                digest.update(block)
                size += out.write(block)
                if size > file.size:
                    raise ValueError(f"{file.path} has more than {file.size} bytes")
    finally:
        answer.release_conn()
    if (size, digest.hexdigest()) != (file.size, file.sha256):
        raise ValueError(f"{file.path} is not what its manifest says")

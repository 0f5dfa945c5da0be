"""Fetches what earlier builds have left in the store, and leaves it for later ones: saves minutes, never fails a build.

The builder has no credentials: each URL comes through the exchange. What goes wrong is a warning in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import urllib3
from hotstart.engines.builder.prepare import Prepared
from hotstart.engines.builder.state import BuildState
from hotstart.engines.kept import NEW_TIMING_CACHE, TIMING_CACHE, timing_cache_name
from hotstart.engines.recipe import EngineRecipe
from hotstart.exchange.messages import KeptWish
from hotstart.exchange.names import Kept
from urllib3.exceptions import HTTPError

log = logging.getLogger(__name__)
PATIENCE = 10.0  # seconds for the operator's answer
TIMEOUT = urllib3.Timeout(connect=5, read=30)
RETRIES = urllib3.Retry(total=2, backoff_factor=0.5, status_forcelist=(500, 502, 503, 504), raise_on_status=False)
BLOCK = 1024 * 1024
MOST_BYTES = {Kept.TIMING_CACHE: 256 * 1024**2, Kept.EXPECTATION: 16 * 1024**2}  # a larger one is not kept


@contextmanager
def kept_timing_cache(state: BuildState, recipe: EngineRecipe, work: Path) -> Iterator[None]:
    """TensorRT's measurements for the recipe's GPU lie in ``work`` within the context; new ones are kept."""
    name = timing_cache_name(recipe.toolchain, recipe.platform)
    old, new = work / TIMING_CACHE, work / NEW_TIMING_CACHE
    fetch(state, Kept.TIMING_CACHE, name, old)
    yield
    if new.is_file() and not (old.is_file() and old.read_bytes() == new.read_bytes()):
        keep(state, Kept.TIMING_CACHE, name, new)


@contextmanager
def kept_expectation(state: BuildState, prepared: Prepared, folder: Path) -> Iterator[None]:
    """What the checkpoint answers lies in ``folder`` within the context, where it is known; if not, it is kept."""
    from hotstart.engines.verify.expect import make_name  # only here: the reference network is large

    name = make_name(prepared.checkpoint_digest, prepared.tokenizer_digest)
    path = folder / name
    folder.mkdir(exist_ok=True)
    known = path.is_file() or fetch(state, Kept.EXPECTATION, name, path)
    before = path.read_bytes() if known else b""
    yield
    if path.is_file() and path.read_bytes() != before:  # computed, also in a damaged one's place
        keep(state, Kept.EXPECTATION, name, path)


def fetch(state: BuildState, what: Kept, name: str, target: Path, *, patience: float = PATIENCE) -> bool:
    """Writes it to ``target``; False where there is none, or it cannot be had."""
    if not state.heard:
        return False
    url = state.ask_kept(KeptWish(what=what, name=name, way="get"), patience)
    if not url:
        log.warning("not looked for in the store: the operator has not answered what=%s seconds=%s", what, patience)
        return False
    try:
        return _download(url, what, target)
    except (HTTPError, OSError, ValueError) as error:
        log.warning("not fetched what=%s error=%s", what, error)
        target.unlink(missing_ok=True)
        return False


def keep(state: BuildState, what: Kept, name: str, file: Path, *, patience: float = PATIENCE) -> bool:
    """Puts the file into the store; False where it is empty or too large, or cannot be put."""
    if not state.heard:
        return False
    if not 0 < file.stat().st_size <= MOST_BYTES[what]:
        log.info("not worth keeping what=%s bytes=%d", what, file.stat().st_size)
        return False
    url = state.ask_kept(KeptWish(what=what, name=name, way="put"), patience)
    if not url:
        log.warning("not kept: the operator has not answered what=%s seconds=%s", what, patience)
        return False
    try:
        answer = urllib3.request("PUT", url, body=file.read_bytes(), timeout=TIMEOUT, retries=RETRIES)
    except (HTTPError, OSError, ValueError) as error:
        log.warning("not kept what=%s error=%s", what, error)
        return False
    if not 200 <= answer.status < 300:
        log.warning("not kept: the store refuses it what=%s status=%d", what, answer.status)
        return False
    log.info("kept for later builds what=%s bytes=%d", what, file.stat().st_size)
    return True


def _download(url: str, what: Kept, target: Path) -> bool:
    answer = urllib3.request("GET", url, preload_content=False, timeout=TIMEOUT, retries=RETRIES)
    try:
        if answer.status != 200:
            log.info("none in the store what=%s status=%d", what, answer.status)
            return False
        size = 0
        with target.open("wb") as file:
            for block in answer.stream(BLOCK):
                size += file.write(block)
                if size > MOST_BYTES[what]:
                    raise ValueError(f"it has more than {MOST_BYTES[what]} bytes")
    finally:
        answer.release_conn()
    log.info("fetched what=%s bytes=%d", what, size)
    return True

"""Fetches the store's timing cache before a build and puts the new one back: it saves minutes and never fails a build.

The builder has no credentials: each URL comes through the exchange. What goes wrong is a warning in the log.
"""

from __future__ import annotations

import logging
from pathlib import Path

import urllib3
from hotstart.engines.builder.state import BuildState
from hotstart.engines.timing_caches import MOST_BYTES, NEW_TIMING_CACHE, TIMING_CACHE
from urllib3.exceptions import HTTPError

log = logging.getLogger(__name__)
PATIENCE = 10.0  # seconds for the operator's answer
TIMEOUT = urllib3.Timeout(connect=5, read=30)
RETRIES = urllib3.Retry(total=2, backoff_factor=0.5, status_forcelist=(500, 502, 503, 504), raise_on_status=False)
BLOCK = 1024 * 1024


def fetch_timing_cache(state: BuildState, work: Path, *, patience: float = PATIENCE) -> bool:
    """Writes it to ``work``; False where there is none, or it cannot be had."""
    url = state.ask_timing_cache("get", patience)
    if not url:
        log.warning("no timing cache: the operator has not answered seconds=%s", patience)
        return False
    try:
        return _download(url, work / TIMING_CACHE)
    except (HTTPError, OSError, ValueError) as error:
        log.warning("timing cache not fetched error=%s", error)
        (work / TIMING_CACHE).unlink(missing_ok=True)
        return False


def put_timing_cache_back(state: BuildState, work: Path, *, patience: float = PATIENCE) -> bool:
    """Uploads what the build has left in ``work``; False where there is nothing new, or it cannot be put."""
    new, old = work / NEW_TIMING_CACHE, work / TIMING_CACHE
    if not new.is_file() or not 0 < new.stat().st_size <= MOST_BYTES:
        log.info("no timing cache to keep")
        return False
    body = new.read_bytes()
    if old.is_file() and old.read_bytes() == body:
        return False
    url = state.ask_timing_cache("put", patience)
    if not url:
        log.warning("timing cache not kept: the operator has not answered seconds=%s", patience)
        return False
    try:
        answer = urllib3.request("PUT", url, body=body, timeout=TIMEOUT, retries=RETRIES)
    except (HTTPError, OSError, ValueError) as error:
        log.warning("timing cache not kept error=%s", error)
        return False
    log.info("timing cache put status=%d bytes=%d", answer.status, len(body))
    return 200 <= answer.status < 300


def _download(url: str, target: Path) -> bool:
    answer = urllib3.request("GET", url, preload_content=False, timeout=TIMEOUT, retries=RETRIES)
    try:
        if answer.status != 200:
            log.info("no timing cache status=%d", answer.status)
            return False
        size = 0
        with target.open("wb") as file:
            for block in answer.stream(BLOCK):
                size += file.write(block)
                if size > MOST_BYTES:
                    raise ValueError(f"it has more than {MOST_BYTES} bytes")
    finally:
        answer.release_conn()
    log.info("timing cache fetched bytes=%d", size)
    return True

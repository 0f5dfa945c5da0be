"""What a running build knows, and what it says to the operator: requests of the exchange in, reports out.

Lives in the event loop; the thread that downloads and converts only assigns ``share`` and the phase.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hotstart.engines.builder.log_tail import LogTail
from hotstart.engines.builder.progress import Position, decide_outlook
from hotstart.engines.transfers.parts import Part, decide_wanted
from hotstart.exchange.messages import BuildPhase, BuildReport, BuildRequest, BuiltFile, KeptWish, PodFailure, RefitBase

log = logging.getLogger(__name__)


class BuildState:
    """One build. ``changed`` is notified whenever the operator's word has brought something.

    ``heard``: whether there is an operator to ask for something, as there is not on a laptop.
    """

    def __init__(
        self,
        pod_uid: str,
        engine_key: str,
        tail: LogTail,
        *,
        heard: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.heard = heard
        self._pod_uid = pod_uid
        self._engine_key = engine_key
        self._tail = tail
        self._clock = clock
        self.began = clock()
        self._phase = (BuildPhase.STARTING, self.began)
        self.share = 0.0
        self.checkpoint_bytes = 0
        self.building_seconds = 0.0  # estimate for the build step, where it is work of its own
        self.files: dict[str, BuiltFile] = {}
        self.manifest = ""
        self.failure: PodFailure | None = None
        self.changed = asyncio.Condition()
        self.published = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.failure_told = asyncio.Event()
        self._parts: tuple[Part, ...] = ()
        self._urls: dict[tuple[str, int], str] = {}
        self._etags: dict[tuple[str, int], str] = {}
        self._kept_wish: KeptWish | None = None
        self._kept_url = ""
        self._kept_told = threading.Event()
        self._base_wanted = False
        self._base_facts: Mapping[str, Any] = {}
        self._base: RefitBase | None = None
        self._base_told = threading.Event()

    def enter(self, phase: BuildPhase) -> None:
        """Begins the next phase; from any thread."""
        self.share = 0.0
        self._phase = (phase, self._clock())
        log.info("phase entered phase=%s", phase.value)

    def set_share(self, share: float) -> None:
        """How much of the running phase is done, 0 to 1; from any thread."""
        self.share = share

    @property
    def phase(self) -> BuildPhase:
        return self._phase[0]

    def begin_upload(self, parts: Sequence[Part], files: Sequence[BuiltFile]) -> None:
        """Makes the files known to the operator, which answers with an upload id for each."""
        self._parts = tuple(parts)
        self.files = {file.path: file for file in files}
        self.enter(BuildPhase.UPLOADING)

    async def answer(self, request: BuildRequest) -> BuildReport:
        """Takes the operator's word and reports."""
        async with self.changed:
            self._take(request)
            self.changed.notify_all()
        if self.failure is not None:
            self.failure_told.set()
        return self.report()

    def _take(self, request: BuildRequest) -> None:
        for path, upload_id in request.upload_ids.items():
            file = self.files.get(path)
            if file is not None and not file.upload_id:
                self.files[path] = file.model_copy(update={"upload_id": upload_id})
        known = {part.key for part in self._parts}
        for part in request.parts:
            if (part.path, part.number) in known and (part.path, part.number) not in self._etags:
                self._urls[part.path, part.number] = part.url
        if request.kept is not None and request.kept.wish == self._kept_wish:
            self._kept_url = request.kept.url
            self._kept_told.set()
        if self._base_wanted and request.refit_base is not None:
            self._base = request.refit_base
            self._base_told.set()
        if request.published and self.phase is BuildPhase.UPLOADED:
            self.published.set()
        if request.cancel:
            self.cancelled.set()

    def ask_kept(self, wish: KeptWish, patience: float) -> str:
        """A presigned URL, or nothing where the operator is silent for ``patience`` seconds.

        Called by the thread that builds; blocks.
        """
        self._kept_url = ""
        self._kept_told.clear()
        self._kept_wish = wish
        self._kept_told.wait(patience)
        self._kept_wish = None
        return self._kept_url

    def ask_refit_base(self, facts: Mapping[str, Any], patience: float) -> RefitBase | None:
        """An engine of the network with these ``facts``, whose plan may be taken.

        None where the operator is silent for ``patience`` seconds.

        Called by the thread that builds; blocks.
        """
        if not self.heard:
            return None
        self._base_facts, self._base_wanted = facts, True
        self._base_told.wait(patience)
        self._base_wanted = False
        return self._base

    async def url_for(self, part: Part) -> str:
        """The presigned URL of a part; waits until the operator has sent it."""
        async with self.changed:
            await self.changed.wait_for(lambda: part.key in self._urls)
            return self._urls[part.key]

    def drop_url(self, part: Part, url: str) -> None:
        """Forgets a refused URL, so that the operator is asked for another."""
        if self._urls.get(part.key) == url:
            del self._urls[part.key]

    def part_done(self, part: Part, etag: str) -> None:
        """Notes the etag that completes the upload later."""
        self._etags[part.key] = etag
        self._urls.pop(part.key, None)
        total = sum(p.size for p in self._parts)
        done = sum(p.size for p in self._parts if p.key in self._etags)
        self.share = done / total if total else 1.0

    def file_done(self, path: str, sha256: str) -> None:
        """A file whose parts are all up."""
        etags = tuple(self._etags[part.key] for part in self._parts if part.path == path)
        self.files[path] = self.files[path].model_copy(update={"sha256": sha256, "etags": etags})

    def report(self) -> BuildReport:
        """The report as things stand."""
        phase, phase_began = self._phase
        position = Position(
            phase, self.share, self.checkpoint_bytes, phase_began, self.began, building_seconds=self.building_seconds
        )
        outlook = decide_outlook(position, self._clock())
        begun = {path for path, file in self.files.items() if file.upload_id}
        uploading = phase is BuildPhase.UPLOADING
        wanted = decide_wanted(self._parts, begun=begun, done=self._etags.keys(), held=self._urls.keys())
        return BuildReport(
            pod_uid=self._pod_uid,
            engine_key=self._engine_key,
            phase=phase,
            percent=outlook.percent,
            eta_seconds=outlook.eta_seconds,
            files=tuple(self.files.values()),
            wants_parts=wanted if uploading else (),
            wants_kept=self._kept_wish,
            wants_refit_base=self._base_wanted,
            refit_facts=dict(self._base_facts) if self._base_wanted else {},
            manifest=self.manifest,
            failure=self.failure,
            log_tail=self._tail.lines() if self.failure is not None else (),
        )

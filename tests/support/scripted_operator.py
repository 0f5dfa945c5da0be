"""The operator's side of a build, as small as it can be: real exchange, real store, no Kubernetes.

``ScriptedOperator.step`` is one exchange and what follows from it. It remembers nothing that is not in the builder's
report, so a new one can take over at any step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import aiohttp
from hotstart.engines.kept import kept_path
from hotstart.engines.manifest import bundle_prefix, engine_prefix
from hotstart.engines.store import EngineStore
from hotstart.exchange.client import ExchangeClient, ExchangeFailed
from hotstart.exchange.messages import BuildPhase, BuildReport, BuildRequest, KeptUrl, UploadPart
from hotstart.exchange.signing import SigningKey

STEP_SECONDS = 0.02
NAMESPACE_UID = "6f1c7a52-0000-4000-8000-000000000001"

#: Replaces the URL of a part, to make the store refuse it.
Spoil = Callable[[UploadPart], UploadPart]


@dataclass
class ScriptedOperator:
    """Talks to one builder at ``address``; ``answers`` is what the next exchange brings it."""

    store: EngineStore
    key: SigningKey
    address: str
    pod_uid: str
    engine_key: str
    epoch: int = 1
    spoil: Spoil = lambda part: part
    bundle: str = ""  # digest of the tokenizer whose bundle is made; nothing: the engine is
    reports: list[BuildReport] = field(default_factory=list)
    answers: BuildRequest = field(default_factory=BuildRequest)
    _client: ExchangeClient | None = None

    @property
    def prefix(self) -> str:
        if self.bundle:
            return bundle_prefix(NAMESPACE_UID, self.engine_key, self.bundle)
        return engine_prefix(NAMESPACE_UID, self.engine_key)

    async def step(self, session: aiohttp.ClientSession) -> BuildReport:
        """One exchange, then the store's work for the next one."""
        client = self._client or self._make_client(session)
        report = await client.ask(self.address, self.pod_uid, self.answers, BuildReport)
        self.reports.append(report)
        self.answers = await asyncio.to_thread(self._follow, report)
        return report

    async def run(self, *, until: Callable[[BuildReport], bool]) -> BuildReport:
        """Steps until ``until`` holds for a report; a builder that does not listen yet is asked again."""
        async with aiohttp.ClientSession() as session:
            self._make_client(session)
            while True:
                try:
                    report = await self.step(session)
                except ExchangeFailed as failure:
                    if "answered" in str(failure):
                        raise
                else:
                    if until(report):
                        return report
                await asyncio.sleep(STEP_SECONDS)

    async def publish(self) -> BuildReport:
        """Runs until the engine is published and the builder has heard it."""
        report = await self.run(until=lambda r: r.phase in (BuildPhase.UPLOADED, BuildPhase.FAILED))
        if report.phase is BuildPhase.UPLOADED:
            async with aiohttp.ClientSession() as session:
                self._make_client(session)
                await self.step(session)
        return report

    def _make_client(self, session: aiohttp.ClientSession) -> ExchangeClient:
        """A client counts its messages from 1, so that each needs an epoch of its own."""
        self._client = ExchangeClient(session=session, key=self.key, epoch=self.epoch)
        self.epoch += 1
        return self._client

    def _follow(self, report: BuildReport) -> BuildRequest:
        if (wish := report.wants_kept) is not None:
            presign = self.store.presign_get if wish.way == "get" else self.store.presign_put
            return BuildRequest(kept=KeptUrl(wish=wish, url=presign(kept_path(NAMESPACE_UID, wish.what, wish.name))))
        if report.phase is BuildPhase.UPLOADED:
            return self._publish(report)
        new = {file.path: file for file in report.files if not file.upload_id}
        upload_ids = {path: self.store.create_upload(self.prefix + path) for path in new}
        ids: Mapping[str, str] = {file.path: file.upload_id for file in report.files}
        parts = tuple(
            self.spoil(
                UploadPart(
                    path=want.path,
                    number=want.number,
                    url=self.store.presign_part(self.prefix + want.path, ids[want.path], want.number),
                )
            )
            for want in report.wants_parts
        )
        return BuildRequest(upload_ids=upload_ids, parts=parts)

    def _publish(self, report: BuildReport) -> BuildRequest:
        for file in report.files:
            self.store.complete_upload(self.prefix + file.path, file.upload_id, file.etags, size=file.size)
        self.store.put_manifest(self.prefix, report.manifest)
        return BuildRequest(published=True)

"""The operator's half of a build: upload ids and presigned URLs for the builder, and the manifest at the end.

Builders have no store credentials: they ask through the exchange. Upload ids and ETags live with the builder, so that a
new leader goes on where the old one was. The manifest is written last, after every file's size was checked.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from hotstart.engines.kept import kept_path
from hotstart.engines.manifest import BadManifest, Manifest, bundle_prefix, engine_prefix, parse_manifest
from hotstart.engines.recipe import PLAN_PREFIX
from hotstart.exchange.messages import (
    BuildPhase,
    BuildReport,
    BuildRequest,
    EngineFile,
    KeptUrl,
    KeptWish,
    RefitBase,
    UploadPart,
)
from hotstart.exchange.names import LABEL_ENGINE, PORT_AGENT
from hotstart.operator.api import Engine, Reason
from hotstart.operator.core.errors import HotstartError, StoreFailed
from hotstart.operator.core.facts import PodFacts, make_pod_facts
from hotstart.operator.core.jobs import Failure, answers
from hotstart.operator.core.names import ANNOTATION_BUNDLE
from hotstart.operator.core.refit import list_bases
from hotstart.operator.core.routes import bracket
from hotstart.operator.reconcile.engine import namespace_uid
from hotstart.operator.reconcile.memory import HeardBuild, Memory
from hotstart.operator.reconcile.model import gather_engines
from hotstart.operator.reconcile.observed import Key, Observed
from hotstart.operator.reconcile.ports import Agents, Clock, Cluster, Store, Upload
from hotstart.operator.reconcile.work_queue import WorkQueue

log = logging.getLogger(__name__)
ROUNDS = 20  # messages to one builder in one turn, while it asks for something
PARTS_A_ROUND = 64
MOST_BASES = 16  # engines whose manifests are read for one that can be refitted


@dataclass(frozen=True)
class BuildServer:
    """Answers builders. One a process."""

    cluster: Cluster
    store: Store
    agents: Agents
    clock: Clock
    observed: Observed
    memory: Memory
    queue: WorkQueue
    _requests: dict[str, BuildRequest] = field(default_factory=dict)  # by pod UID: what to say next

    async def serve(self, pod: dict[str, Any]) -> None:
        """Talks to one builder until it wants nothing more for now."""
        facts = make_pod_facts(pod)
        name = pod["metadata"].get("labels", {}).get(LABEL_ENGINE, "")
        bundle = pod["metadata"].get("annotations", {}).get(ANNOTATION_BUNDLE, "")
        raw = self.observed.get("Engine", facts.namespace, name)
        if not facts.ip or not answers(facts):
            return
        if facts.deleting:  # nobody wants what it builds, and its GPU is somebody else's
            await self.agents.ask_builder(make_address(facts), facts.uid, BuildRequest(cancel=True))
        if facts.deleting or raw is None:
            return
        for _ in range(ROUNDS):
            request = self._requests.pop(facts.uid, BuildRequest())
            report = await self.agents.ask_builder(make_address(facts), facts.uid, request)
            if report is None:
                return
            key = Key("Engine", facts.namespace, name)
            if not bundle:
                self._note(key, report)
            if request.published or request.cancel:
                return
            try:
                answer = await self._answer(facts.namespace, raw, report, bundle)
            except (HotstartError, BadManifest) as error:
                log.warning("build cannot go on engine=%s phase=%s error=%s", name, report.phase, error)
                self._note_failure(key, error)
                return
            self._note_failure(key, None)
            if answer is None:
                return
            self._requests[facts.uid] = answer
            if answer.published:
                self.memory.published.add((facts.namespace, name))
                self.queue.add(key)

    def forget(self, standing: set[str]) -> None:
        """What was to be said to builders that are gone."""
        for uid in [uid for uid in self._requests if uid not in standing]:
            del self._requests[uid]

    def _note(self, key: Key, report: BuildReport) -> None:
        """Remembers the report; progress that people can see wakes the Engine's reconcile."""
        place = (key.namespace, key.name)
        last = self.memory.builds.get(place)
        self.memory.builds[place] = HeardBuild(report, self.clock.now())
        if last is None or shown(last.report) != shown(report):
            self.queue.add(key)

    def _note_failure(self, key: Key, error: Exception | None) -> None:
        """Remembers what the store said to the upload, for the Engine's status; the builder goes on asking."""
        place = (key.namespace, key.name)
        failure = None
        if error is not None:
            reason = error.reason if isinstance(error, StoreFailed) else Reason.BUILD_FAILED
            failure = Failure(reason, f"The engine is made, but the store does not take it: {error}", True)
        if failure == self.memory.upload_failures.get(place):
            return
        if failure is None:
            del self.memory.upload_failures[place]
        else:
            self.memory.upload_failures[place] = failure
        self.queue.add(key)

    async def _answer(
        self, namespace: str, raw: dict[str, Any], report: BuildReport, bundle: str = ""
    ) -> BuildRequest | None:
        """What to tell the builder of the Engine ``raw`` (of its tokenizer ``bundle``) next; None: it wants nothing."""
        key, uid = raw["spec"]["key"], await namespace_uid(self.cluster, self.memory, namespace)
        prefix = bundle_prefix(uid, key, bundle) if bundle else engine_prefix(uid, key)
        if report.wants_kept is not None:
            return self._presign_kept(uid, report.wants_kept)
        if report.wants_refit_base:
            return BuildRequest(refit_base=await self._find_refit_base(namespace, raw, report.refit_facts))
        if report.phase is BuildPhase.UPLOADED:
            published = await self._publish(prefix, key, report)
            return BuildRequest(published=published, cancel=not published)
        if report.phase is not BuildPhase.UPLOADING:
            return None
        wanted = {part.path for part in report.wants_parts}
        known = {file.path: file.upload_id for file in report.files if file.upload_id}
        lacking = [file.path for file in report.files if not file.upload_id and (not file.etags or file.path in wanted)]
        ids = {path: await self.store.create_upload(prefix + path) for path in lacking}
        parts = tuple(
            UploadPart(
                path=part.path,
                number=part.number,
                url=self.store.presign_part(prefix + part.path, upload_id, part.number),
            )
            for part in report.wants_parts[:PARTS_A_ROUND]
            if (upload_id := known.get(part.path) or ids.get(part.path))
        )
        return BuildRequest(upload_ids=ids, parts=parts) if ids or parts else None

    def _presign_kept(self, uid: str, wish: KeptWish) -> BuildRequest:
        """Where it is, or will be, in the folder of the namespace ``uid``."""
        path = kept_path(uid, wish.what, wish.name)
        presign = self.store.presign_get if wish.way == "get" else self.store.presign_put
        return BuildRequest(kept=KeptUrl(wish=wish, url=presign(path)))

    async def _find_refit_base(self, namespace: str, raw: dict[str, Any], facts: dict[str, Any]) -> RefitBase:
        """The plan of the youngest engine that stands and is of the builder's network; an empty one where none is.

        A builder of before does not tell its network, and compares by itself.
        """
        bases = list_bases(Engine.from_api(raw), gather_engines(self.observed, namespace))
        for base in bases[:MOST_BASES]:
            found = await self._look_at_base(namespace, base)
            if found is not None and found.files and facts in ({}, found.facts):
                return found
        return RefitBase()

    async def _look_at_base(self, namespace: str, base: Engine) -> RefitBase | None:
        """Its plan and its network; None where it has no manifest that can be read."""
        prefix = engine_prefix(await namespace_uid(self.cluster, self.memory, namespace), base.spec.key)
        text = await self.store.get_manifest(prefix)
        try:
            manifest = None if text is None else parse_manifest(text, key=base.spec.key)
        except BadManifest as error:
            log.warning("no plan to refit engine=%s error=%s", base.metadata.name, error)
            return None
        if manifest is None:
            return None
        plan = (file for file in manifest.files if file.path.startswith(PLAN_PREFIX))
        urls = {file: self.store.presign_get(prefix + file.path) for file in plan}
        files = tuple(EngineFile(path=f.path, size=f.size, sha256=f.sha256, url=url) for f, url in urls.items())
        return RefitBase(engine=base.metadata.name, facts=manifest.facts, files=files)

    async def _publish(self, prefix: str, key: str, report: BuildReport) -> bool:
        """Completes the uploads, checks every size, and writes the manifest last.

        False where another build's engine stands, whose files these would overwrite.

        Raises:
            HotstartError, BadManifest: nothing was published.
        """
        manifest = parse_manifest(report.manifest, key=key)
        check_files(manifest, report)
        standing = await self.store.get_manifest(prefix)
        if standing is not None and set(parse_manifest(standing, key=key).files) != set(manifest.files):
            log.warning("engine stands already, its second build is cancelled key=%s pod=%s", key[:12], report.pod_uid)
            return False
        for file in report.files:
            await self.store.complete_upload(Upload(prefix + file.path, file.upload_id, file.etags, file.size))
        await self.store.put_manifest(prefix, report.manifest)
        log.info("engine published key=%s files=%d bytes=%d", key[:12], len(manifest.files), manifest.size)
        return True


def make_address(pod: PodFacts) -> str:
    """Where a builder is asked."""
    return f"{bracket(pod.ip)}:{PORT_AGENT}"


def shown(report: BuildReport) -> tuple[str, BuildPhase, int]:
    """What people can see of a report."""
    return report.pod_uid, report.phase, report.percent


def check_files(manifest: Manifest, report: BuildReport) -> None:
    """Raises BadManifest unless the manifest names exactly the files that were uploaded."""
    told = {(file.path, file.size, file.sha256) for file in report.files}
    named = {(file.path, file.size, file.sha256) for file in manifest.files}
    if told != named:
        differing = ", ".join(sorted({path for path, _, _ in told ^ named}))
        raise BadManifest(f"the manifest and the uploaded files differ: {differing}")

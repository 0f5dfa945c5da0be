"""Walks the pod's state machine: one step function a state, each ends with the event that leads on.

    EMPTY -> FETCHING -> VERIFYING -> LOADING -> WARMING -> READY (-> RELOADING -> WARMING -> READY)
    EMPTY -> WARMING -> READY, where Triton serves the assignment already: one request, which a model answers only if
    its golden questions passed

The operator's messages come in by ``take``; everything else is driven by ``run``, so that the pod comes up again when
Triton, the agent or the operator is gone for a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

from hotstart.engines.errors import EngineError
from hotstart.engines.native_memory import give_back_memory
from hotstart.engines.pod_agent.disk import Disk, Remembered, find_corrupt, is_whole
from hotstart.engines.pod_agent.failures import (
    ENGINE_CORRUPT,
    ENGINE_LOAD_FAILED,
    WARM_UP_FAILED,
    BringUpFailed,
    make_disk_failure,
)
from hotstart.engines.pod_agent.loading import Loader, ServerFacts
from hotstart.engines.pod_agent.states import Event, next_state
from hotstart.engines.pod_agent.triton_client import Counts, TritonClient, TritonGone
from hotstart.engines.pod_agent.warm_up import prove, warm_up
from hotstart.engines.transfers.download import Download, UrlBook
from hotstart.exchange.messages import EngineFile, PodAssignment, PodFailure, PodReport, PodRequest, PodState

log = logging.getLogger(__name__)
WATCH_SECONDS = 0.25
MISSED_PROBES = 4  # in a row, before a Triton that is there but silent counts as lost: it may just be busy
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
MOST_DOUBLINGS = 10  # far beyond the longest pause, and no number too large for a float
REFETCHES = 1  # of an engine that arrived corrupt
LOST_WHILE_LOADING = 3  # times in a row that Triton may go away in the middle of a load or a warm-up
PHASES: Mapping[PodState, str] = {
    PodState.EMPTY: "start",
    PodState.FETCHING: "fetch",
    PodState.VERIFYING: "verify",
    PodState.LOADING: "load",
    PodState.RELOADING: "load",
    PodState.WARMING: "warmup",
}


def decide_pause(failures: int) -> float:
    """Seconds to wait after that many failures in a row. Pure."""
    return float(min(FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, MOST_DOUBLINGS), LONGEST_PAUSE_SECONDS))


def is_same_work(one: PodAssignment, other: PodAssignment) -> bool:
    """Whether two assignments differ in their generation at most. Pure."""
    return one.model_copy(update={"generation": 0}) == other.model_copy(update={"generation": 0})


class Agent:
    """One a pod. ``uid`` is the pod's."""

    def __init__(
        self,
        *,
        uid: str,
        disk: Disk,
        triton: TritonClient,
        server: ServerFacts = ServerFacts(),  # noqa: B008  # frozen
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._uid = uid
        self._disk = disk
        self._triton = triton
        self._loader = Loader(disk, triton, server)
        self._clock = clock
        self._urls = UrlBook()
        self._wanted: Remembered | None = None
        self._written: Remembered | None = None  # what a restart finds on the disk, as far as is known
        self._changed = asyncio.Event()
        self._files_came = asyncio.Event()
        self._digests: dict[str, str] = {}
        self._since = clock()
        self._phases: dict[str, float] = {}
        self._failure: PodFailure | None = None
        self._failures = 0
        self._corrupt = 0
        self._lost_while_loading = 0
        self._bytes_done = 0
        self._counts = Counts()
        self._drained: int | None = None
        self._adopted = False  # Triton served the model before this agent; it may have been about to fail
        self.state = PodState.EMPTY
        self._steps: Mapping[PodState, Callable[[Remembered], Awaitable[Event]]] = {
            PodState.FETCHING: self._fetch,
            PodState.VERIFYING: self._verify,
            PodState.LOADING: self._load,
            PodState.RELOADING: self._load,
            PodState.WARMING: self._warm,
            PodState.READY: self._watch,
            PodState.FAILED: self._wait,
        }

    # ------------------------------------------------------------------------------------- the operator's side

    async def take(self, request: PodRequest) -> PodReport:
        """Obeys one message of the operator and reports. A drain needs nothing but the report: routers know first."""
        await self._urls.update(request.files)
        if request.assignment is not None:
            files = tuple(file.model_copy(update={"url": ""}) for file in request.files)
            self.assign(request.assignment, files)
        report = await self.report()
        if not request.drain:
            self._drained = None
            return report
        # The counts may be a moment old: a pod is empty once two reports in a row say so.
        before, self._drained = self._drained, report.in_flight
        return report.model_copy(update={"in_flight": max(report.in_flight, 1 if before is None else before)})

    def assign(self, assignment: PodAssignment, files: tuple[EngineFile, ...]) -> None:
        """Takes an assignment, unless it is older than the one at hand."""
        wanted = self._wanted
        if wanted is not None and assignment.generation < wanted.assignment.generation:
            return
        if wanted is not None and is_same_work(assignment, wanted.assignment):
            self._renew(Remembered(assignment=assignment, files=wanted.files or files))
            return
        self._begin(Remembered(assignment=assignment, files=files))

    def _begin(self, wanted: Remembered) -> None:
        log.info("assigned model=%s engine=%s", wanted.assignment.model, wanted.assignment.engine_key[:12])
        self._failures = self._corrupt = self._lost_while_loading = 0
        self._adopted = False
        self._move(Event.ASSIGNED)
        self._phases = {name: seconds for name, seconds in self._phases.items() if name == "start"}
        self._renew(wanted)
        self._changed.set()

    def _renew(self, wanted: Remembered) -> None:
        self._wanted = wanted
        if wanted.files:
            self._files_came.set()
        else:
            self._files_came.clear()
        if wanted != self._written:
            self._write(wanted)

    def _write(self, wanted: Remembered) -> None:
        """For a restart. Where the disk refuses, the work goes on and the operator's next message tries again."""
        try:
            self._disk.remember(wanted)
            self._written = wanted
        except OSError as error:
            log.warning("assignment not written to the disk error=%s", error)

    async def report(self) -> PodReport:
        """What the operator hears. ``in_flight`` counts waiting requests too: a pod is drained when it is 0."""
        if self.state is PodState.READY:
            self._counts = await self._triton.counts() or self._counts
        else:
            self._counts = Counts()
        wanted = self._wanted
        return PodReport(
            pod_uid=self._uid,
            state=self.state,
            generation=wanted.assignment.generation if wanted else 0,
            engine_key=wanted.assignment.engine_key if wanted else "",
            phases={**self._phases, **self._running_phase()},
            bytes_done=self._bytes_done,
            bytes_total=sum(file.size for file in wanted.files) if wanted else 0,
            failure=self._failure,
            in_flight=self._counts.running + self._counts.waiting,
            queued=self._counts.waiting,
            completed=self._counts.completed,
        )

    # ------------------------------------------------------------------------------------------ the pod's side

    async def run(self, annotated: PodAssignment | None = None) -> None:
        """Brings the pod up and keeps it up; never returns. ``annotated`` stands on the pod, for the first start."""
        await self._restore(annotated)
        while True:
            await self._changed.wait()
            self._changed.clear()
            work = asyncio.create_task(self._walk())
            changed = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait({work, changed}, return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    work.result()
            finally:
                work.cancel()
                changed.cancel()
                await asyncio.gather(work, changed, return_exceptions=True)

    async def _restore(self, annotated: PodAssignment | None) -> None:
        remembered = self._disk.recall()
        if remembered is not None:
            self._written = remembered
            self._renew(remembered)  # first of all, for the operator may speak while Triton is asked
            served = await self._loader.is_served(remembered.assignment)
            if self.state is PodState.EMPTY:  # no other assignment came meanwhile
                self._resume(self._wanted or remembered, served)
        if annotated is not None and (remembered is None or annotated.generation > remembered.assignment.generation):
            self.assign(annotated, ())

    def _resume(self, wanted: Remembered, served: bool) -> None:
        """Goes on with what an earlier agent of the pod had begun; ``served``: Triton has all of it loaded."""
        if not served:
            self._begin(wanted)
            return
        log.info("adopted a loaded model engine=%s", wanted.assignment.engine_key[:12])
        self._adopted = True
        self._bytes_done = sum(file.size for file in wanted.files)
        self._move(Event.ADOPTED)
        self._changed.set()

    async def _walk(self) -> None:
        while self._wanted is not None:
            try:
                event = await self._steps[self.state](self._wanted)
            except BringUpFailed as error:
                self._note(error.failure, self._wanted)
                event = Event.FAILED
            except OSError as error:
                self._note(make_disk_failure(error).failure, self._wanted)
                event = Event.FAILED
            except TritonGone as error:
                log.warning("triton is gone error=%s", error)
                event = Event.TRITON_LOST
            if self._changed.is_set():  # another assignment came meanwhile and has moved the state
                return
            self._move(event)

    def _note(self, failure: PodFailure, wanted: Remembered) -> None:
        """Keeps a failure for the report. A corrupt engine is removed, and fetched once more, not for ever."""
        log.error("failed reason=%s message=%s", failure.reason, failure.message)
        self._failures += 1
        if failure.reason == ENGINE_CORRUPT:
            self._disk.discard(wanted.assignment.engine_key)
            self._corrupt += 1
            failure = failure.model_copy(update={"retryable": self._corrupt <= REFETCHES})
        self._failure = failure

    def _move(self, event: Event) -> None:
        before, self.state = self.state, next_state(self.state, event)
        self._phases |= self._running_phase(before)
        self._since = self._clock()
        if self.state not in (PodState.FAILED, PodState.FETCHING):
            self._failure = None
        if self.state is PodState.READY:
            self._failures = self._corrupt = self._lost_while_loading = 0
        if event is Event.TRITON_LOST:
            self._phases = {name: seconds for name, seconds in self._phases.items() if name not in ("load", "warmup")}
        log.info("state event=%s from=%s to=%s", event.value, before.value, self.state.value)

    def _running_phase(self, state: PodState | None = None) -> dict[str, float]:
        name = PHASES.get(state or self.state)
        if name is None:
            return {}
        return {name: round(self._phases.get(name, 0.0) + self._clock() - self._since, 4)}

    # --------------------------------------------------------------------------------------- one step a state

    async def _fetch(self, wanted: Remembered) -> Event:
        assignment = wanted.assignment
        self._loader.check_runtime(assignment)
        await self._files_came.wait()
        files = self._wanted.files if self._wanted else wanted.files
        key = assignment.engine_key
        if is_whole(self._disk.engine(key), files):
            corrupt = await asyncio.to_thread(find_corrupt, self._disk.engine(key), files)
            if corrupt is None:
                self._digests = {file.path: file.sha256 for file in files}
                self._bytes_done = sum(file.size for file in files)
                return Event.FETCHED
            log.warning("engine on disk is corrupt, fetching it anew file=%s", corrupt)
            self._disk.discard(key)
        self._disk.keep_only(key)
        fetch = Download(self._urls, files, self._disk.partial(key), self._on_bytes)
        try:
            self._digests = await fetch.run()
        except EngineError as error:
            raise BringUpFailed(error.reason.value, error.message, retryable=error.retryable) from error
        return Event.FETCHED

    def _on_bytes(self, count: int) -> None:
        self._bytes_done = count

    async def _verify(self, wanted: Remembered) -> Event:
        key = wanted.assignment.engine_key
        wrong = [file.path for file in wanted.files if self._digests.get(file.path) != file.sha256]
        if wrong:
            remedy = (
                "it is built again once the store's list or a second pod says so too; for sooner, "
                "delete the engine's folder in the store."
            )
            if self._corrupt < REFETCHES:  # what a crash of the node left of an earlier fetch may be damaged here
                remedy = "it is fetched once more, whole."
            message = f"{wrong[0]} is not what the engine's manifest says (its sha256 differs): {remedy}"
            raise BringUpFailed(ENGINE_CORRUPT, message, retryable=True)
        if self._disk.partial(key).exists():
            self._disk.publish(key)
        return Event.VERIFIED

    async def _load(self, wanted: Remembered) -> Event:
        with self._counted_losses(ENGINE_LOAD_FAILED, "loads the engine"):
            await self._loader.load(wanted.assignment)
        return Event.LOADED

    async def _warm(self, wanted: Remembered) -> Event:
        adopted, self._adopted = self._adopted, False
        with self._counted_losses(WARM_UP_FAILED, "answers its first requests"):
            if adopted:
                await prove(self._triton, wanted.assignment.serving)
            else:
                await warm_up(self._triton, wanted.assignment)
        return Event.WARMED

    @contextmanager
    def _counted_losses(self, reason: str, doing: str) -> Iterator[None]:
        try:
            yield
        except TritonGone as error:
            self._lost_while_loading += 1
            if self._lost_while_loading < LOST_WHILE_LOADING:
                raise
            message = f"Triton ends while it {doing}: raise spec.serving.resources.limits.memory, see its log."
            raise BringUpFailed(reason, message, retryable=True) from error

    async def _watch(self, wanted: Remembered) -> Event:
        give_back_memory()  # of the imports and the fetch: from here on little is needed
        silent = 0
        while silent < MISSED_PROBES:
            await asyncio.sleep(WATCH_SECONDS)
            ready = await self._triton.is_ready()
            if ready is False:
                return Event.TRITON_LOST
            silent = 0 if ready else silent + 1
        return Event.TRITON_LOST

    async def _wait(self, wanted: Remembered) -> Event:
        if self._failure is not None and not self._failure.retryable:
            await asyncio.get_running_loop().create_future()  # until another assignment ends this task
        await asyncio.sleep(decide_pause(self._failures))
        return Event.RETRIED

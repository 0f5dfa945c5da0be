"""The open loop: every request leaves at its intended time, whatever became of those before it.

`run_load` drives one plan in the running event loop. The command line gives each share of a plan to a process of its
own (`fleet`), so that drawing a progress bar never delays a request; tests, demo and benchmarks may call it directly.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from hotstart.loadtest.arrivals import Arrival
from hotstart.loadtest.machine import gather_processor_times, stolen_share
from hotstart.loadtest.pacing import Clock, make_clock
from hotstart.loadtest.plan import LoadPlan
from hotstart.loadtest.result import LoadResult
from hotstart.loadtest.sample import Outcome, Progress, Sample
from hotstart.loadtest.send import Sender, make_requests

ProgressCallback = Callable[[Progress], None]

_PROGRESS_EVERY_S = 0.2
# The loop gets a turn after so many sends in a row without a sleep, when the schedule is behind or in a burst.
_BURST = 32


class _Tally:
    """What has happened so far in one run; counts are kept as they come, so that progress costs nothing."""

    def __init__(self, planned: int, report: ProgressCallback | None) -> None:
        self.samples: list[Sample] = []
        self.sent = 0
        self._planned = planned
        self._report = report
        self._counts = dict.fromkeys(Outcome, 0)

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)
        self._counts[sample.outcome] += 1

    def tell(self, elapsed_s: float) -> None:
        if self._report is not None:
            self._report(
                Progress(
                    planned=self._planned,
                    sent=self.sent,
                    ok=self._counts[Outcome.OK],
                    failed=self._counts[Outcome.FAILED],
                    cancelled=self._counts[Outcome.CANCELLED],
                    elapsed_s=elapsed_s,
                )
            )


async def run_load(
    plan: LoadPlan,
    *,
    progress: ProgressCallback | None = None,
    stop: asyncio.Event | None = None,
    clock: Clock | None = None,
    start_at: float | None = None,
    requests: list[bytes] | None = None,
) -> LoadResult:
    """Send all of `plan` and return what came of it.

    progress: called some five times a second, and once at the end; it must return at once.
    stop: when set, nothing more is sent, what is in flight is given up as UNFINISHED, and the result says interrupted.
    clock, start_at: the run's clock and its instant zero on it; by default the finest of the system, and now.
    requests: what `make_requests` made of the plan, so that nothing is left to make between the call and the start.
    Failures of requests are in the result; nothing about the server raises.
    """
    started_at = datetime.now(UTC)
    requests = make_requests(plan) if requests is None else requests
    own_clock = clock or make_clock()
    stop = stop or asyncio.Event()
    tally = _Tally(len(plan.arrivals), progress)
    times_before = gather_processor_times()
    try:
        start = own_clock.now() if start_at is None else start_at
        sender = Sender(plan, own_clock, start, tally.add)
        work = asyncio.create_task(_send_all(plan.arrivals, requests, sender, own_clock, tally))
        stopped = asyncio.create_task(stop.wait())
        reporter = asyncio.create_task(_report_progress(tally, own_clock, start))
        try:
            ends: set[asyncio.Future[Any]] = {work, stopped, sender.fault}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end_tasks([work, stopped, reporter])
            await sender.close()
        ran_s = max(own_clock.now() - start, 0.0)
        tally.tell(ran_s)
    finally:
        if clock is None:
            own_clock.close()
    for done in (work, sender.fault):  # a fault of this program ends the run with its own exception
        if not done.cancelled():
            done.result()
    samples = tuple(sorted(tally.samples, key=lambda sample: sample.intended))
    stolen = stolen_share(times_before, gather_processor_times())
    return LoadResult(plan, samples, started_at, ran_s, interrupted=stop.is_set(), stolen=stolen)


async def _send_all(
    arrivals: tuple[Arrival, ...], requests: list[bytes], sender: Sender, clock: Clock, tally: _Tally
) -> None:
    for arrival, request in zip(arrivals, requests, strict=True):
        intended = sender.start + arrival.offset
        if clock.now() < intended:
            await clock.sleep_until(intended)
        elif tally.sent % _BURST == _BURST - 1:
            await asyncio.sleep(0)
        tally.sent += 1
        sender.send(arrival, request)
    await sender.wait_for_all()


async def _end_tasks(tasks: Sequence[asyncio.Task[Any]]) -> None:
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)


async def _report_progress(tally: _Tally, clock: Clock, start: float) -> None:
    while True:
        await asyncio.sleep(_PROGRESS_EVERY_S)
        tally.tell(max(clock.now() - start, 0.0))

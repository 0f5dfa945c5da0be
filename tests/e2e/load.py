"""Traffic for the end-to-end tests: it runs until the test has seen what it waits for, so that it covers the event."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import openai
from hotstart.loadtest.drive import run_load
from hotstart.loadtest.plan import make_constant_plan

LONGEST_SECONDS = 900.0  # far beyond what any test waits
PATIENCE_SECONDS = 90.0  # beyond what the requests' own schedule takes
SOME = 40  # answers that show that the service goes on


class Load:
    """An open-loop load in a thread of its own. It ends with its block, after so many answers ``at_least``."""

    def __init__(self, tenant, *, rate: float, at_least: int = 0) -> None:
        self._tenant, self._rate, self._at_least = tenant, rate, at_least
        self._plan = make_constant_plan(
            tenant.platform.url, f"{tenant.namespace}/{tenant.name}", rate=rate, duration=LONGEST_SECONDS, max_tokens=4
        )
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._started = threading.Event()
        self._ok = 0
        self.result: dict = {}

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        found = await run_load(self._plan, progress=self._note, stop=self._stop)
        self.result = found.to_json()

    def _note(self, progress) -> None:
        self._ok = progress.ok

    def wait_for_answers(self, more: int = SOME) -> None:
        """Until so many more requests were answered; the load runs then."""
        wanted = self._ok + more
        self._tenant.wait(
            lambda: self._ok >= wanted or not self._thread.is_alive(),
            f"{more} more answers",
            patience=PATIENCE_SECONDS + more / self._rate,
        )
        assert self._thread.is_alive(), "the load ended by itself"

    def __enter__(self):
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, kind, *exception) -> None:
        try:
            if kind is None:
                self.wait_for_answers(max(0, self._at_least - self._ok))
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the load has failed, and its thread says why
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def assert_none_lost(self) -> None:
        """Every request was answered, but those that were in flight at the very end."""
        result = self.result
        assert result["failed"] == 0, (result["failures"], result["failure_details"])
        assert result["ok"] >= self._at_least
        assert result["ok"] + result["unfinished"] == result["requests"]


class Clients:
    """People who ask one completion after the other, without a pause: as many requests at once, however fast."""

    def __init__(self, tenant, count: int, *, max_tokens: int) -> None:
        self._tenant, self._max_tokens = tenant, max_tokens
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]
        self.answers: list[str] = []
        self.failures: list[openai.OpenAIError] = []

    def _ask(self) -> None:
        client = openai.OpenAI(base_url=f"{self._tenant.platform.url}/v1", api_key="none", max_retries=0, timeout=60)
        model = f"{self._tenant.namespace}/{self._tenant.name}"
        while not self._ended.is_set():
            try:
                answer = client.completions.create(
                    model=model, prompt="def add(left, right):", max_tokens=self._max_tokens
                )
                self.answers.append(answer.choices[0].text)
            except openai.OpenAIError as failure:
                self.failures.append(failure)
                self._ended.wait(1)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

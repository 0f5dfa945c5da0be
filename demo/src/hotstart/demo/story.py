"""The demo as a numbered story: each step with the time since the start, a failure with its cause."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StepFailed(Exception):
    """A step could not be done; the text says why, with what the cluster says about it."""


class Story:
    """Prints the steps and keeps their times in seconds."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._number = 0
        self.seconds: dict[str, float] = {}

    def elapsed(self) -> float:
        """Seconds since the story began."""
        return time.monotonic() - self._began

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[None]:
        """One numbered step; its time is kept under ``name``."""
        self._number += 1
        began = time.monotonic()
        print(f"\n[{self.elapsed():6.1f} s] {self._number}. {title}", flush=True)
        yield
        self.seconds[name] = round(time.monotonic() - began, 3)

    def say(self, text: str) -> None:
        """A line below the current step."""
        for line in text.splitlines() or [""]:
            print(f"            {line}", flush=True)


class Changes:
    """Says a line whenever it differs from the last one: progress that reads well in a log too."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._last = ""

    def __call__(self, text: str) -> None:
        if text and text != self._last:
            self._story.say(f"{self._story.elapsed():6.1f} s  {text}")
            self._last = text

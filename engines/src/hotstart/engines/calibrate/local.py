"""The completion model in this process: scheduler, job and CTranslate2 engine as Triton's Python backend runs them.

Triton itself adds a millisecond or two (`benchmarks/completion.py`), for which the share of the SLO that the engine may
take (`profile.SLO_SHARE`) leaves room.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType

from hotstart.engines.calibrate.samples import CalibrationFailed, Timing, make_timing
from hotstart.engines.calibrate.vocabulary import read_vocabulary
from hotstart.engines.triton.completion.engine import CTranslate2Engine, read_facts
from hotstart.engines.triton.completion.errors import CompletionError
from hotstart.engines.triton.completion.job import CompletionJob, Ended
from hotstart.engines.triton.completion.options import RequestOptions
from hotstart.engines.triton.completion.prompts import Prepared
from hotstart.engines.triton.completion.scheduler import Scheduler
from hotstart.engines.triton.completion.stops import StopRules
from hotstart.exchange.messages import ServingOptions
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

MOST_WAITING = 1024  # above any concurrency of a sweep


@dataclass
class WaitedAnswer:
    """Implements ``job.Answer`` for one client that waits."""

    done: threading.Event = field(default_factory=threading.Event)
    details: str = ""
    error: CompletionError | None = None

    def send(self, text: str) -> None:
        """Pieces of a stream are not asked for."""

    def finish(self, text: str, details: str) -> None:
        self.details = details
        self.done.set()

    def fail(self, error: CompletionError) -> None:
        self.error = error
        self.done.set()

    def gone(self) -> bool:
        return False


class LocalCompletion:
    """Implements ``measure.Submit``. The engine runs on to its limit of tokens: no token ends a text."""

    def __init__(self, folder: Path, serving: ServingOptions) -> None:
        facts = read_facts(folder)
        self.vocabulary = read_vocabulary(folder / "tokenizer.json", facts.eos_ids)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._engine = CTranslate2Engine(
            folder,
            replace(facts, eos_ids=()),
            inter_threads=serving.inter_threads,
            intra_threads=serving.intra_threads,
        )
        self._scheduler = Scheduler(serving.inter_threads, MOST_WAITING)
        self._numbers = itertools.count()

    def __enter__(self) -> LocalCompletion:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scheduler.close()

    def __call__(self, prompt: Sequence[int], new_tokens: int) -> Timing:
        answer = WaitedAnswer()
        received = time.monotonic()
        stream = DecodeStream(ids=list(prompt[-4:]), skip_special_tokens=True)
        self._scheduler.submit(
            CompletionJob(
                id=f"calibrate-{next(self._numbers)}",
                prepared=Prepared(tuple(prompt), 0),
                options=RequestOptions(max_tokens=new_tokens),
                rules=StopRules(),
                engine=self._engine,
                next_text=partial(stream.step, self._tokenizer),
                answer=answer,
                received=received,
                on_end=_ignore,
            )
        )
        answer.done.wait()
        if answer.error is not None:
            raise CalibrationFailed(f"a request failed: {answer.error}")
        latency_ms = (time.monotonic() - received) * 1000
        return make_timing(json.loads(answer.details), len(prompt), new_tokens, latency_ms)


def _ignore(ended: Ended) -> None:
    """The details say all."""

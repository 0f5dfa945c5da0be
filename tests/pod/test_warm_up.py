"""What a loaded model is asked before it serves, and what its answers mean."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hotstart.engines.pod_agent import warm_up as module
from hotstart.engines.pod_agent.failures import BringUpFailed
from hotstart.engines.pod_agent.triton_client import TritonRefused
from hotstart.engines.pod_agent.warm_up import prove, warm_up
from hotstart.engines.triton.completion.names import REPLAY_FAILED, WARM_UP_ID

from tests.support.pod import make_assignment, make_serving


@dataclass
class Answers:
    """A Triton that gives these texts or refusals in turn. Stands for ``TritonClient``."""

    given: Iterator[str | TritonRefused]
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def generate(self, **request: Any) -> tuple[str, dict[str, Any]]:
        self.asked.append(request)
        answer = next(self.given)
        if isinstance(answer, TritonRefused):
            raise answer
        return answer, {}


async def test_an_engine_on_cpus_that_answers_in_two_ways_is_broken() -> None:
    with pytest.raises(BringUpFailed, match=r"in 2 ways: \['a', 'b'\]"):
        await warm_up(Answers(itertools.cycle("ab")), make_assignment())


async def test_an_engine_of_tensorrt_llm_may_for_batches_differ() -> None:
    answers = Answers(itertools.cycle("ab"))
    await warm_up(answers, make_assignment(runtime="tensorrt_llm"))
    assert len(answers.asked) == 4
    assert all(request["request_id"].startswith(WARM_UP_ID) for request in answers.asked)


async def test_an_adopted_model_is_asked_for_one_token() -> None:
    answers = Answers(iter(["x"]))
    await prove(answers, make_serving())
    [request] = answers.asked
    assert request["options"]["max_tokens"] == 1
    assert request["request_id"].startswith(WARM_UP_ID)


BUSY = TritonRefused("overloaded: 14 requests are waiting already; retry, or add replicas")


async def test_a_new_model_that_is_busy_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.0)
    answers = Answers(iter([BUSY, "x", BUSY, "x", "y", "y"]))
    await warm_up(answers, make_assignment())
    assert len(answers.asked) == 6


async def test_an_adopted_model_that_is_busy_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.0)
    answers = Answers(iter([BUSY, BUSY, "x"]))
    await prove(answers, make_serving())
    assert len(answers.asked) == 3


@pytest.mark.parametrize(
    ("said", "reason", "retryable"),
    [
        (f"internal: {REPLAY_FAILED}: after 'x' it gives token 1 (question 2 of 10).", "VerificationFailed", False),
        ("internal: the engine failed", "WarmUpFailed", True),
    ],
)
async def test_an_adopted_model_that_refuses_is_not_served(said: str, reason: str, retryable: bool) -> None:
    with pytest.raises(BringUpFailed) as failure:
        await prove(Answers(iter([TritonRefused(said)])), make_serving())
    assert (failure.value.failure.reason, failure.value.failure.retryable) == (reason, retryable)

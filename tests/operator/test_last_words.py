"""Pods that no agent can speak for: what their containers said last becomes the model's condition."""

from __future__ import annotations

import pytest
from hotstart.operator.api import CompletionModel, Reason
from hotstart.operator.core.facts import make_pod_facts
from hotstart.operator.core.verdicts import judge_workload
from hotstart.operator.core.workload import CrashRecord

NOW = 1_800_000_000.0
MISMATCH = "load failed for model 'tensorrt_llm': [TensorRT-LLM][ERROR] MPI size 1 != TP size 2 * PP size 1;"
CRASHES = CrashRecord(count=2, reason=Reason.PODS_CRASHING, message="container triton ended with code 1 (Error)")


def make_pod(code: int, said: str) -> dict[str, object]:
    """A pod whose Triton has ended and is to be started again."""
    ended = {"exitCode": code, "reason": "Error", "message": said, "finishedAt": "2026-01-01T00:00:09Z"}
    triton = {
        "name": "triton",
        "restartCount": 2,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
        "lastState": {"terminated": ended},
    }
    return {"metadata": {"name": "m-0", "labels": {}}, "status": {"phase": "Running", "containerStatuses": [triton]}}


def judge(code: int, said: str) -> tuple[str, str]:
    model = CompletionModel.from_api(
        {
            "apiVersion": "hotstart.dev/v1alpha1",
            "kind": "CompletionModel",
            "metadata": {"name": "m", "namespace": "team", "uid": "u", "generation": 1},
            "spec": {"checkpoint": {"uri": "s3://models/tiny/"}, "engine": {"runtime": "ctranslate2"}},
        }
    )
    verdict = judge_workload(model, [make_pod_facts(make_pod(code, said))], CRASHES, None, NOW)
    return verdict.reason, verdict.message


def test_a_load_that_ends_triton_is_named_by_triton_s_last_words() -> None:
    reason, message = judge(1, f"| model | version |\n{MISMATCH}\nmpirun: process 0 ended with code 1")
    assert reason == "AcceleratorMismatch"
    assert "Pod m-0: The engine is for another GPU than this node's, or for another number of them" in message
    assert "MPI size 1 != TP size 2" in message


@pytest.mark.parametrize(("code", "said"), [(1, "words never seen"), (0, MISMATCH)])
def test_other_ends_count_as_crashes(code: int, said: str) -> None:
    assert judge(code, said)[0] == Reason.PODS_CRASHING

"""`status.plan`: its parts, its length, and its place in a status of 4 KiB."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hotstart.operator.api import CompletionModelStatus, Condition, ConditionStatus, Engine
from hotstart.operator.api.status import Decision
from hotstart.operator.core.accelerators import make_gpu_need
from hotstart.operator.core.gpu_fleet import GpuFleet, make_gpu_node
from hotstart.operator.core.plan import PLAN_LIMIT, PlanView, about, make_plan
from hotstart.operator.core.recipe import WantedEngine
from hotstart.operator.core.status_size import STATUS_LIMIT, bound_status, size_of
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.operator.gpu_models import H100, gpu_node
from tests.operator.test_gpu_jobs import model_of
from tests.operator.test_gpu_recipe import checkpoint_of, wanted_of
from tests.operator.test_gpu_refit import OLD, WANTED, engine_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def plan_of(*, fleet=(), **engine) -> str:
    wanted, checkpoint = wanted_of(**engine), checkpoint_of()
    model = model_of(**engine)
    standing = Engine.from_api(engine_of("0a" * 32))
    return make_plan(
        PlanView(
            wanted=wanted,
            checkpoint=checkpoint,
            engine=standing,
            engines=(standing,),
            need=make_gpu_need(model.spec.engine.accelerator, model.spec.engine.tensor_parallel),
            fleet=GpuFleet(tuple(make_gpu_node(node) for node in fleet)),
        )
    )


def test_the_plan_of_a_build_on_several_gpus():
    text = plan_of(tensorParallel=4, fleet=[gpu_node("a", gpus=8, driver="580")])
    for part in ("Build engine ", "; about ", f"needs 4 {H100}, 8 free"):
        assert part in text
    assert re.search(r"its pod asks for \d+ GiB of memory and \d+ GiB of disk; needs 4", text)
    assert "driver 580" in text and "KV cache" in text
    assert len(text) <= PLAN_LIMIT


def test_what_differs_is_shortened_to_three_parts():
    text = plan_of(fleet=[gpu_node("a")])
    assert text.count("->") == 3 and "; ...)" in text
    assert "checkpoint: 0a0a0a0a0a0a -> abababababab" in text


def test_a_refit_says_whose_plan_it_takes():
    base, wanted = (Engine.from_api(engine_of(digest, ready=digest == OLD)) for digest in (OLD, WANTED))
    built = WantedEngine(wanted.spec.key, wanted.spec.recipe.to_engine_recipe())
    wanted = wanted.model_copy(update={"status": base.status.model_copy(update={"manifest_digest": ""})})
    view = PlanView(
        wanted=built,
        checkpoint=checkpoint_of(digest=WANTED),
        engine=wanted,
        engines=(base, wanted),
    )
    assert f"new weights into the plan of {base.metadata.name[:12]}" in make_plan(view)
    assert "new weights" not in make_plan(replace(view, engines=(wanted,)))


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "about 1 s"), (47, "about 47 s"), (129, "about 2 min")])
def test_durations_are_rough(seconds, text):
    assert about(seconds) == text


@settings(max_examples=25)
@given(plan=st.text("abc ", min_size=1024, max_size=1024), decisions=st.integers(0, 10), long=st.integers(0, 700))
def test_a_status_stays_within_4_kib_with_the_longest_plan(plan, decisions, long):
    checkpoint = checkpoint_of().model_copy(update={"uri": "s3://" + "x" * 200, "tokenizer_digest": "cd" * 32})
    condition = Condition(
        type="Ready", status=ConditionStatus.FALSE, last_transition_time=NOW, reason="NoFreeAccelerator"
    )
    decision = Decision(time=NOW, from_replicas=1, to_replicas=2, reason="DemandRose", message="d" * long)
    decision = decision.model_copy(update={"inputs": {"a": "b" * 200}})
    status = CompletionModelStatus(
        plan=plan,
        checkpoint=checkpoint,
        conditions=tuple(condition.model_copy(update={"type": f"Type{i}", "message": "m" * long}) for i in range(10)),
        decisions=(decision,) * decisions,
    )
    bounded = bound_status(status)
    assert size_of(bounded) <= STATUS_LIMIT
    assert bounded.plan[:290] == plan[:290]

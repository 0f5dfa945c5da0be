"""What one replica holds: the calibrated figure where it counts, and what scaling makes of it."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import replace

import pytest
from hotstart.engines.manifest import Manifest
from hotstart.engines.profile import LoadPoint, LonePoint, Profile
from hotstart.exchange.messages import LATENCY_EDGES_MS, ModelSecond
from hotstart.operator.api import CompletionModel, CompletionModelSpec, Engine, Reason
from hotstart.operator.api.engine import Repeatability
from hotstart.operator.core.calibrator import replica_limits, with_calibrator
from hotstart.operator.core.capacity import (
    Capacity,
    Origin,
    decide_capacity,
    make_profile_status,
    parse_quantity,
    read_profile,
)
from hotstart.operator.core.facts import make_pod_facts
from hotstart.operator.core.scale import Fleet, ScaleState, decide_scale
from hotstart.operator.core.verdicts import judge_attainable
from hotstart.operator.core.window import Window, add_seconds
from hypothesis import given
from hypothesis import strategies as st

from tests.operator import doubles
from tests.operator.world import World

NOW = 1_800_000_000.0
SERIAL = Profile(
    input_tokens=96,
    new_tokens=16,
    prefill_tokens_per_second=1000.0,
    lone=(LonePoint(96, 16, 440.2), LonePoint(48, 16, 400.0)),
    load=(LoadPoint(1, 450.0, 36.0), LoadPoint(2, 880.0, 36.5), LoadPoint(3, 1310.0, 36.1), LoadPoint(4, 1760.0, 36.0)),
    noise=0.04,
    tolerance=0.25,
    seconds=21.3,
    cpus=0.7,
)
GPU = Profile(
    input_tokens=96,
    new_tokens=16,
    prefill_tokens_per_second=20_000.0,
    lone=(LonePoint(96, 16, 100.0),),
    load=(LoadPoint(1, 110.0, 160.0), LoadPoint(8, 150.0, 900.0), LoadPoint(32, 240.0, 2200.0)),
    noise=0.02,
    tolerance=0.25,
    seconds=48.0,
)


def make_spec(slo: str = "1500ms", *, cpu: str | None = "700m", percentile: int = 95, **changes) -> CompletionModelSpec:
    serving = {"maxNewTokens": 16, **changes.pop("serving", {})}
    if cpu is not None:
        serving["resources"] = {"limits": {"cpu": cpu}}
    return CompletionModelSpec.model_validate(
        {
            "checkpoint": {"uri": "s3://models/tiny/"},
            "engine": {
                "runtime": "ctranslate2",
                "limits": {"batchSize": 8, "inputTokens": 96, "sequenceTokens": 128},
            },
            "slo": {"latency": slo, "percentile": percentile},
            "serving": serving,
            "scaling": {"maxReplicas": 10, **changes},
        }
    )


def make_gpu_spec(batch: int = 64) -> CompletionModelSpec:
    return CompletionModelSpec.model_validate(
        {
            "checkpoint": {"uri": "s3://models/tiny/"},
            "engine": {
                "runtime": "tensorrt_llm",
                "limits": {"batchSize": batch, "inputTokens": 96, "sequenceTokens": 128},
                "accelerator": {"product": "NVIDIA-H100-80GB-HBM3"},
            },
            "serving": {"maxNewTokens": 16},
        }
    )


def decide(spec: CompletionModelSpec, profile: Profile | None = SERIAL) -> Capacity:
    return decide_capacity(spec, None if profile is None else make_profile_status(profile))


def test_a_single_worker_holds_three_requests_does_the_work_of_one_and_is_sent_one() -> None:
    capacity = decide(make_spec())
    assert (capacity.concurrency, capacity.work, capacity.cap) == (3, 1.0, 1)
    assert (capacity.origin, capacity.misfit, capacity.lone_misses) == (Origin.CALIBRATED, "", False)


def test_a_gpu_batches_so_it_holds_and_is_sent_many() -> None:
    capacity = decide(make_gpu_spec(), GPU)
    assert capacity.concurrency == 28  # 250 ms x 0.9, between 8 and 32
    assert capacity.work == 5.6  # 900 / 160 tokens/s, at 8: 32 at once were measured to miss
    assert capacity.cap == 28
    assert decide(make_gpu_spec(batch=4), GPU).cap == 4


def test_on_call_s_own_figure_wins() -> None:
    capacity = decide(make_spec(concurrencyPerReplica=5))
    assert (capacity.concurrency, capacity.work, capacity.cap, capacity.origin) == (5, 5, 5, Origin.SPEC)
    assert capacity.lone_ms == 441


@pytest.mark.parametrize(
    ("spec", "profile", "why"),
    [
        (make_spec(), None, "this engine was not calibrated"),
        (make_spec(cpu="1"), replace(SERIAL, cpus=0.5), "calibrated with 0.5 CPUs, replicas have 1"),
        (make_spec(cpu=None), SERIAL, "calibrated with 0.7 CPUs, replicas have 1"),
        (
            make_spec(serving={"interThreads": 2}),
            SERIAL,
            "calibrated with 1 x 1 threads (inter x intra), replicas have 2 x 1",
        ),
        (
            make_spec(serving={"maxNewTokens": 32}),
            SERIAL,
            "calibrated with requests of 96 + 16 tokens, they may have 96 + 32",
        ),
        (make_spec(percentile=99), SERIAL, "calibration measures P95, the SLO is about P99"),
    ],
)
def test_a_profile_that_was_measured_otherwise_does_not_count(
    spec: CompletionModelSpec, profile: Profile | None, why: str
) -> None:
    capacity = decide(spec, profile)
    assert (capacity.concurrency, capacity.work, capacity.cap, capacity.origin) == (1, 1, 1, Origin.DEFAULT)
    assert capacity.misfit == why
    verdict = judge_attainable(make_model(spec), capacity)
    assert (verdict.holds, verdict.reason) == (None, Reason.NOT_MEASURED)
    assert why[1:] in verdict.message


def test_a_noisy_profile_counts_and_says_so() -> None:
    spec, noisy = make_gpu_spec(), replace(GPU, noise=0.2512)
    capacity = decide(spec, noisy)
    assert capacity == replace(decide(spec, GPU), noisy=True)
    assert capacity.describe() == "28 requests at once, the work of 5.6 (calibrated, noisy)"
    assert make_profile_status(noisy).repeatability is Repeatability.NOISY


def test_an_engine_that_was_measured_once_and_misses_the_slo_makes_it_unattainable() -> None:
    slow = replace(GPU, lone=(LonePoint(96, 16, 9000.0),), load=(LoadPoint(1, 9000.0, 1.8),), noise=1.0)
    spec = make_gpu_spec()
    capacity = decide(spec, slow)
    assert (capacity.concurrency, capacity.cap, capacity.lone_misses) == (1, 1, True)
    verdict = judge_attainable(make_model(spec), capacity)
    assert (verdict.holds, verdict.reason) == (False, Reason.LONE_REQUEST_MISSES_SLO)
    assert "takes 9000 ms" in verdict.message and "noisy" in verdict.message


def test_more_cpus_than_threads_make_no_difference() -> None:
    assert decide(make_spec(cpu="4"), replace(SERIAL, cpus=1.0)).origin is Origin.CALIBRATED


def make_model(spec: CompletionModelSpec) -> CompletionModel:
    return CompletionModel.from_api(
        {
            "apiVersion": "hotstart.dev/v1alpha1",
            "kind": "CompletionModel",
            "metadata": {"name": "m", "namespace": "team", "uid": "u", "generation": 1},
            "spec": spec.to_api(),
        }
    )


def test_a_lone_request_within_the_slo_makes_it_attainable() -> None:
    spec = make_spec()
    verdict = judge_attainable(make_model(spec), decide(spec))
    assert (verdict.holds, verdict.reason) == (True, Reason.ATTAINABLE)
    assert verdict.message == (
        "A lone request of 96 + 16 tokens takes 441 ms, the SLO is 1500 ms; "
        "a replica holds 3 requests at once, the work of 1 (calibrated)."
    )


def test_a_lone_request_beyond_the_slo_is_said_and_latency_scales_nothing() -> None:
    spec = make_spec("250ms")
    capacity = decide(spec)
    verdict = judge_attainable(make_model(spec), capacity)
    assert (verdict.holds, verdict.reason) == (False, Reason.LONE_REQUEST_MISSES_SLO)
    assert "takes 441 ms, the SLO is 250 ms" in verdict.message
    window = busy_window(0.75, 460.0)
    fleet = Fleet(current=1, ready=1, coming=0)
    blind = decide_scale(window, ScaleState(), spec, fleet, NOW)[0]
    knowing = decide_scale(window, ScaleState(), spec, fleet, NOW, capacity)[0]
    assert (blind.replicas, blind.reason) == (2, Reason.LATENCY_ABOVE_SLO)
    assert knowing.replicas == 1
    more = decide_scale(busy_window(1.5, 460.0), ScaleState(), spec, fleet, NOW, capacity)[0]
    assert (more.replicas, more.reason) == (2, Reason.DEMAND_ROSE)


def busy_window(busy: float, ms: float) -> Window:
    buckets = [0] * (len(LATENCY_EDGES_MS) + 1)
    buckets[next(i for i, edge in enumerate(LATENCY_EDGES_MS) if ms <= edge)] = 5
    seconds = [
        ModelSecond(
            second=int(NOW) - 60 + i,
            model="team/m",
            arrivals=5,
            completed=5,
            in_flight_sum=busy,
            latency_buckets=tuple(buckets),
        )
        for i in range(60)
    ]
    return add_seconds(Window(), seconds, NOW)


def test_the_inputs_of_a_decision_say_where_the_figure_came_from() -> None:
    spec, fleet = make_spec(), Fleet(current=1, ready=1, coming=0)
    for said, capacity in {
        "3 requests at once, the work of 1 (calibrated)": decide(spec),
        "1 requests (default)": decide(spec, None),
        "4 requests (spec)": decide(make_spec(concurrencyPerReplica=4)),
    }.items():
        decision = decide_scale(busy_window(0.2, 100.0), ScaleState(), spec, fleet, NOW, capacity)[0]
        assert decision.inputs["concurrencyPerReplica"] == said


def replay(capacity: Capacity, rate: float, seconds: int, service: float = 0.44) -> list[int]:
    """Replicas second by second, each of one worker, under steady arrivals that all wait in one queue."""
    spec, state, window, replicas = make_spec(scaleDownStabilization="30s"), ScaleState(), Window(), 1
    free, ends, came, history = [0.0], deque[tuple[float, float]](), 0.0, []
    for second in range(seconds):
        while came < second + 1:
            begun = max(came, min(free))
            free[free.index(min(free))] = begun + service
            ends.append((came, begun + service))
            came += 1 / rate
        busy = sum(max(0.0, min(end, second + 1) - max(start, second)) for start, end in ends)
        now = NOW + second + 1
        window = add_seconds(window, [ModelSecond(second=int(now) - 1, model="team/m", in_flight_sum=busy)], now)
        decision, state = decide_scale(window, state, spec, Fleet(replicas, replicas, 0), now, capacity)
        free = (free + [float(second + 1)] * decision.replicas)[: decision.replicas]
        replicas = decision.replicas
        history.append(replicas)
    return history


def test_a_load_of_one_and_a_half_replicas_stays_on_two_whatever_the_slo_would_let_wait() -> None:
    history = replay(decide(make_spec()), rate=1.5 / 0.44, seconds=300)
    assert history[30] >= 2
    assert min(history[30:]) >= 2
    assert history[-1] <= 3


def test_requests_that_may_wait_are_no_measure_of_work() -> None:
    """What the calibrated concurrency alone would do: two replicas, each often idle, look like one that is full."""
    naive = replace(decide(make_spec()), work=3.0)
    history = replay(naive, rate=1.5 / 0.44, seconds=300)
    ups = sum(later > earlier for earlier, later in itertools.pairwise(history))
    assert ups >= 2, "it was expected to flap"


@given(
    noise=st.floats(0, 0.9999),
    p95s=st.lists(st.floats(1, 1e5), min_size=1, max_size=16),
    cpus=st.sampled_from([0.0, 0.25, 0.7, 1.0, 12.5]),
)
def test_status_keeps_what_decisions_need(noise: float, p95s: list[float], cpus: float) -> None:
    load = tuple(LoadPoint(i + 1, p95, 10.0 * i) for i, p95 in enumerate(sorted(p95s)))
    profile = replace(SERIAL, noise=round(noise, 4), load=load, cpus=cpus)
    back = read_profile(make_profile_status(profile))
    assert back.noisy == profile.noisy
    assert (back.cpus, back.inter_threads, back.intra_threads) == (profile.cpus, 1, 1)
    assert [point.concurrency for point in back.load] == [point.concurrency for point in load]
    assert all(0 <= after.p95_ms - before.p95_ms <= 1 for before, after in zip(load, back.load, strict=True))


@pytest.mark.parametrize(("text", "cpus"), [("700m", 0.7), ("2", 2.0), ("1.5", 1.5), ("1k", 1000.0), ("1Ki", 1024.0)])
def test_quantities(text: str, cpus: float) -> None:
    assert parse_quantity(text) == pytest.approx(cpus)


JOB = {
    "spec": {
        "template": {
            "spec": {
                "containers": [
                    {
                        "name": "builder",
                        "image": "builder:1",
                        "imagePullPolicy": "Always",
                        "env": [{"name": "SECRET", "value": "s"}],
                        "envFrom": [{"secretRef": {"name": "models-reader"}}],
                        "securityContext": {"readOnlyRootFilesystem": True},
                        "volumeMounts": [
                            {"name": "scratch", "mountPath": "/scratch"},
                            {"name": "exchange-keys", "mountPath": "/keys"},
                        ],
                    }
                ]
            }
        }
    }
}


def test_the_calibrator_has_a_replica_s_limits_the_scratch_and_no_secret() -> None:
    spec = make_spec()
    pod = with_calibrator(JOB, spec.engine.runtime, replica_limits(spec))["spec"]["template"]["spec"]
    [calibrator] = pod["initContainers"]
    assert calibrator["restartPolicy"] == "Always"
    assert calibrator["resources"]["limits"] == {"cpu": "700m"}
    assert calibrator["command"] == ["hotstart-builder", "calibrate"]
    assert "envFrom" not in calibrator
    assert [mount["name"] for mount in calibrator["volumeMounts"]] == ["scratch"]
    assert calibrator["env"][0] in pod["containers"][0]["env"]
    assert "initContainers" not in JOB["spec"]["template"]["spec"]


def test_what_befalls_the_calibrator_is_not_the_build_s_failure() -> None:
    killed = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-01-01T00:00:09Z"}
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off"}
    done = {"exitCode": 0, "reason": "Completed", "finishedAt": "2026-01-01T00:00:05Z"}
    pod = {
        "metadata": {"name": "build-x", "labels": {}},
        "status": {
            "phase": "Running",
            "initContainerStatuses": [
                {
                    "name": "calibrator",
                    "restartCount": 3,
                    "state": {"waiting": waiting},
                    "lastState": {"terminated": killed},
                }
            ],
            "containerStatuses": [{"name": "builder", "restartCount": 0, "state": {"terminated": done}}],
        },
    }
    facts = make_pod_facts(pod)
    assert facts.trouble is None
    assert facts.exit is not None and (facts.exit.container, facts.exit.code) == ("builder", 0)
    assert facts.restarts == 0


def test_a_build_on_a_gpu_calibrates_by_itself() -> None:
    assert with_calibrator(JOB, make_gpu_spec().engine.runtime, {}) == JOB


@pytest.fixture
def calibrated_world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A cluster whose builds leave a profile in the manifest."""

    def make_manifest(engine: Engine, **said: str) -> Manifest:
        return replace(doubles_manifest(engine, **said), profile=replace(SERIAL, new_tokens=32, cpus=1.0))

    doubles_manifest = doubles.make_manifest
    monkeypatch.setattr(doubles, "make_manifest", make_manifest)
    return World()


async def test_the_profile_of_a_build_reaches_status_verdict_routes_and_decisions(calibrated_world: World) -> None:
    world = calibrated_world
    limits = {"batchSize": 8, "inputTokens": 96, "sequenceTokens": 128}
    world.apply(slo={"latency": "1500ms"}, engine={"limits": limits})
    await world.run_until(world.is_ready)
    await world.run(3)
    (engine,) = world.cluster.all("Engine")
    assert engine["status"]["profile"]["loneMilliseconds"] == 441
    attainable = world.conditions()["SLOAttainable"]
    assert (attainable["status"], attainable["reason"]) == ("True", "Attainable")
    assert {endpoint.cap for route in world.agents.routes for endpoint in route.endpoints} == {1}
    assert world.operator is not None
    (memory,) = world.operator.memory.models.values()
    assert memory.decision is not None
    assert memory.decision.inputs["concurrencyPerReplica"] == "3 requests at once, the work of 1 (calibrated)"
    world.apply(slo={"latency": "300ms"}, engine={"limits": limits})
    await world.run(3)
    attainable = world.conditions()["SLOAttainable"]
    assert (attainable["status"], attainable["reason"]) == ("False", "LoneRequestMissesSLO")
    (job,) = [obj for obj in world.cluster.all("Job") if obj["metadata"]["name"].startswith("build-")]
    (calibrator,) = job["spec"]["template"]["spec"]["initContainers"]
    assert calibrator["name"] == "calibrator"


async def test_an_engine_stored_without_a_profile_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    doubles_manifest = doubles.make_manifest
    monkeypatch.setattr(
        doubles,
        "make_manifest",
        lambda engine, **said: replace(doubles_manifest(engine, **said), calibration_failure="no time"),
    )
    world = World()
    world.apply()
    await world.run_until(world.is_ready)
    (engine,) = world.cluster.all("Engine")
    ready = next(condition for condition in engine["status"]["conditions"] if condition["type"] == "Ready")
    assert ready["message"].endswith("It has no profile: no time.")
    attainable = world.conditions()["SLOAttainable"]
    assert (attainable["status"], attainable["reason"]) == ("Unknown", "NotMeasured")

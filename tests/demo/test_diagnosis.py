"""What is told when a step fails, whatever part of it cannot be had."""

from __future__ import annotations

from hotstart.demo.diagnosis import EVENTS, diagnose

from tests.demo.doubles import GONE, FakeKube


def event(name: str, created: str = "2026-11-29T11:00:00Z", **when) -> dict:
    meta = {"creationTimestamp": created}
    return {"metadata": meta, "involvedObject": {"name": name}, "reason": "R", "message": "m", **when}


def told(**objects) -> list[str]:
    kube = FakeKube()
    kube.objects = objects
    return diagnose(kube, "demo").splitlines()


def test_the_schedulers_events_come_in_their_order():
    old = [event(f"old-{i}", lastTimestamp=f"2026-11-29T12:00:{i:02}Z") for i in range(EVENTS)]
    scheduler = event("pod-1", lastTimestamp=None, eventTime="2026-11-29T12:01:00.123456Z")
    again = event("pod-2", eventTime="2026-11-29T11:00:00.1Z", series={"lastObservedTime": "2026-11-29T12:02:00.1Z"})
    bare = event("pod-3", created="2026-11-29T12:03:00Z", lastTimestamp=None)
    lines = told(events=[bare, again, scheduler, *old])
    assert len(lines) == EVENTS
    assert lines[-3:] == ["event pod-1: R: m", "event pod-2: R: m", "event pod-3: R: m"]


def test_a_pod_that_cannot_be_scheduled_says_why():
    conditions = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available."},
        {"type": "Initialized", "status": "True"},
    ]
    lines = told(pods=[{"metadata": {"name": "p"}, "status": {"phase": "Pending", "conditions": conditions}}])
    assert lines[:2] == ["pod p: Pending", "pod p: PodScheduled=False Unschedulable: 0/1 nodes are available."]


def test_a_crashing_container_is_told_with_its_logs_of_before():
    container = {
        "name": "triton",
        "restartCount": 2,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s"}},
        "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}},
    }
    status = {"phase": "Running", "containerStatuses": [container], "initContainerStatuses": [running("agent")]}
    assert told(pods=[{"metadata": {"name": "p"}, "status": status}]) == [
        "pod p: Running",
        "pod p: container triton: waiting: CrashLoopBackOff back-off 20s",
        "pod p: container triton: before: terminated: OOMKilled (exit code 137)",
        "log p --all-containers --tail=15",
        "log before the restart p -c triton --previous --tail=15",
    ]


def running(name: str) -> dict:
    return {"name": name, "restartCount": 0, "state": {"running": {}}}


def test_pods_that_are_well_are_left_out():
    done = {"metadata": {"name": "job"}, "status": {"phase": "Succeeded"}}
    ready = {"metadata": {"name": "p"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    assert told(pods=[done, ready]) == []


def test_conditions_that_do_not_hold_are_told():
    conditions = [
        {"type": "Ready", "status": "False", "reason": "BuildFailed", "message": "no space"},
        {"type": "EndpointReady", "status": "True", "reason": "Serving"},
        {"type": "Degraded", "status": "False", "reason": "Healthy"},
        {"type": "Progressing", "status": "True", "reason": "RollingOut", "message": "1 of 2"},
    ]
    model = {"kind": "CompletionModel", "metadata": {"name": "m"}, "status": {"conditions": conditions}}
    lines = told(**{"completionmodels": [model]})
    assert lines == [
        "CompletionModel m: Ready=False BuildFailed: no space",
        "CompletionModel m: Progressing=True RollingOut: 1 of 2",
    ]


def test_what_cannot_be_had_hides_nothing_else():
    kube = FakeKube()
    kube.broken = {"completionmodels": GONE, "events": KeyError("items")}
    kube.objects["pods"] = [{"metadata": {"name": "p"}, "status": {"phase": "Failed"}}]
    lines = diagnose(kube, "demo").splitlines()
    assert lines[0].startswith("(failing conditions in demo cannot be told: the server doesn't have")
    assert lines[1] == "(newest events in demo cannot be told: 'items')"
    assert lines[2] == "pod p: Failed"

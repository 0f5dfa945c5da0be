"""What the cluster says when a step fails: the cause, not only a time-out. For the demo and the end-to-end tests."""

from __future__ import annotations

from typing import Any

from hotstart.demo.kube import Kube

EVENTS = 20  # newest ones of a namespace
LOG_LINES = 15  # of a container
WELL_WHEN_FALSE = frozenset({"Degraded", "Progressing"})  # conditions; all others are well when True


def diagnose(kube: Kube, *namespaces: str) -> str:
    """Conditions that do not hold, the newest events, and pods that are not well with their logs. Never raises."""
    said: list[str] = []
    for namespace in namespaces:
        for part in (failing_conditions, newest_events, unwell_pods):
            try:
                said += part(kube, namespace)
            except Exception as problem:  # noqa: BLE001 - a part that cannot be had must not hide the others
                said.append(f"({part.__name__.replace('_', ' ')} in {namespace} cannot be told: {problem})")
    return "\n".join(said)


def failing_conditions(kube: Kube, namespace: str) -> list[str]:
    """Of models and engines."""
    things = kube.items("completionmodels", namespace) + kube.items("engines", namespace)
    return [
        f"{thing['kind']} {thing['metadata']['name']}: {line}" for thing in things for line in unwell_conditions(thing)
    ]


def newest_events(kube: Kube, namespace: str) -> list[str]:
    """Oldest first, whichever API they were written by."""
    events = sorted(kube.items("events", namespace), key=last_seen)
    return [
        f"event {event['involvedObject'].get('name', '')}: {event.get('reason', '')}: {event.get('message', '')}"
        for event in events[-EVENTS:]
    ]


def last_seen(event: dict[str, Any]) -> str:
    """When the event happened last (RFC 3339). The scheduler's have no lastTimestamp."""
    series = event.get("series") or {}
    said = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return next((str(moment) for moment in said if moment), event["metadata"].get("creationTimestamp") or "")


def unwell_pods(kube: Kube, namespace: str) -> list[str]:
    """Phase, conditions, containers and the last lines of the logs, also of a container's life before this one."""
    lines: list[str] = []
    for pod in kube.items("pods", namespace):
        if is_well(pod):
            continue
        name, restarted = pod["metadata"]["name"], []
        lines.append(f"pod {name}: {pod.get('status', {}).get('phase', 'Unknown')}")
        lines += [f"pod {name}: {line}" for line in unwell_conditions(pod)]
        for container in container_statuses(pod):
            lines += [f"pod {name}: {line}" for line in describe_container(container)]
            restarted += [container["name"]] if container.get("restartCount") else []
        lines += [f"log {line}" for line in kube.logs(namespace, name, "--all-containers", f"--tail={LOG_LINES}")]
        for container in restarted:
            previous = kube.logs(namespace, name, "-c", container, "--previous", f"--tail={LOG_LINES}")
            lines += [f"log before the restart {line}" for line in previous]
    return lines


def is_well(pod: dict[str, Any]) -> bool:
    """Whether the pod succeeded or is Ready."""
    status = pod.get("status", {})
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))
    return ready or status.get("phase") == "Succeeded"


def container_statuses(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Init containers, sidecars among them, first."""
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]


def describe_container(container: dict[str, Any]) -> list[str]:
    """A line where it waits or has ended, and one about the end before the last restart."""
    lines = []
    for when, place in (("", "state"), ("before: ", "lastState")):
        for state, details in (container.get(place) or {}).items():
            if state == "running" or details.get("reason") == "Completed":
                continue
            code = f" (exit code {details['exitCode']})" if "exitCode" in details else ""
            said = f"{details.get('reason', '')}{code} {details.get('message', '')}".strip()
            lines.append(f"container {container['name']}: {when}{state}: {said}")
    return lines


def unwell_conditions(thing: dict[str, Any]) -> list[str]:
    """One line for each condition that is not as it should be, with reason and message where they are said."""
    return [
        f"{c['type']}={c['status']} {c.get('reason', '')}: {c.get('message', '')}".rstrip(" :")
        for c in thing.get("status", {}).get("conditions", ())
        if c["status"] != str(c["type"] not in WELL_WHEN_FALSE)
    ]

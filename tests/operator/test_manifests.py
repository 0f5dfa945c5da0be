"""Every object that one model on a CPU comes to, whole, beside what it was when someone last looked.

A wanted change: HOTSTART_UPDATE_GOLDEN=1 pytest tests/operator/test_manifests.py
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from tests.operator.world import World

GOLDEN = Path(__file__).parent / "golden" / "model.yaml"
KINDS = ("ConfigMap", "Service", "PodDisruptionBudget", "Engine", "Job", "Pod")
OF_THE_SERVER = ("uid", "resourceVersion", "generation", "creationTimestamp")


async def test_the_objects_of_a_model_are_what_the_golden_file_says():
    world = World()
    made: dict[tuple[str, str], dict] = {}

    def see(obj: dict, deleted: bool) -> None:
        written_by_us = obj["metadata"].get("labels", {}).get("app.kubernetes.io/managed-by") == "hotstart"
        if obj["kind"] in KINDS and written_by_us and not deleted:
            made.setdefault((obj["kind"], obj["metadata"]["name"]), obj)

    world.restart()
    world.cluster.watchers.append(see)
    world.apply()
    await world.run_until(world.is_ready)
    jobs_pods = {name for kind, name in made if kind == "Pod" and name.endswith("-x1")}
    bodies = [strip(obj) for place, obj in sorted(made.items()) if place[1] not in jobs_pods]
    assert {body["kind"] for body in bodies} == set(KINDS)
    text = yaml.safe_dump_all(bodies, sort_keys=True, allow_unicode=True, width=10_000)
    if os.environ.get("HOTSTART_UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def strip(obj: dict) -> dict:
    """As the operator wrote it, without what the API server adds."""
    meta = {name: value for name, value in obj["metadata"].items() if name not in OF_THE_SERVER}
    return {name: value for name, value in {**obj, "metadata": meta}.items() if name != "status"}

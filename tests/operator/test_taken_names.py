"""Something that is not the model's stands under a name that the model needs: it is left, and named."""

from __future__ import annotations

import pytest

from tests.operator.doubles import NAMESPACE
from tests.operator.world import World

LABEL = "app.kubernetes.io/managed-by"


@pytest.fixture
def world() -> World:
    return World()


async def test_a_pod_that_a_model_of_that_name_left_behind_is_named_until_it_goes(world):
    world.apply(replicas=2)
    await world.run_until(world.is_ready)
    left, other = (pod["metadata"]["name"] for pod in world.pods())
    # as `kubectl delete --cascade=orphan` does it; the others are taken away by hand
    for kind, name in (("Pod", left), ("Service", "m"), ("PodDisruptionBudget", "m")):
        world.cluster.change(kind, name, {"metadata": {"ownerReferences": None}})
    world.cluster.drop("CompletionModel", "m")
    await world.run(2)
    world.apply(replicas=2)
    await world.run_until(lambda: world.model()["status"].get("readyReplicas") == 1)
    await world.run(5)
    workload = world.conditions()["WorkloadReady"]
    assert (workload["status"], workload["reason"]) == ("False", "PodCreateFailed")
    assert world.cluster.objects[("Service", NAMESPACE, "m")]["metadata"]["ownerReferences"], "taken back"
    assert f"Pod {left} stands already and does not belong to CompletionModel m: delete it." in workload["message"]
    assert [pod["metadata"]["name"] for pod in world.pods()] == [other], "one name that is taken holds up no other pod"
    world.cluster.drop("Pod", left)
    await world.run_until(world.is_ready)
    assert world.conditions()["Degraded"]["status"] == "False"


async def test_a_pod_whose_label_was_taken_off_and_put_back_counts_again(world):
    world.apply()
    await world.run_until(world.is_ready)
    (pod,) = world.pods()
    place = ("Pod", NAMESPACE, pod["metadata"]["name"])
    off = world.cluster.change("Pod", pod["metadata"]["name"], {"metadata": {"labels": {LABEL: None}}})
    # A watch with a selector calls it deleted: the object as it was, the version of the change.
    version = off["metadata"]["resourceVersion"]
    world.operator.see({**pod, "metadata": {**pod["metadata"], "resourceVersion": version}}, True)
    assert not world.operator.observed.put(pod), "an older version says nothing new"
    assert world.operator.observed.get(*place) is None
    await world.run(3)
    said = f"Pod {pod['metadata']['name']} stands already without the label {LABEL}=hotstart: label it, or delete it."
    assert said in world.conditions()["WorkloadReady"]["message"]
    world.cluster.change("Pod", pod["metadata"]["name"], {"metadata": {"labels": {LABEL: "hotstart"}}})
    await world.run_until(world.is_ready)
    assert [each["metadata"]["uid"] for each in world.pods()] == [pod["metadata"]["uid"]]
    assert [len(route.endpoints) for route in world.agents.routes] == [1]


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("PodDisruptionBudget", {"minAvailable": 3, "selector": {"matchLabels": {"app": "mine"}}}),
        ("Service", {"selector": {"app": "mine"}, "ports": [{"port": 80}]}),
    ],
)
async def test_what_somebody_else_made_is_not_taken_over(world, kind, spec):
    mine = world.cluster.create_now(kind, {"metadata": {"name": "m", "labels": {"team": "mine"}}, "spec": spec})
    world.apply()
    await world.run_until(world.is_ready)
    degraded = world.conditions()["Degraded"]
    assert (degraded["status"], degraded["reason"]) == ("True", "PodCreateFailed")
    assert f"{kind} m stands already and does not belong to CompletionModel m: delete it." in degraded["message"]
    assert world.cluster.objects[(kind, NAMESPACE, "m")] == mine
    world.cluster.drop(kind, "m")
    await world.run_until(lambda: world.conditions()["Degraded"]["status"] == "False")
    assert world.cluster.objects[(kind, NAMESPACE, "m")]["metadata"]["ownerReferences"][0]["name"] == "m"
    world.cluster.drop("CompletionModel", "m")
    assert (kind, NAMESPACE, "m") not in world.cluster.objects

"""What an Engine's status shows of its verification, and where pods of a quarantined node may go."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hotstart.engines.verification import Verification
from hotstart.operator.api import CompletionModel
from hotstart.operator.core.engine_status import make_verification_status
from hotstart.operator.core.pod_manifest import make_affinity, make_pod
from hotstart.operator.core.revision import Images, make_assignment, make_target

from tests.operator.doubles import SPEC


@pytest.mark.parametrize(
    ("of_all", "positions", "text"), [(199, 200, "99.5%"), (200, 200, "100.0%"), (0, 3, "0.0%"), (0, 0, "0.0%")]
)
def test_agreement_is_text(of_all: int, positions: int, text: str) -> None:
    verification = Verification(positions, 82, 82, of_all, 2.59712, 0.6539, "numpy", 4.2)
    status = make_verification_status(verification).to_api()
    assert status["agreement"] == text
    assert (status["epsilon"], status["worstMargin"]) == ("2.597", "0.654")
    assert (status["positions"], status["compared"], status["agreed"]) == (positions, 82, 82)


def test_each_avoided_node_is_a_requirement_of_its_own() -> None:
    """The API server takes one value of a field selector."""
    assert make_affinity(()) == {}
    affinity = make_affinity(("n1", "n2"))["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [field["values"] for field in term["matchFields"]] == [["n1"], ["n2"]]


@pytest.mark.integration
def test_a_real_api_server_takes_a_pod_that_avoids_nodes(api_server, namespace: str) -> None:
    model = CompletionModel.from_api({"metadata": {"name": "m", "namespace": namespace, "uid": "u1"}, "spec": SPEC})
    made = make_target(model.spec, engine_key="k" * 64, engine_name="k" * 40, manifest_sha256="d" * 64)
    target = replace(made, avoid=("n1", "n2"))
    assignment = make_assignment(model.spec, target, model=f"{namespace}/m", generation=1)
    images = Images("triton:1", "builder:1", "triton-trtllm:1", "builder-trtllm:1")
    pod = make_pod(model, target, assignment, images, slot=0, attempt=0, now=1.0)
    del pod["metadata"]["ownerReferences"]
    text = api_server.run_kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(pod))
    assert json.loads(text)["spec"]["affinity"] == pod["spec"]["affinity"]

"""The manifest of a replica's pod: Triton, with the pod agent as native sidecar, `restricted`. Pure.

A replica on GPUs differs in its image, its GPUs and the node that has them, its room, and its time to start and to end.
"""

from __future__ import annotations

from typing import Any

from hotstart.exchange.messages import PodAssignment
from hotstart.exchange.names import (
    ANNOTATION_ASSIGNMENT,
    API_VERSION,
    COMPONENT_SERVING,
    KEYS_CONFIGMAP,
    KEYS_MOUNT,
    LABEL_COMPONENT,
    LABEL_ENGINE,
    LABEL_MANAGED_BY,
    LABEL_MODEL,
    LABEL_REVISION,
    LABEL_ROLE,
    LABEL_SLOT,
    MANAGED_BY,
    PORT_AGENT,
    PORT_TRITON_GRPC,
    PORT_TRITON_HTTP,
    PORT_TRITON_METRICS,
    ROLE_SERVING,
)
from hotstart.operator.api import CompletionModel
from hotstart.operator.core.gpu_request import GpuRequest, make_gpu_request
from hotstart.operator.core.names import ANNOTATION_ATTEMPT, ANNOTATION_DECIDED_AT, fit, pod_name
from hotstart.operator.core.revision import Images, Target
from hotstart.operator.core.writes import Object

USER = 65532
POD_SECURITY: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
AGENT_RESOURCES = {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}
TRITON_DEFAULTS = {"cpu": "100m", "memory": "256Mi"}
START_SECONDS = 600  # a model may take so long to load before its pod counts as dead
GRACE_SECONDS = 30
GPU_START_SECONDS = 1800  # tensor parallel: Triton starts with its engine, so this is fetch and load of many gigabytes
GPU_GRACE_SECONDS = 60  # Triton obeys SIGTERM only after a load; then the longest generation ends
GPU_CPUS = 2  # a rank: one thread spins beside the GPU, one answers
GPU_MEMORY_GIB = 8  # a rank: an engine passes through host memory piece by piece
#: What the scheduler or a person with a debugger gave to one pod, and what is decided anew for each.
OF_ONE_POD = frozenset({"nodeName", "ephemeralContainers", "affinity"})
#: Caches that libraries of NVIDIA keep in the home directory, which is read-only.
GPU_CACHES = {"HOME": "/tmp", "CUDA_CACHE_PATH": "/tmp/cuda-cache", "TRITON_CACHE_DIR": "/tmp/triton-cache"}


def literal_env(name: str, value: str) -> dict[str, Any]:
    """An environment variable with this very value: the kubelet expands `$(NAME)`, and turns `$$` into `$`."""
    return {"name": name, "value": value.replace("$", "$$")}


def field_env(name: str, path: str) -> dict[str, Any]:
    """An environment variable from the pod's own fields."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def make_owner(model: CompletionModel) -> dict[str, Any]:
    """The owner reference that makes the model the controller."""
    return {
        "apiVersion": API_VERSION,
        "kind": "CompletionModel",
        "name": model.metadata.name,
        "uid": model.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def model_labels(model: str, component: str) -> dict[str, str]:
    """Labels of all that belongs to a model."""
    return {LABEL_MANAGED_BY: MANAGED_BY, LABEL_COMPONENT: component, LABEL_MODEL: fit(model)}


def make_gpus(model: CompletionModel) -> GpuRequest | None:
    """The GPUs of one replica; None on CPUs."""
    return make_gpu_request(model.spec.engine.accelerator, model.spec.engine.tensor_parallel)


def make_resources(model: CompletionModel) -> dict[str, Any]:
    """Resources of the Triton container: what the spec says, over modest requests; GPUs as the engine needs them."""
    wanted, gpus = model.spec.serving.resources, make_gpus(model)
    said = {} if wanted is None else wanted.to_api()
    defaults = TRITON_DEFAULTS
    if gpus is not None:
        defaults = {"cpu": str(GPU_CPUS * gpus.count), "memory": f"{GPU_MEMORY_GIB * gpus.count}Gi"}
    limits = {**said.get("limits", {}), **({} if gpus is None else gpus.resources)}
    requests = {**defaults, **limits, **said.get("requests", {})}
    return {"requests": requests, **({"limits": limits} if limits else {})}


def make_environment(model: CompletionModel, *, caches: bool) -> list[dict[str, Any]]:
    """What tells the programs of a pod on GPUs how many ranks there are; nothing on CPUs."""
    gpus = make_gpus(model)
    if gpus is None:
        return []
    values = {"HOTSTART_TENSOR_PARALLEL": str(gpus.count), **(GPU_CACHES if caches else {})}
    return [literal_env(name, value) for name, value in values.items()]


def make_pod(
    model: CompletionModel,
    target: Target,
    assignment: PodAssignment,
    images: Images,
    *,
    slot: int,
    attempt: int,
    now: float,
) -> dict[str, Any]:
    """One replica. Its name tells slot and attempt, so that a stale view meets AlreadyExists and no twin."""
    name = model.metadata.name
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(name, target.revision, slot, attempt),
            "namespace": model.metadata.namespace,
            "labels": {
                **model_labels(name, COMPONENT_SERVING),
                LABEL_ENGINE: target.engine_name,
                LABEL_REVISION: target.revision,
                LABEL_SLOT: str(slot),
                LABEL_ROLE: ROLE_SERVING,
            },
            "annotations": make_annotations(assignment.model_dump_json(), attempt=attempt, now=now),
            "ownerReferences": [make_owner(model)],
        },
        "spec": {**make_pod_spec(model, images), **make_affinity(target.avoid)},
    }


def make_annotations(assignment: str, *, attempt: int, now: float) -> dict[str, str]:
    """Annotations of a replica; ``assignment`` as JSON."""
    return {
        ANNOTATION_ASSIGNMENT: assignment,
        ANNOTATION_ATTEMPT: str(attempt),
        ANNOTATION_DECIDED_AT: f"{now:.3f}",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "true",
    }


def copy_pod(
    model: CompletionModel, target: Target, template: Object, *, slot: int, attempt: int, now: float
) -> dict[str, Any]:
    """One more replica like the pod ``template``, of a revision that the spec no longer describes."""
    meta, spec = template["metadata"], template["spec"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(model.metadata.name, target.revision, slot, attempt),
            "namespace": model.metadata.namespace,
            "labels": {**meta["labels"], LABEL_SLOT: str(slot), LABEL_ROLE: ROLE_SERVING},
            "annotations": make_annotations(meta["annotations"][ANNOTATION_ASSIGNMENT], attempt=attempt, now=now),
            "ownerReferences": [make_owner(model)],
        },
        "spec": {
            **{name: value for name, value in spec.items() if name not in OF_ONE_POD},
            **make_affinity(target.avoid),
        },
    }


def make_pod_spec(model: CompletionModel, images: Images) -> dict[str, Any]:
    """The spec: sidecar first, then Triton; of the node nothing but the GPU that the engine is for, and no token."""
    gpus = make_gpus(model)
    placement = {} if gpus is None else {"nodeSelector": gpus.node_selector, "tolerations": gpus.tolerations}
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": GRACE_SECONDS if gpus is None else GPU_GRACE_SECONDS,
        "securityContext": POD_SECURITY,
        **placement,
        "initContainers": [make_agent_container(model, images)],
        "containers": [make_triton_container(model, images)],
        "volumes": make_volumes(gpus),
    }


def make_affinity(avoid: tuple[str, ...]) -> dict[str, Any]:
    """Keeps the pod away from these nodes; a field selector takes one name at a time."""
    if not avoid:
        return {}
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in avoid]
    term = {"nodeSelectorTerms": [{"matchFields": fields}]}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}}


def make_agent_container(model: CompletionModel, images: Images) -> dict[str, Any]:
    """The pod agent as native sidecar; its readiness is the pod's."""
    return {
        "name": "agent",
        "image": images.serving(model.spec.engine.runtime),
        "imagePullPolicy": images.pull_policy,
        "command": ["hotstart-agent"],
        "restartPolicy": "Always",
        "env": [
            field_env("POD_UID", "metadata.uid"),
            field_env("POD_NAME", "metadata.name"),
            field_env("POD_NAMESPACE", "metadata.namespace"),
            literal_env("HOTSTART_TRITON", f"127.0.0.1:{PORT_TRITON_HTTP}"),
            *make_environment(model, caches=False),
        ],
        "ports": [{"name": "agent", "containerPort": PORT_AGENT}],
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": PORT_AGENT},
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": 2,
        },
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": PORT_AGENT},
            "initialDelaySeconds": 10,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        "resources": AGENT_RESOURCES,
        "securityContext": CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "models", "mountPath": "/models"},
            {"name": "run", "mountPath": "/run/hotstart"},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "podinfo", "mountPath": "/podinfo", "readOnly": True},
            {"name": "exchange-keys", "mountPath": KEYS_MOUNT, "readOnly": True},
        ],
    }


def make_triton_container(model: CompletionModel, images: Images) -> dict[str, Any]:
    """Triton; its entry script waits for the key of the repository API that the agent makes."""
    live = {"httpGet": {"path": "/v2/health/live", "port": PORT_TRITON_HTTP}}
    environment = make_environment(model, caches=True)
    seconds = GPU_START_SECONDS if environment else START_SECONDS
    return {
        "name": "triton",
        "image": images.serving(model.spec.engine.runtime),
        "imagePullPolicy": images.pull_policy,
        "command": ["hotstart-triton"],
        **({"env": environment} if environment else {}),
        "ports": [
            {"name": "http", "containerPort": PORT_TRITON_HTTP},
            {"name": "grpc", "containerPort": PORT_TRITON_GRPC},
            {"name": "metrics", "containerPort": PORT_TRITON_METRICS},
        ],
        "startupProbe": {**live, "periodSeconds": 1, "timeoutSeconds": 2, "failureThreshold": seconds},
        "livenessProbe": {**live, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 6},
        "resources": make_resources(model),
        "securityContext": CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "models", "mountPath": "/models", "readOnly": True},
            {"name": "run", "mountPath": "/run/hotstart", "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }


def make_volumes(gpus: GpuRequest | None) -> list[dict[str, Any]]:
    """All volumes live and die with the pod; the public keys come from the namespace's ConfigMap."""
    shared = {} if gpus is None else {"sizeLimit": gpus.shared_memory}
    return [
        {"name": "models", "emptyDir": {}},
        {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", **shared}},
        {"name": "tmp", "emptyDir": {}},
        {
            "name": "podinfo",
            "downwardAPI": {
                "items": [
                    {
                        "path": "assignment",
                        "fieldRef": {"fieldPath": f"metadata.annotations['{ANNOTATION_ASSIGNMENT}']"},
                    }
                ]
            },
        },
        {"name": "exchange-keys", "configMap": {"name": KEYS_CONFIGMAP, "optional": False}},
    ]

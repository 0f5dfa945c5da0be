"""The manifests beside the pods: Service, PodDisruptionBudget, the ConfigMap of public keys. Pure."""

from __future__ import annotations

from typing import Any

from hotstart.exchange.names import (
    COMPONENT_SERVING,
    KEYS_CONFIGMAP,
    KEYS_FILE,
    LABEL_COMPONENT,
    LABEL_MANAGED_BY,
    LABEL_MODEL,
    LABEL_ROLE,
    MANAGED_BY,
    PORT_TRITON_GRPC,
    PORT_TRITON_HTTP,
    ROLE_SERVING,
)
from hotstart.operator.api import CompletionModel
from hotstart.operator.core.names import fit
from hotstart.operator.core.pod_manifest import make_owner, model_labels

SERVICE_NAME_LIMIT = 63


def serving_selector(model: str) -> dict[str, str]:
    """Labels of the pods that serve; those that drain are not among them."""
    return {LABEL_COMPONENT: COMPONENT_SERVING, LABEL_MODEL: fit(model), LABEL_ROLE: ROLE_SERVING}


def selector_text(model: str) -> str:
    """The selector as status.selector has it."""
    return ",".join(f"{name}={value}" for name, value in sorted(serving_selector(model).items()))


def service_name(model: str) -> str:
    """Name of Service and PodDisruptionBudget: a DNS label, so without dots and never starting with a digit."""
    return fit(("m-" if model[0].isdigit() else "") + model.replace(".", "-"), SERVICE_NAME_LIMIT)


def make_service(model: CompletionModel) -> dict[str, Any]:
    """A headless Service over the serving pods, for people and monitoring; routers have their endpoints by exchange."""
    name = model.metadata.name
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": service_name(name),
            "namespace": model.metadata.namespace,
            "labels": model_labels(name, COMPONENT_SERVING),
            "ownerReferences": [make_owner(model)],
        },
        "spec": {
            "clusterIP": "None",
            "selector": serving_selector(name),
            "ports": [
                {"name": "grpc", "port": PORT_TRITON_GRPC, "targetPort": PORT_TRITON_GRPC, "protocol": "TCP"},
                {"name": "http", "port": PORT_TRITON_HTTP, "targetPort": PORT_TRITON_HTTP, "protocol": "TCP"},
            ],
        },
    }


def make_disruption_budget(model: CompletionModel, replicas: int) -> dict[str, Any]:
    """At most one replica at a time, and never the last: the operator moves that one before a node drains."""
    name = model.metadata.name
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": service_name(name),
            "namespace": model.metadata.namespace,
            "labels": model_labels(name, COMPONENT_SERVING),
            "ownerReferences": [make_owner(model)],
        },
        "spec": {
            "minAvailable": min(replicas, max(1, replicas - 1)),
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": serving_selector(name)},
        },
    }


def make_keys_config(namespace: str, jwks: str) -> dict[str, Any]:
    """The ConfigMap with the public keys that agents check messages by."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": KEYS_CONFIGMAP, "namespace": namespace, "labels": {LABEL_MANAGED_BY: MANAGED_BY}},
        "data": {KEYS_FILE: jwks},
    }

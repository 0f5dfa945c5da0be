"""The manifests of the Jobs that inspect a checkpoint and build an engine, under the `restricted` standard. Pure.

The checkpoint's Secret reaches them by reference alone: the operator never reads it.
"""

from __future__ import annotations

import json
from typing import Any

from hotstart.exchange.messages import ServingOptions
from hotstart.exchange.names import (
    ANNOTATION_INSPECT_SPEC,
    API_VERSION,
    CHECKPOINT_MOUNT,
    COMPONENT_BUILD,
    COMPONENT_INSPECT,
    EXIT_TERMINAL,
    KEYS_CONFIGMAP,
    KEYS_MOUNT,
    LABEL_COMPONENT,
    LABEL_ENGINE,
    LABEL_MANAGED_BY,
    MANAGED_BY,
    PORT_AGENT,
)
from hotstart.operator.api import CompletionModel, Engine
from hotstart.operator.api.model_spec import Checkpoint, Runtime
from hotstart.operator.core.gpu_jobs import BuildSize, with_gpus
from hotstart.operator.core.gpu_request import make_gpu_request
from hotstart.operator.core.names import (
    ANNOTATION_ATTEMPT,
    ANNOTATION_BUNDLE,
    build_job_name,
    bundle_job_name,
    inspect_job_name,
)
from hotstart.operator.core.pod_manifest import (
    CONTAINER_SECURITY,
    POD_SECURITY,
    field_env,
    literal_env,
    make_owner,
    model_labels,
)
from hotstart.operator.core.recipe import make_checkpoint_json, make_inspect_hash, make_serving_options
from hotstart.operator.core.revision import Images

SCRATCH = "/scratch"
INSPECT_LIMIT_SECONDS = 3600
BUILD_LIMIT_SECONDS = 4 * 3600
#: Then Kubernetes takes a finished Job away. It stands for the next two attempts: they ask for more memory where it
#: was killed for want of it.
FINISHED_JOB_SECONDS = 3 * BUILD_LIMIT_SECONDS
REQUESTS = {
    "inspect": {"cpu": "50m", "memory": "128Mi"},
    "build": {"cpu": "250m", "memory": "512Mi"},
    "bundle": {"cpu": "250m", "memory": "512Mi"},
}


def checkpoint_env(checkpoint: Checkpoint) -> dict[str, Any]:
    """HOTSTART_CHECKPOINT; the Secret's name is only for what the builder says."""
    value = {**make_checkpoint_json(checkpoint), "secretName": checkpoint.secret_name or ""}
    return literal_env("HOTSTART_CHECKPOINT", json.dumps(value))


def make_inspect_job(model: CompletionModel, images: Images, *, attempt: int) -> dict[str, Any]:
    """The Job that hashes the checkpoint and reads what it is."""
    spec, spec_hash = model.spec, make_inspect_hash(model.spec)
    env = [
        checkpoint_env(spec.checkpoint),
        literal_env("HOTSTART_SERVING", make_serving_options(spec).model_dump_json()),
        literal_env("HOTSTART_RUNTIME", str(spec.engine.runtime)),
    ]
    labels = model_labels(model.metadata.name, COMPONENT_INSPECT)
    job = make_job(
        name=inspect_job_name(model.metadata.name, spec_hash, attempt),
        namespace=model.metadata.namespace,
        owner=make_owner(model),
        labels=labels,
        annotations={ANNOTATION_INSPECT_SPEC: spec_hash, ANNOTATION_ATTEMPT: str(attempt)},
        container=make_builder_container("inspect", env, spec.checkpoint.secret_name, images, Runtime.CTRANSLATE2),
        limit_seconds=INSPECT_LIMIT_SECONDS,
    )
    return mount_claim(job, spec.checkpoint)


def make_build_job(
    engine: Engine,
    checkpoint: Checkpoint,
    serving: ServingOptions,
    images: Images,
    *,
    attempt: int,
    size: BuildSize | None = None,
    tokenizer_digest: str = "",
) -> dict[str, Any]:
    """The Job that builds, verifies and uploads the engine. ``checkpoint`` is that of a model that wants it now.

    ``size`` is what a build with a GPU needs of its node, ``tokenizer_digest`` that model's, '' where it is the
    Engine's.
    """
    spec = engine.spec
    job = make_engine_job(
        engine,
        checkpoint,
        serving,
        images,
        command="build",
        name=build_job_name(spec.key, attempt),
        tokenizer_digest=tokenizer_digest or spec.tokenizer_digest,
        annotations={ANNOTATION_ATTEMPT: str(attempt)},
    )
    request = make_gpu_request(spec.accelerator, spec.recipe.tensor_parallel)
    if request is not None and size is not None:
        job = with_gpus(job, request, size, architecture=spec.recipe.platform.cpu_architecture)
    return mount_claim(job, checkpoint)


def make_bundle_job(
    engine: Engine,
    checkpoint: Checkpoint,
    serving: ServingOptions,
    images: Images,
    *,
    attempt: int,
    tokenizer_digest: str,
) -> dict[str, Any]:
    """The Job that makes the files of a further tokenizer for an engine that stands; it needs no GPU."""
    job = make_engine_job(
        engine,
        checkpoint,
        serving,
        images,
        command="bundle",
        name=bundle_job_name(engine.spec.key, tokenizer_digest, attempt),
        tokenizer_digest=tokenizer_digest,
        annotations={ANNOTATION_ATTEMPT: str(attempt), ANNOTATION_BUNDLE: tokenizer_digest},
    )
    return mount_claim(job, checkpoint)


def make_engine_job(
    engine: Engine,
    checkpoint: Checkpoint,
    serving: ServingOptions,
    images: Images,
    *,
    command: str,
    name: str,
    tokenizer_digest: str,
    annotations: dict[str, str],
) -> dict[str, Any]:
    """A Job of the builder that belongs to an Engine and speaks through the exchange."""
    spec, meta = engine.spec, engine.metadata
    env = [
        checkpoint_env(checkpoint),
        literal_env("HOTSTART_SERVING", serving.model_dump_json()),
        literal_env("HOTSTART_ENGINE_KEY", spec.key),
        literal_env("HOTSTART_RECIPE", json.dumps(spec.recipe.to_engine_recipe().to_dict(), sort_keys=True)),
        literal_env("HOTSTART_CHECKPOINT_DIGEST", spec.checkpoint_digest),
        literal_env("HOTSTART_TOKENIZER_DIGEST", tokenizer_digest),
    ]
    container = make_builder_container(command, env, checkpoint.secret_name, images, spec.runtime)
    container["ports"] = [{"name": "agent", "containerPort": PORT_AGENT}]
    owner = {
        "apiVersion": API_VERSION,
        "kind": "Engine",
        "name": meta.name,
        "uid": meta.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    job = make_job(
        name=name,
        namespace=meta.namespace,
        owner=owner,
        labels={LABEL_MANAGED_BY: MANAGED_BY, LABEL_COMPONENT: COMPONENT_BUILD, LABEL_ENGINE: meta.name},
        annotations=annotations,
        container=container,
        limit_seconds=BUILD_LIMIT_SECONDS,
    )
    pod = job["spec"]["template"]["spec"]
    pod["volumes"].append({"name": "exchange-keys", "configMap": {"name": KEYS_CONFIGMAP, "optional": False}})
    container["volumeMounts"].append({"name": "exchange-keys", "mountPath": KEYS_MOUNT, "readOnly": True})
    return job


def make_builder_container(
    command: str, env: list[dict[str, Any]], secret: str | None, images: Images, runtime: Runtime
) -> dict[str, Any]:
    """The builder's container, in the image of ``runtime``; credentials by reference."""
    return {
        "name": "builder",
        "image": images.building(runtime),
        "imagePullPolicy": images.pull_policy,
        "command": ["hotstart-builder", command],
        "env": [
            *env,
            literal_env("HOTSTART_SCRATCH", SCRATCH),
            field_env("POD_UID", "metadata.uid"),
            field_env("POD_NAME", "metadata.name"),
            field_env("POD_NAMESPACE", "metadata.namespace"),
        ],
        **({"envFrom": [{"secretRef": {"name": secret}}]} if secret else {}),
        "resources": {"requests": REQUESTS[command]},
        "securityContext": CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "scratch", "mountPath": SCRATCH}, {"name": "tmp", "mountPath": "/tmp"}],
    }


def make_job(
    *,
    name: str,
    namespace: str,
    owner: dict[str, Any],
    labels: dict[str, str],
    annotations: dict[str, str],
    container: dict[str, Any],
    limit_seconds: int,
) -> dict[str, Any]:
    """A Job of one pod that is not started again: another attempt is another Job, decided by us."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner],
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": limit_seconds,
            "ttlSecondsAfterFinished": FINISHED_JOB_SECONDS,
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": "builder", "operator": "In", "values": [EXIT_TERMINAL]},
                    },
                ]
            },
            "template": {
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": {
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "restartPolicy": "Never",
                    "terminationGracePeriodSeconds": 10,
                    "securityContext": POD_SECURITY,
                    "containers": [container],
                    "volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
                },
            },
        },
    }


def mount_claim(job: dict[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """The Job with the claim of a pvc:// checkpoint mounted read-only into all containers; else the Job as it is."""
    if not checkpoint.uri.startswith("pvc://"):
        return job
    claim = checkpoint.uri.removeprefix("pvc://").partition("/")[0]
    pod = job["spec"]["template"]["spec"]
    source = {"claimName": claim, "readOnly": True}
    pod["volumes"].append({"name": "checkpoint", "persistentVolumeClaim": source})
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        container["volumeMounts"].append({"name": "checkpoint", "mountPath": CHECKPOINT_MOUNT, "readOnly": True})
    return job

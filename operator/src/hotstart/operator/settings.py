"""The operator's settings, from its environment."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hotstart.exchange.names import PORT_OPERATOR_METRICS
from hotstart.operator.api.model_spec import Management
from hotstart.operator.api.scalars import Duration
from hotstart.operator.core.errors import BadSettings
from hotstart.operator.core.revision import Images
from hotstart.operator.reconcile.collect import CollectionSettings

COLLECTION_MODES = ("Delete", "Report", "Off")
LEAST_KEY_ROTATION_SECONDS = 3600.0
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")  # variables, and entries of the Secret
SESSION_TOKEN = "AWS_SESSION_TOKEN"
PULL_POLICIES = ("Always", "IfNotPresent", "Never")


@dataclass(frozen=True)
class StoreSettings:
    """Where the engine store is. ``endpoint`` '' is AWS.

    ``credentials`` is the folder with the Secret's entries, which Kubernetes keeps up to date; None: they stay.
    """

    bucket: str
    endpoint: str
    region: str
    access_key: str
    secret_key: str
    session_token: str
    credentials: Path | None = None


@dataclass(frozen=True)
class Settings:
    """One process. ``watch_namespaces`` empty means all; ``key_rotation`` is the age of a signing key, in seconds, at
    which it is replaced. ``paused``: nothing is written for any model but its status."""

    namespace: str
    pod_name: str
    identity: str
    watch_namespaces: tuple[str, ...]
    images: Images
    store: StoreSettings
    collection: CollectionSettings | None
    key_rotation: float
    paused: bool
    port: int


def read_settings(env: Mapping[str, str]) -> Settings:
    """The settings in an environment.

    Raises:
        BadSettings: names the variable that is missing or wrong.
    """
    endpoint = env.get("HOTSTART_STORE_ENDPOINT", "")
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise BadSettings(f"HOTSTART_STORE_ENDPOINT is {endpoint!r}: it must start with http:// or https://.")
    policy = env.get("HOTSTART_IMAGE_PULL_POLICY", "IfNotPresent")
    if policy not in PULL_POLICIES:
        raise BadSettings(f"HOTSTART_IMAGE_PULL_POLICY is {policy!r}: it must be one of {', '.join(PULL_POLICIES)}.")
    pod_name = env.get("POD_NAME") or "operator"
    watched = (name.strip() for name in env.get("HOTSTART_WATCH_NAMESPACES", "").split(","))
    return Settings(
        namespace=need(env, "HOTSTART_NAMESPACE", "the operator's own namespace"),
        pod_name=pod_name,
        identity=f"{pod_name}_{uuid.uuid4().hex[:8]}",
        watch_namespaces=tuple(name for name in watched if name),
        images=Images(
            triton_cpu=need(env, "HOTSTART_IMAGE_TRITON_CPU", "the image of replicas on CPUs"),
            builder=need(env, "HOTSTART_IMAGE_BUILDER", "the image of the engine builder"),
            triton_trtllm=need(env, "HOTSTART_IMAGE_TRITON_TRTLLM", "the image of replicas on GPUs"),
            builder_trtllm=need(env, "HOTSTART_IMAGE_BUILDER_TRTLLM", "the image that builds engines of GPUs"),
            pull_policy=policy,
        ),
        store=StoreSettings(
            bucket=need(env, "HOTSTART_STORE_BUCKET", "the bucket of the engine store"),
            endpoint=endpoint,
            region=env.get("HOTSTART_STORE_REGION") or "us-east-1",
            access_key=need(env, CREDENTIALS[0], "credentials of the engine store"),
            secret_key=need(env, CREDENTIALS[1], "credentials of the engine store"),
            session_token=env.get(SESSION_TOKEN, ""),
            credentials=Path(folder) if (folder := env.get("HOTSTART_STORE_CREDENTIALS", "")) else None,
        ),
        collection=read_collection(env),
        key_rotation=read_key_rotation(env.get("HOTSTART_KEY_ROTATION", "720h")),
        paused=read_management(env.get("HOTSTART_MANAGEMENT", Management.MANAGED)) is Management.PAUSED,
        port=read_port(env.get("HOTSTART_METRICS_PORT", str(PORT_OPERATOR_METRICS))),
    )


def need(env: Mapping[str, str], name: str, what: str) -> str:
    """A variable that must be set."""
    value = env.get(name, "").strip()
    if not value:
        raise BadSettings(f"{name} is not set: it is {what}. The Helm chart sets it.")
    return value


def read_collection(env: Mapping[str, str]) -> CollectionSettings | None:
    """How the engine store is swept; None is never."""
    mode, ttl = env.get("HOTSTART_COLLECTION_MODE", "Delete"), env.get("HOTSTART_COLLECTION_TTL", "168h")
    if mode not in COLLECTION_MODES:
        raise BadSettings(f"HOTSTART_COLLECTION_MODE is {mode!r}: it must be one of {', '.join(COLLECTION_MODES)}.")
    seconds = read_duration("HOTSTART_COLLECTION_TTL", ttl)
    return None if mode == "Off" else CollectionSettings(delete=mode == "Delete", ttl=seconds)


def read_management(text: str) -> Management:
    """Of the whole operator."""
    if text not in tuple(Management):
        raise BadSettings(f"HOTSTART_MANAGEMENT is {text!r}: it must be one of {', '.join(Management)}.")
    return Management(text)


def read_key_rotation(text: str) -> float:
    """Seconds; a rotation itself takes minutes."""
    seconds = read_duration("HOTSTART_KEY_ROTATION", text)
    if seconds < LEAST_KEY_ROTATION_SECONDS:
        raise BadSettings(f"HOTSTART_KEY_ROTATION is {text!r}: it must be 1h or more.")
    return seconds


def read_duration(name: str, text: str) -> float:
    """Seconds."""
    try:
        return Duration(text).seconds
    except ValueError as error:
        raise BadSettings(f"{name} is {text!r}: it must be a duration such as 168h.") from error


def read_port(text: str) -> int:
    """A TCP port."""
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise BadSettings(f"HOTSTART_METRICS_PORT is {text!r}: it must be a port between 1 and 65535.")
    return int(text)

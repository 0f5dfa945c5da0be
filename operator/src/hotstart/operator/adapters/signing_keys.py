"""The exchange's signing keys: a Secret in the operator's own namespace, made where there is none."""

from __future__ import annotations

import base64
import json
import logging
from dataclasses import dataclass
from typing import Any

from hotstart.exchange.names import LABEL_MANAGED_BY, MANAGED_BY, SIGNING_SECRET
from hotstart.exchange.signing import SigningKey, make_signing_key
from hotstart.operator.adapters.kube import KubeCluster
from hotstart.operator.core.errors import Conflict, Terminal
from hotstart.operator.core.key_rotation import ANNOTATION_ROTATE, DatedKey

log = logging.getLogger(__name__)
KEYS_ENTRY = "keys.json"


@dataclass(frozen=True)
class KeySecret:
    """The Secret as it stands: its keys, newest first, and whether somebody wants the next one now."""

    keys: tuple[DatedKey, ...]
    forced: bool
    metadata: dict[str, Any]


async def ensure_signing_keys(cluster: KubeCluster, namespace: str, now: float) -> KeySecret:
    """The Secret; a new one with one key where it is missing.

    Raises:
        Terminal: it holds something else.
    """
    standing = await cluster.get("Secret", namespace, SIGNING_SECRET)
    if standing is None:
        metadata = {"name": SIGNING_SECRET, "namespace": namespace, "labels": {LABEL_MANAGED_BY: MANAGED_BY}}
        try:
            standing = await cluster.create(make_secret(metadata, (DatedKey(make_signing_key(), now),)))
            log.info("signing key made: there was none")
        except Conflict:
            standing = await cluster.get("Secret", namespace, SIGNING_SECRET)
    return read_secret(standing or {}, namespace)


async def replace_signing_keys(cluster: KubeCluster, secret: KeySecret, keys: tuple[DatedKey, ...]) -> None:
    """Puts these keys in the place of the ones that were read. A new key is what somebody may have asked for.

    Raises:
        Conflict: the Secret was changed meanwhile.
    """
    metadata = dict(secret.metadata)
    if keys[0] not in secret.keys:
        annotations = metadata.get("annotations", {})
        metadata["annotations"] = {name: text for name, text in annotations.items() if name != ANNOTATION_ROTATE}
    await cluster.replace(make_secret(metadata, keys))


def make_secret(metadata: dict[str, Any], keys: tuple[DatedKey, ...]) -> dict[str, Any]:
    """The Secret that holds them."""
    entries = [{"kid": dated.key.kid, "private_pem": dated.key.private_pem, "created": dated.created} for dated in keys]
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "Opaque",
        "data": {KEYS_ENTRY: base64.b64encode(json.dumps(entries).encode()).decode()},
    }


def read_secret(secret: dict[str, Any], namespace: str) -> KeySecret:
    """The keys in the Secret; one without its date counts as old.

    Raises:
        Terminal: it holds something else.
    """
    try:
        entries = json.loads(base64.b64decode(secret["data"][KEYS_ENTRY]))
        keys = tuple(
            DatedKey(SigningKey(entry["kid"], entry["private_pem"]), float(entry.get("created", 0.0)))
            for entry in entries
        )
        for dated in keys:
            dated.key.public_jwk()
        if not keys:
            raise ValueError("no key")
        metadata = secret["metadata"]
        return KeySecret(keys, ANNOTATION_ROTATE in metadata.get("annotations", {}), metadata)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise Terminal(
            f"Secret {namespace}/{SIGNING_SECRET} holds no signing keys in {KEYS_ENTRY} ({error}): delete it, and a "
            "new one is made."
        ) from error

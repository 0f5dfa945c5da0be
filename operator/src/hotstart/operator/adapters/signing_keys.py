"""The exchange's signing keys: a Secret in the operator's own namespace, made where there is none."""

from __future__ import annotations

import base64
import json
import logging
from typing import Any

from hotstart.exchange.names import LABEL_MANAGED_BY, MANAGED_BY, SIGNING_SECRET
from hotstart.exchange.signing import SigningKey, make_signing_key
from hotstart.operator.adapters.kube import KubeCluster
from hotstart.operator.core.errors import Conflict, Terminal

log = logging.getLogger(__name__)
KEYS_ENTRY = "keys.json"


async def ensure_signing_keys(cluster: KubeCluster, namespace: str) -> tuple[SigningKey, ...]:
    """The keys, newest first; a new one where the Secret is missing.

    Raises:
        Terminal: the Secret holds something else.
    """
    standing = await cluster.get("Secret", namespace, SIGNING_SECRET)
    if standing is None:
        keys = (make_signing_key(),)
        try:
            await cluster.create(make_secret(namespace, keys))
            log.info("signing key made kid=%s", keys[0].kid)
            return keys
        except Conflict:
            standing = await cluster.get("Secret", namespace, SIGNING_SECRET)
    return read_secret(standing or {}, namespace)


def make_secret(namespace: str, keys: tuple[SigningKey, ...]) -> dict[str, Any]:
    """The Secret that holds them."""
    text = json.dumps([{"kid": key.kid, "private_pem": key.private_pem} for key in keys])
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SIGNING_SECRET, "namespace": namespace, "labels": {LABEL_MANAGED_BY: MANAGED_BY}},
        "type": "Opaque",
        "data": {KEYS_ENTRY: base64.b64encode(text.encode()).decode()},
    }


def read_secret(secret: dict[str, Any], namespace: str) -> tuple[SigningKey, ...]:
    """The keys in the Secret, newest first.

    Raises:
        Terminal: it holds something else.
    """
    try:
        entries = json.loads(base64.b64decode(secret["data"][KEYS_ENTRY]))
        keys = tuple(SigningKey(entry["kid"], entry["private_pem"]) for entry in entries)
        for key in keys:
            key.public_jwk()
        if not keys:
            raise ValueError("no key")
        return keys
    except (KeyError, ValueError, TypeError) as error:
        raise Terminal(
            f"Secret {namespace}/{SIGNING_SECRET} holds no signing keys in {KEYS_ENTRY} ({error}): delete it, and a "
            "new one is made."
        ) from error

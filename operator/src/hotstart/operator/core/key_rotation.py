"""Which key of the exchange signs, which ones are published, and when the next one is made. Pure.

    one key ── too old, or told to ──► next made, both published ──► the next signs ──► the old one goes

An agent reads public keys from a ConfigMap that is mounted into its pod, where a change comes at the kubelet's next
sync, up to 90 s later. So a key is published for some minutes before it signs, and the one before it for some minutes
after. Both times count from when this leader has published them everywhere: a new one signs with the old key again.
"""

from __future__ import annotations

from dataclasses import dataclass

from hotstart.exchange.signing import SigningKey

ANNOTATION_ROTATE = "hotstart.dev/rotate-keys"  # on the Secret, with any value: the next key is due now
PUBLISH_SECONDS = 300.0
RETIRE_SECONDS = 300.0


@dataclass(frozen=True)
class DatedKey:
    """``created`` in seconds since the epoch."""

    key: SigningKey
    created: float


@dataclass(frozen=True)
class KeyPlan:
    """``kept`` are to stand in the Secret and to be published, newest first; where ``next_due``, after a new one."""

    signing: SigningKey
    kept: tuple[DatedKey, ...]
    next_due: bool


def decide_keys(
    keys: tuple[DatedKey, ...], published: float | None, now: float, *, period: float, forced: bool
) -> KeyPlan:
    """The plan for the keys of the Secret, newest first.

    ``published`` is when this leader had published exactly these keys everywhere, None where it has not yet.
    ``period`` is the age in seconds at which a key is replaced; ``forced``: somebody wants it replaced now.
    """
    newest, *older = keys[:2]
    if not older:
        return KeyPlan(newest.key, (newest,), forced or now - newest.created >= period)
    since = 0.0 if published is None else now - published
    if since >= PUBLISH_SECONDS + RETIRE_SECONDS:
        return KeyPlan(newest.key, (newest,), False)
    signing = newest if since >= PUBLISH_SECONDS else older[0]
    return KeyPlan(signing.key, (newest, *older), False)

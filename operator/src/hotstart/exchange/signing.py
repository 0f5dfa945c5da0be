"""Signing of exchange messages: Ed25519 in a JWT that names digest, audience, lease epoch and sequence.

The operator signs with one of its keys; agents hold a JWKS with two, so that keys rotate without a restart.
A message is refused when its digest, audience or time is wrong, or when (epoch, sequence) is not newer than the last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

ALGORITHM = "EdDSA"
LIFETIME_SECONDS = 30


class RefusedMessage(Exception):
    """The message is not from the operator, not for this agent, or older than one already obeyed."""


@dataclass(frozen=True)
class SigningKey:
    """One private key with its id; ``private_pem`` is unencrypted PKCS #8."""

    kid: str
    private_pem: str = field(repr=False)

    @cached_property
    def key(self) -> Ed25519PrivateKey:
        """The private key, parsed once."""
        loaded = load_pem_private_key(self.private_pem.encode(), password=None)
        if not isinstance(loaded, Ed25519PrivateKey):
            raise TypeError(f"signing key {self.kid}: not an Ed25519 key")
        return loaded

    def public_jwk(self) -> dict[str, Any]:
        jwk: dict[str, Any] = jwt.algorithms.OKPAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return {**jwk, "kid": self.kid, "alg": ALGORITHM, "use": "sig"}


def make_signing_key() -> SigningKey:
    """A new random key; its id is the first 16 hex of its public key's sha256."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return SigningKey(hashlib.sha256(public).hexdigest()[:16], pem)


def make_jwks(keys: tuple[SigningKey, ...]) -> str:
    """The public halves as a JWKS document."""
    return json.dumps({"keys": [key.public_jwk() for key in keys]}, sort_keys=True)


@dataclass(frozen=True)
class Stamp:
    """Where a message stands: the lease's epoch (transitions) and a sequence number within it."""

    epoch: int
    sequence: int


def sign(body: bytes, *, key: SigningKey, audience: str, stamp: Stamp, now: float) -> str:
    """The token for ``body`` to the agent whose pod has the UID ``audience``."""
    claims = {
        "aud": audience,
        "iat": int(now),
        "exp": int(now) + LIFETIME_SECONDS,
        "epoch": stamp.epoch,
        "seq": stamp.sequence,
        "digest": hashlib.sha256(body).hexdigest(),
    }
    return jwt.encode(claims, key.key, algorithm=ALGORITHM, headers={"kid": key.kid})


def verify(token: str, body: bytes, *, jwks: Mapping[str, Any], audience: str, newest: Stamp, now: float) -> Stamp:
    """The stamp of a good message.

    Raises:
        RefusedMessage: with the reason in one sentence.
    """
    try:
        kid = jwt.get_unverified_header(token).get("kid")
        keys = [jwt.PyJWK(entry) for entry in jwks.get("keys", []) if entry.get("kid") == kid]
        if not keys:
            raise RefusedMessage(f"signed with an unknown key id {kid!r}")
        options: Any = {"verify_exp": False, "verify_iat": False, "require": ["aud", "exp", "iat"]}
        claims = jwt.decode(token, keys[0], algorithms=[ALGORITHM], audience=audience, options=options)
    except jwt.PyJWTError as error:
        raise RefusedMessage(str(error)) from error
    if not claims["iat"] - LIFETIME_SECONDS <= now <= claims["exp"]:
        raise RefusedMessage("the message is too old, or a clock is wrong by more than 30 s")
    if claims.get("digest") != hashlib.sha256(body).hexdigest():
        raise RefusedMessage("the body is not the one that was signed")
    stamp = Stamp(int(claims["epoch"]), int(claims["seq"]))
    if (stamp.epoch, stamp.sequence) <= (newest.epoch, newest.sequence):
        raise RefusedMessage(f"epoch {stamp.epoch}, sequence {stamp.sequence} is not newer than the last message")
    return stamp

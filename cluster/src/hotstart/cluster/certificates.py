"""The keys and certificates of a new cluster, valid for a year: made at each `up`, gone with `down`.

Elliptic keys, because making them takes milliseconds. `CREDENTIALS` says who may do what; nothing else gives rights.
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hotstart.cluster.plan import API_SERVICE_ADDRESS, CLUSTER_DOMAIN, CONTROL, NodePlan

LIFETIME = datetime.timedelta(days=365)


@dataclass(frozen=True)
class Credential:
    """One certificate to issue: a client has a name and a group, a server has addresses."""

    file: str
    name: str
    group: str = ""
    addresses: tuple[str, ...] = ()
    authority: str = "ca"


@dataclass(frozen=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def credentials(node: NodePlan) -> tuple[Credential, ...]:
    """Everyone in the cluster who needs a certificate."""
    api_names = (
        "127.0.0.1",
        CONTROL.address,
        API_SERVICE_ADDRESS,
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        f"kubernetes.default.svc.{CLUSTER_DOMAIN}",
    )
    return (
        Credential("apiserver", "kube-apiserver", addresses=api_names),
        Credential("admin", "hotstart-admin", "system:masters"),
        Credential("controller-manager", "system:kube-controller-manager", "system:masters"),
        Credential("scheduler", "system:kube-scheduler"),
        Credential("proxy", "system:kube-proxy"),
        Credential("dns", "hotstart:dns"),
        Credential("apiserver-kubelet-client", "kube-apiserver-kubelet-client", "system:masters"),
        Credential(f"kubelet-{node.index}", f"system:node:{node.name}", "system:nodes"),
        Credential(f"kubelet-{node.index}-server", node.name, addresses=(node.name, node.address)),
        Credential("front-proxy", "front-proxy-client", authority="front-proxy-ca"),
    )


def _name(common: str, group: str = "") -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if group:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    return x509.Name(parts)


def _alternative(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
    )


def make_authority(name: str) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(_name(name), _name(name), key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def issue(wanted: Credential, authority: Authority) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    use = ExtendedKeyUsageOID.SERVER_AUTH if wanted.addresses else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = _builder(_name(wanted.name, wanted.group), authority.certificate.subject, key.public_key())
    builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
    )
    if wanted.addresses:
        names = x509.SubjectAlternativeName([_alternative(text) for text in wanted.addresses])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(authority.key, hashes.SHA256()), key


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )


def _write_certificate(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def write_all(pki: Path, node: NodePlan) -> None:
    """Write `NAME.crt` and `NAME.key` of every authority and credential, and the key of service account tokens."""
    pki.mkdir(parents=True, mode=0o700)
    authorities = {name: make_authority(f"hotstart-{name}") for name in ("ca", "front-proxy-ca")}
    for name, authority in authorities.items():
        _write_key(pki / f"{name}.key", authority.key)
        _write_certificate(pki / f"{name}.crt", authority.certificate)
    for wanted in credentials(node):
        certificate, key = issue(wanted, authorities[wanted.authority])
        _write_key(pki / f"{wanted.file}.key", key)
        _write_certificate(pki / f"{wanted.file}.crt", certificate)
    tokens = ec.generate_private_key(ec.SECP256R1())
    _write_key(pki / "service-account.key", tokens)
    (pki / "service-account.pub").write_bytes(
        tokens.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )

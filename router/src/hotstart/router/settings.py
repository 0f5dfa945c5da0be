"""How a router is configured: flags, each with an environment variable behind it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotstart.exchange.names import KEYS_FILE, KEYS_MOUNT, PORT_ROUTER, PORT_ROUTER_EXCHANGE

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True)
class Settings:
    """Durations are in seconds. Port 0 takes a free one."""

    host: str
    port: int
    exchange_port: int
    keys_file: Path
    pod_uid: str
    state: Path | None
    drain_delay: float
    drain_timeout: float
    request_timeout: float
    max_body_bytes: int
    log_level: str


# flag, default, type, help; the variable is HOTSTART_ROUTER_<FLAG>, or the one named.
_FLAGS: tuple[tuple[str, str, type, str], ...] = (
    ("host", "0.0.0.0", str, "address to listen on"),
    ("port", str(PORT_ROUTER), int, "port of the OpenAI API, /healthz, /readyz and /metrics"),
    ("exchange-port", str(PORT_ROUTER_EXCHANGE), int, "port on which the operator sends routes"),
    ("keys-file", f"{KEYS_MOUNT}/{KEYS_FILE}", Path, "the operator's public keys (JWKS)"),
    ("pod-uid", "", str, "UID of this pod, the audience of the operator's messages (POD_UID)"),
    ("state", "", str, "file of the last routes, for restarts; none if empty"),
    ("drain-delay", "5", float, "seconds to go on accepting after SIGTERM, while the Service forgets this pod"),
    ("drain-timeout", "40", float, "seconds to wait after that for running requests"),
    ("request-timeout", "60", float, "seconds from a slot at a pod to the last byte of an answer"),
    ("max-body-bytes", str(1024 * 1024), int, "largest body of a request"),
    ("log-level", "INFO", str, "DEBUG, INFO, WARNING or ERROR"),
)


def parse_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """The settings; a wrong flag ends the program with a sentence, as argparse does."""
    parser = argparse.ArgumentParser(
        prog="hotstart-router", description="OpenAI-compatible completions from Triton pods."
    )
    for flag, default, kind, help_text in _FLAGS:
        variable = "POD_UID" if flag == "pod-uid" else "HOTSTART_ROUTER_" + flag.replace("-", "_").upper()
        parser.add_argument(
            f"--{flag}", type=kind, default=environment.get(variable, default), help=f"{help_text} [env {variable}]"
        )
    parsed = parser.parse_args(arguments)
    if not parsed.pod_uid:
        parser.error("--pod-uid is missing: set POD_UID from the downward API (metadata.uid)")
    if parsed.max_body_bytes <= 0:
        parser.error("--max-body-bytes must be positive")
    if parsed.log_level.upper() not in LOG_LEVELS:
        parser.error(f"--log-level must be one of {', '.join(LOG_LEVELS)}")
    for name in ("drain_delay", "drain_timeout", "request_timeout"):
        if getattr(parsed, name) < 0:
            parser.error(f"--{name.replace('_', '-')} must not be negative")
    values = vars(parsed)
    values["state"] = Path(parsed.state) if parsed.state else None
    return Settings(**values)

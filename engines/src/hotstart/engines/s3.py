"""S3 clients for Hotstart's two stores, and what botocore's errors mean in words that a condition can use.

boto3's own core is used without its transfer manager: a builder starts half a second sooner and is smaller.
Used by ``checkpoints.source`` (the user's store, read by the builder) and by ``store`` (Hotstart's, for the operator).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    ParamValidationError,
)
from botocore.exceptions import ConnectionError as StoreConnectionError
from hotstart.engines.errors import EngineError, Reason, Retryable, Terminal

CONNECT_TIMEOUT = 5.0  # seconds
READ_TIMEOUT = 30.0  # seconds
ATTEMPTS = 3
NOT_FOUND = frozenset(("404", "NoSuchKey", "NotFound"))
DENIED = frozenset(
    (
        *("403", "401", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch"),
        *("AuthorizationHeaderMalformed", "ExpiredToken", "InvalidToken", "AllAccessDisabled", "Unauthorized"),
    )
)


@dataclass(frozen=True)
class StorePlace:
    """Where a store is and who asks. ``credentials_from`` is said to people: the Secret, by name where it is known."""

    bucket: str
    endpoint: str = ""  # '' is AWS
    region: str = ""
    access_key: str = ""  # '' asks anonymously
    secret_key: str = ""
    session_token: str = ""
    credentials_from: str = "the Secret"


def make_client(place: StorePlace, *, connections: int = 16) -> Any:
    """A thread-safe client with path-style addresses and short connect time-outs.

    Raises:
        Terminal: InvalidSpec, the endpoint is no URL or the region no region.
    """
    config = Config(
        signature_version="s3v4" if place.access_key else UNSIGNED,
        s3={"addressing_style": "path"},
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=connections,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        return botocore.session.get_session().create_client(
            "s3",
            # Never sent when unsigned; without any, botocore would ask the node's metadata service for some.
            aws_access_key_id=place.access_key or "anonymous",
            aws_secret_access_key=place.secret_key or "anonymous",
            aws_session_token=place.session_token or None,
            region_name=place.region or "us-east-1",
            endpoint_url=place.endpoint or None,
            config=config,
        )
    except (ValueError, BotoCoreError) as error:
        raise Terminal(
            Reason.INVALID_SPEC,
            f"The S3 store {place.endpoint or 'AWS S3'} in region {place.region or 'us-east-1'} cannot be addressed: "
            f"{first_line(error)}. Correct checkpoint.endpoint, or AWS_ENDPOINT_URL and AWS_REGION of "
            f"{place.credentials_from}.",
        ) from error


def error_code(error: ClientError) -> str:
    """The store's own word for an error, or the HTTP status where a HEAD has no body."""
    return str(error.response.get("Error", {}).get("Code", "")) or str(http_status(error))


def http_status(error: ClientError) -> int:
    """The HTTP status, 0 where there was none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextmanager
def store_errors(place: StorePlace, what: str) -> Iterator[None]:
    """Turns botocore's errors into ``EngineError``; ``what`` says what was tried, such as "list s3://b/p/"."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise make_store_error(error, place, what) from error


def make_store_error(error: Exception, place: StorePlace, what: str) -> EngineError:
    """The reason and the remedy of one of botocore's errors. Pure."""
    at = place.endpoint or "AWS S3"
    if isinstance(error, ClientError):
        return _answered(error, place, what, at)
    if isinstance(error, ParamValidationError):
        return Terminal(Reason.INVALID_SPEC, f"Cannot {what}: {first_line(error)}.")
    if isinstance(error, StoreConnectionError | HTTPClientError):
        return Retryable(
            Reason.STORE_UNREACHABLE,
            f"Cannot {what}: {at} does not answer ({first_line(error)}). Check the endpoint, DNS and network policies.",
        )
    return Retryable(Reason.STORE_UNREACHABLE, f"Cannot {what} at {at}: {first_line(error)}.")


def _answered(error: ClientError, place: StorePlace, what: str, at: str) -> EngineError:
    code = error_code(error)
    said = str(error.response.get("Error", {}).get("Message", "")).strip().rstrip(".")
    if code == "NoSuchBucket":
        return Retryable(
            Reason.BUCKET_NOT_FOUND,
            f"Cannot {what}: there is no bucket {place.bucket} at {at}. Create it or name another.",
        )
    if code in DENIED or http_status(error) in (401, 403):
        return Retryable(Reason.ACCESS_DENIED, _denied(code, place, what))
    if code in NOT_FOUND or http_status(error) == 404:
        return Retryable(Reason.CHECKPOINT_NOT_FOUND, f"Cannot {what}: it is not there. Upload it or name another.")
    return Retryable(Reason.STORE_UNREACHABLE, f"Cannot {what}: {at} answered {code}{': ' if said else ''}{said}.")


def _denied(code: str, place: StorePlace, what: str) -> str:
    if not place.access_key:
        return (
            f"Cannot {what}: bucket {place.bucket} is not readable without credentials. "
            f"Put AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY into {place.credentials_from}."
        )
    wrong = {
        "InvalidAccessKeyId": "the store does not know its AWS_ACCESS_KEY_ID",
        "SignatureDoesNotMatch": "its AWS_SECRET_ACCESS_KEY is wrong",
        "ExpiredToken": "its credentials have expired",
    }.get(code, f"the store refuses its credentials ({code})")
    return f"Cannot {what}: {wrong}. Correct {place.credentials_from}, or the rights of its user on {place.bucket}."


def first_line(error: Exception) -> str:
    """The first line of an error's text, for messages."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")

"""The scalar types of the kinds: durations with units, quantities, names, digests and URIs.

Each is a string in the API, with one rule that says its form; `Duration` also knows its length.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from hotstart.operator.api.base import Rule, make_text_type, rules
from pydantic import AwareDatetime, GetCoreSchemaHandler, GetJsonSchemaHandler, PlainSerializer, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

DURATION_PATTERN = r"^([0-9]{1,9}(ms|s|m|h)){1,4}$"
DURATION_MESSAGE = "must be a duration with its unit, such as 250ms, 1s or 1m30s"
DURATION_MAX_LENGTH = 32
_DURATION_PART = re.compile(r"([0-9]+)(ms|s|m|h)")
_MILLISECONDS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}

DURATION_RULE = Rule("duration-with-unit", f"self.matches('{DURATION_PATTERN}')", DURATION_MESSAGE)


class Duration(str):
    """A length of time as the API writes it ("250ms", "1m30s"): a str, which also knows its length.

    Raises ValueError when the text has no unit or another form. Resolution: one millisecond.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Duration:
        if re.fullmatch(DURATION_PATTERN, text) is None:
            raise ValueError(DURATION_MESSAGE)
        return super().__new__(cls, text)

    @classmethod
    def of(cls, seconds: float) -> Duration:
        """The text for `seconds`, rounded to a millisecond: 0.25 -> "250ms", 90 -> "90s". Raises ValueError below 0."""
        milliseconds = round(seconds * 1000)
        if milliseconds < 0:
            raise ValueError("a duration is not negative")
        whole, rest = divmod(milliseconds, 1000)
        return cls(f"{whole}s" if rest == 0 else f"{milliseconds}ms")

    @property
    def milliseconds(self) -> int:
        """Length in milliseconds."""
        return sum(int(number) * _MILLISECONDS[unit] for number, unit in _DURATION_PART.findall(self))

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.milliseconds / 1000

    @property
    def timedelta(self) -> timedelta:
        """Length as a timedelta."""
        return timedelta(milliseconds=self.milliseconds)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls,
            core_schema.str_schema(max_length=DURATION_MAX_LENGTH),
            serialization=core_schema.plain_serializer_function_ser_schema(str.__str__),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "maxLength": DURATION_MAX_LENGTH, **rules(DURATION_RULE)}


def make_duration_schema(rule_name: str, at_least: str, at_most: str, message: str) -> WithJsonSchema:
    """JSON schema of a Duration between two others, both included; malformed text is left to the rule of the form."""
    bounds = (
        f"!self.matches('{DURATION_PATTERN}') || "
        f"(duration(self) >= duration('{at_least}') && duration(self) <= duration('{at_most}'))"
    )
    bounded = Rule(rule_name, bounds, message)
    return WithJsonSchema({"type": "string", "maxLength": DURATION_MAX_LENGTH, **rules(DURATION_RULE, bounded)})


#: Quantities of Kubernetes as text, without sign and exponent, which CPU and memory of a pod have no use for.
Quantity = make_text_type(
    "quantity-with-suffix",
    r"^([0-9]{1,15})(\.[0-9]{1,6})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$",
    "must be a Kubernetes quantity in quotes, such as '700m' or '2' CPUs, or '1536Mi' of memory",
    max_length=24,
)
DnsName = make_text_type(
    "name-is-dns-subdomain",
    r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
    "must be the name of an object in this namespace: lower-case letters, digits, '-' and '.'",
    max_length=253,
)
# White space is spelled out: RE2's \s is ASCII's, Python's is Unicode's.
CheckpointUri = make_text_type(
    "checkpoint-uri-form",
    r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^\x20\t\n\f\r?#]*"
    r"|pvc://[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?(/[^\x20\t\n\f\r?#]*)?"
    r"|hf://[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}@[0-9a-f]{40}(/[^\x20\t\n\f\r?#]*)?)$",
    "must be s3://BUCKET/PREFIX/, pvc://CLAIM/PATH, or hf://ORG/NAME@COMMIT with a commit of 40 hex digits",
    max_length=1024,
)
HttpUrl = make_text_type(
    "endpoint-is-http-url",
    r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?/?$",
    "must be http:// or https:// with host and port, such as http://s3.storage.svc:8333",
    max_length=512,
)
Sha256 = make_text_type(
    "digest-is-sha256", r"^[0-9a-f]{64}$", "must be a SHA-256 digest: 64 lower-case hex digits", max_length=64
)
LabelValue = make_text_type(
    "value-fits-a-label",
    r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
    "must be a value that a label can hold: letters, digits, '-', '_' and '.', at most 63",
    max_length=63,
)
MigProfile = make_text_type(
    "mig-profile-form", r"^[1-7]g\.[0-9]{1,3}gb$", "must be a MIG profile such as 1g.10gb", max_length=16
)


def _write_timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


#: A moment with its zone: RFC 3339 in the API, written in UTC with whole seconds as Kubernetes writes its own.
Timestamp = Annotated[
    AwareDatetime,
    PlainSerializer(_write_timestamp, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time", "maxLength": 40}),
]

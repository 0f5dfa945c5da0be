"""Durations and the other text types: what is taken, what is refused, and with which words."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hotstart.operator.api.scalars import (
    DURATION_MESSAGE,
    CheckpointUri,
    DnsName,
    Duration,
    HttpUrl,
    LabelValue,
    MigProfile,
    Quantity,
    Sha256,
    Timestamp,
)
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("1s", 1), ("1500ms", 1.5), ("1m30s", 90), ("2h", 7200), ("0s", 0), ("1h2m3s4ms", 3723.004)],
)
def test_a_duration_knows_its_length(text: str, seconds: float) -> None:
    duration = Duration(text)
    assert duration == text
    assert duration.seconds == seconds
    assert duration.timedelta == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "250", "1.5s", "-1s", "250us", "1 s", "s", "1d", "1s\n", "1000000000000s", "٣s"])
def test_text_without_unit_or_of_another_form_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=DURATION_MESSAGE):
        Duration(text)


@given(st.integers(min_value=0, max_value=10**8))
def test_a_duration_made_of_seconds_has_that_length(milliseconds: int) -> None:
    assert Duration.of(milliseconds / 1000).milliseconds == milliseconds


def test_a_negative_duration_is_refused() -> None:
    with pytest.raises(ValueError, match="not negative"):
        Duration.of(-0.25)


def test_a_timestamp_is_written_in_utc_with_whole_seconds() -> None:
    adapter = TypeAdapter(Timestamp)
    moment = adapter.validate_python("2030-01-31T19:00:00.75+01:00")
    assert adapter.dump_python(moment, mode="json") == "2030-01-31T18:00:00Z"
    with pytest.raises(ValidationError, match="timezone"):
        adapter.validate_python("2030-01-31T18:00:00")


COMMIT = "0a" * 20


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (
            CheckpointUri,
            [
                *(
                    "s3://models/",
                    "s3://models/a/b.gguf",
                    "s3://my.bucket/ünïcode/",
                    "s3://models/a\u00a0b/",
                    "pvc://models",
                    "pvc://models/a/b/",
                ),
                *(f"hf://replit/replit-code-v1_5-3b@{COMMIT}", f"hf://a/b@{COMMIT}/code.gguf"),
            ],
            [
                *(
                    "gs://models/a",
                    "s3://models",
                    "s3://UPPER/a",
                    "s3://models/a b",
                    "s3://models/a\tb",
                    "file:///a",
                    "s3://models/a?b",
                    "",
                ),
                *("pvc://Models", "pvc:///a", "pvc://a b", "hf://a/b", "hf://a/b@main", f"hf://a@{COMMIT}"),
                *(f"hf://a/b@{COMMIT.upper()}", f"hf://a/b@{COMMIT[1:]}", f"hf://a/b/c@{COMMIT}"),
            ],
        ),
        (
            HttpUrl,
            ["http://s3:8333", "https://s3.eu-central-1.amazonaws.com/"],
            ["s3:8333", "ftp://s3", "http://", "http://user:secret@s3", "http://s3/path"],
        ),
        (Quantity, ["700m", "2", "1.5", "1536Mi", "2G"], ["2GB", "-1", "", "1e3", "two", "Mi"]),
        (DnsName, ["models-reader", "a.b"], ["A", "a/b", "-a", "a-", "a" * 254]),
        (LabelValue, ["NVIDIA-H100-80GB-HBM3", "0.1.0"], ["NVIDIA H100", "a" * 64, ""]),
        (MigProfile, ["1g.10gb", "3g.40gb"], ["10gb", "8g.80gb", "1g.10GB"]),
        (Sha256, ["0" * 64], ["0" * 63, "0" * 65, "G" * 64]),
    ],
)
def test_text_types_take_their_form_only(kind: Any, good: list[str], bad: list[str]) -> None:
    adapter = TypeAdapter(kind)
    for text in good:
        assert adapter.validate_python(text) == text
    for text in bad:
        with pytest.raises(ValidationError):
            adapter.validate_python(text)

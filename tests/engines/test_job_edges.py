"""The edges of a Job: its environment, its termination message, its exit codes, its log's tail."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hotstart.engines.builder.log_tail import LINES, LONGEST_LINE, LogTail
from hotstart.engines.builder.settings import make_build_settings, make_checkpoint_access, make_inspect_settings
from hotstart.engines.builder.termination import (
    MAX_BYTES,
    exit_code,
    make_failure,
    make_failure_message,
    make_result_message,
)
from hotstart.engines.errors import HostMemoryFull, Reason, Retryable, Terminal
from hotstart.engines.recipe import CTRANSLATE2_TOOLCHAIN, EngineRecipe
from hotstart.engines.s3 import make_client
from hotstart.exchange.messages import ServingOptions
from hotstart.operator.api.conditions import Reason as ApiReason
from hypothesis import given
from hypothesis import strategies as st

SERVING = ServingOptions(max_input_tokens=96, max_new_tokens=32)
RECIPE = EngineRecipe(CTRANSLATE2_TOOLCHAIN, dtype="float32", quantization="int8")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        "HOTSTART_CHECKPOINT": '{"uri": "s3://b/p/", "revision": null, "endpoint": "http://s3:8333"}',
        "HOTSTART_SERVING": SERVING.model_dump_json(),
        "HOTSTART_SCRATCH": str(tmp_path),
        "HOTSTART_RUNTIME": "ctranslate2",
        "HOTSTART_RECIPE": json.dumps(RECIPE.to_dict()),
        "HOTSTART_ENGINE_KEY": "k" * 64,
        "HOTSTART_CHECKPOINT_DIGEST": "d" * 64,
        "HOTSTART_TOKENIZER_DIGEST": "t" * 64,
        "POD_UID": "uid",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret\n",
        "AWS_ENDPOINT_URL": "http://other",
    }


def test_the_environment_of_both_jobs_is_read(environment: dict[str, str]) -> None:
    inspect, build = make_inspect_settings(environment), make_build_settings(environment)
    assert inspect.checkpoint == build.checkpoint
    assert (build.checkpoint.store.endpoint, build.checkpoint.store.secret_key) == ("http://s3:8333", "secret")
    assert build.recipe == RECIPE
    assert build.port == 9700
    environment["HOTSTART_CHECKPOINT"] = '{"uri": "s3://b/p/", "secretName": "models-reader"}'
    assert make_build_settings(environment).checkpoint.store.endpoint == "http://other"
    assert make_build_settings(environment).checkpoint.store.credentials_from == "the Secret models-reader"


def test_on_a_persons_machine_no_secret_is_spoken_of() -> None:
    place = {"HOTSTART_CHECKPOINT": '{"uri": "s3://b/p/"}'}
    access = make_checkpoint_access(place, local=True)
    assert (access.store.credentials_from, access.hub.credentials_from) == ("the environment",) * 2
    with pytest.raises(Retryable, match="AWS_SECRET_ACCESS_KEY is missing in the environment"):
        make_checkpoint_access({**place, "AWS_ACCESS_KEY_ID": "id"}, local=True)


NEEDED = ("HOTSTART_ENGINE_KEY", "HOTSTART_CHECKPOINT_DIGEST", "HOTSTART_TOKENIZER_DIGEST", "POD_UID")
PARSED = ("HOTSTART_CHECKPOINT", "HOTSTART_SERVING", "HOTSTART_RECIPE")


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, "") for name in (*NEEDED, *PARSED)] + [(name, value) for name in PARSED for value in ("[1", "{}", "7")],
)
def test_a_variable_that_is_missing_or_nonsense_is_named(environment: dict[str, str], name: str, value: str) -> None:
    environment[name] = value
    with pytest.raises(Terminal, match=name) as failure:
        make_build_settings(environment)
    assert failure.value.reason is Reason.INVALID_SPEC


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_half_a_credential_is_named(environment: dict[str, str], name: str) -> None:
    environment[name] = " "
    with pytest.raises(Retryable, match=f"{name} is missing in the Secret") as failure:
        make_inspect_settings(environment)
    assert failure.value.reason is Reason.ACCESS_DENIED
    other = {**environment, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    assert make_inspect_settings(other).checkpoint.store.access_key == ""


@pytest.mark.parametrize(("name", "value"), [("AWS_ENDPOINT_URL", "not a url"), ("AWS_REGION", "no such region")])
def test_a_store_that_cannot_be_addressed_is_named(environment: dict[str, str], name: str, value: str) -> None:
    environment |= {"HOTSTART_CHECKPOINT": '{"uri": "s3://b/p/"}', name: value}
    with pytest.raises(Terminal, match=f"{value}.* cannot be addressed") as failure:
        make_client(make_inspect_settings(environment).checkpoint.store)
    assert failure.value.reason is Reason.INVALID_SPEC


def test_a_scratch_folder_that_is_not_there_is_named(environment: dict[str, str]) -> None:
    environment["HOTSTART_SCRATCH"] = "/nowhere"
    with pytest.raises(Terminal, match="HOTSTART_SCRATCH: /nowhere"):
        make_inspect_settings(environment)


@given(st.text(max_size=6000))
def test_a_failure_always_fits_the_termination_message(text: str) -> None:
    failure = make_failure(Terminal(Reason.CHECKPOINT_CORRUPT, text), Reason.BUILD_FAILED)
    said = make_failure_message(failure)
    assert len(said.encode()) <= MAX_BYTES
    assert json.loads(said)["failure"]["reason"] == "CheckpointCorrupt"
    assert "\n" not in failure.message


@given(st.text(max_size=3000), st.lists(st.text(max_size=200), max_size=20))
def test_the_last_lines_go_with_it_as_far_as_there_is_room(text: str, lines: list[str]) -> None:
    failure = make_failure(Terminal(Reason.CHECKPOINT_CORRUPT, f"What is wrong is this: {text}"), Reason.BUILD_FAILED)
    said = make_failure_message(failure, lines)
    assert len(said.encode()) <= MAX_BYTES
    found = json.loads(said)["failure"]
    kept = found["log_tail"]
    assert kept == lines[len(lines) - len(kept) :]
    assert len(kept) == len(lines) or len(said) > MAX_BYTES - 6 * 200 - 8


def test_a_line_that_repeats_the_failure_is_left_out() -> None:
    failure = make_failure(Terminal(Reason.CHECKPOINT_CORRUPT, "The tensor x holds NaN."), Reason.BUILD_FAILED)
    lines = ("INFO before", "ERROR failed reason=CheckpointCorrupt message=The tensor x holds NaN.")
    assert json.loads(make_failure_message(failure, lines))["failure"]["log_tail"] == ["INFO before"]


def test_exit_codes_say_whether_another_try_can_help() -> None:
    assert exit_code(make_failure(Terminal(Reason.CHECKPOINT_CORRUPT, "x"), Reason.BUILD_FAILED)) == 64
    assert exit_code(make_failure(Retryable(Reason.DISK_FULL, "x"), Reason.BUILD_FAILED)) == 1
    assert exit_code(make_failure(Retryable(Reason.OUT_OF_MEMORY, "of the GPU"), Reason.BUILD_FAILED)) == 1
    assert exit_code(make_failure(HostMemoryFull("of the container"), Reason.BUILD_FAILED)) == 137
    unforeseen = make_failure(KeyError("x"), Reason.BUILD_FAILED)
    assert (unforeseen.reason, unforeseen.retryable) == ("BuildFailed", True)
    assert "KeyError" in unforeseen.message


def test_facts_give_way_where_a_result_is_too_long() -> None:
    result = {"digest": "d", "facts": {"x": "y" * 5000}}
    assert json.loads(make_result_message(result)) == {"digest": "d", "facts": {}}


def test_every_reason_is_one_of_the_api() -> None:
    assert {reason.value for reason in Reason} <= {reason.value for reason in ApiReason}


def test_the_tail_keeps_short_last_lines_and_no_stack_trace() -> None:
    tail = LogTail()
    logger = logging.Logger("test")
    logger.addHandler(tail)
    for number in range(LINES + 5):
        logger.info("line number=%d %s", number, "x" * 500)
    try:
        raise ValueError("secret detail")
    except ValueError:
        logger.exception("failed\nsecond line")
    lines = tail.lines()
    assert len(lines) == LINES
    assert lines[-1] == "ERROR failed"
    assert all(len(line) <= LONGEST_LINE for line in lines)
    assert not any("Traceback" in line for line in lines)

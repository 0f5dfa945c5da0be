"""The model repository and the command line for TensorRT-LLM, as text, beside what they were when someone last looked.

The golden files are the contract with what was read of TensorRT-LLM 1.2.1 and its Triton: neither has run here.
A wanted change: HOTSTART_UPDATE_GOLDEN=1 pytest tests/pod/test_trtllm_repository.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hotstart.engines.triton.cli import read_ranks
from hotstart.engines.triton.repository import ModelBundle, make_engine_settings, make_repository
from hotstart.engines.triton.server import (
    Installation,
    ServerPlan,
    find_container,
    make_arguments,
    make_command,
    make_environment,
)
from hotstart.engines.triton.trtllm_config import (
    DEMANDED,
    LATENCY_EDGES,
    EngineBuild,
    Parameters,
    SchedulerPolicy,
    make_engine_parameters,
    make_trtllm_config,
    read_build,
)
from hotstart.engines.triton.trtllm_tensors import INPUTS, OUTPUTS

from tests.support.pod import make_serving
from tests.support.triton import SOURCES, triton_venv

GOLDEN = Path(__file__).parent / "golden"
FOLDER = Path("/models/engines/abcd")
MPT = EngineBuild(batch_size=64, tensor_parallel=1, alibi=True)
LLAMA = EngineBuild(batch_size=32, tensor_parallel=4, alibi=False)
CONTAINER = Installation(Path("/opt/tritonserver"), Path("/opt/hotstart/bin"), container=True)


def check_golden(name: str, made: str) -> None:
    golden = GOLDEN / name
    if os.environ.get("HOTSTART_UPDATE_GOLDEN") == "1":
        golden.write_text(made)
    assert made == golden.read_text()


def bundle(build: EngineBuild | None, *, histograms: bool = True) -> ModelBundle:
    return ModelBundle("team/replit", "ab" * 32, FOLDER, make_serving(), build, histograms)


@pytest.mark.parametrize(("name", "build"), [("tensorrt-llm-mpt", MPT), ("tensorrt-llm-llama-tp4", LLAMA)])
def test_the_configuration_is_as_the_golden_file_says(name: str, build: EngineBuild) -> None:
    check_golden(f"{name}.pbtxt", make_trtllm_config(build, FOLDER, histograms=True))


@pytest.mark.parametrize("ranks", [1, 4])
def test_the_command_is_as_the_golden_file_says(ranks: int) -> None:
    plan = ServerPlan(Path("/models/repository"), key="k3y", ranks=ranks)
    text = "\n".join(make_command(plan, CONTAINER)) + "\n"
    check_golden(f"tritonserver-tp{ranks}.txt", text)


def test_one_server_a_rank_and_only_the_first_listens() -> None:
    words = make_command(ServerPlan(Path("/r"), key="k3y", ranks=4), CONTAINER)
    assert words[:2] == ("mpirun", "--allow-run-as-root")
    servers = " ".join(words[2:]).split(" : ")
    assert [server.split()[:3] for server in servers] == [["-n", "1", "/opt/tritonserver/bin/tritonserver"]] * 4
    for rank, server in enumerate(servers):
        assert f"shm-region-prefix-name=hotstart{rank}_" in server
        assert "--model-control-mode=explicit" in server
        assert "--load-model=tensorrt_llm" in server
        assert ("--allow-http=false" in server) is (rank > 0)
        assert ("k3y" in server) is (rank == 0), "the key is where it is needed"


def test_the_server_of_cpus_is_asked_for_nothing_that_it_does_not_know() -> None:
    arguments = make_arguments(ServerPlan(Path("/r")), Installation(Path("/s"), Path("/b")))
    assert not [argument for argument in arguments if "histogram" in argument]


def test_every_parameter_is_explained() -> None:
    text = Parameters.__doc__ or ""
    for each in fields(Parameters):
        assert re.search(rf"^    {each.name}\s+\S", text, re.MULTILINE), each.name


def test_what_the_backend_demands_is_there_even_if_empty() -> None:
    given = Parameters("/e").to_strings()
    assert {given[name] for name in DEMANDED} == {""}
    assert "max_tokens_in_paged_kv_cache" not in given
    assert replace(Parameters("/e"), max_tokens_in_paged_kv_cache=4096).to_strings()["max_tokens_in_paged_kv_cache"]
    assert given["exclude_input_in_output"] == "true"
    assert given["batch_scheduler_policy"] == SchedulerPolicy.GUARANTEED_NO_EVICT.value


def test_kv_reuse_is_left_alone_where_nobody_has_verified_it() -> None:
    alibi, rotary = (make_engine_parameters(build, FOLDER) for build in (MPT, LLAMA))
    assert not alibi.enable_kv_cache_reuse and not alibi.enable_chunked_context
    assert rotary.enable_kv_cache_reuse and rotary.enable_chunked_context
    assert rotary.gpu_device_ids == (0, 1, 2, 3)


def test_names_are_unique_and_an_edge_resolves_the_slo() -> None:
    for tensors in (INPUTS, OUTPUTS):
        assert len({tensor.name for tensor in tensors}) == len(tensors)
    assert 250 in LATENCY_EDGES and list(LATENCY_EDGES) == sorted(LATENCY_EDGES)


def test_the_engine_s_configuration_is_written_last() -> None:
    files = make_repository(bundle(MPT))
    assert list(files)[-1] == "tensorrt_llm/config.pbtxt"
    assert set(files) >= {"completion/config.pbtxt", "completion/1/model.py", "tensorrt_llm/1/.keep"}
    assert "model_metrics" in files["completion/config.pbtxt"]
    assert "model_metrics" not in make_repository(bundle(MPT, histograms=False))["completion/config.pbtxt"]


def test_a_repository_of_cpus_has_no_engine_model() -> None:
    assert set(make_repository(bundle(None, histograms=False))) == {"completion/config.pbtxt", "completion/1/model.py"}
    assert make_engine_settings(bundle(None)) is None


def test_what_serving_needs_is_read_from_the_engine_s_own_config(tmp_path: Path) -> None:
    config = {
        "version": "1.2.1",
        "pretrained_config": {"position_embedding_type": "alibi", "mapping": {"tp_size": 2, "pp_size": 1}},
        "build_config": {"max_batch_size": 48},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_build(tmp_path) == EngineBuild(batch_size=48, tensor_parallel=2, alibi=True)
    config["pretrained_config"]["position_embedding_type"] = "rope_gpt_neox"  # type: ignore[index]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not read_build(tmp_path).alibi


def test_the_container_is_known_by_its_backend(tmp_path: Path) -> None:
    assert find_container(tmp_path) is None
    (tmp_path / "backends" / "tensorrtllm").mkdir(parents=True)
    found = find_container(tmp_path)
    assert found is not None and found.container
    assert make_environment(found, {"PATH": "/bin"})["PATH"].endswith(":/bin")


@pytest.mark.parametrize(("text", "ranks"), [("1", 1), ("8", 8), ("0", None), ("9", None), ("two", None), ("", None)])
def test_ranks_are_a_number_of_gpus_of_one_node(text: str, ranks: int | None) -> None:
    assert read_ranks(text) == ranks


def test_ranks_start_once_the_repository_is_whole(tmp_path: Path) -> None:
    """hotstart-triton as a process, with an mpirun that only writes down how it was called."""
    run, repository, said = tmp_path / "run", tmp_path / "models" / "repository", tmp_path / "said"
    run.mkdir()
    repository.mkdir(parents=True)
    (run / "repository-key").write_text("k3y")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "mpirun").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{said}.new && mv {said}.new {said}\n')
    (programs / "mpirun").chmod(0o755)
    venv = triton_venv()
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOTSTART_SOURCES": os.pathsep.join(SOURCES),
        "HOTSTART_RUN": str(run),
        "HOTSTART_MODELS": str(tmp_path / "models"),
        "HOTSTART_TENSOR_PARALLEL": "2",
    }
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [venv / "bin" / "python", "-c", "from hotstart.engines.triton.cli import main; raise SystemExit(main())"],
            env=environment,
            stderr=output,
        )
    try:
        wait_until(lambda: "waiting for the engine" in log.read_text(), process)
        assert process.poll() is None and not said.exists()
        for path, text in make_repository(bundle(replace(LLAMA, tensor_parallel=2))).items():
            (repository / path).parent.mkdir(parents=True, exist_ok=True)
            (repository / path).write_text(text)
        wait_until(said.exists)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    words = said.read_text().splitlines()
    assert words.count(":") == 1
    assert words.count("--load-model=tensorrt_llm") == 2
    assert f"--model-repository={repository}" in words


def wait_until(true: object, process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 30
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.02)

"""Triton's command line and the model repository, as text."""

from __future__ import annotations

from pathlib import Path

from hotstart.engines.triton.completion.metrics import make_edges
from hotstart.engines.triton.repository import ModelBundle, make_parameters, make_repository
from hotstart.engines.triton.server import (
    RESTRICTED_APIS,
    Installation,
    ServerPlan,
    clear_shared_memory,
    find_installation,
    make_arguments,
    make_environment,
)
from hotstart.exchange.messages import ServingOptions

from tests.support.pod import make_serving

INSTALLATION = Installation(Path("/opt/server"), Path("/opt/venv/bin"), "/opt/lib")


def test_apis_that_change_the_server_need_the_key() -> None:
    arguments = make_arguments(ServerPlan(Path("/models/repository"), key="k3y"), INSTALLATION)
    assert arguments[0] == "/opt/server/bin/tritonserver"
    restricted = [argument for argument in arguments if argument.endswith(":hotstart-repository-key=k3y")]
    assert [argument.partition("=")[0] for argument in restricted] == [
        "--http-restricted-api",
        "--grpc-restricted-protocol",
    ]
    assert all(all(api in argument for api in RESTRICTED_APIS) for argument in restricted)
    assert "--model-control-mode=explicit" in arguments
    assert not [argument for argument in arguments if argument.startswith("--load-model")]


def test_the_environment_leads_the_stub_to_our_interpreter() -> None:
    environment = make_environment(INSTALLATION, {"PATH": "/bin", "LD_LIBRARY_PATH": "/x", "HOME": "/tmp"})
    assert environment == {"PATH": "/opt/venv/bin:/bin", "LD_LIBRARY_PATH": "/opt/lib:/x", "HOME": "/tmp"}
    assert "LD_LIBRARY_PATH" not in make_environment(Installation(Path("/s"), Path("/b")), {})


def test_no_server_is_found_where_there_is_none(tmp_path: Path) -> None:
    assert find_installation(tmp_path) is None


def test_the_configuration_carries_the_serving_options_whole() -> None:
    serving = make_serving(stop_strings=('"quoted"\n', "\\end{é}"))
    bundle = ModelBundle("team/tiny", "ab", Path("/models/engines/ab"), serving)
    files = make_repository(bundle)
    assert set(files) == {"completion/config.pbtxt", "completion/1/model.py"}
    config = files["completion/config.pbtxt"]
    assert "model_transaction_policy { decoupled: true }" in config
    assert config.isascii()
    assert ServingOptions.model_validate_json(make_parameters(bundle)["serving"]) == serving


def test_the_histogram_always_has_an_edge_at_the_slo() -> None:
    for slo in (250, 777):
        edges = make_edges(slo)
        assert slo / 1000 in edges
        assert list(edges) == sorted(set(edges))


def test_regions_that_a_killed_server_left_are_removed_and_no_others(tmp_path: Path) -> None:
    for name in ("hotstart0_5f", "hotstart12_5f", "hotstart-a-0_5f", "other0_5f"):
        (tmp_path / name).touch()
    clear_shared_memory("hotstart", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"hotstart-a-0_5f", "other0_5f"}

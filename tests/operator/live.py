"""The operator as a process against a real API server and a real S3; the tests play kubelet, agents and router."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from hotstart.engines.key import key_inputs
from hotstart.engines.manifest import Manifest, ManifestFile, engine_prefix
from hotstart.exchange.messages import ModelSecond, PodReport, PodRequest, PodState, RouterReport, RouterRequest
from hotstart.exchange.names import PORT_AGENT
from hotstart.exchange.server import KeySet, add_exchange, make_app
from hotstart.operator.adapters.kube import KubeCluster, connect
from hotstart.operator.adapters.permissions import REQUIRED
from hotstart.operator.api import CompletionModel
from hotstart.operator.api.status import CheckpointStatus
from hotstart.operator.core.recipe import find_wanted_engine

from tests.support.ports import free_port

PATIENCE_SECONDS = 60.0


def loopback() -> str:
    """An address of this machine's loopback network that nobody else uses."""
    return f"127.{random.randint(2, 250)}.{random.randint(2, 250)}.{random.randint(2, 250)}"


async def until(what, why: str, patience: float = PATIENCE_SECONDS):
    """The first true value of ``what``, which may be awaitable."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found = what()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        await asyncio.sleep(0.1)
    raise AssertionError(f"not within {patience:.0f} s: {why}")


@dataclass
class Process:
    """One replica of the operator."""

    popen: subprocess.Popen
    log: Path
    port: int

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()

    async def terminate(self) -> int:
        """It ends in peace, while the test's pods and routers go on to answer; its exit status."""
        self.popen.terminate()
        return await asyncio.to_thread(self.popen.wait, 30)


@dataclass
class Stage:
    """An API server, a bucket, a namespace for the operator and one for models."""

    kubeconfig: Path
    system: str
    models: str
    endpoint: str
    bucket: str
    s3: object
    folder: Path
    cluster: KubeCluster
    processes: list[Process] = field(default_factory=list)
    runners: list[web.AppRunner] = field(default_factory=list)
    states: dict[str, PodState] = field(default_factory=dict)
    routes: list = field(default_factory=list)
    busy: float = 0.0  # requests at the pods of model m, as the router counts them in each second

    def start(self, name: str, **changes: str) -> Process:
        """One replica of the operator."""
        port = free_port()
        env = {
            **os.environ,
            "KUBECONFIG": str(self.kubeconfig),
            "HOTSTART_NAMESPACE": self.system,
            "POD_NAME": name,
            "HOTSTART_WATCH_NAMESPACES": self.models,
            "HOTSTART_IMAGE_TRITON_CPU": "triton:1",
            "HOTSTART_IMAGE_BUILDER": "builder:1",
            "HOTSTART_IMAGE_TRITON_TRTLLM": "triton-trtllm:1",
            "HOTSTART_IMAGE_BUILDER_TRTLLM": "builder-trtllm:1",
            "HOTSTART_STORE_BUCKET": self.bucket,
            "HOTSTART_STORE_ENDPOINT": self.endpoint,
            "AWS_ACCESS_KEY_ID": "administrator",
            "AWS_SECRET_ACCESS_KEY": "administrators-secret",
            "HOTSTART_METRICS_PORT": str(port),
            **changes,
        }
        log = self.folder / f"{name}.log"
        with log.open("ab") as out:
            popen = subprocess.Popen(
                [sys.executable, "-m", "hotstart.operator.cli"], env=env, stdout=out, stderr=subprocess.STDOUT
            )
        process = Process(popen, log, port)
        self.processes.append(process)
        return process

    async def close(self) -> None:
        for process in self.processes:
            process.kill()
        for runner in self.runners:
            await runner.cleanup()

    # ---- what the tests play

    async def play_job(self, component: str, said: dict) -> None:
        """The Job controller and the kubelet of the newest Job of a component: its pod ends with ``said``."""
        job = await until(lambda: self._job(component), f"a Job of component {component}")
        template = job["spec"]["template"]
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": job["metadata"]["name"],
            "uid": job["metadata"]["uid"],
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                **template["metadata"],
                "name": f"{job['metadata']['name']}-x1",
                "namespace": self.models,
                "ownerReferences": [{**owner, "controller": True}],
            },
            "spec": template["spec"],
        }
        await self.cluster.create(pod)
        ended = {"exitCode": 0, "reason": "Completed", "message": json.dumps(said), "finishedAt": now_text()}
        status = {
            "phase": "Succeeded",
            "containerStatuses": [
                {
                    "name": "builder",
                    "image": "b",
                    "imageID": "b",
                    "ready": False,
                    "restartCount": 0,
                    "state": {"terminated": ended},
                }
            ],
        }
        await self.cluster.patch_status("Pod", self.models, pod["metadata"]["name"], {"status": status})

    async def _job(self, component: str):
        jobs = await self.cluster.list("Job", namespace=self.models, labels=f"app.kubernetes.io/component={component}")
        return jobs[-1] if jobs else None

    def store_engine(self, model: CompletionModel, checkpoint_digest: str, namespace_uid: str) -> str:
        """The engine that the model needs, whole in the store; its key."""
        wanted = find_wanted_engine(model.spec, CheckpointStatus(digest=checkpoint_digest))
        assert wanted is not None
        manifest = Manifest(
            wanted.key,
            key_inputs(checkpoint_digest, wanted.recipe),
            (ManifestFile("model.bin", 3, "ab" * 32),),
            "cd" * 32,
        )
        prefix = engine_prefix(namespace_uid, wanted.key)
        self.s3.put_object(Bucket=self.bucket, Key=f"{prefix}model.bin", Body=b"abc")
        self.s3.put_object(Bucket=self.bucket, Key=f"{prefix}manifest.json", Body=manifest.to_json().encode())
        return wanted.key

    async def play_pod(self, pod: dict) -> None:
        """Kubelet and agent of a replica: it runs at an address of its own, and is ready at once."""
        address, name, uid = loopback(), pod["metadata"]["name"], pod["metadata"]["uid"]
        self.states.setdefault(uid, PodState.READY)

        async def answer(request: PodRequest) -> PodReport:
            key = request.assignment.engine_key if request.assignment else ""
            return PodReport(pod_uid=uid, state=self.states[uid], engine_key=key, phases={"fetch": 0.1})

        await self._serve(address, uid, PodRequest, answer)
        await self.set_pod(name, self.models, address)

    async def play_router(self) -> str:
        """A router's pod in the operator's namespace, and its exchange; its UID."""
        address = loopback()
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "router-1",
                "namespace": self.system,
                "labels": {"app.kubernetes.io/component": "router"},
            },
            "spec": {"containers": [{"name": "router", "image": "control:1"}], "automountServiceAccountToken": False},
        }
        uid = (await self.cluster.create(body))["metadata"]["uid"]

        async def answer(request: RouterRequest) -> RouterReport:
            self.routes[:] = request.routes
            whole = int(time.time()) - 1
            seconds = tuple(
                ModelSecond(second=second, model=f"{self.models}/m", in_flight_sum=self.busy)
                for second in range(max(request.cursor, whole - 1) + 1, whole + 1)
            )
            return RouterReport(pod_uid=uid, generation=request.generation, cursor=whole, seconds=seconds)

        await self._serve(address, uid, RouterRequest, answer)
        await self.set_pod("router-1", self.system, address)
        return uid

    async def _serve(self, address: str, uid: str, request_type, answer) -> None:
        keys = self.folder / "jwks.json"
        found = await until(
            lambda: self.cluster.get("ConfigMap", self.system, "hotstart-exchange-keys"), "the public keys"
        )
        keys.write_text(found["data"]["jwks.json"])
        app = make_app()
        add_exchange(app, keys=KeySet(keys), audience=uid, request_type=request_type, answer=answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, address, PORT_AGENT).start()
        self.runners.append(runner)

    async def set_pod(self, name: str, namespace: str, address: str) -> None:
        conditions = [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": now_text()},
            {"type": "Ready", "status": "True", "lastTransitionTime": now_text()},
        ]
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "startTime": now_text(),
            "conditions": conditions,
        }
        await self.cluster.patch_status("Pod", namespace, name, {"status": status})

    async def serving_pods(self) -> tuple[dict, ...]:
        labels = "app.kubernetes.io/component=serving"
        return await self.cluster.list("Pod", namespace=self.models, labels=labels)

    async def model(self, name: str = "m") -> dict:
        found = await self.cluster.get("CompletionModel", self.models, name)
        assert found is not None
        return found

    async def condition(self, kind: str, name: str = "m") -> dict:
        conditions = (await self.model(name)).get("status", {}).get("conditions", ())
        return next((c for c in conditions if c["type"] == kind), {})

    async def holder(self) -> str:
        lease = await self.cluster.get("Lease", self.system, "hotstart-operator")
        return (lease or {}).get("spec", {}).get("holderIdentity") or ""

    async def make_ready(self, name: str = "m") -> None:
        """A model that serves: its engine is in the store, its Job, pod and router are played."""
        await self.play_router()
        raw = await self.cluster.create(
            {
                "apiVersion": "hotstart.dev/v1alpha1",
                "kind": "CompletionModel",
                "metadata": {"name": name, "namespace": self.models},
                "spec": {
                    "checkpoint": {"uri": "s3://models/tiny/"},
                    "engine": {"runtime": "ctranslate2", "quantization": "int8"},
                },
            }
        )
        namespace = await self.cluster.get("Namespace", "", self.models)
        self.store_engine(CompletionModel.from_api(raw), "aa" * 32, namespace["metadata"]["uid"])
        said = {"digest": "aa" * 32, "tokenizerDigest": "cd" * 32, "architecture": "LlamaForCausalLM"}
        await self.play_job("inspect", said)
        (pod,) = await until(self.serving_pods, "a pod of the model")
        await self.play_pod(pod)
        await until(lambda: self.is_ready(name), "the model is Ready")

    async def is_ready(self, name: str = "m") -> bool:
        return (await self.condition("Ready", name)).get("status") == "True"


def grant(api_server, system: str, models: str, folder: Path) -> Path:
    """A kubeconfig with exactly the rights of permissions.REQUIRED; the chart's roles are compared with these."""
    account = f"system:serviceaccount:{system}:operator"
    places = {"models": models, "own": system, "cluster": ""}
    for scope, place in places.items():
        rules = [
            {
                "apiGroups": [each.group],
                "resources": [each.resource],
                "verbs": list(each.verbs),
                **({"resourceNames": list(each.names)} if each.names else {}),
            }
            for each in REQUIRED
            if each.scope == scope
        ]
        kind, name = ("Role" if place else "ClusterRole"), f"{system}-{scope}"
        metadata = {"name": name, **({"namespace": place} if place else {})}
        api = "rbac.authorization.k8s.io/v1"
        role = {"apiVersion": api, "kind": kind, "metadata": metadata, "rules": rules}
        binding = {
            "apiVersion": api,
            "kind": f"{kind}Binding",
            "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": account}],
        }
        items = {"apiVersion": "v1", "kind": "List", "items": [role, binding]}
        api_server.run_kubectl("apply", "-f", "-", stdin=json.dumps(items))
    api_server.run_kubectl("create", "serviceaccount", "operator", "-n", system)
    token = api_server.run_kubectl("create", "token", "operator", "-n", system, "--duration=1h").strip()
    config = json.loads(api_server.kubeconfig.read_text())
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    return path


def now_text() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


async def make_stage(api_server, namespace: str, object_store, folder: Path) -> Stage:
    system = f"{namespace}-system"
    api_server.run_kubectl("create", "namespace", system)
    for name in (system, namespace):
        api_server.try_kubectl("create", "serviceaccount", "default", "-n", name)
    os.environ["KUBECONFIG"] = str(api_server.kubeconfig)
    cluster = KubeCluster(await connect())
    return Stage(
        kubeconfig=grant(api_server, system, namespace, folder),
        system=system,
        models=namespace,
        endpoint=object_store.endpoint,
        bucket=object_store.make_bucket("engines"),
        s3=object_store.client(),
        folder=folder,
        cluster=cluster,
    )

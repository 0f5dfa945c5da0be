"""The main job on a real cluster: one CompletionModel becomes completions, and stays so through what goes wrong."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import openai
import pytest
from hotstart.demo.kube import condition

from tests.support.processes import find_process

pytestmark = pytest.mark.e2e

README = Path(__file__).resolve().parents[2] / "README.md"
PROMPT = "def add(left, right):\n    return"


def ask(tenant, **options):
    client = openai.OpenAI(base_url=f"{tenant.platform.url}/v1", api_key="none", max_retries=0, timeout=60)
    model = f"{tenant.namespace}/{tenant.name}"
    return client.completions.create(**{"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, **options})


def build_jobs(tenant):
    return tenant.kube.items("jobs", tenant.namespace, labels="app.kubernetes.io/component=build")


def test_a_model_is_built_once_and_answers(serving, settled) -> None:
    answer = ask(serving)
    assert answer.choices[0].text
    assert 0 < answer.usage.completion_tokens <= 8
    streamed = [chunk.choices[0].text for chunk in ask(serving, stream=True) if chunk.choices]
    assert "".join(streamed) == answer.choices[0].text
    assert serving.model()["status"]["builds"] == 1

    settled.apply_model()
    settled.wait_ready()
    assert ask(settled).choices[0].text == answer.choices[0].text
    assert len(build_jobs(serving)) == 1, "the second model on the same checkpoint and recipe builds nothing"
    assert len(serving.kube.items("engines", serving.namespace)) == 1


def test_three_lines_of_the_readme_get_a_completion(serving, capsys) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    code = next(block for block in blocks if "openai" in block)
    code = re.sub(r'base_url="[^"]+"', f'base_url="{serving.platform.url}/v1"', code)
    code = re.sub(r'model="[^"]+"', f'model="{serving.namespace}/{serving.name}"', code)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def refused_for(tenant, secret: str):
    """EngineReady once it is False for the Secret."""
    found = condition(tenant.model(), "EngineReady")
    return found if found.get("status") == "False" and secret in found.get("message", "") else None


def test_a_wrong_secret_is_named_and_mending_it_is_enough(settled) -> None:
    settled.put_secret("mistyped", AWS_SECRET_ACCESS_KEY="wrong")
    settled.apply_model(secretName="mistyped")
    assert "AWS_" in settled.wait(lambda: refused_for(settled, "mistyped"), "EngineReady names the Secret")["message"]
    settled.put_secret("mistyped")
    settled.wait_ready()
    assert ask(settled).choices[0].text


def test_a_missing_secret_is_named_and_making_it_is_enough(settled) -> None:
    settled.apply_model(secretName="not-yet")
    settled.wait(lambda: refused_for(settled, "not-yet"), "EngineReady names the Secret")
    settled.put_secret("not-yet")
    settled.wait_ready()


def test_a_broken_new_revision_leaves_the_old_one_serving(serving) -> None:
    before = [pod["metadata"]["uid"] for pod in serving.pods()]
    serving.apply_model(uri='"s3://models/nothing-here/"')
    serving.wait(
        lambda: "nothing-here" in condition(serving.model(), "EngineReady").get("message", ""),
        "EngineReady names the empty prefix",
    )
    assert ask(serving).choices[0].text
    assert [pod["metadata"]["uid"] for pod in serving.pods()] == before
    serving.apply_model()
    serving.wait_ready()
    assert [pod["metadata"]["uid"] for pod in serving.pods()] == before


def test_triton_killed_in_a_serving_pod_comes_back(serving) -> None:
    (pod,) = serving.pods()
    name = pod["metadata"]["name"]

    def restarts() -> int:
        found = serving.kube.get("pods", name, serving.namespace)
        statuses = {s["name"]: s for s in (found or {}).get("status", {}).get("containerStatuses", ())}
        return statuses.get("triton", {}).get("restartCount", 0)

    before = restarts()
    os.kill(find_process(pod["metadata"]["uid"], "tritonserver"), signal.SIGKILL)
    serving.wait(lambda: restarts() > before, "Triton's container was restarted")
    serving.wait_ready()
    assert serving.wait(lambda: ask(serving).choices[0].text, "a completion after the restart")
    assert [pod["metadata"]["name"] for pod in serving.pods()] == [name], "the pod itself stayed"

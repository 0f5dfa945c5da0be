"""The revision of a model's pods: a hash of what a pod is made from. Pure.

Live pods are compared by their revision label and never by their rendered spec, so that a new default in the API server
or a new form of the manifest replaces no pod.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hotstart.exchange.messages import PodAssignment
from hotstart.operator.api import CompletionModelSpec
from hotstart.operator.api.model_spec import Runtime
from hotstart.operator.core.names import digest_of
from hotstart.operator.core.recipe import make_serving_options
from hotstart.operator.core.writes import Object


@dataclass(frozen=True)
class Images:
    """Images of one runtime release, and how they are pulled.

    ``builder`` inspects checkpoints of either runtime, and builds engines of CPUs; ``builder_trtllm`` needs a GPU.
    """

    triton_cpu: str
    builder: str
    triton_trtllm: str
    builder_trtllm: str
    pull_policy: str = "IfNotPresent"

    def serving(self, runtime: str) -> str:
        """The image with Triton, the runtime's backend, the completion model and the pod agent."""
        return self.triton_trtllm if runtime == Runtime.TENSORRT_LLM else self.triton_cpu

    def building(self, runtime: str) -> str:
        """The image whose tools build engines of that runtime."""
        return self.builder_trtllm if runtime == Runtime.TENSORRT_LLM else self.builder


@dataclass(frozen=True)
class Bundle:
    """The tokenizer that an engine is served with: its digest, and that of its bundle's manifest."""

    tokenizer_digest: str
    manifest_sha256: str


OWN_TOKENIZER = Bundle("", "")  # the one among the engine's files


@dataclass(frozen=True)
class Target:
    """What a new pod is made from: the revision, the engine that it serves, and where the manifest stands."""

    revision: str
    engine_key: str
    engine_name: str
    manifest_sha256: str
    bundle: Bundle = OWN_TOKENIZER
    avoid: tuple[str, ...] = ()  # nodes on which the engine failed its verification
    template: Object | None = field(default=None, compare=False)  # a pod to copy, where the spec describes no such one


def make_revision(
    spec: CompletionModelSpec, engine_key: str, manifest_sha256: str, bundle: Bundle = OWN_TOKENIZER
) -> str:
    """16 hex digits over engine, tokenizer, serving options, resources and runtime release.

    The operator's own image is not in it: its upgrade replaces no pod.
    """
    resources = spec.serving.resources
    return digest_of(
        {
            "engine": engine_key,
            "manifest": manifest_sha256,
            **({} if bundle == OWN_TOKENIZER else {"bundle": [bundle.tokenizer_digest, bundle.manifest_sha256]}),
            "serving": make_serving_options(spec).model_dump(mode="json"),
            "resources": {} if resources is None else resources.to_api(),
            "release": spec.runtime_release or "",
        }
    )[:16]


def make_target(
    spec: CompletionModelSpec,
    *,
    engine_key: str,
    engine_name: str,
    manifest_sha256: str,
    bundle: Bundle = OWN_TOKENIZER,
) -> Target:
    """The target for an engine that stands in the store."""
    revision = make_revision(spec, engine_key, manifest_sha256, bundle)
    return Target(revision, engine_key, engine_name, manifest_sha256, bundle)


def make_assignment(spec: CompletionModelSpec, target: Target, *, model: str, generation: int) -> PodAssignment:
    """What a pod of this target shall serve; ``model`` is namespace/name."""
    return PodAssignment(
        generation=generation,
        model=model,
        engine_key=target.engine_key,
        runtime="ctranslate2" if spec.engine.runtime == "ctranslate2" else "tensorrt_llm",
        manifest_sha256=target.manifest_sha256,
        serving=make_serving_options(spec),
        tokenizer_digest=target.bundle.tokenizer_digest,
        bundle_sha256=target.bundle.manifest_sha256,
    )

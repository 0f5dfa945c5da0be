"""What a pod's Triton is made to load: the model repository on the disk, then the models, the engine's own first.

An engine of tensorrt_llm stays for the pod's life: the backend does not give back all GPU memory that it took, so
another engine in the same server would find less than its builder reckoned with. With tensor parallelism the server has
loaded it as it started, from the repository that was written before; then only the completion model is left to load.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hotstart.engines.pod_agent.disk import Disk
from hotstart.engines.pod_agent.failures import ENGINE_LOAD_FAILED, BringUpFailed
from hotstart.engines.pod_agent.load_failures import make_load_failure
from hotstart.engines.pod_agent.triton_client import TritonClient, TritonRefused, TritonSlow
from hotstart.engines.triton.repository import (
    ModelBundle,
    make_engine_settings,
    make_parameters,
    make_repository,
)
from hotstart.engines.triton.trtllm_config import TRTLLM_MODEL, EngineBuild, read_build
from hotstart.exchange.messages import PodAssignment
from hotstart.exchange.names import CTRANSLATE2, TENSORRT_LLM


@dataclass(frozen=True)
class ServerFacts:
    """What this pod's Triton is: the runtime of its image, its ranks, whether it knows histograms of latencies."""

    runtime: str = CTRANSLATE2
    ranks: int = 1
    histograms: bool = False


@dataclass(frozen=True)
class Loader:
    """The way of an engine from the disk into Triton."""

    disk: Disk
    triton: TritonClient
    server: ServerFacts = ServerFacts()

    def check_runtime(self, assignment: PodAssignment) -> None:
        """Raises BringUpFailed where this image cannot serve such an engine: before anything is fetched."""
        if assignment.runtime != self.server.runtime:
            message = (
                f"This image serves {self.server.runtime}; the engine is for {assignment.runtime}: "
                "use that runtime's image."
            )
            raise BringUpFailed(ENGINE_LOAD_FAILED, message, retryable=False)

    async def is_served(self, assignment: PodAssignment) -> bool:
        """Whether Triton serves exactly this."""
        try:
            bundle = self._bundle(assignment)
        except BringUpFailed:  # the engine is not on the disk, so it cannot have been loaded from there
            return False
        parameters = await self.triton.parameters()
        if parameters != make_parameters(bundle) or not await self.triton.is_ready():
            return False
        return await self._has_engine(bundle)

    async def load(self, assignment: PodAssignment) -> None:
        """Writes the repository, and makes Triton serve it, which it may do already.

        Raises:
            BringUpFailed: Triton cannot load the engine, or not in time.
            TritonGone: it went away while it loaded.
        """
        bundle = self._bundle(assignment)
        await asyncio.to_thread(self.disk.write_repository, make_repository(bundle))
        await self.triton.wait_live()
        if await self.is_served(assignment):
            return
        try:
            if not await self._has_engine(bundle):
                await self._load_engine()
            await self.triton.load()
        except TritonRefused as error:
            raise make_load_failure(str(error)) from error
        except TritonSlow as error:
            message = (
                f"Triton did not load the engine ({error}): see its log; the node's disk may be too slow, or "
                "spec.serving.resources.limits.cpu too low. It is looked at again."
            )
            raise BringUpFailed(ENGINE_LOAD_FAILED, message, retryable=True) from error

    async def _has_engine(self, bundle: ModelBundle) -> bool:
        """Whether the model ``tensorrt_llm`` serves this engine; True where there is no such model."""
        settings = make_engine_settings(bundle)
        if settings is None:
            return True
        return await self.triton.parameters(TRTLLM_MODEL) == settings and bool(await self.triton.is_ready(TRTLLM_MODEL))

    async def _load_engine(self) -> None:
        if await self.triton.is_ready(TRTLLM_MODEL):
            message = (
                "This pod's Triton holds another engine, and does not give back the GPU memory that it took: "
                "delete the pod; a new one takes the new engine."
            )
            raise BringUpFailed(ENGINE_LOAD_FAILED, message, retryable=False)
        await self.triton.load(TRTLLM_MODEL)

    def _bundle(self, assignment: PodAssignment) -> ModelBundle:
        folder = self.disk.engine(assignment.engine_key)
        build = self._read_build(assignment) if assignment.runtime == TENSORRT_LLM else None
        return ModelBundle(
            assignment.model, assignment.engine_key, folder, assignment.serving, build, self.server.histograms
        )

    def _read_build(self, assignment: PodAssignment) -> EngineBuild:
        try:
            build = read_build(self.disk.engine(assignment.engine_key))
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"config.json of the engine cannot be read ({error!r}): build the engine again."
            raise BringUpFailed(ENGINE_LOAD_FAILED, message, retryable=False) from error
        if build.tensor_parallel != self.server.ranks:
            message = (
                f"The engine is split over {build.tensor_parallel} GPUs and this pod has {self.server.ranks}: "
                "operator and engine must be of the same spec.engine.tensorParallel."
            )
            raise BringUpFailed(ENGINE_LOAD_FAILED, message, retryable=False)
        return build

"""What every runtime offers to the builder, and which there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from hotstart.engines.checkpoints.checkpoint import Checkpoint
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.recipe import EngineRecipe, Toolchain
from hotstart.engines.verify.scorer import Scorer

#: Called with the share of the step that is done, 0 to 1.
Progress = Callable[[float], None]


class Runtime(Protocol):
    """One runtime's way from a checkpoint to an engine. Blocking; called in a thread."""

    def toolchain(self, converter: str) -> Toolchain:
        """The programs that this builder would use with ``converter``; the recipe must ask for the same."""

    @property
    def compiles(self) -> bool:
        """Whether ``build`` is work of its own, with a phase and a progress; else the conversion is the engine."""

    def check_platform(self, recipe: EngineRecipe) -> None:
        """Called before anything is built, and never for a mere conversion.

        Raises:
            EngineError: AcceleratorMismatch, this machine is not what the engine is for.
        """

    def convert(
        self, checkpoint: Checkpoint, recipe: EngineRecipe, folder: Path, progress: Progress, source: Path | None = None
    ) -> None:
        """Writes what ``build`` needs, and nothing else does, into the empty ``folder``; needs no GPU.

        Args:
            source: folder of the checkpoint's own files, for converters that read them themselves; they may be moved.

        Raises:
            EngineError: the checkpoint or the recipe cannot be converted.
        """

    def build(self, converted: Path, recipe: EngineRecipe, engine: Path, progress: Progress, work: Path) -> None:
        """Writes all files of the engine into the empty ``engine``; may move them out of ``converted``.

        Args:
            work: a folder for what else a tool writes; a timing cache lies there where the store has one.

        Raises:
            EngineError: what of the tool, the machine or the recipe stands in the way.
        """

    def open_scorer(self, folder: Path, recipe: EngineRecipe) -> Scorer:
        """Loads the engine in ``folder`` anew, for verification.

        Raises:
            BrokenEngine: it cannot be loaded.
            Retryable: the machine does not let it be.
        """


def check_toolchain(runtime: Runtime, recipe: EngineRecipe) -> None:
    """Raises Terminal (ToolchainMismatch) where this image has other programs than the recipe is pinned to."""
    ours = runtime.toolchain(recipe.toolchain.converter)
    if ours != recipe.toolchain:
        raise Terminal(
            Reason.TOOLCHAIN_MISMATCH,
            f"The recipe asks for {describe(recipe.toolchain)}, this builder image has {describe(ours)}: "
            "operator and builder image must be of the same release.",
        )


def describe(toolchain: Toolchain) -> str:
    """A toolchain in words."""
    libraries = "".join(f", {name} {version}" for name, version in toolchain.libraries)
    converter = f"{toolchain.converter} {toolchain.converter_version}"
    return f"{converter} with {toolchain.runtime} {toolchain.runtime_version}{libraries}"


def check_runtime(name: str) -> None:
    """Raises Terminal (UnsupportedRecipe) where this image has no runtime of that name."""
    if name not in RUNTIMES:
        known = ", ".join(RUNTIMES)
        raise Terminal(Reason.UNSUPPORTED_RECIPE, f"This builder image has no runtime {name!r}; it has {known}.")


def load_runtime(name: str) -> Runtime:
    """The runtime of that name; its libraries are loaded only here.

    Raises:
        Terminal: UnsupportedRecipe, this image has none of that name.
    """
    check_runtime(name)
    return RUNTIMES[name]()


def _ctranslate2() -> Runtime:
    from hotstart.engines.runtimes.ctranslate2 import CTranslate2

    return CTranslate2()


def _tensorrt_llm() -> Runtime:
    from hotstart.engines.runtimes.tensorrt_llm.tensorrt_llm import TensorRTLLM

    return TensorRTLLM()


RUNTIMES: dict[str, Callable[[], Runtime]] = {"ctranslate2": _ctranslate2, "tensorrt_llm": _tensorrt_llm}

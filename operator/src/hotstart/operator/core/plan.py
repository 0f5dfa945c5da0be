"""What a change of spec costs, said before it is paid: `status.plan`. Pure.

Build or reuse, what differs from the nearest engine, how long it takes, which GPUs it needs and how many are free,
what the memory holds, and how many pods are replaced. It is made once for each change, as soon as enough is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hotstart.engines.accelerators import GIB
from hotstart.engines.key import diff_inputs, key_inputs
from hotstart.operator.api import Engine
from hotstart.operator.api.status import CheckpointStatus
from hotstart.operator.core.accelerators import GpuNeed, describe_drivers, describe_need
from hotstart.operator.core.facts import PodFacts
from hotstart.operator.core.gpu_fleet import GpuFleet
from hotstart.operator.core.jobs import Failure
from hotstart.operator.core.recipe import WantedEngine, sentence_of
from hotstart.operator.core.refit import find_base
from hotstart.operator.core.revision import Target

SHOWN_DIFFERENCES = 3
PLAN_LIMIT = 1024  # characters
FIRST_STEP = "Inspect the checkpoint first"
LOOK_UP = "Look for engine"
UNFINISHED = (FIRST_STEP, LOOK_UP)  # a plan that begins so is made again once more is known


@dataclass(frozen=True)
class PlanView:
    """What the plan is made of. ``engine`` is the wanted one's object; ``target`` is set where it stands in the store.

    ``need`` and ``fleet`` are None for engines of CPUs, and where nobody looked for GPUs.
    """

    wanted: WantedEngine | None = None
    checkpoint: CheckpointStatus | None = None
    failure: Failure | None = None
    engine: Engine | None = None
    target: Target | None = None
    pods: tuple[PodFacts, ...] = ()
    engines: tuple[Engine, ...] = ()
    need: GpuNeed | None = None
    fleet: GpuFleet | None = None


def make_plan(view: PlanView) -> str:
    """A few sentences, 1024 characters at most."""
    text = describe_steps(view)
    return text if len(text) <= PLAN_LIMIT else f"{text[: PLAN_LIMIT - 3]}..."


def describe_steps(view: PlanView) -> str:
    """The plan, by how much is known."""
    live = [pod for pod in view.pods if not pod.deleting]
    wanted, failure = view.wanted, view.failure
    if wanted is not None and view.target is not None:
        stale = [pod for pod in live if pod.revision != view.target.revision]
        return f"Reuse engine {wanted.name[:12]}; {replaced(len(stale))}.{describe_memory(wanted)}"
    if failure is not None and not failure.retryable:
        return f"No engine is built, {kept(len(live))}: {failure.message}"
    if wanted is None or view.checkpoint is None:
        return f"{FIRST_STEP}; {kept(len(live))} until its engine is known."
    if view.engine is not None and view.engine.status.manifest_digest and failure is not None:
        what = f"Reuse engine {wanted.name[:12]} with the files of another tokenizer"
        return f"{what}; then {replaced(len(live))}.{describe_memory(wanted)}"
    if view.engine is None or not view.engine.status.conditions:
        return f"{LOOK_UP} {wanted.name[:12]} in the store, and build it where it is not there; {kept(len(live))}."
    return (
        f"{describe_build(view, wanted, view.checkpoint.digest)}; then {replaced(len(live))}.{describe_memory(wanted)}"
    )


def describe_build(view: PlanView, wanted: WantedEngine, digest: str) -> str:
    """The build: what differs, how long it takes, what it needs."""
    why = describe_differences(wanted, digest, view.engines)
    parts = [f"Build engine {wanted.name[:12]} ({why or 'the first of this namespace'})"]
    base = None if view.engine is None else find_base(view.engine, view.engines)
    seconds = None if base is not None else estimate_seconds(wanted, view.engines)
    if base is not None:
        parts.append(f"new weights into the plan of {base.metadata.name[:12]}, if they are of the same network")
    if seconds is not None:
        parts.append(about(seconds))
    if wanted.size is not None:
        memory, scratch = (f"{size / GIB:.0f} GiB" for size in (wanted.size.memory, wanted.size.scratch))
        parts.append(f"its pod asks for {memory} of memory and {scratch} of disk")
    if view.need is not None and view.fleet is not None:
        parts.append(describe_need(view.need, view.fleet))
        drivers = describe_drivers(view.need, view.fleet)
        parts += [drivers] if drivers else []
    return "; ".join(parts)


def describe_memory(wanted: WantedEngine) -> str:
    """The memory plan as one more sentence; '' for engines of CPUs."""
    return "" if wanted.memory is None else f" Memory: {sentence_of(wanted.memory.sentence)}"


def describe_differences(wanted: WantedEngine, digest: str, engines: Iterable[Engine]) -> str:
    """Which part of the key differs from the nearest engine of the namespace; '' where there is none."""
    nearest = find_nearest(wanted, digest, engines)
    shown = "; ".join(shorten(text) for text in nearest[:SHOWN_DIFFERENCES])
    return f"{shown}; ..." if len(nearest) > SHOWN_DIFFERENCES else shown


def find_nearest(wanted: WantedEngine, digest: str, engines: Iterable[Engine]) -> tuple[str, ...]:
    """The differences from the engine with the fewest of them; empty where there is no other."""
    inputs = key_inputs(digest, wanted.recipe)
    others = [
        diff_inputs(inputs, key_inputs(other.spec.checkpoint_digest, other.spec.recipe.to_engine_recipe()))
        for other in engines
        if other.spec.key != wanted.key
    ]
    return min(others, key=len, default=())


def estimate_seconds(wanted: WantedEngine, engines: Iterable[Engine]) -> float | None:
    """How long the build takes: as long as the last one with this toolchain, else by arithmetic, else unknown."""
    toolchain = wanted.recipe.toolchain
    built = [
        (engine.status.built_at, engine.status.build_seconds)
        for engine in engines
        if engine.status.build_seconds
        and engine.status.built_at
        and engine.spec.recipe.to_engine_recipe().toolchain == toolchain
    ]
    if built:
        return float(max(built)[1] or 0)
    return None if wanted.size is None else wanted.size.seconds


def about(seconds: float) -> str:
    """A duration, roughly: ``about 40 s``, ``about 4 min``."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min"


def shorten(text: str) -> str:
    """A difference with its digests cut to 12 digits."""
    return " ".join(word[:12] if len(word) == 64 else word for word in text.removeprefix("recipe.").split(" "))


def replaced(count: int) -> str:
    """How many pods are replaced, in words."""
    return "no pod is replaced" if count == 0 else "1 pod is replaced" if count == 1 else f"{count} pods are replaced"


def kept(count: int) -> str:
    """How many pods stay, in words."""
    return "1 pod stays" if count == 1 else f"{count} pods stay"

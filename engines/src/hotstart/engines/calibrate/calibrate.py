"""An engine's folder -> its profile: plan, sweeps, fit. Blocking; within the budget and the time that a load takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from hotstart.engines.calibrate.cpus import read_cpu_limit
from hotstart.engines.calibrate.fit import Machine, fit
from hotstart.engines.calibrate.measure import OnShare, Prompts, Submit, Sweeper
from hotstart.engines.calibrate.plan import CPU_BUDGET, GPU_BUDGET, Budget, make_plan
from hotstart.engines.calibrate.samples import CalibrationFailed, CannotCalibrate
from hotstart.engines.errors import EngineError
from hotstart.engines.profile import Profile, usable_cpus
from hotstart.engines.recipe import EngineRecipe
from hotstart.exchange.messages import ServingOptions

log = logging.getLogger(__name__)


class Completion(Submit, Protocol):
    """An opened way to a completion model, and the tokens that its prompts are made of."""

    @property
    def vocabulary(self) -> list[int]: ...


Opening = Callable[[Path, ServingOptions], AbstractContextManager[Completion]]


def calibrate(
    folder: Path,
    recipe: EngineRecipe,
    serving: ServingOptions,
    *,
    budget: Budget | None = None,
    on_share: OnShare = lambda share: None,
) -> Profile:
    """Measures the engine in ``folder`` as it will serve.

    Raises:
        CalibrationFailed: nothing that makes a profile could be measured.
        Terminal: VerificationFailed, in Triton the engine does not answer as it was verified.
    """
    runtime = recipe.toolchain.runtime
    if runtime not in OPENINGS:
        raise CannotCalibrate(f"there is no way to calibrate an engine of {runtime}; {', '.join(OPENINGS)} can be")
    opening, usual = OPENINGS[runtime]
    began = time.monotonic()
    try:
        with opening()(folder, serving) as completion:
            plan = make_plan(recipe.limits, serving, budget or usual)
            sweeps = Sweeper(plan, completion, Prompts(completion.vocabulary)).run(on_share)
    except (CalibrationFailed, EngineError):
        raise
    except Exception as error:
        log.exception("calibration failed")  # whatever a runtime raises: a verified engine is kept all the same
        raise CalibrationFailed(f"the engine cannot be measured: {type(error).__name__}: {error}") from error
    profile = fit(plan, sweeps, make_machine(runtime, serving), time.monotonic() - began)
    log.info(
        "engine calibrated lone_ms=%s concurrencies=%d noise=%s seconds=%s",
        profile.lone[0].latency_ms,
        len(profile.load),
        profile.noise,
        profile.seconds,
    )
    return profile


def make_machine(runtime: str, serving: ServingOptions) -> Machine:
    """What a profile that is measured here holds for."""
    if runtime != "ctranslate2":
        return Machine()
    cpus = usable_cpus(read_cpu_limit(), serving.inter_threads, serving.intra_threads)
    return Machine(round(cpus, 3), serving.inter_threads, serving.intra_threads)


def _local() -> Opening:
    from hotstart.engines.calibrate.local import LocalCompletion

    return LocalCompletion


def _triton() -> Opening:
    from hotstart.engines.calibrate.triton import OwnTriton

    return OwnTriton


#: By runtime: the way to its completion model (its libraries are loaded only here), and the usual budget.
OPENINGS: dict[str, tuple[Callable[[], Opening], Budget]] = {
    "ctranslate2": (_local, CPU_BUDGET),
    "tensorrt_llm": (_triton, GPU_BUDGET),
}

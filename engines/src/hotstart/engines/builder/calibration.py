"""The build's calibration: by a container beside the builder's that has a replica's CPU limit, or in this process.

The builder may use a whole node, a replica may not: so on CPUs a sidecar of the build's pod measures, under a replica's
limits. They speak through files in the scratch volume: ``request.json``, ``begun``, ``answer.json``. A calibration that
fails is no reason to throw a verified engine away: it is stored without a profile, and the manifest says why.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotstart.engines.calibrate.measure import OnShare
from hotstart.engines.calibrate.plan import CPU_BUDGET
from hotstart.engines.calibrate.samples import CalibrationFailed
from hotstart.engines.profile import Profile
from hotstart.engines.recipe import EngineRecipe
from hotstart.exchange.messages import ServingOptions

log = logging.getLogger(__name__)
POLL_SECONDS = 0.1
PATIENCE_SECONDS = 60.0  # beyond the budget: the sidecar loads its libraries and the engine, on little CPU
REQUEST, BEGUN, ANSWER = "request.json", "begun", "answer.json"


@dataclass(frozen=True)
class Calibrated:
    """The profile, or why there is none."""

    profile: Profile | None
    failure: str | None


def calibrate_engine(
    folder: Path, recipe: EngineRecipe, serving: ServingOptions, *, beside: Path | None, on_share: OnShare
) -> Calibrated:
    """The engine's profile. ``beside``: the folder through which a calibrator is asked; None measures here."""
    try:
        if beside is not None:
            return Calibrated(ask(beside, folder, recipe, serving, on_share=on_share), None)
        from hotstart.engines.calibrate.calibrate import calibrate

        return Calibrated(calibrate(folder, recipe, serving, on_share=on_share), None)
    except CalibrationFailed as failure:
        log.warning("engine not calibrated, stored without a profile cause=%s", failure)
        return Calibrated(None, str(failure))


def ask(
    beside: Path,
    folder: Path,
    recipe: EngineRecipe,
    serving: ServingOptions,
    *,
    on_share: OnShare,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Profile:
    """Has the calibrator measure, and waits for its answer.

    Raises:
        CalibrationFailed: it says why it could not, or says nothing for too long.
    """
    beside.mkdir(parents=True, exist_ok=True)
    value = {"folder": str(folder), "recipe": recipe.to_dict(), "serving": serving.model_dump(mode="json")}
    write_whole(beside / REQUEST, value)
    began = clock()
    while not (beside / ANSWER).exists():
        waited = clock() - began
        if waited > CPU_BUDGET.seconds + PATIENCE_SECONDS:
            said = "has begun and not ended" if (beside / BEGUN).exists() else "has not begun"
            raise CalibrationFailed(f"the calibrator beside the builder {said} within {waited:.0f} s")
        on_share(min(0.99, waited / CPU_BUDGET.seconds))
        sleep(POLL_SECONDS)
    answer = json.loads((beside / ANSWER).read_text())
    if answer["failure"] is not None:
        raise CalibrationFailed(answer["failure"])
    return Profile.from_json(answer["profile"])


def serve(beside: Path, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """The calibrator: waits for the request, and answers it once."""
    while not (beside / REQUEST).exists():
        sleep(POLL_SECONDS)
    if not (beside / ANSWER).exists():
        write_whole(beside / ANSWER, make_answer(beside))


def make_answer(beside: Path) -> dict[str, Any]:
    """Measures what is asked for. What has begun and was not answered was ended from outside, and would be again."""
    if (beside / BEGUN).exists():
        return {"profile": None, "failure": "the calibrator was killed, as a replica would be: raise its memory limit"}
    (beside / BEGUN).touch()
    from hotstart.engines.calibrate.calibrate import calibrate

    request = json.loads((beside / REQUEST).read_text())
    try:
        recipe = EngineRecipe.from_dict(request["recipe"])
        serving = ServingOptions.model_validate(request["serving"])
        return {"profile": calibrate(Path(request["folder"]), recipe, serving).to_json(), "failure": None}
    except CalibrationFailed as failure:
        return {"profile": None, "failure": str(failure)}


def write_whole(path: Path, value: dict[str, Any]) -> None:
    """Writes the JSON so that a reader sees all of it or nothing."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value))
    new.rename(path)

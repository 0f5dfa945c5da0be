"""From which engine new weights are refitted: the nearest one, of the same recipe and another checkpoint. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from hotstart.operator.api import Engine
from hotstart.operator.api.model_spec import Rebuild
from hotstart.operator.core.engine_status import is_stored

PLAN_PREFIX = "refit-"  # files of an engine with it are its plan without weights


def find_base(engine: Engine, engines: Iterable[Engine]) -> Engine | None:
    """The engine whose plan is taken: the youngest that stands; None where none does, or nothing is refitted.

    Its network may still be of other sizes: the builder, which knows them, compares.
    """
    if engine.spec.recipe.rebuild is not Rebuild.REFIT:
        return None
    bases = [
        other
        for other in engines
        if other.spec.recipe == engine.spec.recipe
        and other.spec.checkpoint_digest != engine.spec.checkpoint_digest
        and is_stored(other)
    ]
    return max(bases, key=age_of, default=None)


def age_of(engine: Engine) -> tuple[float, str]:
    """When it was built, and its name where that is not known or the same."""
    built = engine.status.built_at
    return (0.0 if built is None else built.timestamp(), engine.metadata.name)

"""From which engine new weights are refitted: the nearest one, of the same recipe and another checkpoint. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from hotstart.operator.api import Engine
from hotstart.operator.api.model_spec import Rebuild
from hotstart.operator.core.engine_status import is_stored


def find_base(engine: Engine, engines: Iterable[Engine]) -> Engine | None:
    """The first of ``list_bases``; its network may still be another."""
    return next(iter(list_bases(engine, engines)), None)


def list_bases(engine: Engine, engines: Iterable[Engine]) -> list[Engine]:
    """The engines whose plan may be taken, the youngest first; empty where none stands, or nothing is refitted.

    Which of them is of the same network, their manifests tell.
    """
    if engine.spec.recipe.rebuild is not Rebuild.REFIT:
        return []
    bases = [
        other
        for other in engines
        if other.spec.recipe == engine.spec.recipe
        and other.spec.checkpoint_digest != engine.spec.checkpoint_digest
        and is_stored(other)
    ]
    return sorted(bases, key=age_of, reverse=True)


def age_of(engine: Engine) -> tuple[float, str]:
    """When it was built, and its name where that is not known or the same."""
    built = engine.status.built_at
    return (0.0 if built is None else built.timestamp(), engine.metadata.name)

"""What is said of an object that this version of the operator cannot read. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from hotstart.operator.api import ConditionStatus, ConditionType, Reason
from hotstart.operator.core.writes import Object

SHOWN_ERRORS = 3


def report_invalid(raw: Object, errors: Iterable[Mapping[str, Any]], now: float) -> dict[str, Any]:
    """The merge patch of status that names the fields; empty where it stands already."""
    generation = raw["metadata"].get("generation", 0)
    shown = [f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in errors][:SHOWN_ERRORS]
    message = f"The object does not fit this version of Hotstart: {'; '.join(shown)}."[:1024]
    old = raw.get("status", {}).get("conditions", [])
    if any(c["type"] == ConditionType.READY and c.get("message") == message for c in old):
        return {}
    ready = {
        "type": str(ConditionType.READY),
        "status": str(ConditionStatus.FALSE),
        "observedGeneration": generation,
        "lastTransitionTime": datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "reason": str(Reason.INVALID_SPEC),
        "message": message,
    }
    others = [condition for condition in old if condition["type"] != ConditionType.READY]
    return {"conditions": [ready, *others], "observedGeneration": generation}

"""What an engine's conditions say, and what is read off them. Pure."""

from __future__ import annotations

from hotstart.engines.verification import Verification
from hotstart.operator.api import ConditionStatus, ConditionType, Engine, Reason
from hotstart.operator.api.engine import EnginePhase, VerificationStatus
from hotstart.operator.core.conditions import Verdict, find_condition
from hotstart.operator.core.jobs import Failure
from hotstart.operator.core.quarantine import describe_nodes, quarantined_nodes

#: What another content under the same URI heals, or other serving options: neither changes the key at once.
MENDED_IN_PLACE = frozenset(
    {
        Reason.CHECKPOINT_NOT_FOUND,
        Reason.CHECKPOINT_INCOMPLETE,
        Reason.CHECKPOINT_CORRUPT,
        Reason.TOKENIZER_MISMATCH,
        Reason.MARKERS_NOT_IN_TOKENIZER,
    }
)


def is_stored(engine: Engine) -> bool:
    """Whether the engine stands whole in the store, as far as was last seen."""
    ready = find_condition(engine.status.conditions, ConditionType.READY)
    return ready is not None and ready.status is ConditionStatus.TRUE and bool(engine.status.manifest_digest)


def judge_nodes(engine: Engine) -> Verdict:
    """Degraded, of an engine that stands: it failed its verification on some node."""
    message = describe_nodes(engine.metadata.name, quarantined_nodes(engine))
    reason = Reason.ENGINE_QUARANTINED if message else Reason.HEALTHY
    return Verdict(ConditionType.DEGRADED, bool(message), reason, message)


def make_verification_status(verification: Verification) -> VerificationStatus:
    """A verification as status shows it: text, for the API has no floats."""
    share = verification.agreed_of_all / verification.positions if verification.positions else 0.0
    return VerificationStatus(
        positions=verification.positions,
        compared=verification.compared,
        agreed=verification.agreed,
        agreement=f"{100 * share:.1f}%",
        epsilon=f"{verification.epsilon:.3f}",
        worst_margin=f"{verification.worst_margin:.3f}",
        reference=verification.reference,
    )


def report_failure(failure: Failure, *, progressing: bool) -> tuple[Verdict, ...]:
    """Ready is False for this reason; Progressing says whether it may pass by itself; Degraded once it is an error."""
    quiet = failure.reason in (Reason.ENGINE_BUILDING, Reason.BUILD_QUEUED, Reason.PENDING)
    state = (
        Reason.ENGINE_BUILDING if progressing and quiet else Reason.BUILD_RETRYING if progressing else failure.reason
    )
    return (
        Verdict(ConditionType.READY, False, failure.reason, failure.message),
        Verdict(ConditionType.PROGRESSING, progressing, state, "" if quiet else failure.message),
        Verdict(ConditionType.DEGRADED, not quiet, Reason.HEALTHY if quiet else failure.reason, ""),
    )


def find_final_failure(engine: Engine) -> Failure | None:
    """What the last attempt at an engine said, where no other one can help; a quarantine is not meant."""
    status = engine.status
    ready = find_condition(status.conditions, ConditionType.READY)
    progressing = find_condition(status.conditions, ConditionType.PROGRESSING)
    if status.phase != EnginePhase.FAILED or ready is None or progressing is None:
        return None
    if progressing.status is not ConditionStatus.FALSE or ready.reason in (Reason.ENGINE_QUARANTINED, *MENDED_IN_PLACE):
        return None
    return Failure(ready.reason, ready.message, False)

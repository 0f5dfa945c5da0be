"""The sentences of the decisions that refuse a request. Pure."""

from __future__ import annotations

from collections.abc import Callable

from hotstart.exchange.messages import ModelRoute
from hotstart.router.admission import Reason
from hotstart.router.errors import RATE_LIMIT, SERVER_ERROR, ApiError

# reason -> status, code, sentence.
_REFUSALS: dict[Reason, tuple[int, str, Callable[[ModelRoute], str]]] = {
    Reason.QUEUE_FULL: (
        429,
        "queue_full",
        lambda route: f"The queue of {route.model} is full ({route.queue_limit} requests); try again later.",
    ),
    Reason.QUEUE_DEADLINE: (
        429,
        "queue_deadline",
        lambda route: f"No replica of {route.model} was free within {route.queue_deadline:g} s; try again later.",
    ),
    Reason.NO_REPLICA: (
        503,
        "model_unavailable",
        lambda route: f"{route.model} has no replica: {route.unavailable_reason or 'none is ready and none is coming'}",
    ),
    Reason.HOLD_EXPIRED: (
        503,
        "replica_not_ready",
        lambda route: (
            f"No replica of {route.model} became ready within {route.hold:g} s"
            f"{': ' + route.unavailable_reason if route.unavailable_reason else '; try again later.'}"
        ),
    ),
    Reason.NONE_ANSWERS: (
        503,
        "replicas_silent",
        lambda route: f"No replica of {route.model} answered within {route.queue_deadline:g} s; try again later.",
    ),
}


class Rejected(ApiError):
    """It was refused and did not fail: by the router itself, or by the model, that calls it the client's mistake."""


def refused_by_model(model: str, why: str) -> Rejected:
    """The answer where the model says that the request is at fault."""
    return Rejected(400, f"{model} refused the request: {why}", code="refused_by_model")


def make_refusal(reason: Reason, route: ModelRoute, retry_after: int) -> Rejected:
    """The answer for a decision that refuses. A model with no replica and none coming says nothing of when to retry."""
    status, code, sentence = _REFUSALS[reason]
    return Rejected(
        status,
        sentence(route),
        kind=RATE_LIMIT if status == 429 else SERVER_ERROR,
        code=code,
        retry_after=None if reason is Reason.NO_REPLICA else retry_after,
    )

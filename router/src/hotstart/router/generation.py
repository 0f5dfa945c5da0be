"""One request from its slot to its last piece, on a second pod where the first one was lost.

A request is sent to at most two pods, and to the second only while no piece of it has been handed on. Whoever stops
iterating (its client left) ends the generation in the pod.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial

from hotstart.router.balance import request_work
from hotstart.router.call import Call, PodLost, Refused
from hotstart.router.errors import SERVER_ERROR, ApiError, overloaded, unavailable
from hotstart.router.lane import Lane
from hotstart.router.openai import Completion, make_options, token_limit
from hotstart.router.pod import Pod
from hotstart.router.refusals import refused_by_model
from hotstart.router.wire import Fault, Piece, Refusal, make_request

log = logging.getLogger(__name__)

ATTEMPTS = 2
CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Job:
    """What to generate. ``timeout`` is in seconds, from a slot to the last piece."""

    id: str
    completion: Completion
    timeout: float


async def generate(lane: Lane, job: Job) -> AsyncGenerator[Piece, None]:
    """The pieces of a completion; the last is final and has details.

    Raises:
        ApiError: there is no completion, or no more of it.
    """
    text = len(job.completion.prompt) + len(job.completion.suffix or "")
    work = request_work(text, token_limit(job.completion, lane.route.max_new_tokens))
    options = make_options(job.completion, lane.route.max_new_tokens)
    lost: list[str] = []
    while True:
        pod = await lane.acquire(work, excluded=tuple(lost), again=bool(lost))
        call_id = f"{job.id}-{len(lost)}" if lost else job.id
        message = make_request(call_id, job.completion.prompt, job.completion.suffix, options)
        call = Call(call_id, message, partial(lane.release, pod, work))
        handed_on = False
        deadline = asyncio.get_running_loop().call_later(job.timeout, call.interrupt, _too_slow())
        try:
            pod.send(call)
            while True:
                piece = await _next(call)
                handed_on = True
                yield piece
                if piece.final:
                    return
        except (PodLost, Refused) as loss:
            lost.append(pod.pod)
            if handed_on or len(lost) >= ATTEMPTS or not _retryable(loss) or not lane.other_pod(lost):
                raise _error(loss, lane, pod) from loss
            lane.counters.retries += 1
            log.info("request goes to another pod request=%s lost=%s why=%s", job.id, pod.pod, loss)
        finally:
            deadline.cancel()
            pod.cancel(call)


def _too_slow() -> ApiError:
    message = "The generation did not end in time; ask for fewer tokens."
    return ApiError(504, message, kind=SERVER_ERROR, code="timeout")


async def _next(call: Call) -> Piece:
    piece = await call.next()
    if not piece.final:
        return piece
    if piece.details is None:
        raise Refused(Refusal(Fault.INTERNAL, "the last message came without details"))
    if piece.details.finish_reason == CANCELLED:
        raise PodLost("the pod cancelled the request by itself")
    return piece


def _retryable(loss: PodLost | Refused) -> bool:
    return isinstance(loss, PodLost) or loss.refusal.fault in (Fault.OVERLOADED, Fault.UNAVAILABLE)


def _error(loss: PodLost | Refused, lane: Lane, pod: Pod) -> ApiError:
    """What the client is told; what only the operator of the service should know is logged."""
    model = lane.route.model
    if isinstance(loss, Refused):
        fault = loss.refusal.fault
        if fault is Fault.INVALID:
            return refused_by_model(model, loss.refusal.message)
        if fault is Fault.OVERLOADED:
            return overloaded(f"The replicas of {model} are full; try again later.", code="overloaded", retry_after=1)
        log.error("pod answered with an error model=%s pod=%s error=%s", model, pod.pod, loss)
        if fault is Fault.INTERNAL:
            message = f"A replica of {model} failed on this request; the log of pod {pod.pod} says why."
            return ApiError(500, message, kind=SERVER_ERROR, code="internal_error")
    log.error("request lost with its pod model=%s pod=%s why=%s", model, pod.pod, loss)
    return unavailable(
        f"The replica that served this request of {model} went away.", code="replica_lost", retry_after=1
    )

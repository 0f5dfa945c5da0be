"""What a Job of ours came to, and whether another attempt is due. Pure; used for inspect and build Jobs alike.

A Job makes one pod (`backoffLimit: 0`); its result, or its failure with cause and remedy, is the pod's termination
message. Exit code 64 means that another attempt cannot help until somebody changes something.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from hotstart.exchange.names import EXIT_KILLED, EXIT_TERMINAL, STEP_CONVERT
from hotstart.operator.api import Reason
from hotstart.operator.core.facts import Exit, JobFacts, PodFacts, Trouble

DEADLINE = "DeadlineExceeded"  # Kubernetes' reason for a Job that ran into activeDeadlineSeconds
NO_POD_AFTER_SECONDS = 8.0
REPEATED = 40  # characters of a message by which a line of the log is known to say the same
LAST_LINES, LONGEST_TAIL = 3, 400  # characters


@dataclass(frozen=True)
class Failure:
    """Why something did not come to be. ``at`` is in seconds since the epoch."""

    reason: str
    message: str
    retryable: bool
    at: float = 0.0


@dataclass(frozen=True)
class Running:
    """The Job is under way; ``trouble`` is set where something holds it up."""

    trouble: Failure | None = None


@dataclass(frozen=True)
class Succeeded:
    """The Job's pod ended well; ``result`` is the JSON object of its termination message."""

    result: dict[str, Any]
    at: float


@dataclass(frozen=True)
class Failed:
    """The Job came to nothing."""

    failure: Failure


Outcome = Running | Succeeded | Failed


def read_trouble(trouble: Trouble, *, secret: str, what: str) -> Failure:
    """A pod's trouble as reason, cause and remedy. ``secret`` is the checkpoint's Secret, or ''."""
    text = trouble.message.rstrip(".")
    if trouble.reason == "CreateContainerConfigError" and "secret" in text and "not found" in text:
        return Failure(
            Reason.SECRET_NOT_FOUND,
            f"Secret {secret!r}, named by spec.checkpoint.secretName, does not exist in this namespace: create it "
            "with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://, HF_TOKEN for hf://; it is taken up by itself.",
            True,
        )
    if trouble.reason == "Unschedulable":
        remedy = "Free or add resources, or lower the request"
        if "persistentvolumeclaim" in text and "not found" in text:
            remedy = "Create that claim in this namespace, or name another one in spec.checkpoint.uri"
        return Failure(Reason.UNSCHEDULABLE, f"No node takes {what}: {text}. {remedy}.", True)
    if trouble.reason in ("ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName"):
        return Failure(
            Reason.IMAGE_PULL_FAILED,
            f"The image of {what} cannot be pulled: {text}. Check the image's name and the registry's credentials.",
            True,
        )
    if trouble.reason == "CreateContainerConfigError":
        return Failure(Reason.PENDING, f"The container of {what} cannot be set up: {text}.", True)
    if trouble.reason == "CrashLoopBackOff":
        return Failure(Reason.PODS_CRASHING, f"A container of {what} ends again and again: {text}.", True)
    return Failure(Reason.PENDING, f"{what.capitalize()} waits: {trouble.reason}: {text}.", True)


def read_failure(text: str) -> Failure | None:
    """The failure in a termination message; None where it holds none."""
    try:
        found = json.loads(text)["failure"]
        message = with_tail(str(found["message"]), [str(line) for line in found.get("log_tail", ())])
        return Failure(str(found["reason"]), message, bool(found["retryable"]))
    except (ValueError, KeyError, TypeError):
        return None


def with_tail(message: str, lines: Iterable[str]) -> str:
    """A failure's message with the last lines of the log, but for those that repeat it."""
    others = [line for line in lines if message[:REPEATED] not in line]
    tail = " | ".join(others[-LAST_LINES:])[-LONGEST_TAIL:]
    return f"{message} Last lines: {tail}" if tail else message


def read_exit(ended: Exit, *, fallback: str, what: str) -> Failure:
    """The failure of a container that ended with a code other than 0."""
    said = read_failure(ended.message)
    if said is not None:
        return Failure(said.reason, said.message, said.retryable and ended.code != EXIT_TERMINAL, ended.finished or 0.0)
    if is_kill(ended):
        return Failure(Reason.OUT_OF_MEMORY, say_killed(ended, what), True, ended.finished or 0.0)
    tail = " | ".join(ended.message.splitlines()[-3:])[-400:]
    message = f"{what.capitalize()} ended with code {ended.code} ({ended.reason or 'Error'}) and no report"
    return Failure(fallback, f"{message}: {tail}" if tail else f"{message}.", True, ended.finished or 0.0)


def read_deadline(job: JobFacts, *, fallback: str, what: str, now: float) -> Failure:
    """A Job that Kubernetes has ended at its time limit; its pod was ended with it, and says nothing of use."""
    reason = Reason.BUILD_TIMED_OUT if fallback == Reason.BUILD_FAILED else fallback
    message = f"{what.capitalize()} did not end within its time limit: it had too little CPU, or its node stood still."
    return Failure(reason, message, True, job.finished or now)


def was_killed(job: JobFacts) -> bool:
    """Whether a container of the Job, or a tool that it ran, was killed for memory."""
    ended = None if job.pod is None else job.pod.exit
    return ended is not None and is_kill(ended) and job.pod is not None and not job.pod.evicted


def answers(pod: PodFacts) -> bool:
    """Whether a build's pod has somebody to ask: the builder, or the conversion before it."""
    return pod.phase == "Running" or pod.step == STEP_CONVERT


def is_kill(ended: Exit) -> bool:
    """Whether a container was ended by SIGKILL."""
    return ended.reason == "OOMKilled" or ended.code == EXIT_KILLED


def say_killed(ended: Exit, what: str) -> str:
    """A container that was killed for memory: which, with how much, and what to do."""
    sure = "was killed for memory" if ended.reason == "OOMKilled" else "was killed, most likely for memory"
    had = f", which had {ended.memory}" if ended.memory else ""
    remedy = "it needs a node with more memory, a quantized engine or lower engine.limits"
    return f"{what.capitalize()} {sure} (exit {ended.code}, container {ended.container}{had}): {remedy}."


def read_eviction(pod: PodFacts, *, fallback: str, what: str) -> Failure:
    """A pod that the kubelet took off its node: for its disk, for memory, or for something else."""
    text, at = pod.evicted.rstrip("."), (0.0 if pod.exit is None else pod.exit.finished or 0.0)
    said = f"{what.capitalize()} was evicted from node {pod.node}: {text}."
    if any(word in text.lower() for word in ("ephemeral", "emptydir", "disk")):
        return Failure(Reason.DISK_FULL, f"{said} It needs a node with more free disk for emptyDir volumes.", True, at)
    if "memory" in text:
        return Failure(Reason.OUT_OF_MEMORY, f"{said} It needs a node with more free memory.", True, at)
    return Failure(fallback, said, True, at)


def say_disrupted(pod: PodFacts, what: str) -> Failure:
    """A pod that Kubernetes ended, and for which the Job's policy has another one made in the same Job."""
    if pod.evicted:
        failure = read_eviction(pod, fallback=Reason.PENDING, what=what)
    else:
        said = f"{what.capitalize()} was taken off node {pod.node}: {pod.disrupted.rstrip('.')}."
        failure = Failure(Reason.PENDING, said, True)
    return replace(failure, message=f"{failure.message} Kubernetes starts it again.")


def decide_outcome(job: JobFacts, *, secret: str, fallback: str, what: str, now: float) -> Outcome:
    """What the Job came to, from its pod first: the Job's own status comes seconds later."""
    pod = job.pod
    ended = None if pod is None else pod.exit
    if job.failed and job.failure_reason == DEADLINE:
        return Failed(read_deadline(job, fallback=fallback, what=what, now=now))
    if pod is not None and pod.disrupted and pod.phase == "Failed" and not (job.failed or job.complete):
        return Running(say_disrupted(pod, what))
    if pod is not None and pod.evicted and pod.phase == "Failed":
        return Failed(read_eviction(pod, fallback=fallback, what=what))
    if ended is not None and pod is not None and (pod.phase in ("Succeeded", "Failed") or job.failed or job.complete):
        if ended.code != 0:
            return Failed(name_secret(read_exit(ended, fallback=fallback, what=what), secret))
        return read_success(ended, fallback=fallback, what=what)
    if job.failed or job.complete:
        cause = job.failure_message or "its pod is gone, and with it its report"
        return Failed(Failure(fallback, f"{what.capitalize()} failed: {cause}.", True, job.finished or now))
    if pod is None:
        if now - job.created < NO_POD_AFTER_SECONDS:
            return Running()
        message = (
            f"{what.capitalize()} has no pod since {NO_POD_AFTER_SECONDS:.0f} s: a quota or an admission rule refuses "
            f"it; see kubectl describe job {job.name}."
        )
        return Running(Failure(Reason.QUOTA_EXCEEDED, message, True))
    if pod.trouble is not None:
        return Running(read_trouble(pod.trouble, secret=secret, what=what))
    return Running()


def name_secret(failure: Failure, secret: str) -> Failure:
    """The failure with the name of the Secret whose credentials were refused: the Job knows only its content."""
    if failure.reason != Reason.ACCESS_DENIED or not secret or secret in failure.message:
        return failure
    return replace(failure, message=f"{failure.message} The Secret is {secret!r}, named by spec.checkpoint.secretName.")


def read_success(ended: Exit, *, fallback: str, what: str) -> Outcome:
    """The result of a container that ended with 0; a build's may be empty."""
    try:
        result = json.loads(ended.message) if ended.message else {}
        if not isinstance(result, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        message = f"{what.capitalize()} ended well, but its report is unreadable: {error}."
        return Failed(Failure(fallback, message, True, ended.finished or 0.0))
    return Succeeded(result, ended.finished or 0.0)


def newest_job(jobs: Iterable[JobFacts]) -> JobFacts | None:
    """The Job of the last attempt."""
    return max(jobs, key=lambda job: (job.attempt, job.created), default=None)


def count_killed(jobs: Iterable[JobFacts]) -> int:
    """How many of the last attempts in a row were killed for memory."""
    attempts = sorted((job for job in jobs if not job.deleting), key=lambda job: job.attempt, reverse=True)
    return len(list(takewhile(was_killed, attempts)))


def find_obsolete(jobs: Iterable[JobFacts]) -> tuple[JobFacts, ...]:
    """All but the last two attempts."""
    return tuple(sorted(jobs, key=lambda job: job.attempt)[:-2])

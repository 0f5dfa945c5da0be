"""How many requests one replica holds within the SLO, and where that figure comes from. Pure.

On-call's own figure wins; then the calibrated one, where the profile holds for the replicas as they are; else 1. A
profile says nothing about replicas with other CPUs, threads or longer completions than it was measured with. A noisy
one counts, and says so: what disturbed it can only have made the engine look slower than it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from hotstart.engines.profile import (
    PROFILE_PERCENTILE,
    LoadPoint,
    LonePoint,
    Profile,
    concurrency_within,
    lone_latency,
    sustained_work,
    usable_cpus,
)
from hotstart.operator.api import CompletionModelSpec
from hotstart.operator.api.engine import LoadPointStatus, ProfileStatus, Repeatability
from hotstart.operator.api.model_spec import Runtime

DEFAULT_CONCURRENCY = 1
CPU_STEP = 0.01  # CPUs closer than this are the same
SUFFIXES = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} | {
    f"{letter}i": 1024.0**power for power, letter in enumerate("KMGT", start=1)
}


class Origin(StrEnum):
    """Where the figure comes from, as people read it."""

    SPEC = "spec"
    CALIBRATED = "calibrated"
    DEFAULT = "default"


@dataclass(frozen=True)
class Capacity:
    """What one replica holds.

    ``concurrency``: requests at once within the SLO. ``work``: what demand is measured against, in lone requests' worth
    of work done at once (``profile.sustained_work``). ``cap``: most requests that all routers send a pod at once.
    ``misfit``: why no profile counts, '' where one does. ``lone_ms``: latency of a lone request by that profile (ms);
    ``lone_misses``: it alone takes longer than the SLO. ``noisy``: its repeated sweeps disagreed.
    """

    concurrency: int
    work: float
    cap: int
    origin: Origin
    misfit: str = ""
    lone_ms: float | None = None
    lone_misses: bool = False
    noisy: bool = False

    def describe(self) -> str:
        """The figures with their origin."""
        if self.origin is not Origin.CALIBRATED:
            return f"{self.concurrency} requests ({self.origin})"
        return f"{self.concurrency} requests at once, the work of {self.work:g} ({self.origin}{', noisy' * self.noisy})"


def decide_capacity(spec: CompletionModelSpec, status: ProfileStatus | None) -> Capacity:
    """The capacity of a replica of this spec whose engine has this profile."""
    profile = None if status is None else read_profile(status)
    misfit = find_misfit(spec, profile)
    longest = (spec.engine.limits.input_tokens, spec.serving.max_new_tokens)
    lone = lone_latency(profile, *longest) if profile is not None and not misfit else None
    misses = lone is not None and lone > spec.slo.latency.milliseconds
    noisy = lone is not None and profile is not None and profile.noisy
    said = spec.scaling.concurrency_per_replica
    if said is not None:
        return Capacity(said, said, said, Origin.SPEC, misfit, lone, misses, noisy)
    if profile is None or misfit or misses:
        each = DEFAULT_CONCURRENCY
        return Capacity(each, each, each, Origin.DEFAULT, misfit, lone, misses, noisy)
    slo = spec.slo.latency.milliseconds
    held = max(1, min(concurrency_within(profile, slo), spec.engine.limits.batch_size))
    work = round(min(held, sustained_work(profile, slo)), 1)
    return Capacity(held, work, min(held, slots_of(spec)), Origin.CALIBRATED, misfit, lone, misses, noisy)


def slots_of(spec: CompletionModelSpec) -> int:
    """Requests that a pod works on at once; one more would wait in it, where no other pod can take it over."""
    return spec.engine.limits.batch_size if is_gpu(spec) else spec.serving.inter_threads


def is_gpu(spec: CompletionModelSpec) -> bool:
    """Whether replicas run on GPUs."""
    return spec.engine.runtime is not Runtime.CTRANSLATE2


def other_cpus(spec: CompletionModelSpec, profile: Profile) -> str:
    """Replicas have other CPUs or threads."""
    if is_gpu(spec):
        return ""
    threads = (spec.serving.inter_threads, spec.serving.intra_threads)
    if threads != (profile.inter_threads, profile.intra_threads):
        measured = f"{profile.inter_threads} x {profile.intra_threads}"
        return f"calibrated with {measured} threads (inter x intra), replicas have {threads[0]} x {threads[1]}"
    cpus = usable_cpus(cpu_limit(spec), *threads)
    if abs(cpus - profile.cpus) < CPU_STEP:
        return ""
    return f"calibrated with {profile.cpus:g} CPUs, replicas have {cpus:g}"


def longer_requests(spec: CompletionModelSpec, profile: Profile) -> str:
    """Requests may be larger than any that was measured."""
    new, read = spec.serving.max_new_tokens, spec.engine.limits.input_tokens
    if new <= profile.new_tokens and read <= profile.input_tokens:
        return ""
    measured = f"{profile.input_tokens} + {profile.new_tokens}"
    return f"calibrated with requests of {measured} tokens, they may have {read} + {new}"


def higher_percentile(spec: CompletionModelSpec, profile: Profile) -> str:
    """The SLO is about slower requests than the profile knows of."""
    if spec.slo.percentile <= PROFILE_PERCENTILE:
        return ""
    return f"calibration measures P{PROFILE_PERCENTILE}, the SLO is about P{spec.slo.percentile}"


MISFITS: tuple[Callable[[CompletionModelSpec, Profile], str], ...] = (
    other_cpus,
    longer_requests,
    higher_percentile,
)


def find_misfit(spec: CompletionModelSpec, profile: Profile | None) -> str:
    """Why the profile says nothing about replicas of this spec; '' where it does."""
    if profile is None:
        return "this engine was not calibrated"
    return next((said for misfit in MISFITS if (said := misfit(spec, profile))), "")


def cpu_limit(spec: CompletionModelSpec) -> float | None:
    """The CPU limit of a replica's Triton container (cores); None where there is none."""
    resources = spec.serving.resources
    limits = None if resources is None else resources.limits
    return None if limits is None or limits.cpu is None else parse_quantity(limits.cpu)


def parse_quantity(text: str) -> float:
    """A quantity of Kubernetes in the form that the API takes: '700m' is 0.7."""
    number = text.rstrip("mkMGTKi")
    return float(number) * SUFFIXES[text[len(number) :]]


def make_profile_status(profile: Profile) -> ProfileStatus:
    """The profile as the Engine's status shows it; what is rounded is rounded to the slower side."""
    return ProfileStatus(
        lone_milliseconds=math.ceil(profile.lone[0].latency_ms),
        input_tokens=profile.input_tokens,
        new_tokens=profile.new_tokens,
        prefill_tokens_per_second=int(profile.prefill_tokens_per_second),
        decode_tokens_per_second=int(max((point.decode_tokens_per_second for point in profile.load), default=0)),
        load=tuple(
            LoadPointStatus(
                concurrency=point.concurrency,
                p95_milliseconds=math.ceil(point.p95_ms),
                tokens_per_second=f"{point.decode_tokens_per_second:.1f}",
            )
            for point in profile.load[:16]
        ),
        cpus=f"{profile.cpus:g}" if profile.cpus else "",
        inter_threads=profile.inter_threads,
        intra_threads=profile.intra_threads,
        noise=f"{profile.noise:.2%} of {profile.tolerance:.0%}",
        seconds=math.ceil(profile.seconds),
        repeatability=Repeatability.NOISY if profile.noisy else Repeatability.STEADY,
    )


def read_profile(status: ProfileStatus) -> Profile:
    """The part of the profile that status keeps; the inverse of ``make_profile_status``."""
    noise, _, tolerance = status.noise.partition(" of ")
    return Profile(
        input_tokens=status.input_tokens,
        new_tokens=status.new_tokens,
        prefill_tokens_per_second=float(status.prefill_tokens_per_second),
        lone=(LonePoint(status.input_tokens, status.new_tokens, float(status.lone_milliseconds)),),
        load=tuple(
            LoadPoint(point.concurrency, float(point.p95_milliseconds), float(point.tokens_per_second))
            for point in status.load
        ),
        noise=float(noise.rstrip("%") or 0) / 100,
        tolerance=float(tolerance.rstrip("%") or 100) / 100,
        seconds=float(status.seconds),
        cpus=float(status.cpus or 0),
        inter_threads=status.inter_threads,
        intra_threads=status.intra_threads,
    )

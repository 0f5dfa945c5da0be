"""The outcome of a run as one value, and as the flat JSON that programs read."""

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from hotstart.loadtest.machine import describe_machine
from hotstart.loadtest.plan import LoadPlan
from hotstart.loadtest.sample import Sample
from hotstart.loadtest.summary import Quantiles, Summary, summarise


@dataclass(frozen=True)
class LoadResult:
    """A run that has ended. `processes`: how many sent. `interrupted`: it was ended before its schedule.

    `ran_s`: seconds from the start until sending ended. `realtime`: the senders ran ahead of ordinary processes.
    `stolen`: share of the machine's processor time, 0 to 1, that its hypervisor gave to others; None if unknown.
    """

    plan: LoadPlan
    samples: tuple[Sample, ...]
    started_at: datetime
    ran_s: float
    processes: int = 1
    interrupted: bool = False
    realtime: bool = False
    stolen: float | None = None

    @cached_property
    def summary(self) -> Summary:
        """The figures, reckoned once."""
        return summarise(
            self.samples,
            schedule_s=min(self.plan.planned_s, self.ran_s) if self.interrupted else self.plan.planned_s,
            drift_limit_s=self.plan.drift_limit_s,
            slo_s=self.plan.slo_s,
            stolen=self.stolen,
        )

    @property
    def void(self) -> bool:
        """Whether the load generator was too late to be believed."""
        return bool(self.summary.void_reason)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as flat keys: times in ms where a key ends in _ms and s where in _s, null if unmeasured.

        `failures` and `failure_details` are objects by reason; everything else is a number, text, boolean or null.
        """
        summary = self.summary
        tokens = summary.completion_tokens
        return {
            "url": self.plan.url,
            "model": self.plan.model,
            "stream": self.plan.stream,
            "started_at": self.started_at.isoformat(timespec="seconds"),
            "processes": self.processes,
            "realtime": self.realtime,
            "planned": len(self.plan.arrivals),
            "requests": summary.requests,
            "ok": summary.ok,
            "failed": summary.failed,
            "cancelled": summary.cancelled,
            "unfinished": summary.unfinished,
            "interrupted": self.interrupted,
            "failures": summary.failures,
            "failure_details": summary.failure_details,
            "duration_s": round(summary.duration_s, 3),
            "schedule_s": round(self.plan.planned_s, 3),
            "rate": round(summary.rate, 3),
            "rate_achieved": round(summary.rate_achieved, 3),
            **_in_milliseconds("", summary.latency),
            **_in_milliseconds("first_token_", summary.first_token),
            "completion_tokens": tokens,
            "completion_tokens_per_s": _per_second(tokens, summary.duration_s),
            **_in_milliseconds("drift_", summary.drift),
            "drift_limit_ms": self.plan.drift_limit_s * 1e3,
            "void": self.void,
            "void_reason": summary.void_reason,
            "slo_ms": None if self.plan.slo_s is None else self.plan.slo_s * 1e3,
            "slo_attainment": None if summary.slo_attainment is None else round(summary.slo_attainment, 6),
            "machine_stolen": None if self.stolen is None else round(self.stolen, 4),
            **describe_machine(),
        }


def _in_milliseconds(prefix: str, quantiles: Quantiles) -> dict[str, float | None]:
    names = ("p50", "p90", "p95", "p99", "max")
    values = {name: getattr(quantiles, name) for name in names}
    return {f"{prefix}{name}_ms": None if value is None else round(value * 1e3, 3) for name, value in values.items()}


def _per_second(count: int | None, seconds: float) -> float | None:
    return None if count is None or seconds <= 0 else round(count / seconds, 3)

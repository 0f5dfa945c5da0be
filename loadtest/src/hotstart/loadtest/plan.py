"""All that a run needs, as one frozen value: made by the command line, the demo or a benchmark, obeyed by `drive`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit, urlunsplit

from hotstart.loadtest.arrivals import Arrival, choose_prompts, constant_arrivals, shard_arrivals
from hotstart.loadtest.prompts import BUILT_IN_PROMPTS

# Above this p99 of lateness the run describes the generator and not the server.
DRIFT_LIMIT_S = 0.005


@dataclass(frozen=True)
class LoadPlan:
    """One run: where to, what, when. Times in seconds.

    url: the server's root, `http://host:port`, with or without `/v1`; normalised to be without it.
    arrivals: the schedule, ascending by offset.
    schedule_s: length of the schedule, by which the offered rate is reckoned; None means the last offset.
    timeout_s: a request without its last byte this long after its intended time has failed.
    cancel_after_s: when, after its intended time, the client hangs up on an arrival marked `cancel`.
    slo_s: the latency by which attainment is reckoned, if any.
    Raises ValueError naming the option at fault.
    """

    url: str
    model: str
    arrivals: tuple[Arrival, ...]
    prompts: tuple[str, ...] = BUILT_IN_PROMPTS
    stream: bool = False
    timeout_s: float = 30.0
    cancel_after_s: float | None = None
    slo_s: float | None = None
    drift_limit_s: float = DRIFT_LIMIT_S
    schedule_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", normalise_url(self.url))
        if not self.model:
            raise ValueError("--model is empty; name the model to ask, as GET /v1/models lists it")
        if not self.prompts:
            raise ValueError("there is no prompt to send")
        if self.cancel_after_s is None and any(arrival.cancel for arrival in self.arrivals):
            raise ValueError("--cancel-fraction needs --cancel-after, such as --cancel-after 100ms")
        for name, value in self.headers.items():
            if not (name + value).isprintable() or not (name + value).isascii() or ":" in name or " " in name:
                raise ValueError(f"--header {name!r}: a name without spaces and a value in printable ASCII is wanted")
            if name.lower() in ("content-length", "transfer-encoding"):
                raise ValueError(f"--header {name!r}: each request has its own length; leave this header out")
        for name in ("timeout_s", "drift_limit_s", "cancel_after_s", "slo_s"):
            seconds = getattr(self, name)
            if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
                option = name.removesuffix("_s").replace("_", "-")
                raise ValueError(f"--{option} must be longer than zero, not {seconds:g}s")

    @property
    def planned_s(self) -> float:
        """Length of the schedule in seconds."""
        if self.schedule_s is not None:
            return self.schedule_s
        return self.arrivals[-1].offset if self.arrivals else 0.0


def make_constant_plan(
    url: str,
    model: str,
    *,
    rate: float,
    duration: float,
    max_tokens: int = 32,
    seed: int = 0,
    stream: bool = False,
    slo_s: float | None = None,
) -> LoadPlan:
    """Return the plain case: `rate` requests a second for `duration` seconds, prompts drawn from the built-in set."""
    arrivals = choose_prompts(
        constant_arrivals(rate, duration, max_tokens=max_tokens), len(BUILT_IN_PROMPTS), seed=seed
    )
    return LoadPlan(url, model, arrivals, stream=stream, slo_s=slo_s, schedule_s=duration)


def shard_plan(plan: LoadPlan, processes: int) -> tuple[LoadPlan, ...]:
    """Return one plan for each process, together the whole; a process that would get no arrival gets no plan."""
    shares = shard_arrivals(plan.arrivals, processes)
    return tuple(replace(plan, arrivals=share, schedule_s=plan.planned_s) for share in shares if share)


def normalise_url(url: str) -> str:
    """Return `url` as `scheme://host[:port][/path]` without a trailing `/v1` or slash.

    Raises ValueError when it has no http(s) scheme or no host, or a query or fragment.
    """
    try:
        parts = urlsplit(url.strip())
        _ = parts.port  # a port outside 0..65535 shows only here
    except ValueError as error:
        raise ValueError(f"--url {url!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--url {url!r} is no address of a server; write it as http://host:port")
    if parts.username is not None or not url.isascii() or not url.strip().isprintable() or " " in url.strip():
        raise ValueError(f"--url {url!r} must hold printable ASCII and no user name; give keys by --header")
    try:
        parts.hostname.encode("idna")  # as the system's resolver is asked
    except UnicodeError:
        raise ValueError(f"--url {url!r}: each part of the host's name must have 1 to 63 letters") from None
    if parts.query or parts.fragment:
        raise ValueError(f"--url {url!r} must end before any ? or #; write it as http://host:port")
    path = parts.path.rstrip("/").removesuffix("/completions").removesuffix("/v1").rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))

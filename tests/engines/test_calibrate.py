"""Calibration: what is measured, within which time, and that the fit finds a simulated machine again."""

from __future__ import annotations

import heapq
import json
import random
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hotstart.engines.builder import calibration
from hotstart.engines.calibrate.calibrate import calibrate
from hotstart.engines.calibrate.cpus import read_cpu_limit
from hotstart.engines.calibrate.fit import TOLERANCE, Machine, fit
from hotstart.engines.calibrate.local import LocalCompletion
from hotstart.engines.calibrate.measure import Prompts, Sweeper
from hotstart.engines.calibrate.plan import CPU_BUDGET, Budget, SweepPlan, is_wanted, make_plan
from hotstart.engines.calibrate.samples import CalibrationFailed, Step, StepResult, Timing, make_timing, percentile
from hotstart.engines.profile import LoadPoint, LonePoint, Profile, concurrency_within, lone_latency, usable_cpus
from hotstart.engines.recipe import EngineLimits
from hotstart.exchange.messages import ServingOptions
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tiny_engine import RECIPE, write_tiny_engine

LIMITS = EngineLimits(batch_size=8, input_tokens=96, sequence_tokens=128)
SERVING = ServingOptions(max_input_tokens=96, max_new_tokens=16, slo_ms=1000)


@dataclass(frozen=True)
class SimulatedMachine:
    """A first-in-first-out queue before ``slots`` servers; times in ms, ``noise`` relative to each of them."""

    prefill_ms: float
    decode_ms: float
    slots: int = 1
    noise: float = 0.0

    def service(self, step: Step, rng: random.Random) -> tuple[float, float]:
        """Until the first token, and in all."""
        factor = 1 + self.noise * rng.uniform(-1, 1)
        first = (self.prefill_ms * step.input_tokens + self.decode_ms) * factor
        return first, first + self.decode_ms * (step.new_tokens - 1) * factor

    def run(self, step: Step, rng: random.Random) -> StepResult:
        """A closed loop of ``step.concurrency`` clients."""
        free, arrivals = [0.0] * self.slots, [0.0] * step.concurrency
        timings, end = [], 0.0
        for _ in range(step.requests):
            came = heapq.heappop(arrivals)
            began = max(came, heapq.heappop(free))
            first, whole = self.service(step, rng)
            heapq.heappush(free, began + whole)
            heapq.heappush(arrivals, began + whole)
            end = max(end, began + whole)
            timings.append(Timing(step.input_tokens, step.new_tokens, first, began + whole - came))
        return StepResult(step, tuple(timings), end / 1000)

    def sweep(self, plan: SweepPlan, rng: random.Random) -> tuple[StepResult, ...]:
        done: list[StepResult] = []
        for step in plan.steps:
            if is_wanted(plan, step, done):
                done.append(self.run(step, rng))
        return tuple(done)


def make_profile(*p95s: float, concurrencies: tuple[int, ...] = (1, 2, 4, 8)) -> Profile:
    load = tuple(LoadPoint(many, p95, 100.0) for many, p95 in zip(concurrencies, p95s, strict=False))
    return Profile(96, 16, 1000.0, (LonePoint(96, 16, p95s[0]),), load, 0.0, TOLERANCE, 1.0)


machines = st.builds(
    SimulatedMachine,
    prefill_ms=st.floats(0.01, 10),
    decode_ms=st.floats(0.5, 100),
    slots=st.integers(1, 8),
    noise=st.floats(0, 0.05),
)
profiles = st.lists(st.floats(1, 10_000), min_size=1, max_size=4).map(lambda found: make_profile(*sorted(found)))


@given(machine=machines, seed=st.integers(0, 2**32))
def test_the_fit_finds_a_simulated_machine_again(machine: SimulatedMachine, seed: int) -> None:
    rng, plan = random.Random(seed), make_plan(LIMITS, SERVING, CPU_BUDGET)
    profile = fit(plan, [machine.sweep(plan, rng) for _ in range(2)], Machine(1.0), 1.0)
    lone = machine.prefill_ms * 96 + machine.decode_ms * 16
    assert profile.lone[0].latency_ms == pytest.approx(lone, rel=0.06)
    assert [point.input_tokens for point in profile.lone] == [96, 48, 24]
    read = 96_000 / (machine.prefill_ms * 96 + machine.decode_ms)
    assert profile.prefill_tokens_per_second == pytest.approx(read, rel=0.06, abs=0.1)
    for point in profile.load:
        busy = min(point.concurrency, machine.slots)
        assert point.p95_ms <= lone * (1 + point.concurrency / machine.slots) * 1.06
        assert point.decode_tokens_per_second <= busy * 16_000 / lone * 1.06
    if machine.slots == 1:
        for point in profile.load:
            assert point.p95_ms == pytest.approx(point.concurrency * lone, rel=0.06)
    assert not profile.noisy


@given(machine=machines, seed=st.integers(0, 2**32), slower=st.floats(1.5, 5))
def test_two_sweeps_that_disagree_make_a_noisy_profile(machine: SimulatedMachine, seed: int, slower: float) -> None:
    rng, plan = random.Random(seed), make_plan(LIMITS, SERVING, CPU_BUDGET)
    disturbed = replace(machine, prefill_ms=machine.prefill_ms * slower, decode_ms=machine.decode_ms * slower)
    profile = fit(plan, [machine.sweep(plan, rng), disturbed.sweep(plan, rng)], Machine(1.0), 1.0)
    assert profile.noisy


@given(machine=machines, seed=st.integers(0, 2**32), slo=st.floats(1, 1e5), share=st.floats(0.01, 1))
def test_the_concurrency_held_is_one_that_the_machine_holds(
    machine: SimulatedMachine, seed: int, slo: float, share: float
) -> None:
    rng, plan = random.Random(seed), make_plan(LIMITS, SERVING, CPU_BUDGET)
    profile = fit(plan, [machine.sweep(plan, rng) for _ in range(2)], Machine(1.0), 1.0)
    held = concurrency_within(profile, slo, share)
    assert 0 <= held <= profile.load[-1].concurrency
    at_or_below = [point for point in profile.load if point.concurrency <= held]
    assert all(point.p95_ms <= slo * share for point in at_or_below)
    assert (held == 0) == (profile.load[0].p95_ms > slo * share)


@given(profile=profiles, slo=st.floats(1, 20_000), more=st.floats(0, 20_000), share=st.floats(0.1, 1))
def test_a_longer_slo_never_holds_fewer(profile: Profile, slo: float, more: float, share: float) -> None:
    held = concurrency_within(profile, slo, share)
    assert concurrency_within(profile, slo + more, share) >= held
    assert concurrency_within(profile, slo, 1.0) >= held
    assert held <= profile.load[-1].concurrency


@pytest.mark.parametrize(
    ("slo", "held"),
    [(90, 0), (100, 1), (199, 1), (200, 2), (299, 2), (300, 3), (400, 4), (401, 4), (100_000, 4)],
)
def test_between_measured_concurrencies_the_p95_is_interpolated_and_beyond_nothing_is_claimed(
    slo: int, held: int
) -> None:
    assert concurrency_within(make_profile(100.0, 200.0, 400.0), slo, 1.0) == held


def test_a_profile_without_a_lone_request_holds_nothing() -> None:
    assert concurrency_within(make_profile(10.0, 20.0, concurrencies=(2, 4)), 1000) == 0
    assert concurrency_within(replace(make_profile(10.0), load=()), 1000) == 0


def test_lone_latency_is_that_of_the_next_larger_measured_request() -> None:
    profile = replace(
        make_profile(100.0), lone=(LonePoint(96, 16, 100.0), LonePoint(48, 16, 70.0), LonePoint(24, 16, 60.0))
    )
    assert lone_latency(profile, 20, 8) == 60.0
    assert lone_latency(profile, 25, 16) == 70.0
    assert lone_latency(profile, 96, 16) == 100.0
    assert lone_latency(profile, 97, 16) is None
    assert lone_latency(profile, 1, 17) is None


@given(
    limits=st.builds(EngineLimits, st.integers(1, 512), st.integers(1, 4000), st.integers(4001, 8192)),
    read=st.integers(1, 8192),
    new=st.integers(1, 8192),
)
def test_the_plan_stays_within_the_engine_s_limits(limits: EngineLimits, read: int, new: int) -> None:
    plan = make_plan(limits, ServingOptions(max_input_tokens=read, max_new_tokens=new), CPU_BUDGET)
    assert plan.steps[0].concurrency == 1
    assert len({(step.input_tokens, step.concurrency) for step in plan.steps}) == len(plan.steps)
    for step in plan.steps:
        assert 1 <= step.concurrency <= limits.batch_size
        assert 1 <= step.input_tokens <= limits.input_tokens
        assert step.input_tokens + step.new_tokens <= limits.sequence_tokens
        assert step.requests >= step.concurrency


@dataclass
class FakeEngine:
    """A machine on a clock of its own: each request advances it by ``seconds``. Implements ``Submit``.

    ``cold``: how much longer its first request takes.
    """

    seconds: float
    cold: float = 0.0
    now: float = 0.0
    requests: int = 0
    fails_at: int = 0

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.prompts: list[tuple[int, ...]] = []

    def clock(self) -> float:
        return self.now

    def __call__(self, prompt, new_tokens):
        with self.lock:
            self.now += self.seconds + (self.cold if self.requests == 0 else 0.0)
            self.requests += 1
            self.prompts.append(tuple(prompt))
            if self.requests == self.fails_at:
                raise CalibrationFailed("the engine failed")
            return Timing(len(prompt), new_tokens, self.seconds * 500, self.seconds * 1000)


@given(seconds=st.floats(0.02, 4), budget=st.floats(5, 60), cold=st.floats(0, 30))
def test_a_sweep_ends_within_its_budget_or_measures_one_request(seconds: float, budget: float, cold: float) -> None:
    engine = FakeEngine(seconds, cold)
    plan = make_plan(LIMITS, SERVING, Budget(budget, 0.0))
    sweeps = Sweeper(plan, engine, Prompts(range(500)), clock=engine.clock).run(lambda share: None)
    assert sweeps[-1][0].step == plan.steps[0]
    if len(sweeps) == 1:
        [[lone]] = sweeps
        assert [timing.latency_ms for timing in lone.timings] == [seconds * 1000]
        assert engine.requests == 2
        assert budget < 8 * seconds + cold
        return
    longest = max(result.step.requests for result in sweeps[0]) * seconds
    assert engine.now <= budget + longest
    assert {result.step for result in sweeps[1]} <= {result.step for result in sweeps[0]}


def test_a_slow_first_request_does_not_make_an_engine_too_slow() -> None:
    engine = FakeEngine(0.5, cold=9.0)
    plan = make_plan(LIMITS, SERVING, Budget(20.0, 0.0))
    assert len(Sweeper(plan, engine, Prompts(range(500)), clock=engine.clock).run(lambda share: None)) == 2


def test_an_engine_too_slow_for_a_sweep_has_the_one_figure_that_was_measured() -> None:
    engine = FakeEngine(9.0)
    plan = make_plan(LIMITS, SERVING, CPU_BUDGET)
    sweeps = Sweeper(plan, engine, Prompts(range(500)), clock=engine.clock).run(lambda share: None)
    profile = fit(plan, sweeps, Machine(), 1.0)
    assert profile.lone == (LonePoint(96, 16, 9000.0),)
    assert [(point.concurrency, point.p95_ms) for point in profile.load] == [(1, 9000.0)]
    assert profile.noisy, "it was measured once"
    assert profile == Profile.from_json(json.loads(json.dumps(profile.to_json())))


def test_no_two_prompts_are_alike_in_their_beginnings() -> None:
    engine = FakeEngine(0.1)
    plan = make_plan(LIMITS, SERVING, Budget(60, 0.0))
    Sweeper(plan, engine, Prompts(range(500)), clock=engine.clock).run(lambda share: None)
    assert len(engine.prompts) > 50
    assert len({prompt[:8] for prompt in engine.prompts}) == len(engine.prompts)


def test_a_failing_engine_ends_the_calibration() -> None:
    engine = FakeEngine(0.1, fails_at=20)
    plan = make_plan(LIMITS, SERVING, Budget(60, 0.0))
    with pytest.raises(CalibrationFailed, match="the engine failed"):
        Sweeper(plan, engine, Prompts(range(500)), clock=engine.clock).run(lambda share: None)


def test_a_fit_needs_lone_requests_in_every_sweep() -> None:
    plan = make_plan(LIMITS, SERVING, CPU_BUDGET)
    sweep = SimulatedMachine(1.0, 10.0).sweep(plan, random.Random(0))
    with pytest.raises(CalibrationFailed, match=r"96 \+ 16 tokens"):
        fit(plan, [sweep, ()], Machine(), 1.0)
    with pytest.raises(CalibrationFailed):
        fit(plan, [], Machine(), 1.0)


def test_the_speed_of_reading_is_of_the_tokens_that_were_read() -> None:
    plan = make_plan(LIMITS, SERVING, CPU_BUDGET)
    lone = StepResult(plan.steps[0], (Timing(64, 16, 100.0, 200.0),), 0.2)
    assert fit(plan, [(lone,), (lone,)], Machine(), 1.0).prefill_tokens_per_second == 640.0


@pytest.mark.parametrize(("read", "fails"), [(96, False), (92, False), (91, True), (72, True)])
def test_a_prompt_that_was_cut_is_no_measurement(read: int, fails: bool) -> None:
    details = {"completion_tokens": 16, "prompt_tokens": read, "trimmed_tokens": 97 - read, "prefill_ms": 1.0}
    if fails:
        with pytest.raises(CalibrationFailed, match=f"of a prompt of 96 tokens {read} were read"):
            make_timing(details, 96, 16, 2.0)
    else:
        assert make_timing(details, 96, 16, 2.0).input_tokens == read


def test_an_engine_that_ends_a_text_is_no_measurement() -> None:
    with pytest.raises(CalibrationFailed, match="generated 3 of 16"):
        make_timing({"completion_tokens": 3, "prompt_tokens": 96}, 96, 16, 2.0)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
def test_a_percentile_is_a_measured_value(values: list[float], percent: int) -> None:
    found = percentile(values, percent)
    if percent == 50:
        assert min(values) <= found <= max(values)
    else:
        assert found in values
        assert sum(value <= found for value in values) >= len(values) * percent / 100


@pytest.mark.parametrize(("limit", "threads", "cpus"), [(0.7, 1, 0.7), (4.0, 1, 1.0), (None, 2, 2.0), (1.5, 2, 1.5)])
def test_an_engine_uses_no_more_cpus_than_it_has_threads(limit: float | None, threads: int, cpus: float) -> None:
    assert usable_cpus(limit, threads, 1) == cpus


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "70000 100000\n"}, 0.7),
        ({"cpu/cpu.cfs_quota_us": "70000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.7),
    ],
)
def test_the_cpu_limit_is_read_from_either_cgroup(tmp_path: Path, files: dict[str, str], limit: float) -> None:
    free = read_cpu_limit(tmp_path / "none")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read_cpu_limit(tmp_path) == limit
    for name in files:
        if "period" not in name:
            (tmp_path / name).write_text("max 100000\n" if name == "cpu.max" else "-1\n")
    assert read_cpu_limit(tmp_path) == free


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_engine(tmp_path_factory.mktemp("calibrate") / "engine")


def test_a_real_engine_generates_as_many_tokens_as_asked_for_whatever_the_prompt(engine: Path) -> None:
    with LocalCompletion(engine, SERVING) as completion:
        prompts = Prompts(completion.vocabulary, seed=3)
        for _ in range(60):
            timing = completion(prompts.make(12), 24)
            assert (timing.input_tokens, timing.new_tokens) == (12, 24)
            assert 0 <= timing.first_token_ms <= timing.latency_ms


def test_a_real_engine_gets_a_profile_that_the_manifest_can_carry(engine: Path) -> None:
    profile = calibrate(engine, RECIPE, SERVING, budget=Budget(20.0, 0.02))
    assert profile == Profile.from_json(json.loads(json.dumps(profile.to_json())))
    assert (profile.input_tokens, profile.new_tokens) == (96, 16)
    assert [point.concurrency for point in profile.load] == [1, 2, 3, 4, 6, 8]
    assert profile.lone[0].latency_ms > 0
    assert profile.cpus == usable_cpus(read_cpu_limit(), 1, 1)


def test_the_calibrator_beside_the_builder_answers_through_files(engine: Path, tmp_path: Path) -> None:
    beside = tmp_path / "calibrator"
    beside.mkdir()
    thread = threading.Thread(target=calibration.serve, args=(beside,), daemon=True)
    thread.start()
    shares: list[float] = []
    found = calibration.calibrate_engine(engine, RECIPE, SERVING, beside=beside, on_share=shares.append)
    thread.join(60)
    assert found.failure is None
    assert found.profile is not None
    assert found.profile.lone[0].input_tokens == 96
    assert all(0 <= share <= 1 for share in shares)


def test_a_calibrator_that_was_killed_says_so_and_does_not_measure_again(engine: Path, tmp_path: Path) -> None:
    (tmp_path / calibration.BEGUN).touch()
    calibration.write_whole(tmp_path / calibration.REQUEST, {})
    calibration.serve(tmp_path)
    found = calibration.calibrate_engine(engine, RECIPE, SERVING, beside=tmp_path, on_share=lambda share: None)
    assert found.profile is None
    assert "memory limit" in (found.failure or "")


def test_an_engine_that_cannot_be_loaded_is_stored_without_a_profile(engine: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "engine.json").write_text((engine / "engine.json").read_text())
    found = calibration.calibrate_engine(broken, RECIPE, SERVING, beside=None, on_share=lambda share: None)
    assert found.profile is None
    assert "cannot be measured" in (found.failure or "")


def test_a_calibrator_that_says_nothing_is_given_up(engine: Path, tmp_path: Path) -> None:
    now = iter(range(0, 10_000, 10))
    with pytest.raises(CalibrationFailed, match="has not begun"):
        calibration.ask(
            tmp_path / "silent",
            engine,
            RECIPE,
            SERVING,
            on_share=lambda share: None,
            clock=lambda: float(next(now)),
            sleep=lambda seconds: None,
        )

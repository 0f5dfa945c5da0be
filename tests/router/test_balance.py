"""Which pod is chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hotstart.router.balance import decide_pod, request_work
from hypothesis import given
from hypothesis import strategies as st


@dataclass(frozen=True)
class FakeLoad:
    pod: str
    answering: bool = True
    cap: int = 4
    requests: int = 0
    work: int = 0
    picked: int = 0


loads_strategy = st.lists(
    st.builds(
        FakeLoad,
        pod=st.text("abcdef", min_size=1, max_size=3),
        answering=st.booleans(),
        cap=st.integers(0, 4),
        requests=st.integers(0, 5),
        work=st.integers(0, 100),
        picked=st.integers(0, 9),
    ),
    max_size=8,
    unique_by=lambda load: load.pod,
)


@given(loads_strategy, st.sets(st.text("abcdef", min_size=1, max_size=3)))
def test_the_choice_answers_has_room_and_is_not_excluded(loads: list[FakeLoad], excluded: set[str]) -> None:
    usable = [load for load in loads if load.answering and load.requests < load.cap and load.pod not in excluded]
    chosen = decide_pod(loads, excluded)
    if not usable:
        assert chosen is None
        return
    [found] = [load for load in usable if load.pod == chosen]
    assert found.work == min(load.work for load in usable)


@given(loads_strategy)
def test_the_order_of_the_pods_does_not_matter_unless_all_else_is_equal(loads: list[FakeLoad]) -> None:
    distinct = [replace(load, picked=number) for number, load in enumerate(loads)]
    assert decide_pod(distinct) == decide_pod(distinct[::-1])


@given(st.integers(1, 5), st.integers(1, 6), st.lists(st.integers(1, 50), max_size=40))
def test_choices_in_a_row_never_pass_a_cap_and_spread_the_work(pods: int, cap: int, works: list[int]) -> None:
    loads = {f"p{number}": FakeLoad(f"p{number}", cap=cap) for number in range(pods)}
    for number, work in enumerate(works):
        chosen = decide_pod(loads.values())
        if chosen is None:
            assert all(load.requests == cap for load in loads.values())
            break
        load = loads[chosen]
        loads[chosen] = replace(load, requests=load.requests + 1, work=load.work + work, picked=number)
    assert all(load.requests <= cap for load in loads.values())
    if all(load.requests < cap for load in loads.values()):
        spread = max(load.work for load in loads.values()) - min(load.work for load in loads.values())
        assert spread <= max(works, default=0)


def test_two_short_requests_are_less_than_one_long() -> None:
    short = FakeLoad("short", requests=2, work=2 * request_work(100, 16))
    long = FakeLoad("long", requests=1, work=request_work(100, 64))
    assert decide_pod([short, long]) == "short"


def test_a_long_prompt_counts_as_work() -> None:
    assert request_work(64 * 23, 0) == 23


def test_single_requests_take_turns() -> None:
    assert decide_pod([FakeLoad("a", picked=2), FakeLoad("b", picked=1)]) == "b"

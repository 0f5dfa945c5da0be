"""The agent's pure parts: the table of states, pieces to fetch, what stands on the disk, numbers from Triton."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hotstart.engines.pod_agent.agent import LONGEST_PAUSE_SECONDS, decide_pause
from hotstart.engines.pod_agent.cli import parse_settings
from hotstart.engines.pod_agent.disk import Disk, Remembered, find_corrupt
from hotstart.engines.pod_agent.exposition import make_exposition
from hotstart.engines.pod_agent.states import BUSY, TABLE, Event, ImpossibleEvent, next_state
from hotstart.engines.pod_agent.triton_client import Counts, parse_counts
from hotstart.engines.pod_agent.warm_up import make_prompts
from hotstart.engines.transfers.ranges import Piece, make_pieces, reach, remaining
from hotstart.exchange.messages import EngineFile, PodFailure, PodReport, PodState
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pod import make_assignment, make_serving

SIZES = st.lists(st.integers(0, 100), max_size=6)


def files_of(sizes: list[int]) -> tuple[EngineFile, ...]:
    return tuple(EngineFile(path=f"f{index}", size=size, sha256="") for index, size in enumerate(sizes))


def test_the_way_to_ready_and_back() -> None:
    state = PodState.EMPTY
    seen = []
    for event in (
        *(Event.ASSIGNED, Event.FETCHED, Event.VERIFIED, Event.LOADED, Event.WARMED),
        *(Event.TRITON_LOST, Event.LOADED, Event.WARMED, Event.ASSIGNED, Event.FAILED, Event.RETRIED),
    ):
        state = next_state(state, event)
        seen.append(state.value)
    assert seen == [
        *("Fetching", "Verifying", "Loading", "Warming", "Ready"),
        *("Reloading", "Warming", "Ready", "Fetching", "Failed", "Fetching"),
    ]


def test_only_warm_models_become_ready_adopted_ones_too() -> None:
    ways = {event for (_, event), target in TABLE.items() if target is PodState.READY}
    assert ways == {Event.WARMED}
    assert next_state(PodState.EMPTY, Event.ADOPTED) is PodState.WARMING


def test_every_busy_state_may_fail_and_every_state_takes_an_assignment() -> None:
    assert all(next_state(state, Event.FAILED) is PodState.FAILED for state in BUSY)
    assert all(next_state(state, Event.ASSIGNED) is PodState.FETCHING for state in PodState)


def test_an_event_that_cannot_happen_is_a_fault() -> None:
    with pytest.raises(ImpossibleEvent, match="warmed in state Empty"):
        next_state(PodState.EMPTY, Event.WARMED)


@given(sizes=SIZES, piece=st.integers(1, 30))
def test_pieces_cover_each_file_once(sizes: list[int], piece: int) -> None:
    files = files_of(sizes)
    pieces = make_pieces(files, piece)
    for file in files:
        spans = sorted((p.start, p.end) for p in pieces if p.path == file.path)
        assert [start for start, _ in spans] == list(range(0, file.size, piece))
        own = {p.start: p for p in pieces if p.path == file.path}
        assert reach(0, own, set(own.values())) == file.size
    assert all(0 < p.size <= piece for p in pieces)


@given(sizes=SIZES, piece=st.integers(1, 30), done=st.sets(st.integers(0, 20)))
def test_what_is_done_is_not_fetched_again(sizes: list[int], piece: int, done: set[int]) -> None:
    pieces = make_pieces(files_of(sizes), piece)
    finished = frozenset(p.name for index, p in enumerate(pieces) if index in done)
    left = remaining(pieces, finished)
    assert {p.name for p in left} == {p.name for p in pieces} - finished


@given(size=st.integers(0, 50), piece=st.integers(1, 9), lacking=st.sets(st.integers(0, 50)))
def test_the_front_stops_at_the_first_gap(size: int, piece: int, lacking: set[int]) -> None:
    pieces = {p.start: p for p in make_pieces(files_of([size]), piece)}
    gaps = sorted(start for start in pieces if start in lacking)
    done = {p for start, p in pieces.items() if start not in lacking}
    for position in sorted(pieces):
        first = next((gap for gap in gaps if gap >= position), size)
        assert reach(position, pieces, done) == first


def test_a_range_header_is_inclusive() -> None:
    assert Piece("f", 8, 16).header == "bytes=8-15"


def test_the_disk_finds_every_kind_of_damage(tmp_path: Path) -> None:
    good = EngineFile(path="sub/f", size=3, sha256=hashlib.sha256(b"abc").hexdigest())
    path = tmp_path / "sub/f"
    assert find_corrupt(tmp_path, (good,)) == "sub/f"
    path.parent.mkdir()
    for content, expected in ((b"abc", None), (b"abd", "sub/f"), (b"abcd", "sub/f")):
        path.write_bytes(content)
        assert find_corrupt(tmp_path, (good,)) == expected


def test_the_disk_remembers_the_assignment_and_keeps_its_key(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "models", tmp_path / "run")
    key = disk.prepare()
    assert len(key) == 64
    assert disk.prepare() == key, "Triton holds it already"
    assert disk.recall() is None
    remembered = Remembered(assignment=make_assignment(), files=files_of([1, 2]))
    disk.remember(remembered)
    assert disk.recall() == remembered
    (tmp_path / "models/state.json").write_text("{")
    assert disk.recall() is None


def test_only_one_engine_is_kept(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "models", tmp_path / "run")
    disk.prepare()
    for key in ("a", "b"):
        disk.partial(key).mkdir()
        disk.publish(key)
    disk.partial("c").mkdir()
    disk.keep_only("b")
    assert [path.name for path in (tmp_path / "models/engines").iterdir()] == ["b"]


def test_counts_are_read_from_tritons_metrics() -> None:
    text = "\n".join(
        (
            "# HELP hotstart_completion_running x",
            'hotstart_completion_running{model="a/b"} 2',
            'hotstart_completion_waiting{model="a/b"} 3',
            'hotstart_completion_requests_total{model="a/b",outcome="completed"} 10',
            'hotstart_completion_requests_total{model="a/b",outcome="cancelled"} 4',
            "nv_inference_count 99",
        )
    )
    assert parse_counts(text) == Counts(running=2, waiting=3, completed=14)
    assert parse_counts("") == Counts()


def test_pauses_double_up_to_a_minute() -> None:
    assert [decide_pause(failures) for failures in (1, 2, 3)] == [1.0, 2.0, 4.0]
    assert decide_pause(100) == decide_pause(1_000_000) == LONGEST_PAUSE_SECONDS


def test_the_long_warm_up_prompt_is_as_long_as_the_limit() -> None:
    short, long = make_prompts(make_serving(max_input_tokens=512))
    assert len(long) > len(short)
    assert len(long.split()) >= 512 // 2


def test_the_exposition_names_state_phases_and_failure() -> None:
    failure = PodFailure(reason="DiskFull", message="no room", retryable=True)
    text = make_exposition(
        PodReport(pod_uid="u", state=PodState.FAILED, phases={"fetch": 1.5}, failure=failure, in_flight=2)
    )
    assert 'hotstart_agent_state{state="Failed"} 1' in text
    assert 'hotstart_agent_phase_seconds{phase="fetch"} 1.5' in text
    assert 'hotstart_agent_failed{reason="DiskFull"} 1' in text
    assert "hotstart_agent_in_flight 2\n" in text


def test_settings_name_the_variable_that_is_wrong() -> None:
    assert parse_settings({"POD_UID": "u"}).metrics == "127.0.0.1:8002"
    for environment, name in (({}, "POD_UID"), ({"POD_UID": "u", "HOTSTART_TRITON": "8000"}, "HOTSTART_TRITON")):
        with pytest.raises(ValueError, match=name):
            parse_settings(environment)

"""What a sweep may take: never what is used, nor what is young, nor what is not ours."""

from __future__ import annotations

from hotstart.engines.collection import (
    GARBAGE,
    UNFINISHED_SECONDS,
    Fate,
    Marks,
    StoredObject,
    decide_fate,
    make_folders,
    make_survey,
)
from hotstart.engines.key import engine_name
from hypothesis import given
from hypothesis import strategies as st

NOW = 1_800_000_000.0
DAY = 86_400.0
TTL = 7 * DAY
KEY = "ab" * 32


def stored(age: float, *, key: str = KEY, uid: str = "uid-1", whole: bool = True) -> tuple[StoredObject, ...]:
    names = ("model.bin", "manifest.json") if whole else ("model.bin",)
    return tuple(StoredObject(f"engines/{uid}/{key}/{name}", 10, NOW - age) for name in names)


def fate(objects: tuple[StoredObject, ...], *, used: bool = False, unused: float | None = None) -> Fate:
    place = ("uid-1", engine_name(KEY))
    marks = Marks({place} if used else set(), {} if unused is None else {place: NOW - unused}, {"uid-1"})
    ((_, found),) = make_survey(objects, marks, NOW, TTL).fates
    return found


def test_an_engine_in_use_is_kept_however_old_it_is() -> None:
    assert fate(stored(age=400 * DAY), used=True) is Fate.USED
    assert fate(stored(age=400 * DAY, whole=False), used=True) is Fate.USED


def test_an_unused_engine_lives_on_for_its_time_from_when_it_was_last_used() -> None:
    assert fate(stored(age=400 * DAY), unused=6 * DAY) is Fate.KEPT
    assert fate(stored(age=400 * DAY), unused=8 * DAY) is Fate.EXPIRED


def test_an_engine_that_nobody_remembers_lives_from_when_it_was_written() -> None:
    assert fate(stored(age=6 * DAY)) is Fate.KEPT
    assert fate(stored(age=8 * DAY)) is Fate.EXPIRED


def test_half_an_upload_is_abandoned_after_a_day() -> None:
    assert fate(stored(age=UNFINISHED_SECONDS - 1, whole=False)) is Fate.UNFINISHED
    assert fate(stored(age=UNFINISHED_SECONDS + 1, whole=False)) is Fate.ABANDONED


def test_engines_of_unknown_namespaces_are_another_clusters() -> None:
    assert fate(stored(age=400 * DAY, uid="uid-of-another-cluster")) is Fate.FOREIGN


def test_a_manifest_in_a_subfolder_makes_no_engine_whole() -> None:
    (folder,) = make_folders([StoredObject(f"engines/u/{KEY}/sub/manifest.json", 1, NOW)])
    assert not folder.whole


def test_the_report_counts_every_byte_once() -> None:
    objects = (*stored(400 * DAY), *stored(DAY, key="cd" * 32), StoredObject("timing-caches/x", 5, NOW))
    survey = make_survey(objects, Marks((), {}, {"uid-1"}), NOW, TTL)
    assert survey.bytes_by_fate() == dict.fromkeys(Fate, 0) | {Fate.EXPIRED: 20, Fate.KEPT: 20}
    assert [folder.engine_key for folder in survey.garbage] == [KEY]


@given(
    age=st.floats(0, 1e9),
    unused=st.none() | st.floats(0, 1e9),
    ttl=st.floats(0, 1e8),
    whole=st.booleans(),
    later=st.floats(0, 1e8),
)
def test_what_is_used_is_never_garbage_and_garbage_stays_garbage(
    age: float, unused: float | None, ttl: float, whole: bool, later: float
) -> None:
    (folder,) = make_folders(stored(age, whole=whole))
    since = {} if unused is None else {folder.place: NOW - unused}
    assert decide_fate(folder, Marks({folder.place}, since, {"uid-1"}), NOW, ttl) is Fate.USED
    free = Marks((), since, {"uid-1"})
    if decide_fate(folder, free, NOW, ttl) in GARBAGE:
        assert decide_fate(folder, free, NOW + later, ttl) in GARBAGE

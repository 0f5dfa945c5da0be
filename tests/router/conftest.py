"""Fixtures of the router's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.router.bench import Bench, StartFake, make_settings, running_router
from tests.support.fake_triton import FakeTriton


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with running_router(make_settings(tmp_path)) as bench:
        yield bench


@pytest.fixture
async def start_fake() -> AsyncIterator[StartFake]:
    started: list[FakeTriton] = []

    async def start() -> FakeTriton:
        started.append(await FakeTriton().start())
        return started[-1]

    yield start
    for fake in started:
        fake.thaw()
        await fake.kill()


@pytest.fixture
async def triton(start_fake: StartFake) -> FakeTriton:
    return await start_fake()

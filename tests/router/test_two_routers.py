"""Two routers that know nothing of each other send to the same pod."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hotstart.operator.core.routes import share_of

from tests.router.bench import Bench, make_settings, running_router
from tests.support.fake_triton import FakeTriton
from tests.support.scripts import script


async def read(bench: Bench) -> int:
    async with bench.post(prompt=script(steps=2, step_ms=5)) as response:
        await response.read()
        return int(response.status)


async def test_a_pod_holds_no_more_than_its_cap_and_its_small_queue(tmp_path: Path, triton: FakeTriton) -> None:
    settings = make_settings(tmp_path)
    for cap, most in ((1, 2), (4, 4), (5, 6)):
        triton.most_running = 0
        async with running_router(settings) as one, running_router(settings) as two:
            for bench in (one, two):
                await bench.serve(triton, cap=share_of(cap, 2))
            statuses = await asyncio.gather(*(read(bench) for bench in (one, two) for _ in range(20)))
        assert set(statuses) == {200}
        assert triton.most_running == most

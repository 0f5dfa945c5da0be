"""The plan of another engine on its way to the builder: whole and of the same network, or none."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from hotstart.engines.builder.log_tail import LogTail
from hotstart.engines.builder.refit_base import fetch_refit_base
from hotstart.engines.builder.state import BuildState
from hotstart.exchange.messages import BuildRequest, EngineFile, RefitBase

PLAN = b"stripped plan" * 1000
FACTS = {"layers": 32, "hidden": 3072}


@pytest.fixture
async def store() -> AsyncIterator[str]:
    """Answers every path with the plan, `missing` with 404 and `cut` with half of it."""

    async def get(request: web.Request) -> web.Response:
        if request.path == "/missing":
            return web.Response(status=404)
        return web.Response(body=PLAN[:100] if request.path == "/cut" else PLAN)

    app = web.Application()
    app.router.add_get("/{path}", get)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def base_of(store: str, *, path: str = "refit-rank0.engine", url: str = "plan", **facts: int) -> RefitBase:
    sha256 = hashlib.sha256(PLAN).hexdigest()
    file = EngineFile(path=path, size=len(PLAN), sha256=sha256, url=f"{store}/{url}")
    return RefitBase(engine="abc", facts={**FACTS, **facts}, files=(file,))


async def fetch(work: Path, base: RefitBase | None) -> bool:
    """What the builder's thread does, while the operator answers once it is asked."""
    state = BuildState("pod", "k" * 64, LogTail())
    patience = 30.0 if base is not None else 0.01
    asked = asyncio.create_task(asyncio.to_thread(fetch_refit_base, state, work, FACTS, patience=patience))
    while not asked.done():
        report = await state.answer(BuildRequest())
        assert report.refit_facts == (FACTS if report.wants_refit_base else {})
        if report.wants_refit_base and base is not None:
            await state.answer(BuildRequest(refit_base=base))
        await asyncio.sleep(0.01)
    assert not (await state.answer(BuildRequest())).wants_refit_base
    return await asked


async def test_a_plan_of_the_same_network_is_taken(store: str, tmp_path: Path) -> None:
    assert await fetch(tmp_path, base_of(store))
    assert {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()} == {"rank0.engine": PLAN}


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 33},
        {"url": "missing"},
        {"url": "cut"},
        {"path": "rank0.engine"},
        {"path": "refit-../rank0.engine"},
    ],
    ids=["another network", "gone", "cut short", "no file of a plan", "a path that leaves the folder"],
)
async def test_anything_else_is_not(store: str, tmp_path: Path, change: dict[str, object]) -> None:
    assert not await fetch(tmp_path, base_of(store, **change))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


async def test_no_plan_and_no_answer_build_as_the_first_time(tmp_path: Path) -> None:
    assert not await fetch(tmp_path, RefitBase())
    assert not await fetch(tmp_path, None)
    assert list(tmp_path.iterdir()) == []

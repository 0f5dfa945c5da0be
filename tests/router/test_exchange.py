"""Routes in and statistics out, signed as by the operator; what holds while it is gone; restarts from a file."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from hotstart.exchange.client import ExchangeClient, ExchangeFailed
from hotstart.exchange.messages import Endpoint, ModelRoute, ModelSecond, RouterReport, RouterRequest
from hotstart.exchange.signing import make_signing_key
from hotstart.router.core import Router
from hotstart.router.routes import RouteTable, decide_table, diff_endpoints, diff_routes, make_table
from hotstart.router.state_file import load_routes, save_routes
from hypothesis import given
from hypothesis import strategies as st

from tests.router.bench import MODEL, UID, Bench, StartFake, make_route, make_settings, running_router, until
from tests.support.fake_triton import FakeTriton
from tests.support.scripts import script


async def read(bench: Bench, **body: Any) -> int:
    async with bench.post(**body) as response:
        await response.read()
        return int(response.status)


async def all_seconds(bench: Bench, *routes: ModelRoute, ended: int) -> list[ModelSecond]:
    """Reads by cursor, as the operator does, until ``ended`` requests are in full seconds."""
    found: list[ModelSecond] = []
    cursor = 0
    async with asyncio.timeout(10):
        while sum(s.completed + s.failed + s.rejected + s.cancelled + s.cancelled_late for s in found) < ended:
            report = await bench.operator.send(*routes, cursor=cursor)
            found += report.seconds
            assert all(cursor < second.second <= report.cursor for second in report.seconds)
            cursor = report.cursor
            await asyncio.sleep(0.1)
    return found


async def test_what_was_seen_is_reported_once_by_cursor(bench: Bench, triton: FakeTriton) -> None:
    route = make_route(triton, cap=1, queue_limit=1, slo_ms=40)
    await bench.operator.send(route)
    await bench.answering(1)
    slow = script(steps=10, step_ms=10)
    posts = [asyncio.create_task(read(bench, prompt=slow)) for _ in range(2)]
    await until(lambda: bench.lane.queued == 1)
    assert await read(bench) == 429
    assert await asyncio.gather(*posts) == [200, 200]
    assert await read(bench, prompt=script(error="internal: no")) == 500
    late = asyncio.create_task(read(bench, prompt=script(steps=1000, step_ms=10)))
    await until(lambda: triton.running)
    await asyncio.sleep(0.05)  # past the SLO of 40 ms
    late.cancel()
    await until(lambda: bench.lane.in_flight == 0)
    seconds = await all_seconds(bench, route, ended=5)
    totals = {
        name: sum(getattr(second, name) for second in seconds)
        for name in ("arrivals", "completed", "failed", "rejected", "cancelled", "cancelled_late", "within_slo")
    }
    assert totals == {
        "arrivals": 5, "completed": 2, "failed": 1, "rejected": 1, "cancelled": 0, "cancelled_late": 1, "within_slo": 0
    }  # fmt: skip
    assert sum(sum(second.latency_buckets) for second in seconds) == 2
    assert sum(second.in_flight_sum for second in seconds) > 0.2
    assert sum(second.queued_sum for second in seconds) > 0.05
    assert {second.model for second in seconds} == {MODEL}


async def test_a_client_that_leaves_before_the_slo_is_censored(bench: Bench, triton: FakeTriton) -> None:
    route = make_route(triton, slo_ms=60_000)
    await bench.operator.send(route)
    await bench.answering(1)
    post = asyncio.create_task(read(bench, prompt=script(steps=1000, step_ms=10), stream=True))
    await until(lambda: triton.running)
    post.cancel()
    seconds = await all_seconds(bench, route, ended=1)
    assert sum(second.cancelled for second in seconds) == 1


async def test_older_routes_are_ignored(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton)
    bench.operator.generation = 9
    await bench.operator.send(make_route(triton))
    report = await bench.operator.exchange(RouterRequest(generation=9, routes=()))
    assert report.generation == 10 and await read(bench) == 200


async def test_a_message_that_is_not_the_operators_changes_nothing(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton)
    stranger = ExchangeClient(session=bench.http, key=make_signing_key(), epoch=9)
    with pytest.raises(ExchangeFailed, match="401"):
        await stranger.ask(f"127.0.0.1:{bench.program.exchange_port}", UID, RouterRequest(generation=99), RouterReport)
    assert await read(bench) == 200


async def test_a_model_that_leaves_the_routes_is_a_404_and_what_runs_finishes(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton, cap=1)
    running = asyncio.create_task(read(bench, prompt=script(steps=20, step_ms=10)))
    await until(lambda: triton.running)
    waiting = asyncio.create_task(read(bench))
    await until(lambda: bench.lane.queued == 1)
    await bench.operator.send()
    assert await waiting == 503
    assert await read(bench) == 404
    assert await running == 200
    await until(lambda: triton.streams == 0)


async def test_a_pod_that_leaves_the_routes_finishes_what_it_has_and_gets_nothing_new(
    bench: Bench, start_fake: StartFake
) -> None:
    one, two = await start_fake(), await start_fake()
    await bench.serve(one)
    running = asyncio.create_task(read(bench, prompt=script(steps=30, step_ms=10)))
    await until(lambda: one.running)
    await bench.serve(two)
    assert [await read(bench) for _ in range(5)] == [200] * 5
    assert len(one.seen) == 1 and len(two.seen) == 5
    assert await running == 200
    await until(lambda: one.streams == 0)


async def test_a_pod_that_was_out_of_the_routes_for_a_moment_gets_no_more_than_its_cap(
    bench: Bench, triton: FakeTriton
) -> None:
    await bench.serve(triton, cap=2)
    requests = [asyncio.create_task(read(bench, prompt=script(steps=30, step_ms=10))) for _ in range(2)]
    await until(lambda: len(triton.running) == 2)
    await bench.operator.send(make_route(coming=True))
    await bench.serve(triton, cap=2)
    requests += [asyncio.create_task(read(bench)) for _ in range(2)]
    await until(lambda: bench.lane.queued == 2)
    assert await asyncio.gather(*requests) == [200] * 4
    assert triton.most_running == 2


async def test_it_goes_on_with_the_last_routes_when_the_operator_is_gone(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton)
    await bench.operator.client._session.close()
    assert [await read(bench) for _ in range(3)] == [200] * 3


async def test_a_restarted_router_serves_from_its_state_file(tmp_path: Path, triton: FakeTriton) -> None:
    settings = make_settings(tmp_path, state=tmp_path / "routes.json")
    async with running_router(settings) as bench:
        await bench.serve(triton, cap=3, created=1234)
        held = bench.program.router.table
    async with running_router(settings) as bench:
        async with bench.http.get("/readyz") as response:
            assert response.status == 200
        assert await read(bench) == 200
        assert bench.program.router.table == held
        assert (await bench.operator.exchange(RouterRequest(generation=0))).generation == held.generation


@pytest.mark.parametrize("content", [b"", b"{", b'{"generation": "x"}', b"\xff"])
async def test_a_state_file_that_cannot_be_read_is_left_out(tmp_path: Path, content: bytes) -> None:
    state = tmp_path / "routes.json"
    state.write_bytes(content)
    async with running_router(make_settings(tmp_path, state=state)) as bench, bench.http.get("/readyz") as response:
        assert response.status == 503


async def test_a_state_file_that_cannot_be_written_stops_nothing(tmp_path: Path, triton: FakeTriton) -> None:
    async with running_router(make_settings(tmp_path, state=tmp_path / "no" / "routes.json")) as bench:
        await bench.serve(triton)
        assert await read(bench) == 200


async def test_two_thousand_requests_while_pods_come_and_go_none_fails(bench: Bench, start_fake: StartFake) -> None:
    fakes = [await start_fake() for _ in range(3)]
    await bench.serve(*fakes, queue_limit=2000, queue_deadline=60)
    names = iter(range(2000))
    statuses: list[int] = []

    async def work() -> None:
        for number in names:
            stream = number % 4 == 0
            statuses.append(await read(bench, prompt=script(steps=2, step_ms=2), stream=stream))

    workers = [asyncio.create_task(work()) for _ in range(24)]
    turn = 0
    while not all(worker.done() for worker in workers):
        turn += 1
        chosen = [fake for number, fake in enumerate(fakes) if (turn >> number) & 1] or fakes[:1]
        await bench.operator.send(make_route(*chosen, cap=1 + turn % 4, queue_limit=2000, queue_deadline=60))
        await asyncio.sleep(0.02)
    await asyncio.gather(*workers)
    assert len(statuses) == 2000 and set(statuses) == {200} and turn > 10
    assert sum(len(fake.seen) for fake in fakes) == 2000
    assert bench.lane.in_flight == bench.lane.queued == 0


# ------------------------------------------------------------------------------------------------- pure parts

routes = st.builds(
    ModelRoute,
    model=st.sampled_from(["a/a", "a/b", "b/a"]),
    endpoints=st.lists(
        st.builds(Endpoint, pod=st.sampled_from("pqr"), address=st.sampled_from(["1:1", "2:2"]), cap=st.integers(1, 3)),
        max_size=3,
        unique_by=lambda endpoint: endpoint.pod,
    ).map(tuple),
    coming=st.booleans(),
)
tables = st.builds(
    lambda generation, found: make_table(RouterRequest(generation=generation, routes=tuple(found))),
    st.integers(0, 5),
    st.lists(routes, max_size=3),
)


@given(tables, tables)
def test_the_difference_of_routes_leads_from_one_to_the_other(held: RouteTable, wanted: RouteTable) -> None:
    change = diff_routes(held, wanted)
    made = {name: route for name, route in held.routes.items() if name not in change.removed}
    made |= {route.model: route for route in change.put}
    assert made == wanted.routes
    assert diff_routes(wanted, wanted).empty


@given(tables, tables)
def test_the_newest_generation_wins(held: RouteTable, said: RouteTable) -> None:
    assert decide_table(held, said).generation == max(held.generation, said.generation)


@given(st.dictionaries(st.sampled_from("pqr"), st.sampled_from(["1:1", "2:2"])), routes)
def test_the_difference_of_endpoints_leads_from_one_to_the_other(held: dict[str, str], route: ModelRoute) -> None:
    change = diff_endpoints(held, route.endpoints)
    made = {pod: address for pod, address in held.items() if pod not in change.removed}
    assert not set(made) & {endpoint.pod for endpoint in change.added}
    made |= {endpoint.pod: endpoint.address for endpoint in change.added}
    assert made == {endpoint.pod: endpoint.address for endpoint in route.endpoints}
    assert {endpoint.pod for endpoint in change.kept} == set(held) - set(change.removed)


@given(table=tables)
def test_saved_routes_are_loaded_as_they_were(tmp_path_factory: pytest.TempPathFactory, table: RouteTable) -> None:
    path = tmp_path_factory.mktemp("state") / "routes.json"
    assert load_routes(path) is None
    save_routes(path, table)
    assert load_routes(path) == table


async def test_a_router_whose_clock_is_put_back_reports_on_from_there() -> None:
    now = 10_000.5
    router = Router(pod_uid="u", wall=lambda: now)
    await router.answer(RouterRequest(generation=1, routes=(make_route(),)))
    lane, cursor = router.lanes[MODEL], 0
    arrived: list[tuple[int, int]] = []
    for step in (*[1] * 5, -20, *[1] * 5):
        lane.book.arrive(now)
        now += step
        report = router.report(cursor)
        arrived += [(second.second, second.arrivals) for second in report.seconds]
        cursor = report.cursor
    await router.close()
    # What came in the second of the step counts where the clock stands now.
    assert arrived == [*((10_000 + n, 1) for n in range(5)), (9_985, 2), *((9_986 + n, 1) for n in range(4))]


def test_the_report_of_a_router_without_routes_is_empty(tmp_path: Path) -> None:
    report = asyncio.run(_report(Router(pod_uid="u", wall=lambda: 100.5)))
    assert (report.generation, report.cursor, report.seconds) == (-1, 99, ())
    assert time.time() > report.cursor


async def _report(router: Any) -> RouterReport:
    return router.report(0)  # type: ignore[no-any-return]

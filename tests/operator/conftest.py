"""The operator's processes against a real API server, for the tests that start some."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.operator.live import Stage, make_stage


@pytest.fixture
async def stage(api_server, namespace, object_store, tmp_path, monkeypatch) -> AsyncIterator[Stage]:
    """Everything but an operator; what it logged is told where a test fails."""
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig))
    made = await make_stage(api_server, namespace, object_store, tmp_path)
    try:
        yield made
    finally:
        await made.close()
        await made.cluster.close()
        for process in made.processes:
            print(process.log.read_text())

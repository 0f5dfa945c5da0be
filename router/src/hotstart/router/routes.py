"""The routing table and its changes. Pure: what the operator says, against what the router has.

The newest generation wins: an operator that lost its lease and speaks late cannot bring back pods that are gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hotstart.exchange.messages import Endpoint, ModelRoute, RouterRequest

NO_GENERATION = -1


@dataclass(frozen=True)
class RouteTable:
    """All that the router knows of models."""

    generation: int = NO_GENERATION  # NO_GENERATION: nobody has told it anything yet
    routes: Mapping[str, ModelRoute] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        return self.generation != NO_GENERATION


@dataclass(frozen=True)
class RouteChange:
    """What to do to get from one table to another."""

    put: tuple[ModelRoute, ...] = ()  # new or changed models
    removed: tuple[str, ...] = ()  # models that are gone

    @property
    def empty(self) -> bool:
        return not self.put and not self.removed


def make_table(request: RouterRequest) -> RouteTable:
    """The table that a message describes; of two routes for one model the last counts."""
    return RouteTable(request.generation, {route.model: route for route in request.routes})


def decide_table(held: RouteTable, said: RouteTable) -> RouteTable:
    """The table to hold from now on."""
    return said if said.generation >= held.generation else held


def diff_routes(held: RouteTable, wanted: RouteTable) -> RouteChange:
    """The difference; empty for equal routes, whatever their generations."""
    put = tuple(route for name, route in wanted.routes.items() if held.routes.get(name) != route)
    removed = tuple(name for name in held.routes if name not in wanted.routes)
    return RouteChange(put, removed)


@dataclass(frozen=True)
class EndpointChange:
    """The difference between the endpoints of one model. ``kept`` may have a new cap."""

    added: tuple[Endpoint, ...]
    kept: tuple[Endpoint, ...]
    removed: tuple[str, ...]  # pods


def diff_endpoints(held: Mapping[str, str], wanted: tuple[Endpoint, ...]) -> EndpointChange:
    """``held`` maps pods to addresses. A pod with a new address is another pod: removed and added."""
    by_pod = {endpoint.pod: endpoint for endpoint in wanted}
    same = {pod for pod, address in held.items() if pod in by_pod and by_pod[pod].address == address}
    return EndpointChange(
        added=tuple(endpoint for pod, endpoint in by_pod.items() if pod not in same),
        kept=tuple(by_pod[pod] for pod in by_pod if pod in same),
        removed=tuple(pod for pod in held if pod not in same),
    )

"""The router's HTTP applications: OpenAI's API with health and metrics on one port, the exchange on another."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web
from hotstart.exchange.messages import RouterRequest
from hotstart.exchange.server import KeySet, add_exchange, make_app
from hotstart.router.completions import Completions
from hotstart.router.core import Router
from hotstart.router.errors import SERVER_ERROR, ApiError, invalid, unknown_model
from hotstart.router.metrics import CONTENT_TYPE, Metrics
from hotstart.router.openai import make_model
from pydantic_core import to_json

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def openai_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error of the API in OpenAI's shape."""
    try:
        return await handler(request)
    except ApiError as error:
        return _error_response(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        message = f"{request.method} {request.path}: {error.reason}."
        return _error_response(invalid(message, code="unknown_url", status=error.status), allowed)
    except ConnectionError:
        raise  # the client left: nobody to tell
    except Exception:  # the edge: whatever it is, the client gets an error that it can parse
        log.exception("request failed path=%s", request.path)
        return _error_response(ApiError(500, "The router failed; its log says why.", kind=SERVER_ERROR))


def _error_response(error: ApiError, headers: dict[str, str] | None = None) -> web.Response:
    every = {**error.headers(), **(headers or {})}
    return web.Response(status=error.status, body=error.body(), content_type="application/json", headers=every)


def make_api(router: Router, completions: Completions, *, max_body_bytes: int) -> web.Application:
    """The application that clients and probes talk to."""
    metrics = Metrics(router)

    async def list_models(request: web.Request) -> web.Response:
        models = [make_model(route.model, route.created) for route in router.table.routes.values()]
        return web.Response(body=to_json({"object": "list", "data": models}), content_type="application/json")

    async def get_model(request: web.Request) -> web.Response:
        name = request.match_info["model"]
        route = router.route(name)
        if route is None:
            raise unknown_model(name)
        return web.Response(body=to_json(make_model(route.model, route.created)), content_type="application/json")

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(request: web.Request) -> web.Response:
        if router.ready:
            return web.Response(text="ok\n")
        return web.Response(status=503, text="draining\n" if router.draining else "no routes yet\n")

    async def show_metrics(request: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application(client_max_size=max_body_bytes, middlewares=[openai_errors])
    app.router.add_post("/v1/completions", completions.handle)
    app.router.add_get("/v1/models", list_models)
    app.router.add_get("/v1/models/{model:.+}", get_model)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", show_metrics)
    return app


def make_exchange(router: Router, *, keys: KeySet, pod_uid: str) -> web.Application:
    """The application that the operator talks to."""
    app = make_app()
    add_exchange(app, keys=keys, audience=pod_uid, request_type=RouterRequest, answer=router.answer)
    return app

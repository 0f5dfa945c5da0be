"""The API server, through `kubernetes.aio`: implements the port Cluster, and what the lease and the keys need."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
from hotstart.exchange.names import FIELD_MANAGER
from hotstart.operator.adapters.kinds import KINDS
from hotstart.operator.adapters.kube_errors import make_error
from hotstart.operator.core.errors import BadSettings, Retryable
from hotstart.operator.core.writes import Object
from kubernetes.aio import client, config
from kubernetes.aio.config import ConfigException

log = logging.getLogger(__name__)
SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
REQUEST_SECONDS = 30.0
PAGE = 500
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


def is_in_cluster() -> bool:
    """Whether this process runs in a pod with a service account."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and SERVICE_ACCOUNT_TOKEN.exists()


async def connect() -> client.ApiClient:
    """A client by the pod's service account, else by KUBECONFIG.

    Raises:
        BadSettings: there is neither.
    """
    loaders: Any = config  # its functions have no types
    configuration = client.Configuration()
    configuration.retries = False
    try:
        if is_in_cluster():
            loaders.load_incluster_config(client_configuration=configuration)
        else:
            await loaders.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=configuration)
    except (ConfigException, OSError) as error:
        raise BadSettings(
            f"no way to the API server: {error}. Run in a pod with a service account, or set KUBECONFIG."
        ) from error
    return client.ApiClient(configuration)


class KubeCluster:
    """The API server as reconciliation sees it."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    async def list(
        self, kind: str, *, namespace: str = "", labels: str = "", fields: str = ""
    ) -> tuple[dict[str, Any], ...]:
        """All objects of a kind; each with its kind, which lists leave out."""
        return (await self.list_at_version(kind, namespace=namespace, labels=labels, fields=fields))[0]

    async def list_at_version(
        self, kind: str, *, namespace: str = "", labels: str = "", fields: str = ""
    ) -> tuple[tuple[dict[str, Any], ...], int]:
        """All objects of a kind, page by page, and the resource version of the list."""
        place, found, token = KINDS[kind], [], ""
        while True:
            query = {"limit": str(PAGE), "labelSelector": labels, "fieldSelector": fields, "continue": token}
            page = await self.request("GET", place.path(namespace), query=query)
            assert page is not None
            found += [{**item, "kind": kind, "apiVersion": place.api_version} for item in page.get("items") or ()]
            token = page.get("metadata", {}).get("continue") or ""
            if not token:
                return tuple(found), int(page["metadata"]["resourceVersion"])

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """One object; None where there is none."""
        return await self.request("GET", KINDS[kind].path(namespace, name), missing_ok=True)

    async def create(self, body: Object) -> dict[str, Any]:
        """Creates. Raises Conflict where it stands already."""
        path = KINDS[body["kind"]].path(body["metadata"].get("namespace", ""))
        return self._some(await self.request("POST", path, body=body, query={"fieldManager": FIELD_MANAGER}))

    async def replace(self, body: Object) -> dict[str, Any]:
        """Replaces the version that ``body`` names. Raises Conflict where another stands."""
        path = KINDS[body["kind"]].path(body["metadata"].get("namespace", ""), body["metadata"]["name"])
        return self._some(await self.request("PUT", path, body=body, query={"fieldManager": FIELD_MANAGER}))

    async def apply(self, body: Object) -> dict[str, Any]:
        """Server-side apply with our field manager, which takes over fields from others."""
        path = KINDS[body["kind"]].path(body["metadata"].get("namespace", ""), body["metadata"]["name"])
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return self._some(await self.request("PATCH", path, body=body, query=query, content_type=APPLY_PATCH))

    async def patch(self, kind: str, namespace: str, name: str, body: Object) -> dict[str, Any] | None:
        """JSON merge patch; None where the object is gone."""
        return await self._merge(KINDS[kind].path(namespace, name), body)

    async def patch_status(self, kind: str, namespace: str, name: str, body: Object) -> dict[str, Any] | None:
        """JSON merge patch of the status subresource; None where the object is gone."""
        return await self._merge(KINDS[kind].path(namespace, name, "status"), body)

    async def _merge(self, path: str, body: Object) -> dict[str, Any] | None:
        query = {"fieldManager": FIELD_MANAGER}
        return await self.request("PATCH", path, body=body, query=query, content_type=MERGE_PATCH, missing_ok=True)

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> dict[str, Any] | None:
        """Deletes the object with that UID, and in the background what it owns."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        answer = await self.request("DELETE", KINDS[kind].path(namespace, name), body=body, missing_ok=True)
        left = answer is not None and answer.get("kind") == kind and answer["metadata"].get("deletionTimestamp")
        return answer if left else None

    async def set_scale(self, namespace: str, name: str, replicas: int) -> None:
        """Writes spec.replicas through /scale."""
        body = {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"replicas": replicas},
        }
        path = KINDS["CompletionModel"].path(namespace, name, "scale")
        await self.request("PUT", path, body=body, query={"fieldManager": FIELD_MANAGER}, missing_ok=True)

    async def close(self) -> None:
        """Ends the connections."""
        api: Any = self._api
        await api.close()

    @staticmethod
    def _some(answer: dict[str, Any] | None) -> dict[str, Any]:
        assert answer is not None
        return answer

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        missing_ok: bool = False,
    ) -> dict[str, Any] | None:
        """One request. None where the object is missing and that may be.

        Raises:
            Conflict, Forbidden, Refused, Retryable: by the API server's status.
        """
        said = urlencode({name: value for name, value in (query or {}).items() if value})
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        try:
            request = await self._api.param_serialize(
                method,
                f"{path}?{said}" if said else path,
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
            response: Any = await self._api.call_api(*request, _request_timeout=REQUEST_SECONDS)
            text = await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise Retryable(f"the API server does not answer: {type(error).__name__}: {error}") from error
        if 200 <= response.status <= 299:
            answer: dict[str, Any] = json.loads(text)
            return answer
        if response.status == 404 and missing_ok:
            return None
        raise make_error(response.status, text, f"{method} {path}")

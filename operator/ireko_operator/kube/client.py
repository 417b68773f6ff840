"""The writing edge to the API server: five verbs, typed refusals, a fence before every write.

Reading is the business of watches; what stands here is asked rarely, when a watch may have missed something.
Paths and bodies are plain, because server-side apply of a custom resource has no typed call in the client
library. Whoever holds the lease may write, nobody else: `fence` is asked before each write, and one write may
not take longer than a successor waits before it begins.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import urllib3
from kubernetes import config
from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException

from ireko_operator.errors import OperatorError
from ireko_operator.kube.keys import Resource
from ireko_operator.telemetry import NoTelemetry, Telemetry

Body = Mapping[str, Any]
Propagation = Literal["Background", "Foreground", "Orphan"]

REQUEST_SECONDS = 5.0
"""A lease is given up 5 s before another instance may take it, so that by then the last write has ended."""
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_JSON_PATCH = "application/json-patch+json"


class KubeError(OperatorError):
    """The API server did not do what was asked."""

    def __init__(self, message: str, *, code: int = 0, reason: str = "", retry_after: float | None = None):
        super().__init__(message)
        self.code = code
        """HTTP status; 0 where no answer came."""
        self.reason = reason
        """The reason of the answer's `metav1.Status`."""
        self.retry_after = retry_after
        """Seconds that the API server asks to be left alone for."""


class NotFoundError(KubeError):
    """There is no such object, or its kind is unknown to the API server (`kind_missing`)."""

    @property
    def kind_missing(self) -> bool:
        """Whether the whole kind is missing: a CRD that is not installed answers without naming an object."""
        return self.reason != "NotFound" or "could not find the requested resource" in str(self)


class AlreadyExistsError(KubeError):
    """An object of that name exists."""


class ConflictError(KubeError):
    """The object is not what the writer took it for: another uid or a later version."""


class ForbiddenError(KubeError):
    """Not allowed: by RBAC, by a quota or by an admission plugin; the message says which."""


class InvalidError(KubeError):
    """The API server does not take an object like this one."""


class UnavailableError(KubeError):
    """No answer, or the request to come back later."""


class FencedError(KubeError):
    """This process may not write any more: the lease is lost."""


_BY_CODE: dict[int, type[KubeError]] = {
    400: InvalidError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: UnavailableError,
    422: InvalidError,
    429: UnavailableError,
}


def connect(*, kubeconfig: Path | None = None, connections: int = 8) -> ApiClient:
    """A client of the cluster: of `kubeconfig`, else of the pod that this runs in, else of ~/.kube/config.

    Raises `OperatorError` where there is no cluster to be found.
    """
    settings = Configuration()
    try:
        if kubeconfig is None:
            try:
                config.load_incluster_config(client_configuration=settings)
            except config.ConfigException:
                config.load_kube_config(client_configuration=settings)
        else:
            config.load_kube_config(config_file=str(kubeconfig), client_configuration=settings)
    except config.ConfigException as error:
        raise OperatorError(
            f"No Kubernetes cluster is configured ({error}): run inside a cluster, or name a file with "
            "--kubeconfig or in $KUBECONFIG."
        ) from error
    settings.connection_pool_maxsize = connections
    settings.retries = False  # the queue of runs does the retrying
    return ApiClient(settings)


class KubeClient:
    """Reads and writes objects; safe to be used by several threads."""

    def __init__(
        self,
        *,
        api: ApiClient,
        fence: Callable[[], bool] = lambda: True,
        telemetry: Telemetry | None = None,
        seconds: float = REQUEST_SECONDS,
    ) -> None:
        self._api = api
        self.may_write = fence
        """Whether this process may still write."""
        self._telemetry = telemetry or NoTelemetry()
        self._seconds = seconds

    def get(self, resource: Resource, *, namespace: str, name: str) -> Body:
        """The object as the API server holds it now."""
        return self._call("GET", resource.path(namespace, name))

    def list(
        self, resource: Resource, *, namespace: str, selector: str = "", fields: str = ""
    ) -> Sequence[Body]:
        """The objects of a namespace that carry the labels of `selector` and the values of `fields`."""
        query = {"labelSelector": selector, "fieldSelector": fields}
        query = {name: value for name, value in query.items() if value}
        return cast("Sequence[Body]", self._call("GET", resource.path(namespace), query=query)["items"])

    def create(self, resource: Resource, *, namespace: str, body: Body, manager: str) -> Body:
        """The object as created; `AlreadyExistsError` where the name is taken."""
        path = resource.path(namespace)
        return self._write(
            "POST", path, resource.plural, "create", body=body, query={"fieldManager": manager}
        )

    def apply(
        self,
        resource: Resource,
        *,
        namespace: str,
        name: str,
        body: Body,
        manager: str,
        subresource: str | None = None,
    ) -> Body:
        """Server-side apply: the fields of `body` become `manager`'s, fields that it no longer names go.

        A body with `metadata.uid` is applied to that very object only (`ConflictError`, `NotFoundError`).
        """
        counted = f"{resource.plural}/{subresource}" if subresource else resource.plural
        return self._write(
            "PATCH",
            resource.path(namespace, name, subresource),
            counted,
            "apply",
            body=body,
            content_type=_APPLY,
            query={"fieldManager": manager, "force": "true"},
        )

    def merge(self, resource: Resource, *, namespace: str, name: str, body: Body, manager: str) -> Body:
        """Merge patch: only the fields that `body` names change."""
        path = resource.path(namespace, name)
        query = {"fieldManager": manager}
        return self._write(
            "PATCH", path, resource.plural, "patch", body=body, content_type=_MERGE, query=query
        )

    def json_patch(
        self, resource: Resource, *, namespace: str, name: str, operations: Sequence[Body], manager: str
    ) -> Body:
        """JSON patch: all operations or none; a `test` that fails is an `InvalidError`."""
        return self._write(
            "PATCH",
            resource.path(namespace, name),
            resource.plural,
            "patch",
            body=list(operations),
            content_type=_JSON_PATCH,
            query={"fieldManager": manager},
        )

    def delete(
        self,
        resource: Resource,
        *,
        namespace: str,
        name: str,
        uid: str,
        propagation: Propagation = "Background",
    ) -> Body:
        """Ask for the object of that uid to be deleted.

        Returns the object while finalizers hold it, else a `metav1.Status`. `ConflictError` where the name
        belongs to another object by now.
        """
        body = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "propagationPolicy": propagation,
            "preconditions": {"uid": uid},
        }
        return self._write("DELETE", resource.path(namespace, name), resource.plural, "delete", body=body)

    def _write(
        self,
        method: str,
        path: str,
        counted: str,
        verb: str,
        *,
        body: Any,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Body:
        if not self.may_write():
            raise FencedError(f"{verb} of {path} was not sent: another instance of the operator leads.")
        self._telemetry.api_write(counted, verb)
        return self._call(method, path, body=body, content_type=content_type, query=query)

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Body:
        request = self._api.param_serialize(
            method=method,
            resource_path=path,
            header_params={"Accept": "application/json", "Content-Type": content_type},
            query_params=dict(query) if query else None,
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = self._api.call_api(*request, _request_timeout=self._seconds)
            content = response.read()
        except (urllib3.exceptions.HTTPError, ApiException) as error:
            raise UnavailableError(
                f"The API server did not answer {method} {path} ({type(error).__name__}: {error})."
            ) from error
        if 200 <= response.status < 300:
            return cast("Body", json.loads(content))
        raise _refusal(response.status, content, f"{method} {path}")


def _refusal(code: int, content: bytes, request: str) -> KubeError:
    """The error that an answer stands for."""
    try:
        status = json.loads(content)
    except ValueError:
        status = {}
    status = status if isinstance(status, dict) else {}
    reason = str(status.get("reason") or "")
    message = str(status.get("message") or content[:300].decode(errors="replace").strip())
    details = status.get("details") or {}
    kind = _BY_CODE.get(code, UnavailableError if code >= 500 else KubeError)
    if code == 409 and reason == "AlreadyExists":
        kind = AlreadyExistsError
    if any(cause.get("field") == "metadata.uid" for cause in details.get("causes") or ()):
        kind = ConflictError  # the name belongs to another object by now; said as if a uid were to be changed
    return kind(
        message or f"{request} was answered with HTTP status {code}.",
        code=code,
        reason=reason,
        retry_after=details.get("retryAfterSeconds"),
    )

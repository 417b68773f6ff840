"""Questions to the API server that the watches do not answer: is it there, what does it know, what may I do?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes.client import ApiClient

from ireko_operator.kube.client import KubeClient, NotFoundError, connect
from ireko_operator.kube.keys import Key, Resource
from ireko_operator.process.sight import Mark, mark_of

_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
_PAGE = 500


@dataclass(frozen=True, kw_only=True)
class Right:
    """Something that RBAC may allow."""

    verb: str
    group: str
    resource: str
    subresource: str = ""
    namespace: str | None = None
    """None: in all namespaces."""
    name: str = ""

    def __str__(self) -> str:
        what = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        return f"{self.verb} {what}{'.' + self.group if self.group else ''}"


class Inquiry(KubeClient):
    """Asks; never writes an object."""

    def __init__(self, *, kubeconfig: Path | None, seconds: float = 10.0) -> None:
        """Connects as `connect` does."""
        super().__init__(api=connect(kubeconfig=kubeconfig, connections=1), seconds=seconds)
        self._lister = _Lister(api=connect(kubeconfig=kubeconfig, connections=1), seconds=seconds)

    def version(self) -> str:
        """The version of the API server."""
        answer: str = self._call("GET", "/version").get("gitVersion", "")
        return answer

    def serves(self, resource: Resource) -> bool:
        """Whether the API server knows the kind."""
        return resource.plural in self.known(resource.group, resource.version)

    def known(self, group: str, version: str) -> frozenset[str]:
        """The plurals of the kinds in one version of a group; none where there is no such thing."""
        try:
            answer = self._call("GET", _root(group, version))
        except NotFoundError:
            return frozenset()
        return frozenset(item["name"] for item in answer.get("resources") or ())

    def marks(self, resource: Resource, *, namespaces: Sequence[str], selector: str) -> dict[Key, Mark]:
        """The state of every object of a kind, in these namespaces or, if none are named, in all."""
        everywhere = f"{_root(resource.group, resource.version)}/{resource.plural}"
        paths = [resource.path(namespace) for namespace in namespaces] or [everywhere]
        return {key: mark for path in paths for key, mark in self._lister.pages(path, selector)}

    def may(self, right: Right) -> bool:
        """Whether this process has the right."""
        attributes = {
            "verb": right.verb,
            "group": right.group,
            "resource": right.resource,
            "subresource": right.subresource,
            "namespace": right.namespace or "",
            "name": right.name,
        }
        answer = self._call(
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            body={
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": {name: value for name, value in attributes.items() if value}},
            },
        )
        return bool((answer.get("status") or {}).get("allowed"))


def _root(group: str, version: str) -> str:
    return f"/apis/{group}/{version}" if group else f"/api/{version}"


class _Lister(KubeClient):
    """Lists, with nothing of the objects but their metadata: a thousand RayJobs are tens of megabytes."""

    def __init__(self, *, api: ApiClient, seconds: float) -> None:
        """`api` must be this object's own: it no longer accepts anything but lists."""
        super().__init__(api=api, seconds=seconds)
        api.set_default_header("Accept", _METADATA_ONLY)

    def pages(self, path: str, selector: str) -> list[tuple[Key, Mark]]:
        """The state of every object of a collection."""
        query: dict[str, str] = {"limit": str(_PAGE), **({"labelSelector": selector} if selector else {})}
        found: list[tuple[Key, Mark]] = []
        while True:
            page: Mapping[str, Any] = self._call("GET", path, query=query)
            found += [mark_of(item) for item in page["items"] or ()]
            following = page["metadata"].get("continue")
            if not following:
                return found
            query["continue"] = following

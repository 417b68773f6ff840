"""Reading one object anew where the cache and the API server disagree."""

from __future__ import annotations

from ireko_operator.kube.cache import Cache
from ireko_operator.kube.client import KubeClient, NotFoundError
from ireko_operator.kube.keys import Kind, Resource
from ireko_operator.kube.objects import Meta


def refresh(client: KubeClient, cache: Cache, *, resource: Resource, meta: Meta) -> None:
    """Let the cache learn the object as it is now, or forget it where it is gone."""
    kind = Kind(resource.plural)
    try:
        answer = client.get(resource, namespace=meta.namespace, name=meta.name)
    except NotFoundError:
        cache.forget(kind, meta)
    else:
        cache.learn(kind, answer)

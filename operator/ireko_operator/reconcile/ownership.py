"""The run's own object: the finalizer that holds it until its attempts are gone, and its deletion when it is too old.

Every write names the object by its uid. A write that meets another state of the object than the cache has changes
nothing; the cache learns that state, and the next look decides again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ireko_api import spec
from ireko_operator.kube.cache import Cache
from ireko_operator.kube.client import ConflictError, InvalidError, KubeClient, NotFoundError
from ireko_operator.kube.keys import FINALIZER, MANAGER, RUNS, Kind
from ireko_operator.kube.objects import RunObject
from ireko_operator.kube.refresh import refresh

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Ownership:
    """Writes to a run's object beside its status; raises `KubeError` for what may pass."""

    client: KubeClient
    cache: Cache

    def hold(self, run: RunObject) -> None:
        """Set the finalizer."""
        body = {
            "apiVersion": spec.API_VERSION,
            "kind": spec.KIND,
            "metadata": {
                "name": run.meta.name,
                "namespace": run.meta.namespace,
                "uid": run.meta.uid,
                "finalizers": [FINALIZER],
            },
        }
        try:
            answer = self.client.apply(
                RUNS, namespace=run.meta.namespace, name=run.meta.name, body=body, manager=MANAGER
            )
        except (NotFoundError, ConflictError, InvalidError):
            self.look_up(run)  # deleted meanwhile
        else:
            self.cache.learn(Kind.RUNS, answer)

    def let_go(self, run: RunObject) -> bool:
        """Take the finalizer away; whether this call did it."""
        at = f"/metadata/finalizers/{run.meta.finalizers.index(FINALIZER)}"
        operations = [
            {"op": "test", "path": "/metadata/uid", "value": run.meta.uid},
            {"op": "test", "path": at, "value": FINALIZER},
            {"op": "remove", "path": at},
        ]
        try:
            answer = self.client.json_patch(
                RUNS,
                namespace=run.meta.namespace,
                name=run.meta.name,
                operations=operations,
                manager=MANAGER,
            )
        except (NotFoundError, ConflictError, InvalidError):
            self.look_up(run)  # gone, or somebody changed the list of finalizers
            return False
        self.cache.learn(Kind.RUNS, answer)
        return True

    def delete(self, run: RunObject) -> None:
        """Delete the object."""
        log.info("Deleting the run: its time to live is over")
        try:
            answer = self.client.delete(
                RUNS, namespace=run.meta.namespace, name=run.meta.name, uid=run.meta.uid
            )
        except (NotFoundError, ConflictError):
            self.look_up(run)
            return
        if answer.get("kind") == spec.KIND:
            self.cache.learn(Kind.RUNS, answer)
        else:
            self.cache.forget(Kind.RUNS, run.meta)

    def look_up(self, run: RunObject) -> None:
        """Ask the API server for a run of which the cache has another idea."""
        refresh(self.client, self.cache, resource=RUNS, meta=run.meta)

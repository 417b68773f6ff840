"""What must be in place before the operator starts, each with a sentence that says how to get it."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ireko_api import spec
from ireko_operator.errors import OperatorError
from ireko_operator.kube.client import KubeError
from ireko_operator.kube.keys import CONFIG_MAPS, EVENTS, JOBS, RUNS, Kind, Resource
from ireko_operator.process.inquiry import Inquiry, Right
from ireko_operator.process.lease import LEASES
from ireko_operator.process.settings import OperatorSettings
from ireko_operator.process.watched import WATCHED

logger = logging.getLogger(__name__)

_VERBS: tuple[tuple[Resource, str, tuple[str, ...]], ...] = (
    (RUNS, "", ("get", "list", "watch", "patch", "delete")),
    (RUNS, "status", ("patch",)),
    (JOBS, "", ("get", "list", "watch", "create", "patch", "delete")),
    (WATCHED[Kind.CLUSTERS].resource, "", ("get", "list", "watch")),
    (WATCHED[Kind.PODS].resource, "", ("get", "list", "watch")),
    (CONFIG_MAPS, "", ("get", "create", "delete")),
    (EVENTS, "", ("create", "list")),
)
"""What the operator does where runs are. The same rights stand in the chart's roles."""


def check_start(inquiry: Inquiry, settings: OperatorSettings) -> None:
    """Raise `OperatorError` with everything that keeps the operator from working."""
    _check_reachable(inquiry)
    _check_definition(inquiry)
    missing = find_missing_rights(inquiry, settings)
    if missing:
        raise OperatorError(
            "The operator's account has not all the rights that it needs:\n"
            + "\n".join(f"  {right} {_where(right)}" for right in missing)
            + "\nGrant them by installing the chart with rbac.create=true, or by roles of your own."
        )


def find_missing_rights(inquiry: Inquiry, settings: OperatorSettings) -> list[Right]:
    """The rights that RBAC does not give to this process."""
    return [right for right in needed_rights(settings) if not inquiry.may(right)]


def needed_rights(settings: OperatorSettings) -> Iterable[Right]:
    """Everything that the operator must be allowed."""
    for namespace in settings.namespaces or (None,):
        for resource, subresource, verbs in _VERBS:
            for verb in verbs:
                yield Right(
                    verb=verb,
                    group=resource.group,
                    resource=resource.plural,
                    subresource=subresource,
                    namespace=namespace,
                )
    if settings.leader_elect:
        for verb in ("create", "get", "patch"):
            yield Right(
                verb=verb,
                group=LEASES.group,
                resource=LEASES.plural,
                namespace=settings.lease_namespace,
                name="" if verb == "create" else settings.lease_name,
            )


def _check_reachable(inquiry: Inquiry) -> None:
    try:
        logger.info("The API server answers: Kubernetes %s.", inquiry.version())
    except KubeError as error:
        raise OperatorError(
            f"The Kubernetes API server cannot be used: {error} Check its address and credentials in the "
            "kubeconfig (--kubeconfig, $KUBECONFIG), and that this machine can reach it."
        ) from error


def _check_definition(inquiry: Inquiry) -> None:
    if not inquiry.serves(RUNS):
        raise OperatorError(
            f"The cluster has no definition of {spec.KIND} ({RUNS.plural}.{spec.GROUP}/{spec.VERSION}). Install it "
            "with `ireko crd | kubectl apply --server-side -f -`, or with the chart: "
            "`helm upgrade --install ireko charts/ireko --set crds.enabled=true`."
        )


def _where(right: Right) -> str:
    return f"in namespace {right.namespace}" if right.namespace is not None else "in all namespaces"

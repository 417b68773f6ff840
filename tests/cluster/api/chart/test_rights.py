"""What the operator's account may do, and what the people of a namespace may, asked of a real authorizer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kubernetes.client import (
    AuthorizationV1Api,
    V1ResourceAttributes,
    V1SubjectAccessReview,
    V1SubjectAccessReviewSpec,
)

from rig.api_server import Cluster
from rig.helm import Helm

RUNS, STATUS = "compressionruns.ireko.dev", "compressionruns.ireko.dev/status"
JOBS, CLUSTERS = "rayjobs.ray.io", "rayclusters.ray.io"

NEEDED = (
    ("get list watch patch delete", RUNS),
    ("patch", STATUS),
    ("update", "compressionruns.ireko.dev/finalizers"),
    ("get list watch create patch delete", JOBS),
    ("get list watch", CLUSTERS),
    ("get list watch", "pods"),
    ("get create delete", "configmaps"),
    ("get list watch", "workloads.kueue.x-k8s.io"),
    ("create list", "events.events.k8s.io"),
)
WITHHELD = (
    ("get list watch create update patch delete", "secrets"),
    ("create update", RUNS),
    ("create update patch delete", "pods"),
    ("create", "pods/exec"),
    ("create", "serviceaccounts/token"),
    ("list watch patch update", "configmaps"),
    ("create patch delete", CLUSTERS),
    ("create patch delete", "workloads.kueue.x-k8s.io"),
    ("watch update patch delete", "events.events.k8s.io"),
    ("get list", "nodes"),
    ("get list", "namespaces"),
    ("create patch", "rolebindings.rbac.authorization.k8s.io"),
    ("impersonate", "users"),
)


def may(
    cluster: Cluster, account: str, verb: str, resource: str, namespace: str, *, name: str | None = None
) -> bool:
    """What `kubectl auth can-i` asks, without starting it a hundred times; `account` is `namespace:name`."""
    kind, _, subresource = resource.partition("/")
    plural, _, group = kind.partition(".")
    home = account.split(":")[0]
    review = V1SubjectAccessReview(
        spec=V1SubjectAccessReviewSpec(
            user=f"system:serviceaccount:{account}",
            groups=["system:serviceaccounts", f"system:serviceaccounts:{home}", "system:authenticated"],
            resource_attributes=V1ResourceAttributes(
                verb=verb, group=group, resource=plural, subresource=subresource or None,
                namespace=namespace, name=name,
            ),
        )
    )  # fmt: skip
    answer = AuthorizationV1Api(cluster.api_client()).create_subject_access_review(review)
    allowed: bool = answer.status.allowed
    return allowed


def refused(
    cluster: Cluster, account: str, namespace: str, rights: tuple[tuple[str, str], ...]
) -> list[tuple[str, str]]:
    return [
        (verb, resource)
        for verbs, resource in rights
        for verb in verbs.split()
        if not may(cluster, account, verb, resource, namespace)
    ]


def asked(rights: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    return [(verb, resource) for verbs, resource in rights for verb in verbs.split()]


@pytest.fixture(scope="module")
def helm_here(empty_cluster: Cluster, helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return Helm(directory=tmp_path_factory.mktemp("rights"), kubeconfig=empty_cluster.kubeconfig)


@pytest.fixture(scope="module")
def everywhere(empty_cluster: Cluster, helm_here: Helm) -> Iterator[str]:
    """The account of an operator that watches all namespaces."""
    with empty_cluster.namespace() as place:
        helm_here.install(
            {"tracking": {"uri": "http://mlflow"}}, namespace=place, options=["--take-ownership"]
        )
        yield f"{place}:ireko"
        helm_here.uninstall(namespace=place)


@pytest.fixture(scope="module")
def team(empty_cluster: Cluster) -> Iterator[str]:
    with empty_cluster.namespace() as name:
        yield name


@pytest.fixture(scope="module")
def of_one_team(empty_cluster: Cluster, helm_here: Helm, team: str) -> Iterator[str]:
    """The account of an operator that watches one namespace, and not its own."""
    with empty_cluster.namespace() as place:
        values = {
            "tracking": {"uri": "http://mlflow"},
            "watchNamespaces": [team],
            "crds": {"enabled": False},
            "rbac": {"aggregateToDefaultRoles": False},
        }
        helm_here.install(values, namespace=place)
        yield f"{place}:ireko"
        helm_here.uninstall(namespace=place)


def test_a_cluster_wide_operator_may_do_its_work_anywhere(empty_cluster: Cluster, everywhere: str) -> None:
    assert refused(empty_cluster, everywhere, "default", NEEDED) == []


def test_and_nothing_else(empty_cluster: Cluster, everywhere: str) -> None:
    assert refused(empty_cluster, everywhere, "default", WITHHELD) == asked(WITHHELD)


def test_a_namespaced_operator_may_do_its_work_there(
    empty_cluster: Cluster, of_one_team: str, team: str
) -> None:
    assert refused(empty_cluster, of_one_team, team, NEEDED) == []
    assert refused(empty_cluster, of_one_team, team, WITHHELD) == asked(WITHHELD)


def test_and_nowhere_else(empty_cluster: Cluster, of_one_team: str) -> None:
    own = of_one_team.split(":")[0]
    for namespace in ("default", own):
        assert refused(empty_cluster, of_one_team, namespace, NEEDED) == asked(NEEDED)


def test_the_lease_is_the_one_thing_in_its_own_namespace(empty_cluster: Cluster, everywhere: str) -> None:
    own = everywhere.split(":")[0]
    lease = "leases.coordination.k8s.io"
    assert may(empty_cluster, everywhere, "create", lease, own)
    for verb in ("get", "patch"):
        assert may(empty_cluster, everywhere, verb, lease, own, name="ireko")
        assert not may(empty_cluster, everywhere, verb, lease, own, name="another")
    assert not may(empty_cluster, everywhere, "create", lease, "default")


@pytest.mark.parametrize(
    ("role", "granted", "withheld"),
    [
        ("view", (("get list watch", RUNS), ("get", STATUS)), (("create patch update delete", RUNS),)),
        ("edit", (("create patch update delete", RUNS),), (("patch update", STATUS), ("get", "secrets"))),
    ],
)
def test_people_get_their_rights_by_the_clusters_own_roles(
    empty_cluster: Cluster,
    everywhere: str,
    team: str,
    role: str,
    granted: tuple[tuple[str, str], ...],
    withheld: tuple[tuple[str, str], ...],
) -> None:
    """The controller that gathers aggregated roles does not run here, so the parts are bound as they are."""
    own = everywhere.split(":")[0]
    part = f"{own}-ireko-{role}"
    labels = empty_cluster.kubectl("get", "clusterrole", part, "-o", "jsonpath={.metadata.labels}").stdout
    assert f'"rbac.authorization.k8s.io/aggregate-to-{role}":"true"' in labels
    account = f"{team}:person-{role}"
    empty_cluster.kubectl(
        "create", "rolebinding", role, "-n", team, f"--clusterrole={part}", f"--serviceaccount={account}"
    )
    assert refused(empty_cluster, account, team, granted) == []
    assert refused(empty_cluster, account, team, withheld) == asked(withheld)

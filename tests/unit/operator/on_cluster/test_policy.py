"""What the author of a run may not put into its pods: each by its path, and by the exception that allows it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cluster_runs import PLATFORM, run_with

from ireko_operator.launch.platform import Platform, PolicyException
from ireko_operator.launch.policy import RefusedField, refused_fields


def refused(spec: dict[str, Any], *, platform: Platform = PLATFORM) -> tuple[RefusedField, ...]:
    return refused_fields(run_with(podTemplate={"spec": spec}).spec.compute, platform=platform)


def trainer(**fields: Any) -> dict[str, Any]:
    return {"containers": [{"name": "trainer", **fields}]}


def security(**fields: Any) -> dict[str, Any]:
    return trainer(securityContext=fields)


def volume(**source: Any) -> dict[str, Any]:
    return {"volumes": [{"name": "v", **source}]}


REFUSED = [
    ({"hostNetwork": True}, "hostNetwork", "HostNamespaces"),
    ({"hostPID": True}, "hostPID", "HostNamespaces"),
    ({"hostIPC": True}, "hostIPC", "HostNamespaces"),
    ({"automountServiceAccountToken": True}, "automountServiceAccountToken", "ServiceAccountToken"),
    ({"priorityClassName": "system-node-critical"}, "priorityClassName", None),
    ({"securityContext": {"runAsUser": 0}}, "securityContext.runAsUser", "RunAsRoot"),
    ({"securityContext": {"runAsNonRoot": False}}, "securityContext.runAsNonRoot", "RunAsRoot"),
    (
        {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}},
        "securityContext.sysctls",
        "Unconfined",
    ),
    (
        {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
        "securityContext.seccompProfile.type",
        "Unconfined",
    ),
    (
        {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}},
        "securityContext.appArmorProfile.type",
        "Unconfined",
    ),
    (
        {"securityContext": {"seLinuxOptions": {"type": "spc_t"}}},
        "securityContext.seLinuxOptions.type",
        "Unconfined",
    ),
    (
        {"securityContext": {"seLinuxOptions": {"user": "system_u"}}},
        "securityContext.seLinuxOptions.user",
        "Unconfined",
    ),
    (
        {"securityContext": {"windowsOptions": {"hostProcess": True}}},
        "securityContext.windowsOptions.hostProcess",
        "Privileged",
    ),
    (volume(hostPath={"path": "/etc"}), "volumes[v].hostPath", "HostPath"),
    (volume(nfs={"server": "s", "path": "/"}), "volumes[v].nfs", "AnyVolume"),
    (volume(csi={"driver": "d"}), "volumes[v].csi", "AnyVolume"),
    (volume(iscsi={}), "volumes[v].iscsi", "AnyVolume"),
    (
        volume(projected={"sources": [{"secret": {}}, {"serviceAccountToken": {"path": "t"}}]}),
        "volumes[v].projected.sources[1].serviceAccountToken",
        "ServiceAccountToken",
    ),
    (
        volume(
            ephemeral={
                "volumeClaimTemplate": {"spec": {"dataSourceRef": {"name": "a", "namespace": "other"}}}
            }
        ),
        "volumes[v].ephemeral.volumeClaimTemplate.spec.dataSourceRef.namespace",
        None,
    ),
    (security(privileged=True), "containers[trainer].securityContext.privileged", "Privileged"),
    (
        security(allowPrivilegeEscalation=True),
        "containers[trainer].securityContext.allowPrivilegeEscalation",
        "Privileged",
    ),
    (
        security(capabilities={"add": ["NET_ADMIN"]}),
        "containers[trainer].securityContext.capabilities.add",
        "Capabilities",
    ),
    (
        security(capabilities={"drop": []}),
        "containers[trainer].securityContext.capabilities.drop",
        "Capabilities",
    ),
    (security(runAsUser=0), "containers[trainer].securityContext.runAsUser", "RunAsRoot"),
    (security(procMount="Unmasked"), "containers[trainer].securityContext.procMount", "Unconfined"),
    (
        trainer(ports=[{"containerPort": 80, "hostPort": 80}]),
        "containers[trainer].ports[80].hostPort",
        "HostPorts",
    ),
    (
        trainer(volumeMounts=[{"name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional"}]),
        "containers[trainer].volumeMounts[/v].mountPropagation",
        "Privileged",
    ),
    (
        trainer(livenessProbe={"httpGet": {"host": "169.254.169.254", "port": 80}}),
        "containers[trainer].livenessProbe.httpGet.host",
        "HostNamespaces",
    ),
    (
        trainer(lifecycle={"preStop": {"tcpSocket": {"host": "10.0.0.1", "port": 80}}}),
        "containers[trainer].lifecycle.preStop.tcpSocket.host",
        "HostNamespaces",
    ),
    (
        {"initContainers": [{"name": "i", "securityContext": {"privileged": True}}]},
        "initContainers[i].securityContext.privileged",
        "Privileged",
    ),
    (
        {"containers": [{"name": "beside", "securityContext": {"runAsUser": 0}}]},
        "containers[beside].securityContext.runAsUser",
        "RunAsRoot",
    ),
    (
        {"containers": [{"name": "trainer", "$patch": "delete"}]},
        "containers[0].$patch",
        None,
    ),
]


@pytest.mark.parametrize(("spec", "path", "exception"), REFUSED, ids=[row[1] for row in REFUSED])
def test_what_may_do_more_than_train_is_refused_by_its_path(
    spec: dict[str, Any], path: str, exception: str | None
) -> None:
    (found,) = refused(spec)
    assert found.path == f"podTemplate.spec.{path}"
    assert found.exception == exception
    assert (f"(exception {exception})" in found.why) is (exception is not None)


@pytest.mark.parametrize(("spec", "path", "exception"), REFUSED, ids=[row[1] for row in REFUSED])
def test_only_its_own_exception_allows_it(spec: dict[str, Any], path: str, exception: str | None) -> None:
    own = frozenset({PolicyException(exception)}) if exception is not None else frozenset()
    others = frozenset(PolicyException) - own
    assert len(refused(spec, platform=replace(PLATFORM, exceptions=others))) == 1
    allowed = refused(spec, platform=replace(PLATFORM, exceptions=own))
    assert (allowed == ()) is (exception is not None)


def test_every_exception_is_asked_for_by_something() -> None:
    assert {row[2] for row in REFUSED if row[2] is not None} == set(PolicyException)


ALLOWED: list[dict[str, Any]] = [
    {},
    {"hostNetwork": False, "automountServiceAccountToken": False, "hostUsers": False},
    {"affinity": {"podAntiAffinity": {}}, "schedulerName": "other", "runtimeClassName": "gvisor"},
    {"nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}], "priorityClassName": "low"},
    {"securityContext": {"runAsUser": 1234, "runAsGroup": 0, "supplementalGroups": [5], "fsGroup": 7}},
    {"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "p.json"}}},
    security(readOnlyRootFilesystem=False, capabilities={"drop": ["ALL"]}),
    volume(emptyDir={}),
    volume(configMap={"name": "c"}),
    volume(secret={"secretName": "s"}),
    volume(persistentVolumeClaim={"claimName": "p"}),
    volume(downwardAPI={}),
    volume(projected={"sources": [{"secret": {"name": "s"}}, {"configMap": {"name": "c"}}]}),
    volume(ephemeral={"volumeClaimTemplate": {"spec": {"dataSourceRef": {"name": "a"}}}}),
    trainer(env=[{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]),
    trainer(ports=[{"containerPort": 80}], livenessProbe={"httpGet": {"port": 80}}),
    {"initContainers": [{"name": "fetch", "image": "busybox", "command": ["true"]}]},
]


@pytest.mark.parametrize("spec", ALLOWED, ids=str)
def test_what_does_no_more_than_train_is_allowed(spec: dict[str, Any]) -> None:
    assert refused(spec) == ()


def test_everything_that_is_refused_is_named_at_once() -> None:
    spec = {"hostNetwork": True, **volume(hostPath={"path": "/"}), **security(privileged=True, runAsUser=0)}
    assert [field.path for field in refused(spec)] == [
        "podTemplate.spec.hostNetwork",
        "podTemplate.spec.volumes[v].hostPath",
        "podTemplate.spec.containers[trainer].securityContext.runAsUser",
        "podTemplate.spec.containers[trainer].securityContext.privileged",
    ]


@pytest.mark.parametrize(
    ("metadata", "path"),
    [
        ({"labels": {"ray.io/cluster": "other"}}, "labels[ray.io/cluster]"),
        ({"labels": {"ireko.dev/run": "other"}}, "labels[ireko.dev/run]"),
        ({"labels": {"kueue.x-k8s.io/queue-name": "q"}}, "labels[kueue.x-k8s.io/queue-name]"),
        ({"labels": {"app.kubernetes.io/managed-by": "me"}}, "labels[app.kubernetes.io/managed-by]"),
        (
            {"annotations": {"ray.io/overwrite-container-cmd": "true"}},
            "annotations[ray.io/overwrite-container-cmd]",
        ),
        ({"labels": {"no key": "a"}}, "labels[no key]"),
        ({"labels": {f"a/{'b' * 64}": "a"}}, f"labels[a/{'b' * 64}]"),
        (
            {"annotations": {"container.apparmor.security.beta.kubernetes.io/trainer": "unconfined"}},
            "annotations[container.apparmor.security.beta.kubernetes.io/trainer]",
        ),
    ],
)
def test_labels_that_belong_to_others_are_refused(metadata: dict[str, Any], path: str) -> None:
    (found,) = refused_fields(run_with(podTemplate={"metadata": metadata}).spec.compute, platform=PLATFORM)
    assert found.path == f"podTemplate.metadata.{path}"


def test_labels_of_the_user_are_allowed() -> None:
    metadata = {
        "labels": {"team": "edge", "example.com/cost-centre": "7"},
        "annotations": {"a/b": "any text"},
    }
    run = run_with(podTemplate={"metadata": metadata}, nodeSelector={"kubernetes.io/arch": "amd64"})
    assert refused_fields(run.spec.compute, platform=PLATFORM) == ()


def test_what_stands_beside_the_template_is_looked_at_too() -> None:
    run = run_with(nodeSelector={"no key": "a"}, priorityClassName="system-cluster-critical")
    assert [field.path for field in refused_fields(run.spec.compute, platform=PLATFORM)] == [
        "nodeSelector[no key]",
        "priorityClassName",
    ]


DEFAULTS = {
    "spec": {
        "volumes": [{"name": "venv", "hostPath": {"path": "/opt/venv"}}],
        "initContainers": [{"name": "setup", "securityContext": {"privileged": True}}],
        "containers": [
            {
                "name": "trainer",
                "volumeMounts": [{"name": "venv", "mountPath": "/opt/venv", "readOnly": True}],
            },
            {"name": "agent", "securityContext": {"runAsUser": 0}},
        ],
    }
}


def test_the_administrators_defaults_are_not_restricted() -> None:
    platform = replace(PLATFORM, pod_defaults=DEFAULTS)
    assert refused({"nodeSelector": {"a": "b"}}, platform=platform) == ()
    assert refused(trainer(env=[{"name": "A", "value": "1"}]), platform=platform) == ()


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"volumes": [{"name": "venv", "emptyDir": {}}]}, "volumes[venv]"),
        (
            trainer(volumeMounts=[{"name": "venv", "mountPath": "/writable"}]),
            "containers[trainer].volumeMounts[/writable]",
        ),
        ({"initContainers": [{"name": "setup", "image": "mine"}]}, "initContainers[setup]"),
        ({"containers": [{"name": "agent", "image": "mine"}]}, "containers[agent]"),
    ],
)
def test_what_is_the_administrators_cannot_be_taken_over_by_its_name(spec: dict[str, Any], path: str) -> None:
    found = refused(spec, platform=replace(PLATFORM, pod_defaults=DEFAULTS))
    assert [field.path for field in found] == [f"podTemplate.spec.{path}"]

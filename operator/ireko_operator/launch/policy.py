"""What the author of a run may not put into its pods: nobody gains anything through the operator.

The policy is Pod Security's `restricted` profile and a few rules of our own: no service account token, volumes
only of kinds that cannot name anything outside of the run's namespace, no directives of the strategic merge,
and nothing that is the administrator's is reached through its name. Each refusal names the field, and the
exception that the administrator can allow it by, if there is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ireko_api.placement import LABEL_KEY
from ireko_api.spec import Compute
from ireko_operator.launch.platform import Platform, PolicyException
from ireko_operator.launch.rayjob import LABEL_MANAGED_BY, TRAINER_CONTAINER

_OWN_PREFIXES = ("ray.io/", "kueue.x-k8s.io/", "ireko.dev/")
_PROFILE_ANNOTATIONS = (
    "container.apparmor.security.beta.kubernetes.io/",
    "seccomp.security.alpha.kubernetes.io/",
)
_VOLUMES = (
    "configMap",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
)
_SELINUX_TYPES = ("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")


@dataclass(frozen=True, kw_only=True)
class RefusedField:
    """A field that the policy does not take."""

    path: str
    """Below `spec.compute`, e.g. `podTemplate.spec.containers[trainer].securityContext.privileged`."""
    why: str
    """The rest of the sentence that begins with the path, e.g. `must not be true`."""
    exception: PolicyException | None = None
    """What the administrator would have to allow; None where nothing allows it."""


Found = Iterator[RefusedField]
Object = Mapping[str, Any]


def refused_fields(compute: Compute, *, platform: Platform) -> tuple[RefusedField, ...]:
    """Everything in `compute` and its pod template that the policy refuses on this platform."""
    found = [*_labels(compute.node_selector, "nodeSelector"), *_priority(compute.priority_class_name, "")]
    if compute.pod_template is not None:
        template = compute.pod_template.as_manifest()
        found += _template(template, platform.pod_defaults)
    return tuple(field for field in found if field.exception not in platform.exceptions)


def _template(template: Object, defaults: Object) -> Found:
    at = "podTemplate"
    metadata, spec = template.get("metadata", {}), template.get("spec", {})
    yield from _directives(template, at)
    for field in ("labels", "annotations"):
        yield from _labels(metadata.get(field, {}), f"{at}.metadata.{field}")
        yield from _reserved(metadata.get(field, {}), f"{at}.metadata.{field}")
    yield from _pod(spec, f"{at}.spec")
    yield from _volumes(spec, f"{at}.spec")
    yield from _of_the_administrator(spec, defaults.get("spec", {}), f"{at}.spec")
    for field in ("initContainers", "containers"):
        for container in spec.get(field, ()):
            yield from _container(container, f"{at}.spec.{field}[{container.get('name', '?')}]")


# --- names ---


def _directives(value: Any, at: str) -> Found:
    """Directives such as `$patch: delete` would take away what the operator put there."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            if str(key).startswith("$"):
                yield RefusedField(path=f"{at}.{key}", why="is a directive, which templates cannot have")
            yield from _directives(below, f"{at}.{key}")
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _directives(below, f"{at}[{index}]")


def _labels(labels: Mapping[str, str], at: str) -> Found:
    for key in labels:
        if not re.fullmatch(LABEL_KEY, key) or len(key.rpartition("/")[2]) > 63:
            yield RefusedField(path=f"{at}[{key}]", why="is no key that Kubernetes takes")


def _reserved(labels: Mapping[str, str], at: str) -> Found:
    for key in labels:
        if key == LABEL_MANAGED_BY or key.startswith(_OWN_PREFIXES):
            yield RefusedField(path=f"{at}[{key}]", why="is written by Ray, Kueue or Ireko itself")
        elif key.startswith(_PROFILE_ANNOTATIONS):
            yield _refused(at, f"[{key}]", "must not be set", PolicyException.UNCONFINED)


def _priority(name: str | None, at: str) -> Found:
    if name is not None and name.startswith("system-"):
        yield RefusedField(
            path=f"{at}.priorityClassName".removeprefix("."), why="must not be one of the system's own"
        )


def _of_the_administrator(spec: Object, defaults: Object, at: str) -> Found:
    """The administrator's template may do more; its parts cannot be taken over by their names."""
    volumes = {volume.get("name") for volume in defaults.get("volumes", ())}
    for volume in spec.get("volumes", ()):
        if volume.get("name") in volumes:
            yield RefusedField(
                path=f"{at}.volumes[{volume.get('name')}]", why="has the name of one of the administrator's"
            )
    for field in ("initContainers", "containers"):
        taken = {item.get("name") for item in defaults.get(field, ())} - {TRAINER_CONTAINER}
        for container in spec.get(field, ()):
            place = f"{at}.{field}[{container.get('name', '?')}]"
            if container.get("name") in taken:
                yield RefusedField(path=place, why="has the name of one of the administrator's")
            for mount in container.get("volumeMounts", ()):
                if mount.get("name") in volumes:
                    yield RefusedField(
                        path=f"{place}.volumeMounts[{mount.get('mountPath', '?')}]",
                        why="mounts a volume of the administrator's",
                    )


# --- pods ---


def _pod(spec: Object, at: str) -> Found:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield _refused(at, f".{field}", "must not be true", PolicyException.HOST_NAMESPACES)
    if spec.get("automountServiceAccountToken"):
        yield _refused(
            at, ".automountServiceAccountToken", "must not be true", PolicyException.SERVICE_ACCOUNT_TOKEN
        )
    yield from _priority(spec.get("priorityClassName"), at)
    security = spec.get("securityContext") or {}
    if security.get("sysctls"):
        yield _refused(at, ".securityContext.sysctls", "must not be set", PolicyException.UNCONFINED)
    yield from _security(security, f"{at}.securityContext")


def _volumes(spec: Object, at: str) -> Found:
    for volume in spec.get("volumes", ()):
        place = f"{at}.volumes[{volume.get('name', '?')}]"
        for kind, source in volume.items():
            if kind == "name" or source is None:
                continue
            yield from _volume(kind, source, place)


def _volume(kind: str, source: Any, at: str) -> Found:
    if kind == "hostPath":
        yield _refused(at, ".hostPath", "must not be set", PolicyException.HOST_PATH)
    elif kind not in _VOLUMES:
        why = f"must be one of {', '.join(_VOLUMES)}"
        yield _refused(at, f".{kind}", why, PolicyException.ANY_VOLUME)
    elif kind == "projected":
        for index, part in enumerate(_items(source, "sources")):
            for name in part:
                if name in ("serviceAccountToken", "podCertificate"):
                    yield _refused(
                        at,
                        f".projected.sources[{index}].{name}",
                        "must not be set",
                        PolicyException.SERVICE_ACCOUNT_TOKEN,
                    )
    elif kind == "ephemeral":
        claim = source.get("volumeClaimTemplate", {}) if isinstance(source, Mapping) else {}
        reference = claim.get("spec", {}).get("dataSourceRef") or {}
        if reference.get("namespace"):
            yield RefusedField(
                path=f"{at}.ephemeral.volumeClaimTemplate.spec.dataSourceRef.namespace",
                why="must not be set: a run reaches nothing outside of its namespace",
            )


# --- containers ---


def _container(container: Object, at: str) -> Found:
    security = container.get("securityContext") or {}
    yield from _security(security, f"{at}.securityContext")
    yield from _privileges(security, f"{at}.securityContext")
    for port in _items(container, "ports"):
        for field in ("hostPort", "hostIP"):
            if port.get(field):
                place = f".ports[{port.get('containerPort', '?')}].{field}"
                yield _refused(at, place, "must not be set", PolicyException.HOST_PORTS)
    for mount in _items(container, "volumeMounts"):
        if mount.get("mountPropagation", "None") == "Bidirectional":
            place = f".volumeMounts[{mount.get('mountPath', '?')}].mountPropagation"
            yield _refused(at, place, "must not be Bidirectional", PolicyException.PRIVILEGED)
    yield from _foreign_hosts(container, at)


def _foreign_hosts(container: Object, at: str) -> Found:
    """A probe is sent by the node, which reaches addresses that pods do not."""
    hooks = container.get("lifecycle") or {}
    handlers = {field: container.get(field) for field in _PROBES}
    handlers |= {f"lifecycle.{name}": hooks.get(name) for name in ("postStart", "preStop")}
    for place, handler in handlers.items():
        for action in ("httpGet", "tcpSocket"):
            if ((handler or {}).get(action) or {}).get("host"):
                yield _refused(
                    at, f".{place}.{action}.host", "must not be set", PolicyException.HOST_NAMESPACES
                )


def _privileges(security: Object, at: str) -> Found:
    for field in ("privileged", "allowPrivilegeEscalation"):
        if security.get(field):
            yield _refused(at, f".{field}", "must not be true", PolicyException.PRIVILEGED)
    capabilities = security.get("capabilities") or {}
    if capabilities.get("add"):
        yield _refused(at, ".capabilities.add", "must not be set", PolicyException.CAPABILITIES)
    if capabilities.get("drop") is not None and "ALL" not in capabilities["drop"]:
        yield _refused(at, ".capabilities.drop", "must have ALL", PolicyException.CAPABILITIES)
    if security.get("procMount", "Default") != "Default":
        yield _refused(at, ".procMount", "must be Default", PolicyException.UNCONFINED)


def _security(security: Object, at: str) -> Found:
    """What a pod's and a container's security context have in common."""
    if security.get("runAsNonRoot") is False:
        yield _refused(at, ".runAsNonRoot", "must not be false", PolicyException.RUN_AS_ROOT)
    if security.get("runAsUser") == 0:
        yield _refused(at, ".runAsUser", "must not be 0", PolicyException.RUN_AS_ROOT)
    if (security.get("windowsOptions") or {}).get("hostProcess"):
        yield _refused(at, ".windowsOptions.hostProcess", "must not be true", PolicyException.PRIVILEGED)
    for field in ("seccompProfile", "appArmorProfile"):
        profile = security.get(field)
        if profile is not None and profile.get("type") not in ("RuntimeDefault", "Localhost"):
            why = "must be RuntimeDefault or Localhost"
            yield _refused(at, f".{field}.type", why, PolicyException.UNCONFINED)
    yield from _selinux(security.get("seLinuxOptions") or {}, f"{at}.seLinuxOptions")


def _selinux(options: Object, at: str) -> Found:
    checks: Sequence[tuple[str, Callable[[Any], bool]]] = (
        ("type", lambda value: value in _SELINUX_TYPES),
        ("user", lambda value: value == ""),
        ("role", lambda value: value == ""),
    )
    for field, allowed in checks:
        if not allowed(options.get(field) or ""):
            yield _refused(at, f".{field}", "must not be set to this", PolicyException.UNCONFINED)


def _items(parent: Any, field: str) -> Sequence[Object]:
    """The objects in a list of `parent`; what is none is left to the API server to refuse."""
    items = parent.get(field) if isinstance(parent, Mapping) else None
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []


def _refused(at: str, below: str, why: str, exception: PolicyException) -> RefusedField:
    return RefusedField(path=f"{at}{below}", why=f"{why} (exception {exception})", exception=exception)

"""Pod templates as plain data: Kubernetes' strategic merge, and the settings without which no pod is run.

A list of named things is merged by name, a mapping by key; any other list, and every scalar, is replaced. `null`
takes a field away. Whatever was merged, `hardened` puts back what Pod Security's `restricted` profile asks for
and nobody who may do so has set otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

Template = dict[str, Any]

_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "resourceClaims": "name",
    "topologySpreadConstraints": "topologyKey",
}
"""The key that items of a list are told apart by; that of every other list is none."""
_REPLACED_BY_NAME = {"volumes": "name"}
"""Lists whose items are told apart by a key, but replaced: a volume of two kinds at once is none."""

_POD_SECURITY: Template = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
_CONTAINER_SECURITY: Template = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> Template:
    """`overlay` laid over `base`; neither is changed and the result shares nothing with them."""
    merged = {key: copy.deepcopy(value) for key, value in base.items() if key not in overlay}
    for key, value in overlay.items():
        if value is not None:
            merged[key] = _merged(key, base.get(key), value)
    return {key: merged[key] for key in [*base, *overlay] if key in merged}


def _merged(key: str, base: Any, overlay: Any) -> Any:
    if isinstance(overlay, Mapping):
        return merge(base if isinstance(base, Mapping) else {}, overlay)
    if not isinstance(overlay, list | tuple):
        return overlay
    below = base if isinstance(base, list | tuple) else ()
    if key in _MERGE_KEYS:
        return _merged_items(below, overlay, key=_MERGE_KEYS[key], replace=False)
    if key in _REPLACED_BY_NAME:
        return _merged_items(below, overlay, key=_REPLACED_BY_NAME[key], replace=True)
    return [merge({}, item) if isinstance(item, Mapping) else copy.deepcopy(item) for item in overlay]


def _merged_items(
    base: Sequence[Mapping[str, Any]], overlay: Sequence[Mapping[str, Any]], *, key: str, replace: bool
) -> list[Template]:
    """The items of `base` in their order, those of the same key merged; then the new ones."""
    items = [copy.deepcopy(dict(item)) for item in base]
    for item in overlay:
        place = next((i for i, known in enumerate(items) if known.get(key) == item.get(key)), None)
        if place is None:
            items.append(merge({}, item))
        else:
            items[place] = merge({} if replace else items[place], item)
    return items


def hardened(template: Mapping[str, Any]) -> Template:
    """`template` with the restricted profile wherever it says nothing, in every container."""
    result = copy.deepcopy(dict(template))
    spec = result.setdefault("spec", {})
    spec.setdefault("automountServiceAccountToken", False)
    spec["securityContext"] = merge(_POD_SECURITY, spec.get("securityContext") or {})
    for field in ("initContainers", "containers"):
        for container in spec.get(field, ()):
            container["securityContext"] = merge(_CONTAINER_SECURITY, container.get("securityContext") or {})
    return result

"""`spec.compute.podTemplate`: what a user lays over the pods of a run.

Only the fields that a training pod can have a use for are taken; below them anything that Kubernetes takes is.
What they may say is the operator's policy. Naming them one by one also makes the template immutable: the API
server does not see that one unknown field was exchanged for another, which is why there is none.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from ireko_api.base import INT32_MAX, Boolean, Integer, SpecModel, Text
from ireko_api.placement import LabelValue, ObjectName

TEMPLATE_BYTES = 65536
TEMPLATE_ERROR = "ireko_template"
"""The pydantic error type of a part of a pod template that is too large."""

Labels = Annotated[dict[str, LabelValue], Field(max_length=64)]
Annotations = Annotated[dict[str, Annotated[Text, Field(max_length=4096)]], Field(max_length=64)]


def _not_too_large(value: dict[str, Any]) -> dict[str, Any]:
    size = len(json.dumps(value, default=str))
    if size > TEMPLATE_BYTES:
        raise PydanticCustomError(
            TEMPLATE_ERROR,
            "{sentence}",
            {"sentence": f"is {size} bytes as JSON; at most {TEMPLATE_BYTES} are allowed"},
        )
    return value


_ANYTHING = {"x-kubernetes-preserve-unknown-fields": True}
"""The values of a map, and not the map itself: only then does the API server see that a key was exchanged."""
AnyMapping = Annotated[
    dict[str, Any],
    Field(max_length=64, json_schema_extra={"additionalProperties": _ANYTHING}),
    AfterValidator(_not_too_large),
]
"""An object of Kubernetes' own, whose form only the API server knows."""
AnyList = Annotated[tuple[AnyMapping, ...], Field(max_length=32)]
Word = Annotated[Text, Field(min_length=1, max_length=253)]


class PodTemplateMetadata(SpecModel):
    """What the pods are labelled with."""

    labels: Labels = Field(default={})
    """Labels of the pods. Those of Ray, of Kueue and of Ireko itself cannot be set."""
    annotations: Annotations = Field(default={})
    """Annotations of the pods. Those of Ray, of Kueue and of Ireko itself cannot be set."""


class PodSpec(SpecModel):
    """The parts of a pod's specification that a run may set, as Kubernetes' own documentation describes them."""

    affinity: AnyMapping | None = None
    """Nodes and pods that the pods prefer or avoid."""
    automount_service_account_token: Boolean | None = None
    """Whether the service account's token is mounted; `true` is refused without the exception
    `ServiceAccountToken`."""
    containers: AnyList = ()
    """Containers. The one called `trainer` is merged with the one that trains; others run beside it."""
    dns_config: AnyMapping | None = None
    """Settings of the resolver."""
    dns_policy: Word | None = None
    """Where names are resolved."""
    enable_service_links: Boolean | None = None
    """Whether services become environment variables."""
    host_aliases: AnyList = ()
    """Lines of the pods' hosts file."""
    host_ipc: Annotated[Boolean | None, Field(alias="hostIPC")] = None
    """The node's IPC namespace; refused without the exception `HostNamespaces`."""
    host_network: Boolean | None = None
    """The node's network; refused without the exception `HostNamespaces`."""
    host_pid: Annotated[Boolean | None, Field(alias="hostPID")] = None
    """The node's processes; refused without the exception `HostNamespaces`."""
    host_users: Boolean | None = None
    """`false` puts the pods into a user namespace of their own."""
    image_pull_secrets: AnyList = ()
    """Further Secrets to pull images with."""
    init_containers: AnyList = ()
    """Containers that run before."""
    node_selector: Annotated[dict[str, LabelValue], Field(max_length=32)] = Field(default={})
    """Further labels that the nodes need."""
    preemption_policy: Word | None = None
    """Whether pods of lower priority give way."""
    priority_class_name: ObjectName | None = None
    """Priority class; wins over `compute.priorityClassName`."""
    resource_claims: AnyList = ()
    """Claims of dynamic resource allocation, e.g. for GPUs."""
    runtime_class_name: ObjectName | None = None
    """Runtime class."""
    scheduler_name: Word | None = None
    """Scheduler."""
    security_context: AnyMapping | None = None
    """Users, groups and profiles of the pods; what the policy asks for cannot be loosened."""
    share_process_namespace: Boolean | None = None
    """Whether the containers of a pod see each other's processes."""
    termination_grace_period_seconds: Annotated[Integer, Field(ge=0, le=INT32_MAX)] | None = None
    """How long the trainer may take to save its state when its pod is stopped."""
    tolerations: AnyList = ()
    """Further taints that the pods put up with."""
    topology_spread_constraints: AnyList = ()
    """How the pods are spread over nodes and zones."""
    volumes: AnyList = ()
    """Further volumes. Kinds that could name something outside of the run's namespace are refused."""


class PodTemplate(SpecModel):
    """What is laid over the pods that the operator builds, by Kubernetes' strategic merge: lists of named things
    are merged by name, mappings by key, and everything else replaces what it meets."""

    metadata: PodTemplateMetadata = PodTemplateMetadata()
    """Labels and annotations."""
    spec: PodSpec = PodSpec()
    """Parts of a pod's specification, e.g. `affinity` or another volume. What would let the author of a run do
    more than train is refused, unless the operator's administrator allows it."""

    def as_manifest(self) -> dict[str, Any]:
        """The template as Kubernetes writes it, with nothing in it that was not given."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)

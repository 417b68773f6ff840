"""A finished family in the Model Registry: one registered model, a version per member, an alias per target.

A registration can be cut off between any two calls and two of them can run at once, and MLflow offers
neither transactions nor conditional writes. Hence the order: look for what is already there, create a
version *together with* the tags that identify it, and move the alias last, so that an alias never points at
something incomplete. Whoever repeats the calls completes them and adds nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from ireko_api.handoff import TAG_SPEC_DIGEST, TAG_UID, Family, Member
from ireko_operator.bundles import model_id
from ireko_operator.reconcile.state import Registration

TAG_TARGET = "device.target"
TAG_BUNDLE = "bundle.sha256"
TAG_RUNTIME = "runtime"
TAG_BITS = "bits.mean"
TAG_SIZE = "size.bytes"
TAG_PARAMETERS = "parameters"
TAG_METRIC = "selected.by"
TAG_QUALITY_PREFIX = "quality."
TAG_TEACHER_QUALITY_PREFIX = "teacher.quality."
TAG_TEACHER_SIZE = "teacher.size.bytes"
TAG_RUN_ID = "ireko.run.id"

# What MLflow's own `register_model` writes on the logged model: its pages list the versions from this.
_LOGGED_MODEL_VERSIONS = "mlflow.modelVersions"
_ALREADY_EXISTS = {"RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"}
_NOT_FOUND = "RESOURCE_DOES_NOT_EXIST"


@dataclass(frozen=True, kw_only=True)
class RegisteredMember:
    """A member as the registry alone describes it."""

    registration: Registration
    tags: Mapping[str, str]


def registrations(client: MlflowClient, *, family: Family, model: str) -> tuple[Registration, ...]:
    """The members of the family that are completely registered, in the family's order."""
    aliases = _aliases(client, model)
    if aliases is None:
        return ()
    found = []
    for member in family.members:
        version = _find_version(client, model=model, member=member)
        if version is not None and aliases.get(member.target) == version:
            found.append(Registration(target=member.target, model=model, version=version))
    return tuple(found)


def register(client: MlflowClient, *, family: Family, model: str) -> tuple[Registration, ...]:
    """Make the registry hold every member; returns where. Repeating it changes nothing."""
    aliases = _aliases(client, model)
    if aliases is None:
        _create_model(client, model=model, family=family)
        aliases = {}
    done = []
    for member in family.members:
        version = _ensure_version(client, model=model, member=member, family=family)
        _ensure_link(client, model=model, member=member, version=version)
        if aliases.get(member.target) != version:
            client.set_registered_model_alias(model, member.target, str(version))
        done.append(Registration(target=member.target, model=model, version=version))
    return tuple(done)


def members_of(client: MlflowClient, *, model: str) -> tuple[RegisteredMember, ...] | None:
    """Every aliased version of a registered model, largest first; None when there is no such model."""
    aliases = _aliases(client, model)
    if aliases is None:
        return None
    members = []
    for alias, version in aliases.items():
        tags = client.get_model_version(model, str(version)).tags
        if TAG_TARGET in tags:
            registration = Registration(target=alias, model=model, version=version)
            members.append(RegisteredMember(registration=registration, tags=tags))
    return tuple(sorted(members, key=lambda member: -int(member.tags[TAG_SIZE])))


def tags_of(member: Member, family: Family) -> dict[str, str]:
    """The tags of a member's version: what a fleet selects by, and what identifies the bytes."""
    tags = {
        TAG_TARGET: member.target,
        f"device.{member.target}": "true",  # a filter has no OR, so membership is a tag of its own
        TAG_RUNTIME: member.runtime,
        TAG_BITS: f"{member.average_bits:.4f}",
        TAG_SIZE: str(member.size_bytes),
        TAG_PARAMETERS: str(member.parameters),
        TAG_METRIC: member.metric,
        "family": family.name,
        "family.member": member.target,
        "family.shape": member.shape.to_json(),
        "base.sha256": family.teacher.sha256,
        TAG_BUNDLE: member.bundle_sha256,
        TAG_TEACHER_SIZE: str(family.teacher.size_bytes),
        TAG_UID: family.uid,
        TAG_SPEC_DIGEST: family.spec_digest,
        TAG_RUN_ID: family.run_id,
    }
    return (
        tags
        | _numbers(TAG_QUALITY_PREFIX, member.metrics)
        | _numbers(TAG_TEACHER_QUALITY_PREFIX, family.teacher.metrics)
    )


def _numbers(prefix: str, metrics: Mapping[str, float]) -> dict[str, str]:
    return {f"{prefix}{name}": repr(value) for name, value in metrics.items() if math.isfinite(value)}


def _aliases(client: MlflowClient, model: str) -> dict[str, int] | None:
    """Alias → version of a registered model, or None when it does not exist."""
    try:
        aliases = client.get_registered_model(model).aliases
    except MlflowException as error:
        if error.error_code == _NOT_FOUND:
            return None
        raise
    return {alias: int(version) for alias, version in aliases.items()}


def _create_model(client: MlflowClient, *, model: str, family: Family) -> None:
    try:
        client.create_registered_model(model, tags={"family": family.name})
    except MlflowException as error:
        if error.error_code not in _ALREADY_EXISTS:  # somebody else was faster, which is as good
            raise


def _find_version(client: MlflowClient, *, model: str, member: Member) -> int | None:
    """The version that holds this bundle for this target: the first, should two have been made."""
    found: list[ModelVersion] = client.search_model_versions(
        f"tags.`{TAG_BUNDLE}` = '{member.bundle_sha256}' AND tags.`{TAG_TARGET}` = '{member.target}'"
    )
    # The name is compared here, because a filter cannot quote every name that a model may have.
    return min((int(version.version) for version in found if version.name == model), default=None)


def _ensure_version(client: MlflowClient, *, model: str, member: Member, family: Family) -> int:
    version = _find_version(client, model=model, member=member)
    if version is not None:
        return version
    created: ModelVersion = client.create_model_version(
        model,
        source=member.logged_model_uri,
        run_id=family.run_id,
        tags=tags_of(member, family),
        description=f"{family.name} for {member.target}",
        model_id=model_id(member),
    )
    # Looked up again: registrars on two machines must agree on one version, which is the first.
    return _find_version(client, model=model, member=member) or int(created.version)


def _ensure_link(client: MlflowClient, *, model: str, member: Member, version: int) -> None:
    """Say on the logged model that this is a version of it, as `mlflow.register_model` does."""
    logged = client.get_logged_model(model_id(member))
    links = json.loads(logged.tags.get(_LOGGED_MODEL_VERSIONS, "[]"))
    link = {"name": model, "version": version}
    if link not in links:
        client.set_logged_model_tags(model_id(member), {_LOGGED_MODEL_VERSIONS: json.dumps([*links, link])})

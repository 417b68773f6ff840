"""A family as the registry alone describes it: what `ireko show` prints."""

from __future__ import annotations

from typing import Any

from mlflow import MlflowClient

from ireko_operator import registry, tracking
from ireko_operator.errors import OperatorError
from ireko_operator.registry import RegisteredMember
from ireko_operator.render import Row


def load_members(client: MlflowClient, *, name: str, uri: str) -> tuple[RegisteredMember, ...]:
    """The members registered as `name`, largest first; where there are none, an error says what there is."""
    with tracking.answered(uri):
        members = registry.members_of(client, model=name)
        if members:
            return members
        names = sorted(model.name for model in client.search_registered_models(max_results=50))
    there = f"Registered there: {', '.join(names)}." if names else "Nothing is registered there yet."
    what = "holds no family called" if members is None else "has no members with aliases in the model"
    raise OperatorError(f"The registry at {tracking.without_password(uri)} {what} {name!r}. {there}")


def as_json(members: tuple[RegisteredMember, ...], *, name: str, tracking_uri: str) -> dict[str, Any]:
    """The JSON object of `ireko show`: the keys of `ireko run`, as far as the registry knows them."""
    return {
        "name": name,
        "trackingUri": tracking_uri,
        "teacher": {
            "metrics": _numbers(members[0], registry.TAG_TEACHER_QUALITY_PREFIX),
            "sizeBytes": teacher_size_bytes(members),
        },
        "members": [
            {
                "target": member.registration.target,
                "modelUri": member.registration.model_uri,
                "version": str(member.registration.version),
                "sizeBytes": int(member.tags[registry.TAG_SIZE]),
                "parameters": int(member.tags[registry.TAG_PARAMETERS]),
                "averageBits": float(member.tags[registry.TAG_BITS]),
                "metrics": _numbers(member, registry.TAG_QUALITY_PREFIX),
            }
            for member in members
        ],
    }


def rows(members: tuple[RegisteredMember, ...]) -> list[Row]:
    """The members as rows of the table."""
    return [_row(member) for member in members]


def teacher_size_bytes(members: tuple[RegisteredMember, ...]) -> int:
    """Bytes of the teacher that the family was cut from."""
    return int(members[0].tags[registry.TAG_TEACHER_SIZE])


def _row(member: RegisteredMember) -> Row:
    metric = member.tags[registry.TAG_METRIC]
    return Row(
        target=member.registration.target,
        version=str(member.registration.version),
        model_uri=member.registration.model_uri,
        size_bytes=int(member.tags[registry.TAG_SIZE]),
        parameters=int(member.tags[registry.TAG_PARAMETERS]),
        average_bits=float(member.tags[registry.TAG_BITS]),
        metric=metric,
        quality=_numbers(member, registry.TAG_QUALITY_PREFIX).get(metric),
        teacher_quality=_numbers(member, registry.TAG_TEACHER_QUALITY_PREFIX).get(metric),
    )


def _numbers(member: RegisteredMember, prefix: str) -> dict[str, float]:
    return {
        key.removeprefix(prefix): float(value) for key, value in member.tags.items() if key.startswith(prefix)
    }

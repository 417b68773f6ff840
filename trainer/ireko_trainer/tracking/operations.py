"""Single steps on MLflow that may be repeated: find or create, set, and log only what is not there yet."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException

from ireko_trainer.errors import UserError
from ireko_trainer.tracking.connection import Connection

_PARAMS_PER_CALL = 100


def experiment(connection: Connection, *, name: str, artifact_location: str | None) -> str:
    """The id of an experiment, created with the artifact location when it does not exist.

    Raises UserError when it was deleted: MLflow keeps the name of a deleted experiment occupied.
    """
    client = connection.client

    def find_or_create() -> str:
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(client.create_experiment(name, artifact_location=artifact_location))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = client.get_experiment_by_name(name)
        if found.lifecycle_stage != "active":
            raise UserError(
                f"spec.registry.experiment: {name!r} is deleted in MLflow; restore it "
                f"(mlflow experiments restore --experiment-id {found.experiment_id}) or name another"
            )
        return str(found.experiment_id)

    return connection.call(find_or_create)


def find_or_create_run(
    connection: Connection,
    experiment_id: str,
    *,
    name: str,
    identity: Mapping[str, str],
    tags: Mapping[str, str] | None = None,
) -> tuple[str, bool]:
    """The run with the tags `identity`, and whether it was created here, with `tags` on top.

    Each try searches first: a create call that timed out may have succeeded. All tags are set in the one call
    that creates the run, so that no crash leaves a run that cannot be found.
    """

    def find_or_create() -> tuple[str, bool]:
        found = _search(connection, experiment_id, identity)
        if found is not None:
            return found, False
        created = connection.client.create_run(
            experiment_id, run_name=name, tags={**identity, **(tags or {})}
        )
        return str(created.info.run_id), True

    return connection.call(find_or_create)


def _search(connection: Connection, experiment_id: str, tags: Mapping[str, str]) -> str | None:
    query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    found = connection.client.search_runs(
        [experiment_id], filter_string=query, max_results=1, order_by=["attributes.start_time ASC"]
    )
    return str(found[0].info.run_id) if found else None


def set_running(connection: Connection, run_id: str) -> None:
    """Let a run that ended go on."""
    connection.call(lambda: connection.client.update_run(run_id, status="RUNNING"))


def set_tags(connection: Connection, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags, replacing values."""
    entries = [RunTag(name, value) for name, value in tags.items()]
    connection.call(lambda: connection.client.log_batch(run_id, tags=entries))


def delete_tag(connection: Connection, run_id: str, name: str) -> None:
    """Delete a tag if the run has it."""
    if name in connection.call(lambda: connection.client.get_run(run_id)).data.tags:
        connection.call(lambda: connection.client.delete_tag(run_id, name))


def log_missing_params(connection: Connection, run_id: str, params: Mapping[str, str]) -> None:
    """Log the parameters that the run does not have yet."""
    # MLflow refuses a second value for a parameter, and a later release may write a default differently.
    known = connection.call(lambda: connection.client.get_run(run_id)).data.params
    missing = [Param(name, value) for name, value in params.items() if name not in known]
    for begin in range(0, len(missing), _PARAMS_PER_CALL):
        chunk = missing[begin : begin + _PARAMS_PER_CALL]
        connection.call(partial(connection.client.log_batch, run_id, params=chunk))

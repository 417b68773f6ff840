"""Registration against a real MLflow store: repeated, cut off after any call, and twice at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from ireko_api.handoff import Family, Member, ModelShape, TeacherSummary
from ireko_operator import registry
from ireko_operator.errors import TrackingError
from ireko_operator.reconcile.state import Registration
from ireko_operator.show import as_json, load_members
from ireko_operator.tracking import answered, connect
from ireko_operator.workdir import Workdir

TARGETS = ("gateway", "sensor")


class CutOffError(Exception):
    """The process died here."""


@dataclass(kw_only=True)
class CutOffClient:
    """Dies before or after its n-th call; n beyond the last call means that it does not."""

    client: MlflowClient
    at: int
    after: bool
    calls: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            last = len(self.calls) == self.at
            if last and not self.after:
                raise CutOffError(name)
            try:
                return method(*args, **kwargs)
            finally:
                if last:
                    raise CutOffError(name)

        return call


@pytest.fixture
def client(mlflow_sqlite_uri: str) -> MlflowClient:
    return connect(mlflow_sqlite_uri)


def log_family(client: MlflowClient, tmp_path: Path, *, bundles: tuple[str, ...] = ("a", "b")) -> Family:
    """What a finished trainer leaves: a run, a logged model for each target, and the record of both."""
    experiment = client.get_experiment_by_name("ireko")
    experiment_id = (
        experiment.experiment_id
        if experiment
        else client.create_experiment("ireko", (tmp_path / "artifacts").as_uri())
    )
    run_id = client.create_run(experiment_id).info.run_id
    members = []
    for target, bundle in zip(TARGETS, bundles, strict=True):
        model = client.create_logged_model(experiment_id, name=target, source_run_id=run_id)
        client.finalize_logged_model(model.model_id, "READY")
        members.append(
            Member(
                target=target,
                runtime="torch",
                logged_model_uri=model.model_uri,
                bundle_sha256=bundle * 64,
                size_bytes=5_000_000 - len(members),
                parameters=1_000_000,
                average_bits=4.25,
                shape=ModelShape(hidden=32, heads=2, intermediate=64, layers=(0, 1)),
                metrics={"accuracy": 0.9, "f1": float("nan")},
                metric="accuracy",
            )
        )
    return Family(
        name="demo",
        uid="u-1",
        spec_digest="d" * 64,
        run_id=run_id,
        teacher=TeacherSummary(
            metrics={"accuracy": 0.92}, size_bytes=90_000_000, parameters=22_000_000, sha256="t" * 64
        ),
        members=tuple(members),
        report="report/index.html",
    )


def contents(client: MlflowClient, model: str = "demo") -> dict[str, Any]:
    """Everything that the registry holds of a model, without times."""
    registered = client.get_registered_model(model)
    versions = client.search_model_versions(f"name = '{model}'")
    links = {
        version.source: client.get_logged_model(version.source.removeprefix("models:/")).tags[
            "mlflow.modelVersions"
        ]
        for version in versions
    }
    return {
        "aliases": {alias: int(version) for alias, version in registered.aliases.items()},
        "versions": {
            int(version.version): (version.source, version.run_id, version.tags) for version in versions
        },
        "links": links,
    }


def test_every_member_is_a_version_with_tags_under_its_alias(client: MlflowClient, tmp_path: Path) -> None:
    family = log_family(client, tmp_path)

    done = registry.register(client, family=family, model="demo")

    assert done == registry.registrations(client, family=family, model="demo")
    assert [registration.model_uri for registration in done] == [
        "models:/demo@gateway",
        "models:/demo@sensor",
    ]
    version = client.get_model_version_by_alias("demo", "gateway")
    assert version.source == family.members[0].logged_model_uri
    assert version.run_id == family.run_id
    assert (
        version.tags.items()
        >= {
            "device.target": "gateway",
            "device.gateway": "true",
            "runtime": "torch",
            "size.bytes": "5000000",
            "bits.mean": "4.2500",
            "quality.accuracy": "0.9",
            "bundle.sha256": "a" * 64,
            "base.sha256": "t" * 64,
            "family": "demo",
            "family.member": "gateway",
        }.items()
    )
    assert "quality.f1" not in version.tags


def test_a_fleet_finds_its_member_by_one_tag(client: MlflowClient, tmp_path: Path) -> None:
    registry.register(client, family=log_family(client, tmp_path), model="demo")

    (found,) = client.search_model_versions("tags.`device.sensor` = 'true'")

    assert found.tags["family.member"] == "sensor"


def test_repeating_a_registration_changes_nothing(client: MlflowClient, tmp_path: Path) -> None:
    family = log_family(client, tmp_path)
    registry.register(client, family=family, model="demo")
    before = contents(client)

    registry.register(client, family=family, model="demo")

    assert contents(client) == before


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
def test_cut_off_at_any_call_and_repeated_it_is_as_if_it_had_not_been(
    client: MlflowClient, tmp_path: Path, after: bool
) -> None:
    family = log_family(client, tmp_path)
    whole = CutOffClient(client=client, at=10_000, after=after)
    registry.register(whole, family=family, model="whole")  # type: ignore[arg-type]
    expected = contents(client, "whole")["versions"]
    assert "set_registered_model_alias" in whole.calls

    for at in range(1, len(whole.calls) + 1):
        model = f"cut-{at}"
        with pytest.raises(CutOffError):
            registry.register(CutOffClient(client=client, at=at, after=after), family=family, model=model)  # type: ignore[arg-type]
        registry.register(client, family=family, model=model)

        found = contents(client, model)
        assert found["versions"] == expected, f"cut off at call {at}, {whole.calls[at - 1]}"
        assert found["aliases"] == {"gateway": 1, "sensor": 2}, f"cut off at call {at}, {whole.calls[at - 1]}"


def test_an_alias_never_points_at_less_than_a_complete_version(client: MlflowClient, tmp_path: Path) -> None:
    family = log_family(client, tmp_path)
    complete = {member.target: registry.tags_of(member, family) for member in family.members}
    aliased_on_the_way = 0

    for at in range(1, 20):
        cut = CutOffClient(client=client, at=at, after=True)
        with contextlib.suppress(CutOffError):
            registry.register(cut, family=family, model=f"cut-{at}")  # type: ignore[arg-type]
        for member in registry.members_of(client, model=f"cut-{at}") or ():
            assert member.tags == complete[member.registration.target]
            aliased_on_the_way += 1

    assert aliased_on_the_way > 2


def test_two_registrars_at_once_make_one_version_each(
    mlflow_sqlite_uri: str, client: MlflowClient, tmp_path: Path
) -> None:
    family = log_family(client, tmp_path)
    barrier = threading.Barrier(2)
    done: list[tuple[Registration, ...]] = []

    def register() -> None:
        other = MlflowClient(mlflow_sqlite_uri)
        barrier.wait()
        with Workdir.at(tmp_path).registry_lock("demo"):
            done.append(registry.register(other, family=family, model="demo"))

    threads = [threading.Thread(target=register) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert done[0] == done[1]
    assert contents(client)["aliases"] == {"gateway": 1, "sensor": 2}
    assert len(contents(client)["versions"]) == 2


def test_registrars_without_a_common_lock_agree_on_the_version_that_is_served(
    mlflow_sqlite_uri: str, client: MlflowClient, tmp_path: Path
) -> None:
    family = log_family(client, tmp_path)
    other = MlflowClient(mlflow_sqlite_uri)

    class Racing(CutOffClient):
        """Another machine registers the whole family just before the first version is created here."""

        def __getattr__(self, name: str) -> Callable[..., Any]:
            if name == "create_model_version" and "create_model_version" not in self.calls:
                self.calls.append(name)
                registry.register(other, family=family, model="demo")
            return super().__getattr__(name)

    done = registry.register(Racing(client=client, at=10_000, after=False), family=family, model="demo")  # type: ignore[arg-type]

    assert [registration.version for registration in done] == [1, 2]
    assert contents(client)["aliases"] == {"gateway": 1, "sensor": 2}


def test_an_unchanged_bundle_of_a_later_run_keeps_its_version(client: MlflowClient, tmp_path: Path) -> None:
    registry.register(client, family=log_family(client, tmp_path, bundles=("a", "b")), model="demo")

    later = registry.register(client, family=log_family(client, tmp_path, bundles=("a", "c")), model="demo")

    assert [registration.version for registration in later] == [1, 3]
    assert contents(client)["aliases"] == {"gateway": 1, "sensor": 3}


def test_a_moved_alias_makes_a_registration_incomplete(client: MlflowClient, tmp_path: Path) -> None:
    family = log_family(client, tmp_path)
    registry.register(client, family=family, model="demo")
    client.set_registered_model_alias("demo", "sensor", "1")

    assert [done.target for done in registry.registrations(client, family=family, model="demo")] == [
        "gateway"
    ]


@pytest.mark.parametrize("model", ["it's a model", "quoted \"twice\" 'and' once", "größe", "a" * 250])
def test_any_name_that_mlflow_takes_will_do(client: MlflowClient, tmp_path: Path, model: str) -> None:
    family = log_family(client, tmp_path)

    with Workdir.at(tmp_path).registry_lock(model):
        registry.register(client, family=family, model=model)

    assert len(registry.registrations(client, family=family, model=model)) == 2


def test_a_refused_alias_is_an_error_that_waiting_does_not_cure(client: MlflowClient, tmp_path: Path) -> None:
    family = log_family(client, tmp_path)
    reserved = family.model_copy(
        update={"members": (family.members[0].model_copy(update={"target": "latest"}),)}
    )

    with pytest.raises(TrackingError, match="reserved") as caught, answered("sqlite:///x"):
        registry.register(client, family=reserved, model="demo")

    assert caught.value.refused


def test_show_reads_a_family_from_the_registry_alone(
    client: MlflowClient, mlflow_sqlite_uri: str, tmp_path: Path
) -> None:
    registry.register(client, family=log_family(client, tmp_path), model="demo")

    shown = as_json(
        load_members(client, name="demo", uri=mlflow_sqlite_uri), name="demo", tracking_uri=mlflow_sqlite_uri
    )

    assert shown["teacher"] == {"metrics": {"accuracy": 0.92}, "sizeBytes": 90_000_000}
    assert [member["target"] for member in shown["members"]] == ["gateway", "sensor"]
    assert shown["members"][0] == {
        "target": "gateway",
        "modelUri": "models:/demo@gateway",
        "version": "1",
        "sizeBytes": 5_000_000,
        "parameters": 1_000_000,
        "averageBits": 4.25,
        "metrics": {"accuracy": 0.9},
    }


def test_a_server_is_as_good_as_a_database(mlflow_server: Any, tmp_path: Path) -> None:
    client = connect(mlflow_server.uri)
    family = log_family(client, tmp_path)

    first = registry.register(client, family=family, model="served")
    again = registry.register(client, family=family, model="served")

    assert first == again == registry.registrations(client, family=family, model="served")
    assert [registration.version for registration in first] == [1, 2]
    shown = load_members(client, name="served", uri=mlflow_server.uri)
    assert [member.tags for member in shown] == [
        registry.tags_of(member, family) for member in family.members
    ]
    assert contents(client, "served")["links"].keys() == {
        member.logged_model_uri for member in family.members
    }

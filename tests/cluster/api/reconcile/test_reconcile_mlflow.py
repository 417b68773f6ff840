"""MLflow away, registrations cut off between any two calls, bundles that were damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ireko_operator.kube.keys import Key
from ireko_operator.registrar import AbandonedError, Background, Order, Registrar
from play.mlflow_server import MlflowServer
from play.world import World


def ready(world: World) -> Order:
    """A run whose trainer has ended and whose family nobody has registered."""
    world.start()
    family = world.finish()
    return Order(key=(world.namespace, "demo"), family=family, model="demo", tracking_uri=world.tracking_uri)


def cut_off(order: Order, *, calls: int) -> bool:
    """Register with an operator that dies after so many calls; whether it died before the end."""
    left = [calls]

    def fence() -> bool:
        left[0] -= 1
        return left[0] >= 0

    background = Background(wake=_nobody, threads=1)
    future = Registrar(background=background, fence=fence).start(order, wanted=lambda: True)
    assert future is not None
    try:
        future.result(timeout=60)
    except AbandonedError:
        return True
    finally:
        background.close()
    return False


def _nobody(key: Key) -> None:
    return None


def versions(world: World) -> list[tuple[int, str]]:
    """Every version of the model with its target."""
    found = MlflowClient(world.tracking_uri).search_model_versions("name = 'demo'")
    return sorted((int(version.version), version.tags["device.target"]) for version in found)


def test_an_operator_that_dies_between_any_two_calls_leaves_what_the_next_one_completes(
    world: World,
) -> None:
    order = ready(world)
    calls = 0
    while cut_off(order, calls=calls):
        calls += 1
    assert calls > 10
    world.settle()
    assert world.status()["phase"] == "Succeeded"
    assert [target for _, target in versions(world)] == ["gateway", "sensor"]
    aliases = MlflowClient(world.tracking_uri).get_registered_model("demo").aliases
    assert {alias: int(version) for alias, version in aliases.items()} == {"gateway": 1, "sensor": 2}


def test_two_registrations_of_one_model_never_run_at_once(world: World) -> None:
    order = ready(world)
    background = Background(wake=_nobody, threads=2)
    registrar = Registrar(background=background, fence=lambda: True)
    first = registrar.start(order, wanted=lambda: True)
    assert first is not None
    assert registrar.start(order, wanted=lambda: True) is None
    first.result(timeout=60)
    again = registrar.start(order, wanted=lambda: True)
    assert again is not None
    again.result(timeout=60)
    background.close()
    assert len(versions(world)) == 2


def test_a_run_that_is_deleted_is_not_registered_any_further(world: World) -> None:
    order = ready(world)
    background = Background(wake=_nobody, threads=1)
    future = Registrar(background=background, fence=lambda: True).start(order, wanted=lambda: False)
    assert future is not None
    with pytest.raises(AbandonedError):
        future.result(timeout=60)
    background.close()
    with pytest.raises(MlflowException):
        MlflowClient(world.tracking_uri).get_registered_model("demo")


def _truncate(world: World, model: str) -> None:
    _bundle(world, model).joinpath("checkpoint/model.safetensors").write_bytes(b"cut")


def _lose(world: World, model: str) -> None:
    _bundle(world, model).joinpath("checkpoint/model.safetensors").unlink()


def _exchange(world: World, model: str) -> None:
    manifest = _bundle(world, model) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))


def _cut_manifest(world: World, model: str) -> None:
    manifest = _bundle(world, model) / "manifest.json"
    manifest.write_text(manifest.read_text()[:20])


def _overwrite_model_file(world: World, model: str) -> None:
    _bundle(world, model).parents[1].joinpath("MLmodel").write_bytes(b"\xff\xfe{")


def _bundle(world: World, model: str) -> Path:
    (found,) = world.directory.glob(f"artifacts/models/{model}/artifacts/artifacts/bundle")
    return found


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_truncate, "has 3 bytes instead of"),
        (_lose, "checkpoint/model.safetensors is missing"),
        (_exchange, "sha256 of its manifest.json"),
        (_cut_manifest, "its manifest.json is cut off"),
        (_overwrite_model_file, "its MLmodel is cut off or overwritten"),
    ],
)
def test_a_bundle_that_is_not_what_was_trained_is_not_registered_until_it_is_mended(
    world: World, damage: Callable[[World, str], None], said: str
) -> None:
    order = ready(world)
    model = order.family.members[0].logged_model_uri.rpartition("/")[2]
    files = _bundle(world, model).parents[1].rglob("*")
    sound = {file: file.read_bytes() for file in files if file.is_file()}
    damage(world, model)
    world.settle()
    assert world.reason("Registered") == ("False", "BundleDamaged")
    message = world.condition("Registered")["message"]
    assert said in message
    assert order.family.members[0].logged_model_uri in message
    assert "Restore it" in message
    with pytest.raises(MlflowException):
        MlflowClient(world.tracking_uri).get_registered_model("demo")
    for file, content in sound.items():
        file.write_bytes(content)
    world.pass_time(60)
    world.settle()
    assert world.status()["phase"] == "Succeeded"


def test_an_outage_at_the_end_is_said_waited_for_and_survived(
    served_world: World, mlflow_server: MlflowServer
) -> None:
    world = served_world
    world.start()
    world.play("Running", "RUNNING")
    world.settle()
    world.finish()
    mlflow_server.stop()
    world.settle()
    assert world.reason("Succeeded")[0] == "Unknown"
    assert "TrackingUnreachable" in {item["reason"] for item in world.status()["conditions"]}
    mlflow_server.start()
    world.pass_time(60)
    world.settle()
    assert world.status()["phase"] == "Succeeded"
    assert len(versions(world)) == 2
    assert world.telemetry.writes["create rayjobs"] == 1


def test_an_outage_while_training_disturbs_nothing(served_world: World, mlflow_server: MlflowServer) -> None:
    world = served_world
    world.start()
    world.play("Running", "RUNNING")
    world.settle()
    world.progress(30)
    world.settle()
    mlflow_server.stop()
    world.poll.poll()
    world.pass_time(20)
    world.settle()
    assert world.status()["phase"] == "Running"
    assert world.status()["progress"]["percent"] == 30
    assert not world.job()["metadata"].get("deletionTimestamp")
    mlflow_server.start()
    world.progress(60)
    world.pass_time(20)
    world.settle()
    assert world.status()["progress"]["percent"] == 60

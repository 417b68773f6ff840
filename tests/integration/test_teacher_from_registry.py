"""Teachers from a real MLflow registry: the version behind an alias, at the moment of asking."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from ireko_trainer.errors import UserError
from ireko_trainer.teacher import resolve


@pytest.fixture
def registry(mlflow_sqlite_uri: str, tmp_path: Path) -> Iterator[MlflowClient]:
    """A registry with two versions of the model `encoder`; the checkpoint of each says its number."""
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(mlflow_sqlite_uri)
    client = MlflowClient()
    client.create_registered_model("encoder")
    for number in ("1", "2"):
        checkpoint = tmp_path / f"bundle-{number}" / "artifacts" / "checkpoint"
        checkpoint.mkdir(parents=True)
        (checkpoint / "config.json").write_text(f'{{"version": {number}}}')
        (checkpoint / "model.safetensors").touch()
        (checkpoint.parent.parent / "MLmodel").write_text("flavors: {}\n")
        client.create_model_version("encoder", source=str(checkpoint.parent.parent))
    yield client
    mlflow.set_tracking_uri(previous)


def test_an_alias_is_followed_when_it_moves(registry: MlflowClient, tmp_path: Path) -> None:
    def version_of(uri: str) -> str:
        directory = resolve(uri=uri, base_dir=tmp_path, revision=None, cache_dir=tmp_path / "cache")
        return (directory / "config.json").read_text()

    registry.set_registered_model_alias("encoder", "champion", "1")
    assert version_of("models:/encoder@champion") == '{"version": 1}'
    assert version_of("models:/encoder/1") == '{"version": 1}'
    registry.set_registered_model_alias("encoder", "champion", "2")
    assert version_of("models:/encoder@champion") == '{"version": 2}'
    assert version_of("models:/encoder/latest") == '{"version": 2}'


def test_an_alias_that_nobody_has_is_named(registry: MlflowClient, tmp_path: Path) -> None:
    message = (
        r"^spec.teacher.model: models:/encoder@nobody cannot be read from the MLflow registry \(.*nobody"
    )
    with pytest.raises(UserError, match=message):
        resolve(uri="models:/encoder@nobody", base_dir=tmp_path, revision=None, cache_dir=tmp_path / "cache")

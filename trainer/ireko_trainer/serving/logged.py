"""A bundle as a logged model of MLflow: what a model version is made of and a device downloads."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

from ireko_trainer.delta import shared_layers
from ireko_trainer.serving import pyfunc_model
from ireko_trainer.serving.bundle import Bundle
from ireko_trainer.tracking.connection import Connection

TAG_BUNDLE_SHA256 = "ireko.bundle.sha256"
TAG_TARGET = "ireko.target"

_REQUIRED = ("mlflow", "numpy", "safetensors", "torch", "transformers")
_REQUIRED_IF_QUANTIZED = "compressed-tensors"
_EXAMPLE = ["One text.", "Another text."]

log = logging.getLogger(__name__)


def log_member(
    *,
    connection: Connection,
    experiment_id: str,
    run_id: str,
    name: str,
    target: str,
    bundle: Bundle,
    params: Mapping[str, object],
    metrics: Mapping[str, float],
) -> str:
    """Log a bundle as a model of a run and return its URI, `models:/m-…`.

    A complete model of the experiment with the same bundle, name and target is returned as it is, so that an
    attempt after a crash uploads nothing twice.

    Args:
        connection: the tracking server.
        experiment_id: where to look and to log.
        run_id: the parent run of the family.
        name: of the logged model; the registered model usually has the same.
        target: the device target that the member was chosen for.
        bundle: what ships.
        params: shown and searchable on the model (sizes, bits, shape).
        metrics: quality of the member, logged as `<target>/<name>` on the model and the run.
    """
    client = connection.client
    tags = {TAG_BUNDLE_SHA256: bundle.sha256, TAG_TARGET: target}
    model_id = connection.call(lambda: _ready_model(client, experiment_id, name, tags))
    if model_id is None:
        upload = _Upload(client=client, experiment_id=experiment_id, run_id=run_id, name=name, tags=tags)
        model_id = connection.call(lambda: upload.create(bundle, params))
    logged = model_id
    connection.call(lambda: _link(client, run_id, logged))
    readings = {f"{target}/{metric}": float(value) for metric, value in metrics.items()}
    connection.call(lambda: _log_metrics(client, run_id, logged, readings))
    return f"models:/{logged}"


def requirements(bundle: Bundle) -> list[str]:
    """Exact pins of what `pyfunc_model` imports, and of what unpacks integers where there are any.

    Local version suffixes (`+cpu`) are left out: they name a build, which differs between devices.
    """
    packages = sorted([*_REQUIRED, _REQUIRED_IF_QUANTIZED] if bundle.is_quantized else _REQUIRED)
    return [f"{package}=={version(package).split('+')[0]}" for package in packages]


def signature(bundle: Bundle) -> ModelSignature:
    """Outputs and parameters; inputs stay undeclared.

    MLflow would turn a list of texts into a table, refuse pairs or drop their second text, depending on the
    declaration; `pyfunc_model.texts_of` checks the input itself.
    """
    settings = bundle.settings
    parameters = [ParamSpec("batch_size", "long", pyfunc_model.DEFAULT_BATCH_SIZE)]
    if settings["task"] == "text-generation":
        outputs = Schema([ColSpec("string", "text")])
        parameters += [
            ParamSpec("max_new_tokens", "long", pyfunc_model.DEFAULT_NEW_TOKENS),
            ParamSpec("temperature", "double", pyfunc_model.DEFAULT_TEMPERATURE),
        ]
    elif settings["task"] == "feature-extraction":
        outputs = Schema([TensorSpec(np.dtype(np.float32), (-1, settings["outputs"]))])
    elif settings["regression"]:
        outputs = Schema([ColSpec("double", "score")])
    else:
        outputs = Schema([ColSpec("string", "label"), ColSpec("double", "score")])
    return ModelSignature(outputs=outputs, params=ParamSchema(parameters))


def _ready_model(client: Any, experiment_id: str, name: str, tags: Mapping[str, str]) -> str | None:
    query = " AND ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    found = client.search_logged_models([experiment_id], filter_string=f"name = '{name}' AND {query}")
    ready = [model for model in found if str(model.status) == "READY"]
    return str(min(ready, key=lambda model: model.creation_timestamp).model_id) if ready else None


@dataclass(frozen=True, kw_only=True)
class _Upload:
    """One logged model to create; a try that fails leaves a model marked FAILED, and the next starts anew."""

    client: Any
    experiment_id: str
    run_id: str
    name: str
    tags: Mapping[str, str]

    def create(self, bundle: Bundle, params: Mapping[str, object]) -> str:
        """The id of the logged model, once everything is uploaded."""
        model = self.client.create_logged_model(
            self.experiment_id,
            name=self.name,
            source_run_id=self.run_id,
            tags=dict(self.tags),
            params={key: str(value) for key, value in params.items()},
        )
        try:
            with TemporaryDirectory(prefix="ireko-model-") as scratch:
                path = str(Path(scratch) / "model")
                self._save(bundle, path, model)
                self.client.log_model_artifacts(model.model_id, path)
        except BaseException:
            self._give_up(model.model_id)
            raise
        self.client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    def _save(self, bundle: Bundle, path: str, model: Any) -> None:
        mlflow.pyfunc.save_model(
            path,
            python_model=pyfunc_model.__file__,
            artifacts={pyfunc_model.BUNDLE_ARTIFACT: str(bundle.directory)},
            code_paths=[shared_layers.__file__] if bundle.is_factored else None,
            pip_requirements=requirements(bundle),
            signature=signature(bundle),
            input_example=_EXAMPLE,
            metadata={**self.tags, "task": bundle.settings["task"]},
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                model_uuid=model.model_id,
                run_id=self.run_id,
                model_id=model.model_id,
            ),
        )

    def _give_up(self, model_id: str) -> None:
        try:
            self.client.finalize_logged_model(model_id, "FAILED")
        except Exception as error:
            # The upload's own exception is what has to be seen; a pending model is never reused either.
            log.warning("logged model %s stays pending: %s", model_id, error)


def _link(client: Any, run_id: str, model_id: str) -> None:
    outputs = client.get_run(run_id).outputs
    if outputs is None or all(output.model_id != model_id for output in outputs.model_outputs):
        client.log_outputs(run_id=run_id, models=[LoggedModelOutput(model_id, step=0)])


def _log_metrics(client: Any, run_id: str, model_id: str, metrics: Mapping[str, float]) -> None:
    known = {metric.key for metric in client.get_logged_model(model_id).metrics or []}
    now = int(time.time() * 1000)
    fresh = [
        Metric(key, float(value), now, 0, model_id=model_id, run_id=run_id)
        for key, value in metrics.items()
        if key not in known
    ]
    if fresh:
        client.log_batch(run_id, metrics=fresh)

"""A member is loaded by people who have its requirements and nothing of Ireko."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from ireko_trainer.quant import save_quantized
from ireko_trainer.serving import TAG_BUNDLE_SHA256, TAG_TARGET, Bundle, log_member, write_bundle
from ireko_trainer.serving.logged import requirements
from ireko_trainer.tracking.connection import Connection

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "bad", "film", "good", "is", "not", "the", "very", "what")
TEXTS = ["the film is very very good", "bad", "what a film", "not good not bad"]

LOAD_AND_PREDICT = """
import json, sys
import mlflow
uri, model, texts = sys.argv[1:]
mlflow.set_tracking_uri(uri)
embeddings = mlflow.pyfunc.load_model(model).predict(json.loads(texts))
assert not any(name.startswith("ireko") for name in sys.modules)
print("ANSWER", json.dumps(embeddings.tolist()))
"""


def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def config(**options: Any) -> BertConfig:
    return BertConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        **options,
    )


def quantized_encoder(directory: Path) -> Bundle:
    """A bundle of a random encoder in mixed widths, 2 to 8 bits."""
    torch.manual_seed(0)
    model = BertModel(config(), add_pooling_layer=False).eval()
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    bits = {name: (2, 3, 4, 8)[i % 4] for i, name in enumerate(linear)}
    checkpoint = save_quantized(model=model, bits=bits, group_size=64, directory=directory / "checkpoint")
    return write_bundle(
        checkpoint=checkpoint,
        tokenizer=tokenizer(),
        task="feature-extraction",
        max_length=32,
        directory=directory / "bundle",
    )


def classifier(directory: Path) -> Bundle:
    torch.manual_seed(0)
    BertForSequenceClassification(config(num_labels=2)).save_pretrained(directory / "checkpoint")
    return write_bundle(
        checkpoint=directory / "checkpoint",
        tokenizer=tokenizer(),
        task="text-classification",
        labels=["negative", "positive"],
        max_length=32,
        directory=directory / "bundle",
    )


@pytest.fixture
def connection(mlflow_sqlite_uri: str) -> Iterator[Connection]:
    mlflow.set_tracking_uri(mlflow_sqlite_uri)
    yield Connection(mlflow_sqlite_uri)
    mlflow.set_tracking_uri("")


@pytest.fixture
def experiment_id(connection: Connection, tmp_path: Path) -> str:
    return str(connection.client.create_experiment("ireko", artifact_location=str(tmp_path / "artifacts")))


@pytest.fixture
def run_id(connection: Connection, experiment_id: str) -> str:
    return str(connection.client.create_run(experiment_id).info.run_id)


def logged(
    connection: Connection, experiment_id: str, run_id: str, bundle: Bundle, target: str = "gateway"
) -> str:
    return log_member(
        connection=connection,
        experiment_id=experiment_id,
        run_id=run_id,
        name="sentiment",
        target=target,
        bundle=bundle,
        params={"size_bytes": 12345, "average_bits": 4.25},
        metrics={"fidelity": 0.97},
    )


def test_a_member_predicts_the_same_where_only_its_requirements_are_installed(
    connection: Connection, experiment_id: str, run_id: str, tmp_path: Path
) -> None:
    uri = logged(connection, experiment_id, run_id, quantized_encoder(tmp_path))
    version = mlflow.register_model(uri, "sentiment").version
    connection.client.set_registered_model_alias("sentiment", "gateway", version)
    expected = mlflow.pyfunc.load_model("models:/sentiment@gateway").predict(TEXTS)
    assert np.linalg.norm(expected, axis=1) == pytest.approx(1.0, abs=1e-6)

    model_files = tmp_path / "downloaded"
    mlflow.artifacts.download_artifacts("models:/sentiment@gateway", dst_path=str(model_files))
    environment = tmp_path / "environment"
    uv = str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(environment)], check=True)
    python = environment / "bin" / "python"
    install = [uv, "pip", "install", "--quiet", "--python", str(python)]
    subprocess.run([*install, "-r", str(model_files / "requirements.txt")], check=True)

    process = subprocess.run(
        [str(python), "-c", LOAD_AND_PREDICT, connection.uri, "models:/sentiment@gateway", json.dumps(TEXTS)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    answer = next(line for line in process.stdout.splitlines() if line.startswith("ANSWER "))
    np.testing.assert_allclose(np.array(json.loads(answer.removeprefix("ANSWER "))), expected, atol=1e-6)


def test_a_classifier_answers_with_labels_through_mlflow(
    connection: Connection, experiment_id: str, run_id: str, tmp_path: Path
) -> None:
    uri = logged(connection, experiment_id, run_id, classifier(tmp_path))
    answers = mlflow.pyfunc.load_model(uri).predict(TEXTS, params={"batch_size": 2})
    assert [set(answer) for answer in answers] == [{"label", "score"}] * len(TEXTS)
    assert all(answer["label"] in ("negative", "positive") for answer in answers)


def test_logging_a_member_again_reuses_the_model(
    connection: Connection, experiment_id: str, run_id: str, tmp_path: Path
) -> None:
    bundle = classifier(tmp_path)
    first = logged(connection, experiment_id, run_id, bundle)
    assert logged(connection, experiment_id, run_id, bundle) == first
    assert logged(connection, experiment_id, run_id, bundle, target="kiosk") != first
    model = connection.client.get_logged_model(first.removeprefix("models:/"))
    assert model.tags[TAG_BUNDLE_SHA256] == bundle.sha256
    assert model.tags[TAG_TARGET] == "gateway"
    assert model.params["average_bits"] == "4.25"
    assert [(metric.key, metric.value) for metric in model.metrics] == [("gateway/fidelity", 0.97)]
    outputs = connection.client.get_run(run_id).outputs.model_outputs
    assert [output.model_id for output in outputs].count(model.model_id) == 1


def test_a_model_whose_upload_failed_is_not_reused(
    connection: Connection, experiment_id: str, run_id: str, tmp_path: Path
) -> None:
    bundle = classifier(tmp_path)
    (tmp_path / "artifacts").write_text("a file where the artifacts directory should be")
    with pytest.raises(OSError, match="artifacts"):
        logged(connection, experiment_id, run_id, bundle)
    (tmp_path / "artifacts").unlink()
    uri = logged(connection, experiment_id, run_id, bundle)
    statuses = {
        f"models:/{model.model_id}": str(model.status)
        for model in MlflowClient(connection.uri).search_logged_models([experiment_id])
    }
    assert statuses.pop(uri) == "READY"
    assert list(statuses.values()) == ["FAILED"]


def test_requirements_are_exact_and_name_no_build(tmp_path: Path) -> None:
    lines = requirements(quantized_encoder(tmp_path))
    assert [line.split("==")[0] for line in lines] == [
        "compressed-tensors", "mlflow", "numpy", "safetensors", "torch", "transformers",
    ]  # fmt: skip
    assert not any("+" in line for line in lines)

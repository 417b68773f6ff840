"""Models and training states on disk, written whole or not at all."""

from __future__ import annotations

import hashlib
import inspect
import shutil
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ireko_trainer.delta import WEIGHTS_FILE as DELTA_WEIGHTS_FILE
from ireko_trainer.delta import is_delta, load_delta, save_delta
from ireko_trainer.mlfs import Hooks, TrainingState
from ireko_trainer.pipeline.files import explained_io_errors, write_whole
from ireko_trainer.pipeline.stage import StageAtWork
from ireko_trainer.pipeline.store import STATE_FILE

WEIGHTS_FILE = "model.safetensors"


def save_model(model: PreTrainedModel, directory: Path, *, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a standard checkpoint; a directory that an interrupted attempt left half written is replaced."""
    shutil.rmtree(directory, ignore_errors=True)
    with explained_io_errors(directory):
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def load_model(directory: Path, *, task: str, device: torch.device) -> PreTrainedModel:
    """Load a checkpoint of this pipeline in float32, evaluation mode, with eager attention."""
    if is_delta(directory):
        return load_delta(directory, attn_implementation="eager").to(device)
    kinds = {
        "text-classification": AutoModelForSequenceClassification,
        "text-generation": AutoModelForCausalLM,
    }
    model = kinds.get(task, AutoModel).from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation="eager",
        **({} if task in kinds else _without_pooler(directory)),
    )
    return cast("PreTrainedModel", model.to(device).eval())


def save_factored(model: PreTrainedModel, directory: Path, *, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a checkpoint of a model with factored layers, as `save_model` writes one without."""
    shutil.rmtree(directory, ignore_errors=True)
    with explained_io_errors(directory):
        save_delta(model=model, directory=directory)
        tokenizer.save_pretrained(directory)


def weights_file(directory: Path) -> Path:
    """The weight file of a checkpoint."""
    return directory / (DELTA_WEIGHTS_FILE if is_delta(directory) else WEIGHTS_FILE)


def weights_sha256(directory: Path) -> str:
    """sha256 of the weight file of a checkpoint."""
    with weights_file(directory).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_state(directory: Path) -> TrainingState | None:
    """The training state that an earlier attempt left in a stage's directory, if there is one."""
    path = directory / STATE_FILE
    if not path.is_file():
        return None
    return cast("TrainingState", torch.load(path, weights_only=True, map_location="cpu"))


def training_hooks(stage: StageAtWork, *, total_steps: int, checkpoint_seconds: float) -> Hooks:
    """What a stage of the pipeline gives to a training loop: its workers, its log, its checkpoints, its stop."""

    def on_step(step: int, metrics: object) -> None:
        assert isinstance(metrics, dict)
        stage.log(step, metrics)
        stage.progress(step, total_steps)

    def save(state: TrainingState) -> None:
        if stage.writes:
            # Straight into the file: the state of a model that trains whole is three times its weights.
            write_whole(stage.directory / STATE_FILE, lambda file: torch.save(state, file))
            stage.keep()

    return Hooks(
        all_reduce=stage.world.all_reduce,
        stop=stage.stop,
        on_step=on_step,
        save=save,
        checkpoint_seconds=checkpoint_seconds,
    )


def _without_pooler(directory: Path) -> dict[str, bool]:
    # A base model that was loaded without its pooler is saved without it; asking for one would add random weights.
    with safe_open(directory / WEIGHTS_FILE, framework="pt") as file:
        has_pooler = any(name.startswith("pooler.") for name in file.keys())  # noqa: SIM118  (not a dict)
    config = AutoConfig.from_pretrained(directory)
    takes_pooling = "add_pooling_layer" in inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if takes_pooling and not has_pooler else {}

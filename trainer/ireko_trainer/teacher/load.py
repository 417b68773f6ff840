"""Load a teacher: the model with the right head, and the tokenizer that fits it."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from ireko_api.spec import Teacher
from ireko_trainer.data import LabelSpace
from ireko_trainer.errors import UserError
from ireko_trainer.teacher.checkpoint import digest, head_labels, require_loadable, weight_files
from ireko_trainer.teacher.resolve import resolve

_FIELD = "spec.teacher.model"
_DTYPES = {
    "auto": torch.float32,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_CLASSES = {
    "feature-extraction": MODEL_MAPPING,
    "text-classification": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "text-generation": MODEL_FOR_CAUSAL_LM_MAPPING,
}
"""Task → the families that have a class for it. A task that is not in here is not executed."""
_BROKEN_WEIGHTS = (
    SafetensorError,
    pickle.UnpicklingError,
    EOFError,
    RuntimeError,
    OSError,
    ValueError,
    KeyError,
)
"""What the readers of weight files raise when the bytes are not what they expect."""


@dataclass(frozen=True, kw_only=True)
class LoadedTeacher:
    """A model in evaluation mode with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    """`model_max_length` is what the model's position embeddings hold."""
    task: str
    labels: LabelSpace | None
    """What the head tells apart; None for feature-extraction."""
    new_head: bool
    """The classification head is untrained: the checkpoint brought none."""
    directory: Path
    """The checkpoint."""
    sha256: str
    """Over configuration, weights and tokenizer files."""


def load_teacher(
    *,
    spec: Teacher,
    base_dir: Path,
    cache_dir: Path,
    labels: LabelSpace | None,
    seed: int = 0,
    before_weights: Callable[[PreTrainedConfig], None] = lambda _: None,
) -> LoadedTeacher:
    """Find, check and load the teacher.

    `feature-extraction` loads the bare encoder without the pooling layer, which embeddings do not use.
    `text-classification` loads the checkpoint's head, which must fit the labels, or makes a new one for them.
    `text-generation` loads a decoder with its language model head.
    Attention is the eager implementation, whose matrices can be sliced and observed.

    Args:
        spec: `spec.teacher`; dtype `auto` is float32.
        base_dir: where relative paths start.
        cache_dir: where downloads go.
        labels: what the data's labels are (`ireko_trainer.data.label_space`), for `text-classification`.
        seed: of a new head's weights.
        before_weights: sees the config before the weights are loaded, and may raise.

    Raises:
        UserError: the checkpoint cannot do the task, does not fit the labels, is broken, or asks to run code.
    """
    _require_executable(spec.task)
    directory = resolve(uri=spec.model, base_dir=base_dir, revision=spec.revision, cache_dir=cache_dir)
    require_loadable(directory, trust_remote_code=spec.trust_remote_code)
    head = head_labels(directory) if spec.task == "text-classification" else None
    if spec.task == "text-classification":
        labels = _agreed_labels(labels, head=head, directory=directory)
    with _quiet():
        config = _load_config(directory, spec=spec)
        before_weights(config)
        model = _load_model(
            directory, spec=spec, config=config, labels=labels, new_head=head is None, seed=seed
        )
        tokenizer = _load_tokenizer(directory, spec=spec)
    _fit_tokenizer(tokenizer, model=model, directory=directory)
    return LoadedTeacher(
        model=model.eval(),
        tokenizer=tokenizer,
        task=spec.task,
        labels=labels if spec.task == "text-classification" else None,
        new_head=spec.task == "text-classification" and head is None,
        directory=directory,
        sha256=digest(directory),
    )


def _require_executable(task: str) -> None:
    if task not in _CLASSES:
        raise UserError(
            f"spec.teacher.task: {task} is not executed in this release; use {', '.join(sorted(_CLASSES))}."
        )


def _agreed_labels(labels: LabelSpace | None, *, head: LabelSpace | None, directory: Path) -> LabelSpace:
    """The labels of head and data, which have to be the same."""
    if head is None and labels is None:
        raise UserError(
            f"spec.data.labels: the teacher in {directory} has no classification head and nothing says "
            "which classes a new one should have; set spec.data.train.labelColumn, spec.data.labels or "
            "spec.data.problemType."
        )
    if labels is None:
        assert head is not None
        return head
    if head is None:
        return labels
    if head.outputs != labels.outputs:
        raise UserError(
            f"spec.data.labels: the data has {_described(labels)}, but the head of the teacher in "
            f"{directory} has {_described(head)}; use matching data, or a teacher without a head."
        )
    if set(head.names) == set(labels.names) and head.names != labels.names:
        raise UserError(
            f"spec.data.labels: {list(labels.names)} is not the order of the teacher's head, "
            f"{list(head.names)}; give the names in the head's order."
        )
    return labels


def _described(labels: LabelSpace) -> str:
    if labels.regression:
        return "one number to predict"
    return f"{len(labels.names)} classes {list(labels.names)}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and load reports: what matters in them is checked here."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _load_config(directory: Path, *, spec: Teacher) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=spec.trust_remote_code)
    # A missing or unknown model_type, or values that the family's config class refuses.
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"{_FIELD}: {directory / 'config.json'} does not describe a model that transformers knows "
            f"({_first_line(error)}); give a checkpoint of a known architecture."
        ) from error
    known = type(config) in _CLASSES[spec.task] or "auto_map" in config.to_dict()
    kind = "encoder-decoder models" if config.is_encoder_decoder else "models without a class for it"
    if spec.task == "text-generation" and type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        # transformers has causal classes for encoders, whose checkpoints were trained to see the words to come.
        known, kind = False, "encoders"
    if not known or config.is_encoder_decoder:
        raise UserError(
            f"spec.teacher.task: {spec.task} is not done by {kind} such as {config.model_type} in "
            f"{directory}; choose another task or teacher."
        )
    return config


def _load_model(
    directory: Path,
    *,
    spec: Teacher,
    config: PreTrainedConfig,
    labels: LabelSpace | None,
    new_head: bool,
    seed: int,
) -> PreTrainedModel:
    auto_class, options = model_class(config, task=spec.task)
    if spec.task == "text-classification":
        assert labels is not None  # agreed before anything was loaded
        _set_labels(config, labels)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # weights of a new head are drawn while loading
            model, info = auto_class.from_pretrained(
                directory,
                config=config,
                dtype=_DTYPES[spec.dtype],
                attn_implementation="eager",
                use_safetensors=weight_files(directory)[0].name.startswith("model.safetensors"),
                weights_only=True,
                trust_remote_code=spec.trust_remote_code,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
    except _BROKEN_WEIGHTS as error:
        raise UserError(
            f"{_FIELD}: the weights in {directory} cannot be loaded ({_first_line(error)}); they are "
            "damaged, or a pickle that holds more than tensors. Save the teacher again with save_pretrained "
            "(safetensors)."
        ) from error
    _require_complete(model, info=info, directory=directory, new_head=new_head)
    return model


def model_class(config: PreTrainedConfig, *, task: str) -> tuple[Any, dict[str, Any]]:
    """The Auto class that builds a model for a task, and what it is built with beside the config."""
    if task == "text-classification":
        return AutoModelForSequenceClassification, {}
    if task == "text-generation":
        return AutoModelForCausalLM, {}
    known = MODEL_MAPPING.get(type(config), None)
    takes_pooling = known is not None and "add_pooling_layer" in inspect.signature(known.__init__).parameters
    return AutoModel, {"add_pooling_layer": False} if takes_pooling else {}


def _set_labels(config: PreTrainedConfig, labels: LabelSpace) -> None:
    names = labels.names or ("value",)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = "regression" if labels.regression else "single_label_classification"


def _require_complete(
    model: PreTrainedModel, *, info: Mapping[str, Any], directory: Path, new_head: bool
) -> None:
    """Every weight came from the checkpoint, but for a new head and the pooling layer that belongs to it."""
    mismatched = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"])
    if mismatched:
        raise UserError(
            f"{_FIELD}: {len(mismatched)} weights in {directory} have other shapes than its config.json says "
            f"({', '.join(mismatched[:3])}); save the teacher again with save_pretrained."
        )
    body = f"{model.base_model_prefix}."
    has_head = model.base_model is not model
    missing = sorted(
        key
        for key in info["missing_keys"]
        if not (new_head and has_head and (not key.startswith(body) or ".pooler." in key))
    )
    if missing:
        raise UserError(
            f"{_FIELD}: {directory} lacks {len(missing)} weights of {type(model).__name__} "
            f"({', '.join(missing[:3])}); give the complete checkpoint."
        )


def _load_tokenizer(directory: Path, *, spec: Teacher) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=spec.trust_remote_code)
    # transformers raises whatever the missing or broken file led to; tokenizers raises a bare Exception.
    except Exception as error:
        raise UserError(
            f"{_FIELD}: the tokenizer in {directory} cannot be loaded ({_first_line(error)}); save it "
            "beside the weights with tokenizer.save_pretrained."
        ) from error


def _fit_tokenizer(tokenizer: PreTrainedTokenizerBase, *, model: PreTrainedModel, directory: Path) -> None:
    """Make the tokenizer produce what the model accepts: known ids, its inputs, no more tokens than
    positions.

    Raises:
        UserError: the tokenizer has ids without an embedding.
    """
    embeddings = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > embeddings:
        raise UserError(
            f"{_FIELD}: the tokenizer in {directory} has {len(tokenizer)} tokens, the model embeds "
            f"{embeddings}; they do not belong together. Save the tokenizer that the teacher was trained "
            "with."
        )
    segments = getattr(model.config, "type_vocab_size", 0) >= 2
    accepted = inspect.signature(model.forward).parameters
    tokenizer.model_input_names = [
        name
        for name in tokenizer.model_input_names
        if name in accepted and (segments or name != "token_type_ids")
    ]
    positions = _positions(model.config)
    if positions is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions)


def _positions(config: PreTrainedConfig) -> int | None:
    """Tokens that absolute position embeddings hold; RoBERTa's start counting behind the padding index."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or positions <= 0:
        return None
    offset = config.pad_token_id + 1 if config.model_type in _OFFSET_POSITIONS else 0
    return int(positions) - offset


_OFFSET_POSITIONS = frozenset({"roberta", "camembert", "xlm-roberta", "xlm-roberta-xl"})


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")

"""The axis tables of the encoder families that Ireko nests: BERT (MiniLM too), RoBERTa, DistilBERT; all families.

To add a family, write its table here or, for a decoder, in `decoders.py`, enter it in `FAMILIES`, and add it to
the families that tests/unit/mlfs runs its invariants over. A table that misses a parameter is refused when a
model is first looked at, so a wrong table cannot train quietly.
"""

from __future__ import annotations

from dataclasses import replace

from transformers import PretrainedConfig, PreTrainedModel

from ireko_trainer.errors import UserError
from ireko_trainer.mlfs.axes import (
    Architecture,
    Axis,
    ConfigNames,
    Layout,
    embedding,
    full_shape,
    heads_of,
    linear,
    norm,
    resolve,
)
from ireko_trainer.mlfs.decoders import DECODERS
from ireko_trainer.mlfs.shapes import Heads, Shape

HIDDEN, ATTENTION, INTERMEDIATE = Axis.HIDDEN, Axis.ATTENTION, Axis.INTERMEDIATE
POOLED, FIXED = Axis.POOLED, Axis.FIXED

_BERT_NAMES = ConfigNames(
    hidden="hidden_size",
    heads="num_attention_heads",
    intermediate="intermediate_size",
    layers="num_hidden_layers",
)
_BERT_EMBEDDINGS = (
    *embedding("embeddings.word_embeddings"),
    *embedding("embeddings.position_embeddings"),
    *embedding("embeddings.token_type_embeddings"),
    *norm("embeddings.LayerNorm"),
)
_BERT_BLOCK = (
    *linear("attention.self.query", out=ATTENTION, into=HIDDEN),
    *linear("attention.self.key", out=ATTENTION, into=HIDDEN),
    *linear("attention.self.value", out=ATTENTION, into=HIDDEN),
    *linear("attention.output.dense", out=HIDDEN, into=ATTENTION),
    *norm("attention.output.LayerNorm"),
    *linear("intermediate.dense", out=INTERMEDIATE, into=HIDDEN),
    *linear("output.dense", out=HIDDEN, into=INTERMEDIATE),
    *norm("output.LayerNorm"),
)

BERT = Architecture(
    family="bert",
    base_prefix="bert.",
    layer_prefix="encoder.layer.",
    config=_BERT_NAMES,
    embeddings=_BERT_EMBEDDINGS,
    block=_BERT_BLOCK,
    head=(
        *linear("bert.pooler.dense", out=POOLED, into=HIDDEN),
        *linear("classifier", out=FIXED, into=POOLED),
    ),
    attention_output="attention.output.dense",
    intermediate_output="output.dense",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
    model_inputs=("input_ids", "attention_mask", "token_type_ids"),
)

ROBERTA = replace(
    BERT,
    family="roberta",
    base_prefix="roberta.",
    head=(
        *linear("roberta.pooler.dense", out=POOLED, into=HIDDEN),
        *linear("classifier.dense", out=POOLED, into=HIDDEN),
        *linear("classifier.out_proj", out=FIXED, into=POOLED),
    ),
)

DISTILBERT = Architecture(
    family="distilbert",
    base_prefix="distilbert.",
    layer_prefix="transformer.layer.",
    config=ConfigNames(hidden="dim", heads="n_heads", intermediate="hidden_dim", layers="n_layers"),
    embeddings=(
        *embedding("embeddings.word_embeddings"),
        *embedding("embeddings.position_embeddings"),
        *norm("embeddings.LayerNorm"),
    ),
    block=(
        *linear("attention.q_lin", out=ATTENTION, into=HIDDEN),
        *linear("attention.k_lin", out=ATTENTION, into=HIDDEN),
        *linear("attention.v_lin", out=ATTENTION, into=HIDDEN),
        *linear("attention.out_lin", out=HIDDEN, into=ATTENTION),
        *norm("sa_layer_norm"),
        *linear("ffn.lin1", out=INTERMEDIATE, into=HIDDEN),
        *linear("ffn.lin2", out=HIDDEN, into=INTERMEDIATE),
        *norm("output_layer_norm"),
    ),
    head=(
        *linear("pre_classifier", out=POOLED, into=HIDDEN),
        *linear("classifier", out=FIXED, into=POOLED),
    ),
    attention_output="attention.out_lin",
    intermediate_output="ffn.lin2",
    norms=("sa_layer_norm", "output_layer_norm"),
    model_inputs=("input_ids", "attention_mask"),
)

FAMILIES = {architecture.family: architecture for architecture in (BERT, ROBERTA, DISTILBERT, *DECODERS)}


def architecture_of(config: PretrainedConfig) -> Architecture:
    """The axis table for a model's config.

    Raises:
        UserError: no table is written for this `model_type`.
    """
    if config.model_type not in FAMILIES:
        raise UserError(
            f"spec.teacher.model is a {config.model_type!r} model, and Ireko knows how to nest only "
            f"{', '.join(sorted(FAMILIES))}. Choose a teacher of one of these families, or add the axis "
            f"table of {config.model_type!r} to ireko_trainer/mlfs/architectures.py (decoders: decoders.py beside it)."
        )
    return FAMILIES[config.model_type]


def layout_of(model: PreTrainedModel) -> Layout:
    """The place of every parameter of a model; see `axes.resolve` for what is refused."""
    return resolve(architecture=architecture_of(model.config), model=model)


def teacher_shape(config: PretrainedConfig) -> Shape:
    """The shape of the uncut model that a config describes."""
    return full_shape(architecture=architecture_of(config), config=config)


def teacher_heads(config: PretrainedConfig) -> Heads:
    """In which units the heads of the model that a config describes can be cut."""
    return heads_of(architecture=architecture_of(config), config=config)

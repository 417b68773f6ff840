"""How far a model has moved from the one it was made of, on a few calibration tokens.

What the model answers with decides the measure: distributions (logits of a language model or a classifier) by the
Kullback-Leibler divergence, numbers by their squared error, embeddings by the angle between them. All are per item
(token or text) and zero for the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ireko_trainer.quant.calls import Batch

Kind = Literal["distribution", "number", "embedding"]

Answer = Callable[[Any, Batch], Tensor]
"""(output of the model, batch) -> [items, values]"""


def answer(kind: Kind) -> Answer:
    """Return the function that takes from a model's output what is compared."""
    return _embeddings if kind == "embedding" else _logits


def divergence(*, kind: Kind, reference: Tensor, candidate: Tensor) -> Tensor:
    """Return the divergence [items] of the candidate's answers [items, values] from the reference's."""
    if kind == "number":
        return (candidate - reference).square().mean(dim=-1)
    if kind == "embedding":
        return 1 - F.cosine_similarity(reference, candidate, dim=-1)
    # Log-probabilities of the reference are kept, not logits: half of the work is done once.
    return (reference.exp() * (reference - candidate.log_softmax(dim=-1))).sum(dim=-1)


def as_reference(*, kind: Kind, answers: Tensor) -> Tensor:
    """Return what `divergence` takes as the reference for these answers."""
    return answers.log_softmax(dim=-1) if kind == "distribution" else answers


def _logits(output: Any, batch: Batch) -> Tensor:
    """Rows of logits: one for each real token of a language model, one for each text of a classifier."""
    logits: Tensor = output.logits.float()
    if logits.dim() == 2:
        return logits
    return _real(logits, batch)


def _embeddings(output: Any, batch: Batch) -> Tensor:
    hidden: Tensor = output.last_hidden_state.float()
    mask = batch.get("attention_mask")
    if mask is None:
        return hidden.mean(dim=1)
    weights = mask.to(hidden)[..., None]
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def _real(values: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    mask = batch.get("attention_mask")
    return values.flatten(0, 1) if mask is None else values[mask.bool()]


def repeated(batch: Batch, times: int) -> dict[str, Tensor]:
    """Return the batch stacked on itself."""
    return {name: torch.cat([tensor] * times) for name, tensor in batch.items()}

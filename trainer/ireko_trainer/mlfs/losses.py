"""What a subnet is told by its teacher and by the labels.

L_j = (1-α)·task + α·(T²·KL(teacher ‖ subnet) + Σ_l β·D_l)   (MLFS, arXiv 2404.01353; the grouping of α is
inferred)

D_l compares hidden states of different widths through one fixed random projection, sliced for the subnet.
Learned projections on both sides would have the trivial minimum zero, so the rows are orthonormal and frozen,
and the features are scaled to unit length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SIMILARITY_TEMPERATURE = 0.05
"""Cosines lie close together: divided by this, a row's softmax is about its nearest neighbours."""


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """The weights of the loss.

    Raises:
        ValueError: a weight lies outside its range.
    """

    alpha: float = 0.9
    """Share of the teacher against the labels, in [0, 1]."""
    beta: float = 0.1
    """Weight of each layer's feature loss; 0 leaves hidden states out, and their cost too."""
    temperature: float = 1.0
    projection: int = 128
    """Dimensions in which hidden states are compared."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1 or self.beta < 0 or self.temperature <= 0 or self.projection < 1:
            raise ValueError(
                f"alpha in [0, 1], beta ≥ 0, temperature > 0 and projection ≥ 1 are needed: {self}"
            )


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over logits [B, C] and classes [B], or mean squared error for one logit and a number."""
    if is_regression(logits):
        return F.mse_loss(logits.float().squeeze(-1), labels.float().reshape(-1))
    return F.cross_entropy(logits.float(), labels)


def next_token_loss(logits: Tensor, input_ids: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the tokens that come next: logits [B, S, V], tokens [B, S], 1 for real ones in mask [B, S]."""
    following = mask[:, 1:].bool()
    return F.cross_entropy(logits[:, :-1][following].float(), input_ids[:, 1:][following])


def answer_loss(logits: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """How far the subnet's answers are from the teacher's: T²·KL(teacher ‖ subnet), or squared error.

    Answers are [B, C], one for each text, or one for each token of a language model.
    """
    if is_regression(logits):
        return F.mse_loss(logits.float(), teacher.float())
    return temperature**2 * F.kl_div(
        F.log_softmax(logits.float() / temperature, dim=-1),
        F.log_softmax(teacher.float() / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )


def is_regression(logits: Tensor) -> bool:
    """One output is a number; two and more are classes."""
    return logits.shape[-1] == 1


def similarity_loss(embeddings: Tensor, teacher: Tensor) -> Tensor:
    """How differently subnet [B, d] and teacher [B, D] see the similarities inside a batch.

    Squared error of the off-diagonal cosines keeps their scale; KL between the rows' softmax keeps the order
    of a sentence's neighbours, which is what retrieval reads. Both are 0 exactly when the cosines agree.
    """
    if len(embeddings) < 2:
        raise ValueError(
            "similarities need at least two sentences in a batch: raise spec.pipeline.mlfs.batchSize"
        )
    mine, theirs = _off_diagonal_cosines(embeddings), _off_diagonal_cosines(teacher)
    neighbours = F.kl_div(
        F.log_softmax(mine / SIMILARITY_TEMPERATURE, dim=-1),
        F.log_softmax(theirs / SIMILARITY_TEMPERATURE, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    # In units of the softmax's temperature, so that the two terms are of one size.
    return neighbours + F.mse_loss(mine, theirs) / SIMILARITY_TEMPERATURE**2 / 2


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Sentence embeddings: the mean over real tokens of [B, S, D] under a mask [B, S], float32 [B, D]."""
    weights = mask.unsqueeze(-1).float()
    return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1)


class FeatureProjection:
    """Fixed random orthonormal rows U_g [p, d], one set per hidden state of the teacher.

    Drawn from the seed alone, so it is no part of a checkpoint.
    """

    def __init__(self, *, hidden: int, states: int, rows: int, seed: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        rows = min(rows, hidden)
        self.rows = [
            torch.linalg.qr(torch.randn(hidden, rows, generator=generator)).Q.T.contiguous().to(device)
            for _ in range(states)
        ]

    def features(self, hidden: Tensor, state: int) -> Tensor:
        """Hidden states [B, S, d_j] of any width up to d, projected and scaled to unit length: [B, S, p]."""
        return F.normalize(F.linear(hidden.float(), self.rows[state][:, : hidden.shape[-1]]), dim=-1)


def feature_loss(
    hidden_states: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    projection: FeatureProjection,
    layers: Sequence[int],
    mask: Tensor,
) -> Tensor:
    """Σ_l D_l: mean squared distance of unit features over the real tokens, summed over the subnet's layers.

    Args:
        hidden_states: the subnet's, after the embeddings and after each of its layers, [B, S, d_j] each.
        teacher_features: `FeatureProjection.features` of the teacher's, after the embeddings and each layer.
        projection: the one that made them.
        layers: g_j, the teacher's layer that each of the subnet's layers is matched to.
        mask: [B, S], 1 for real tokens.
    """
    matched = [0, *(layer + 1 for layer in layers)]
    real = mask.float()
    distances = [
        (projection.features(hidden, state) - teacher_features[state]).square().sum(-1)  # [B, S]
        for hidden, state in zip(hidden_states, matched, strict=True)
    ]
    return (torch.stack(distances).sum(0) * real).sum() / real.sum()


def gradient_weight(*, largest: int, subnet: int, gamma: float) -> float:
    """(n_1/n_j)^γ: how much more a subnet counts than the maxnet, n being trainable numbers used."""
    return float((largest / subnet) ** gamma)


def _off_diagonal_cosines(embeddings: Tensor) -> Tensor:
    """[B, d] to [B, B-1]: each sentence against the others; against itself teaches nothing."""
    unit = F.normalize(embeddings.float(), dim=-1)
    count = len(unit)
    cosines = unit @ unit.T
    others = ~torch.eye(count, dtype=torch.bool, device=cosines.device)
    return cosines[others].view(count, count - 1)

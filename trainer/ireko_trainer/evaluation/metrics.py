"""Numbers that compare outputs with labels, and a member's outputs with its teacher's.

Larger is better for every metric, so that a minimum quality is one comparison. Three of the metrics need no
labels: an encoder that is compressed for embeddings is judged by how well it keeps the teacher's geometry.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ireko_trainer.errors import DivergedError

METRICS: Mapping[str, str] = MappingProxyType(
    {
        "accuracy": "Share of texts whose most likely class is the label (for text-generation, of tokens that were the "
        "most likely ones).",
        "f1": "F1 of class 1 when there are two classes, else the mean F1 over the classes (macro).",
        "matthews": "Matthews correlation coefficient of predicted and true classes.",
        "pearson": "Pearson correlation with the labels (for feature-extraction, of a pair's cosine).",
        "spearman": "Spearman rank correlation with the labels (for feature-extraction, of a pair's cosine).",
        "agreement": "Share of texts (for text-generation, of tokens) for which member and teacher predict the same.",
        "fidelity": "Pearson correlation with the teacher: of the values for regression, of all cosine "
        "similarities between different texts for feature-extraction.",
        "neighbours": "Share of texts whose nearest neighbour is the same under member and teacher.",
        "likelihood": "Geometric mean of the probabilities of the tokens that come next: 1 / perplexity.",
    }
)
"""Name → meaning of every metric that a manifest may ask for."""

_BLOCK = 1024
"""Rows of the similarity matrix that exist at one time."""


def default_metric(*, task: str, regression: bool, has_labels: bool) -> str:
    """The metric that judges a task when the manifest names none.

    Spearman for similarity of pairs is the custom of the field (Reimers & Gurevych 2019, §4.1); accuracy and
    Pearson are the first metrics of the corresponding GLUE tasks. Without labels only the teacher is left.
    """
    if task == "text-generation":
        return "likelihood"
    if task == "feature-extraction":
        return "spearman" if has_labels else "fidelity"
    if has_labels:
        return "pearson" if regression else "accuracy"
    return "fidelity" if regression else "agreement"


def score(
    *,
    task: str,
    regression: bool,
    outputs: Tensor,
    labels: Tensor | None,
    reference: Tensor | None,
) -> dict[str, float]:
    """Every metric that the arguments allow, by name (see `METRICS`).

    Args:
        task: `text-classification` or `feature-extraction`.
        regression: the head predicts one number; ignored for feature-extraction.
        outputs: logits `[N, num_labels]`, or embeddings `[N, D]`.
        labels: `[N]`. For feature-extraction they are similarities; rows `2i` and `2i + 1` are a pair and
            carry the same label (`EncodedDataset.pairs`).
        reference: the teacher's outputs for the same rows; embeddings may have another `D`.

    A correlation with something that does not vary is undefined; it is reported as 0.0, since such a model
    tells the texts apart no better than chance.

    Raises:
        DivergedError: outputs are NaN or infinite.
    """
    _require_finite(outputs)
    if task == "feature-extraction":
        return _score_embeddings(outputs=outputs, labels=labels, reference=reference)
    if task != "text-classification":
        raise ValueError(f"no metric is defined for task {task!r}")
    if regression:
        return _score_regression(outputs=outputs, labels=labels, reference=reference)
    return _score_classification(outputs=outputs, labels=labels, reference=reference)


def _require_finite(outputs: Tensor) -> None:
    broken = int((~torch.isfinite(outputs)).any(dim=1).sum())
    if broken:
        raise DivergedError(
            f"the model's outputs are NaN or infinite for {broken} of {len(outputs)} texts; train with a "
            "lower learningRate, or with precision float32."
        )


def _score_classification(
    *, outputs: Tensor, labels: Tensor | None, reference: Tensor | None
) -> dict[str, float]:
    predicted = outputs.argmax(dim=1).numpy()
    scores: dict[str, float] = {}
    if labels is not None:
        # It takes two seconds to import, which a trainer that has not trained yet need not spend.
        from sklearn import metrics as sklearn_metrics

        truth = labels.numpy()
        average = "binary" if outputs.shape[1] == 2 else "macro"
        scores["accuracy"] = float(sklearn_metrics.accuracy_score(truth, predicted))
        scores["f1"] = float(sklearn_metrics.f1_score(truth, predicted, average=average, zero_division=0.0))
        scores["matthews"] = float(sklearn_metrics.matthews_corrcoef(truth, predicted))
    if reference is not None:
        scores["agreement"] = float((predicted == reference.argmax(dim=1).numpy()).mean())
    return scores


def _score_regression(
    *, outputs: Tensor, labels: Tensor | None, reference: Tensor | None
) -> dict[str, float]:
    predicted = outputs.squeeze(1).double().numpy()
    scores = {} if labels is None else _correlations(predicted, labels.double().numpy())
    if reference is not None:
        scores["fidelity"] = _correlations(predicted, reference.squeeze(1).double().numpy())["pearson"]
    return scores


def _score_embeddings(
    *, outputs: Tensor, labels: Tensor | None, reference: Tensor | None
) -> dict[str, float]:
    scores: dict[str, float] = {}
    if labels is not None:
        cosine = torch.cosine_similarity(outputs[0::2].double(), outputs[1::2].double(), dim=1)
        scores.update(_correlations(cosine.numpy(), labels[0::2].double().numpy()))
    if reference is not None:
        scores["fidelity"] = _geometry_correlation(outputs, reference)
        scores["neighbours"] = float((_nearest(outputs) == _nearest(reference)).double().mean())
    return scores


def _correlations(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Pearson and Spearman of two vectors `[N]`; 0.0 where one of them is constant or shorter than two."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": float(stats.pearsonr(x, y).statistic),
        "spearman": float(stats.spearmanr(x, y).statistic),
    }


def _geometry_correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation between the off-diagonal entries of `A Aᵀ` and `B Bᵀ`, rows of length 1.

    The sums over all N² similarities follow from D × D matrices (Σ_ij (A Aᵀ)_ij = ‖Σ_i a_i‖²,
    Σ_ij (A Aᵀ)_ij (B Bᵀ)_ij = ‖Aᵀ B‖²_F), which keeps this linear in the number of texts.
    """
    a, b = (torch.nn.functional.normalize(matrix.double(), dim=1) for matrix in (a, b))
    rows = len(a)
    entries = rows * (rows - 1)
    if entries < 2:
        return 0.0
    # The diagonal of a Gram matrix of unit vectors: one per row, except for a zero vector.
    on_a, on_b = a.square().sum(dim=1), b.square().sum(dim=1)
    mean_a = float(a.sum(dim=0).square().sum() - on_a.sum()) / entries
    mean_b = float(b.sum(dim=0).square().sum() - on_b.sum()) / entries

    def moment(left: Tensor, right: Tensor, diagonal: Tensor) -> float:
        return float((left.T @ right).square().sum() - diagonal.sum()) / entries

    variance_a = moment(a, a, on_a.square()) - mean_a**2
    variance_b = moment(b, b, on_b.square()) - mean_b**2
    if min(variance_a, variance_b) < 1e-12:  # what rounding leaves of a variance of zero
        return 0.0
    covariance = moment(a, b, on_a * on_b) - mean_a * mean_b
    return float(np.clip(covariance / np.sqrt(variance_a * variance_b), -1.0, 1.0))


def _nearest(embeddings: Tensor) -> Tensor:
    """Index of the most similar other row for every row, int64 `[N]`."""
    unit = torch.nn.functional.normalize(embeddings.float(), dim=1)
    nearest = []
    for start in range(0, len(unit), _BLOCK):
        similarity = unit[start : start + _BLOCK] @ unit.T  # [block, N]
        own = torch.arange(len(similarity))
        similarity[own, start + own] = -torch.inf
        nearest.append(similarity.argmax(dim=1))
    return torch.cat(nearest)

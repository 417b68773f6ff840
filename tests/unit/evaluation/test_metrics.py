"""Metrics against values worked out by hand and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ireko_trainer.errors import DivergedError
from ireko_trainer.evaluation import METRICS, default_metric, score


def logits(*classes: int, count: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), count).float()


def classification(outputs: torch.Tensor, **others: torch.Tensor | None) -> dict[str, float]:
    arguments = {"labels": None, "reference": None, **others}
    return score(task="text-classification", regression=False, outputs=outputs, **arguments)


def embeddings(outputs: torch.Tensor, **others: torch.Tensor | None) -> dict[str, float]:
    arguments = {"labels": None, "reference": None, **others}
    return score(task="feature-extraction", regression=False, outputs=outputs, **arguments)


def test_two_classes_are_scored_by_their_confusion_matrix() -> None:
    # tp 2, fp 1, fn 1, tn 1
    scores = classification(logits(1, 1, 0, 1, 0, count=2), labels=torch.tensor([1, 1, 1, 0, 0]))
    assert scores == pytest.approx({"accuracy": 3 / 5, "f1": 2 / 3, "matthews": (2 * 1 - 1 * 1) / 6})


def test_f1_of_more_than_two_classes_is_the_mean_over_the_classes() -> None:
    scores = classification(logits(0, 1, 1, 2, count=3), labels=torch.tensor([0, 1, 2, 2]))
    assert scores["f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_agreement_compares_classes_with_the_teachers() -> None:
    scores = classification(logits(0, 1, 1, count=2), reference=logits(0, 0, 1, count=2) * 7)
    assert scores == {"agreement": pytest.approx(2 / 3)}


def test_regression_correlates_with_labels_and_teacher() -> None:
    scores = score(
        task="text-classification",
        regression=True,
        outputs=torch.tensor([[1.0], [2.0], [3.0], [10.0]]),
        labels=torch.tensor([1.0, 2.0, 3.0, 4.0]),
        reference=torch.tensor([[-2.0], [-4.0], [-6.0], [-20.0]]),
    )
    x, y = np.array([1, 2, 3, 10]), np.array([1, 2, 3, 4])
    assert scores == pytest.approx({"pearson": np.corrcoef(x, y)[0, 1], "spearman": 1.0, "fidelity": -1.0})


@pytest.mark.parametrize("constant", ["outputs", "labels"])
def test_a_correlation_with_something_constant_counts_as_zero(constant: str) -> None:
    columns = {"outputs": torch.tensor([1.0, 2.0, 3.0]), "labels": torch.tensor([1.0, 2.0, 4.0])}
    columns[constant] = torch.ones(3)
    scores = score(
        task="text-classification",
        regression=True,
        outputs=columns["outputs"][:, None],
        labels=columns["labels"],
        reference=None,
    )
    assert scores == {"pearson": 0.0, "spearman": 0.0}


def test_labels_of_pairs_are_compared_with_the_cosine_of_the_two_rows() -> None:
    angles = [0.0, 0.5, 1.0, 2.0]
    rows = [row for angle in angles for row in ([1.0, 0.0], [np.cos(angle), np.sin(angle)])]
    labels = torch.tensor([5.0, 4.0, 2.0, 1.0]).repeat_interleave(2)
    scores = embeddings(torch.tensor(rows), labels=labels)
    assert scores["spearman"] == pytest.approx(1.0)
    assert scores["pearson"] == pytest.approx(np.corrcoef(np.cos(angles), [5, 4, 2, 1])[0, 1])


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(3, 40), left=st.integers(2, 9), right=st.integers(2, 9), seed=st.integers(0, 99))
def test_fidelity_is_the_correlation_of_all_similarities_between_different_texts(
    rows: int, left: int, right: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(rows, width, generator=generator, dtype=torch.float64) for width in (left, right))
    unit_a, unit_b = (torch.nn.functional.normalize(matrix, dim=1) for matrix in (a, b))
    different = ~np.eye(rows, dtype=bool)
    expected = np.corrcoef((unit_a @ unit_a.T).numpy()[different], (unit_b @ unit_b.T).numpy()[different])[
        0, 1
    ]
    assert embeddings(a, reference=b)["fidelity"] == pytest.approx(expected, abs=1e-9)


def test_fidelity_and_neighbours_ignore_a_rotation() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(50, 8, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    scores = embeddings(teacher @ rotation, reference=teacher)
    assert scores == pytest.approx({"fidelity": 1.0, "neighbours": 1.0})


def test_identical_embeddings_have_no_fidelity() -> None:
    teacher = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    assert embeddings(torch.ones(20, 4), reference=teacher)["fidelity"] == 0.0


def test_the_nearest_neighbour_is_found_across_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ireko_trainer.evaluation.metrics._BLOCK", 3)
    points = torch.tensor([0.0, 2.0, 0.1, 1.0, 2.2, 1.15, 3.0])  # angles; nearest: 2, 4, 0, 5, 1, 3, 4
    circle = torch.stack([points.cos(), points.sin()], dim=1)
    moved = points.clone()
    moved[6] = -0.2  # its nearest is now row 0; nobody else's changes
    scores = embeddings(torch.stack([moved.cos(), moved.sin()], dim=1), reference=circle)
    assert scores["neighbours"] == pytest.approx(6 / 7)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(DivergedError, match="NaN or infinite for 1 of 2 texts"):
        classification(torch.tensor([[value, 0.0], [0.0, 1.0]]), labels=torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("task", "regression", "has_labels", "metric"),
    [
        ("text-classification", False, True, "accuracy"),
        ("text-classification", True, True, "pearson"),
        ("text-classification", False, False, "agreement"),
        ("text-classification", True, False, "fidelity"),
        ("feature-extraction", False, True, "spearman"),
        ("feature-extraction", False, False, "fidelity"),
    ],
)
def test_the_default_metric_is_one_that_the_data_allows(
    task: str, regression: bool, has_labels: bool, metric: str
) -> None:
    width = 1 if regression else 3
    outputs = torch.randn(6, width, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 1, 1, 2, 2]) if has_labels else None
    computed = score(task=task, regression=regression, outputs=outputs, labels=labels, reference=outputs)
    assert default_metric(task=task, regression=regression, has_labels=has_labels) == metric
    assert metric in computed
    assert set(computed) <= set(METRICS)

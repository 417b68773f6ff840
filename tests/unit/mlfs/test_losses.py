"""Losses: zero for a perfect imitation, blind to padding and to widths."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ireko_trainer.mlfs import Distillation
from ireko_trainer.mlfs.losses import (
    FeatureProjection,
    answer_loss,
    feature_loss,
    gradient_weight,
    mean_pool,
    next_token_loss,
    similarity_loss,
    task_loss,
)


def noise(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def projection(*, hidden: int = 16, states: int = 4, rows: int = 8) -> FeatureProjection:
    return FeatureProjection(hidden=hidden, states=states, rows=rows, seed=0, device=torch.device("cpu"))


def test_a_subnet_that_answers_as_its_teacher_has_no_loss() -> None:
    logits, hidden = noise(5, 3), [noise(5, 7, 16, seed=state) for state in range(4)]
    fixed = projection()
    features = [fixed.features(state, index) for index, state in enumerate(hidden)]
    loss = feature_loss(hidden, features, projection=fixed, layers=[0, 1, 2], mask=torch.ones(5, 7))
    assert answer_loss(logits, logits, temperature=2.0).item() == pytest.approx(0, abs=1e-6)
    assert similarity_loss(noise(5, 16), noise(5, 16)).item() == pytest.approx(0, abs=1e-6)
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_the_answer_loss_is_the_divergence_of_the_published_formula() -> None:
    student, teacher, temperature = noise(5, 3), noise(5, 3, seed=1), 3.0
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    expected = temperature**2 * (p * (p / q).log()).sum() / 5
    torch.testing.assert_close(answer_loss(student, teacher, temperature=temperature), expected)


def test_one_logit_is_a_number_and_compared_as_one() -> None:
    logits, teacher, labels = noise(5, 1), noise(5, 1, seed=1), noise(5, seed=2)
    torch.testing.assert_close(task_loss(logits, labels), (logits[:, 0] - labels).square().mean())
    torch.testing.assert_close(
        answer_loss(logits, teacher, temperature=1.0), (logits - teacher).square().mean()
    )


def test_classes_are_compared_by_cross_entropy() -> None:
    logits, labels = noise(5, 3), torch.tensor([0, 2, 1, 1, 0])
    torch.testing.assert_close(task_loss(logits, labels), F.cross_entropy(logits, labels))


def test_features_of_padding_do_not_count() -> None:
    fixed = projection(states=2)
    teacher = [noise(3, 6, 16, seed=state) for state in (1, 2)]
    student = [noise(3, 6, 10, seed=state) for state in (3, 4)]
    mask = (torch.arange(6) < torch.tensor([6, 2, 4])[:, None]).long()
    features = [fixed.features(hidden, state) for state, hidden in enumerate(teacher)]
    before = feature_loss(student, features, projection=fixed, layers=[0], mask=mask)
    student[1][1, 2:] = 100.0
    torch.testing.assert_close(
        feature_loss(student, features, projection=fixed, layers=[0], mask=mask), before
    )


def test_each_kept_layer_is_matched_to_the_teachers_layer_it_was() -> None:
    fixed = projection()
    teacher = [noise(2, 3, 16, seed=state) for state in range(4)]
    features = [fixed.features(hidden, state) for state, hidden in enumerate(teacher)]
    kept = [teacher[0], teacher[1], teacher[3]]
    right = feature_loss(kept, features, projection=fixed, layers=[0, 2], mask=torch.ones(2, 3))
    wrong = feature_loss(kept, features, projection=fixed, layers=[0, 1], mask=torch.ones(2, 3))
    assert right.item() == pytest.approx(0, abs=1e-6)
    assert wrong.item() > 0.1


def test_projection_rows_are_orthonormal_and_the_same_for_a_seed() -> None:
    one, other = projection(rows=8), projection(rows=8)
    for rows, same in zip(one.rows, other.rows, strict=True):
        torch.testing.assert_close(rows @ rows.T, torch.eye(8), rtol=0, atol=1e-5)
        assert torch.equal(rows, same)
    assert not torch.equal(one.rows[0], one.rows[1])


def test_a_projection_has_no_more_rows_than_there_are_channels() -> None:
    assert projection(hidden=16, rows=128).rows[0].shape == (16, 16)


def test_similarity_ignores_rotation_scale_and_width() -> None:
    teacher = noise(6, 16)
    rotation = torch.linalg.qr(noise(16, 16, seed=5)).Q
    wider = torch.cat([3 * teacher @ rotation, torch.zeros(6, 4)], dim=1)
    assert similarity_loss(wider, teacher).item() == pytest.approx(0, abs=1e-5)


def test_similarity_sees_a_changed_neighbour_and_has_a_gradient() -> None:
    student = noise(6, 12, seed=1).requires_grad_()
    loss = similarity_loss(student, noise(6, 16))
    loss.backward()
    assert loss.item() > 0
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_similarity_of_one_sentence_is_refused() -> None:
    with pytest.raises(ValueError, match="batchSize"):
        similarity_loss(noise(1, 4), noise(1, 4))


def test_embeddings_are_means_over_real_tokens() -> None:
    hidden, mask = noise(2, 5, 4), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    expected = torch.stack([hidden[0, :2].mean(0), hidden[1].mean(0)])
    torch.testing.assert_close(mean_pool(hidden, mask), expected)


@given(
    largest=st.integers(1, 10**9),
    sizes=st.tuples(st.integers(1, 10**9), st.integers(1, 10**9)),
    gamma=st.floats(0, 2),
)
def test_gradient_weights(largest: int, sizes: tuple[int, int], gamma: float) -> None:
    smaller, larger = sorted(sizes)
    assert gradient_weight(largest=largest, subnet=largest, gamma=gamma) == 1
    assert gradient_weight(largest=largest, subnet=smaller, gamma=0) == 1
    assert gradient_weight(largest=largest, subnet=smaller, gamma=gamma) >= gradient_weight(
        largest=largest, subnet=larger, gamma=gamma
    )


@pytest.mark.parametrize(
    "wrong", [{"alpha": 1.1}, {"alpha": -0.1}, {"beta": -1}, {"temperature": 0}, {"projection": 0}]
)
def test_weights_outside_their_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="alpha in"):
        Distillation(**wrong)  # type: ignore[arg-type]


def test_the_next_token_of_padding_does_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=generator)
    ids = torch.randint(0, 7, (2, 5), generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    logs = logits.log_softmax(-1)
    said = [float(logs[0, step, ids[0, step + 1]]) for step in range(4)]
    said += [float(logs[1, step, ids[1, step + 1]]) for step in range(2)]
    assert float(next_token_loss(logits, ids, mask)) == pytest.approx(-sum(said) / 6)

"""The algebra of truncated decompositions under a metric."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ireko_trainer.delta.decompositions import projection, residual_error
from ireko_trainer.delta.factors import (
    Metric,
    Root,
    fit_to_rows,
    pivot_form,
    shared_basis,
    tail_energies,
    truncate,
)

sizes = st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(0, 2**16))


def drawn(rows: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A matrix, inputs [N, columns] of uneven directions, and gradients [N, rows]."""
    generator = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scales = torch.logspace(-1, 1, columns, dtype=torch.float64)
    return values(rows, columns), values(4 * columns, columns) * scales, values(4 * rows, rows)


def metric_of(inputs: torch.Tensor | None, gradients: torch.Tensor | None = None) -> Metric:
    return Metric(
        inputs=None if inputs is None else Root.of(inputs.T @ inputs, damping=0.0),
        outputs=None if gradients is None else Root.of(gradients.T @ gradients, damping=0.0),
    )


@given(sizes)
@settings(max_examples=25, deadline=None)
def test_the_whitened_error_is_the_output_error_is_the_tail(drawn_sizes: tuple[int, int, int]) -> None:
    matrix, inputs, _ = drawn(*drawn_sizes)
    metric = metric_of(inputs)
    tails = tail_energies(metric.weigh(matrix))
    for rank in range(1, len(tails)):
        factors = truncate(matrix, metric=metric, rank=rank)
        outputs = (matrix - factors.left[0] @ factors.right) @ inputs.T
        # Relative to the whole: at full rank nothing is left to be relative to.
        assert float(outputs.square().sum()) == pytest.approx(float(tails[rank]), abs=1e-11 * float(tails[0]))


@given(sizes)
@settings(max_examples=25, deadline=None)
def test_the_plain_error_is_the_tail_of_the_singular_values(drawn_sizes: tuple[int, int, int]) -> None:
    matrix, _, _ = drawn(*drawn_sizes)
    tails = tail_energies(matrix)
    for rank in range(1, len(tails)):
        factors = truncate(matrix, metric=Metric(), rank=rank)
        error = float((matrix - factors.left[0] @ factors.right).square().sum())
        assert error == pytest.approx(float(tails[rank]), abs=1e-11 * float(tails[0]))
    assert bool((tails.diff() <= 1e-12 * tails[0]).all())


@given(sizes)
@settings(max_examples=25, deadline=None)
def test_nothing_beats_the_truncation_under_its_own_metric(drawn_sizes: tuple[int, int, int]) -> None:
    matrix, inputs, gradients = drawn(*drawn_sizes)
    metrics = [metric_of(inputs), metric_of(inputs, gradients), Metric()]
    for mine in metrics:
        for other in metrics:
            best = truncate(matrix, metric=mine, rank=1)
            else_ = truncate(matrix, metric=other, rank=1)
            assert mine.error(matrix - best.left[0] @ best.right) <= mine.error(
                matrix - else_.left[0] @ else_.right
            ) * (1 + 1e-9)


@pytest.mark.parametrize("coefficient", [0.0, 1.0, 0.37])
def test_full_rank_gives_the_matrix_back_whatever_the_coefficient(coefficient: float) -> None:
    matrix, inputs, gradients = drawn(7, 12, 1)
    base = drawn(7, 12, 2)[0]
    factors = truncate(matrix - coefficient * base, metric=metric_of(inputs, gradients), rank=7)
    rebuilt = (coefficient * base + factors.left[0] @ factors.right).float()
    assert float((rebuilt - matrix).norm() / matrix.norm()) <= 1e-5


@given(sizes, st.floats(-0.9, 0.5))
@settings(max_examples=25, deadline=None)
def test_an_unlike_base_of_equal_norm_is_worse_than_none_at_rank_0(
    drawn_sizes: tuple[int, int, int], cosine: float
) -> None:
    matrix, other, _ = drawn(*drawn_sizes)
    other = drawn(drawn_sizes[0], drawn_sizes[1], drawn_sizes[2] + 1)[0]
    across = other - projection(other, matrix) * matrix
    base = cosine * matrix + (1 - cosine**2) ** 0.5 * across * (matrix.norm() / across.norm())
    errors = {
        c: residual_error(target=matrix, base=base, coefficient=c, metric=Metric(), rank=0)
        for c in (0.0, 1.0)
    }
    assert errors[1.0] >= errors[0.0] * (1 - 1e-9)


@given(sizes)
@settings(max_examples=25, deadline=None)
def test_the_projection_is_the_best_coefficient_at_rank_0(drawn_sizes: tuple[int, int, int]) -> None:
    matrix, inputs, _ = drawn(*drawn_sizes)
    base = drawn(drawn_sizes[0], drawn_sizes[1], drawn_sizes[2] + 1)[0]
    metric = metric_of(inputs)
    best = projection(metric.weigh(matrix), metric.weigh(base))

    def error(coefficient: float) -> float:
        return residual_error(target=matrix, base=base, coefficient=coefficient, metric=metric, rank=0)

    assert error(best) <= min(error(c) for c in (0.0, 1.0, best + 0.1, best - 0.1)) * (1 + 1e-9)


@given(sizes)
@settings(max_examples=25, deadline=None)
def test_the_pivot_form_is_the_same_product_in_fewer_numbers(drawn_sizes: tuple[int, int, int]) -> None:
    matrix, inputs, _ = drawn(*drawn_sizes)
    rank = min(matrix.shape) - 1
    factors = truncate(matrix, metric=metric_of(inputs), rank=rank)
    (left,), rest, chosen = pivot_form(factors)
    right = torch.zeros(rank, matrix.shape[1], dtype=torch.float64)
    right[:, chosen], right[:, ~chosen] = torch.eye(rank, dtype=torch.float64), rest
    torch.testing.assert_close(left @ right, factors.left[0] @ factors.right)
    assert left.numel() + rest.numel() == rank * (sum(matrix.shape) - rank)


def test_a_basis_for_matrices_with_one_input_is_the_svd_of_their_stack() -> None:
    (one, inputs, _), (two, _, _) = drawn(5, 8, 1), drawn(6, 8, 2)
    metric = metric_of(inputs)
    basis = shared_basis([one, two], metrics=[metric, metric], common=metric.inputs)
    torch.testing.assert_close(
        basis.errors, tail_energies(metric.weigh(torch.cat([one, two]))), atol=1e-8, rtol=1e-8
    )


def test_the_error_of_a_basis_is_that_of_the_matrices_fitted_to_it() -> None:
    (one, first, _), (two, second, _) = drawn(5, 8, 1), drawn(6, 8, 2)
    metrics = [metric_of(first), metric_of(second)]
    mean = Root.of((first.T @ first + second.T @ second) / 2, damping=0.0)
    basis = shared_basis([one, two], metrics=metrics, common=mean)
    for rank in (1, 3, 7):
        rows = basis.rows[:rank]
        found = sum(
            metric.error(matrix - fit_to_rows(matrix, rows, metric=metric) @ rows)
            for matrix, metric in zip((one, two), metrics, strict=True)
        )
        assert found == pytest.approx(float(basis.errors[rank]), rel=1e-8)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_balanced_factors_are_of_one_size_whatever_the_scale_of_the_error(scale: float) -> None:
    matrix, _, _ = drawn(6, 9, 4)
    factors = truncate(matrix, metric=Metric(scale=scale), rank=6)
    torch.testing.assert_close(factors.left[0].norm(dim=0), factors.right.norm(dim=1))
    torch.testing.assert_close(factors.left[0] @ factors.right, matrix)

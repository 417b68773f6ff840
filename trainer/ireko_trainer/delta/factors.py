"""Truncated singular value decompositions under a metric, in float64, and the form in which they are stored.

The metric says what an error E [m, n] costs: ‖A' E L‖², with H = L L' the second moments of the inputs and G = A A'
those of the gradients (`moments.py`). Under it the best matrix of rank r is the truncated SVD of A' W L, taken back;
its error is the sum of the squares of the singular values that were left out, exactly. Without L and A that is the
plain SVD, with L alone SVD-LLM's whitening.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ireko_trainer.delta.moments import Moments
from ireko_trainer.quant.hessian import inverse_root
from ireko_trainer.quant.layout import weight_matrix

Initialization = Literal["Plain", "Whitened", "Curvature"]

DAMPING = 1e-6
"""Of the moments, relative to the mean of their diagonal: inputs that never occur would cost nothing otherwise."""


@dataclass(frozen=True, kw_only=True)
class Root:
    """A factor L of a moment matrix S = L L' and its inverse, both [k, k] float64."""

    matrix: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, moments: Tensor, *, damping: float = DAMPING) -> Root:
        """Factor S plus `damping` times the mean of its diagonal."""
        inverse, _ = inverse_root(moments.double(), damping=damping)
        identity = torch.eye(len(inverse), dtype=inverse.dtype, device=inverse.device)
        return cls(
            matrix=torch.linalg.solve_triangular(inverse, identity, upper=True),
            inverse=inverse,
        )


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What an error of one matrix costs: (scale · ‖A' E L‖)². None stands for the identity."""

    inputs: Root | None = None
    outputs: Root | None = None
    scale: float = 1.0

    def weigh(self, matrix: Tensor) -> Tensor:
        """scale · A' W L, in float64."""
        result = self.weigh_outputs(matrix)
        return result if self.inputs is None else result @ self.inputs.matrix

    def weigh_outputs(self, matrix: Tensor) -> Tensor:
        """scale · A' W, in float64."""
        result = matrix.double() * self.scale
        return result if self.outputs is None else self.outputs.matrix.T @ result

    def error(self, difference: Tensor) -> float:
        """What the error `difference` costs."""
        return float(self.weigh(difference).square().sum())

    def unweigh_left(self, left: Tensor) -> Tensor:
        """A'^-1 P."""
        return left if self.outputs is None else self.outputs.inverse.T @ left

    def unweigh_right(self, right: Tensor) -> Tensor:
        """Q' L^-1."""
        return right if self.inputs is None else right @ self.inputs.inverse


class Metrics:
    """The metric of every matrix of a model under one way of initialising; roots are computed once and shared.

    Without gradients the errors of different matrices have no common unit. They are then relative to the matrix's own
    size under its metric: absolute output errors would all be laid on the layers with the smallest activations,
    which are the first and matter most.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        moments: Moments,
        initialization: Initialization,
        damping: float = DAMPING,
    ) -> None:
        self.moments = moments
        self._model = model
        self._initialization = initialization
        self._damping = damping
        self._roots: dict[int, Root] = {}

    def of(self, module: str) -> Metric:
        """The metric of one linear layer, which must not have been factored yet."""
        if self._initialization == "Curvature":
            return Metric(
                inputs=self._root(self.moments.inputs[module]),
                outputs=self._root(self.moments.gradients[module]),
            )
        inputs = None if self._initialization == "Plain" else self._root(self.moments.inputs[module])
        weight = weight_matrix(self._model.get_submodule(module)).detach()
        size = float(Metric(inputs=inputs).weigh(weight).norm())
        return Metric(inputs=inputs, scale=1 / size if size > 0 else 1.0)

    def common(self, modules: Sequence[str]) -> Root | None:
        """The root of the mean of the inputs' moments of several layers."""
        if self._initialization == "Plain":
            return None
        first = self.moments.inputs[modules[0]]
        if all(self.moments.inputs[module] is first for module in modules):
            return self._root(first)
        mean = torch.stack([self.moments.inputs[module] for module in modules]).mean(dim=0)
        return Root.of(mean, damping=self._damping)

    def _root(self, moments: Tensor) -> Root:
        if id(moments) not in self._roots:
            self._roots[id(moments)] = Root.of(moments, damping=self._damping)
        return self._roots[id(moments)]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """U [m, r] of one or several matrices and their V [r, n]; the matrices are U V, float64."""

    left: tuple[Tensor, ...]
    right: Tensor


def tail_energies(weighed: Tensor) -> Tensor:
    """Squared error of every rank 0 … min(m, n) of a weighed matrix, float64; the last is 0."""
    energies = torch.linalg.svdvals(weighed).square()
    return torch.cat([energies.flip(0).cumsum(0).flip(0), energies.new_zeros(1)]).cpu()


def truncate(matrix: Tensor, *, metric: Metric, rank: int) -> Factors:
    """The best U V of `rank` under the metric. Balanced: both factors carry the root of the singular values."""
    left, right = weighed_factors(metric.weigh(matrix), rank=rank, scale=metric.scale)
    return unweighed(left, right, metric=metric)


def weighed_factors(weighed: Tensor, *, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """U [m, r] and V [r, n] of a weighed matrix, before the metric is taken back."""
    left, values, right = torch.linalg.svd(weighed, full_matrices=False)
    root = (values[:rank] / scale).sqrt()
    return left[:, :rank] * root, root.unsqueeze(1) * right[:rank]


def unweighed(left: Tensor, right: Tensor, *, metric: Metric) -> Factors:
    """The factors of a matrix from those of the weighed one."""
    return Factors(left=(metric.unweigh_left(left),), right=metric.unweigh_right(right))


@dataclass(frozen=True, kw_only=True)
class Basis:
    """One V for several matrices: its rows in the order in which they are worth having.

    rows: [R, n]; errors: summed over the matrices, for every number of rows.
    """

    rows: Tensor
    errors: Tensor


def shared_basis(matrices: Sequence[Tensor], *, metrics: Sequence[Metric], common: Root | None) -> Basis:
    """The basis of Basis Sharing (ICLR 2025): the SVD of the matrices stacked along their outputs.

    Exactly the best where all read the same inputs, whose root `common` is; else each matrix is fitted to the basis
    under the moments of its own inputs.
    """
    stacked = torch.cat(
        [
            Metric(inputs=common, outputs=metric.outputs, scale=metric.scale).weigh(matrix)
            for matrix, metric in zip(matrices, metrics, strict=True)
        ]
    )
    _, _, right = torch.linalg.svd(stacked, full_matrices=False)
    rows = Metric(inputs=common).unweigh_right(right)
    errors = torch.zeros(len(rows) + 1, dtype=torch.float64)
    for matrix, metric in zip(matrices, metrics, strict=True):
        weighed = metric.weigh(matrix)
        captured = (weighed @ _orthonormal(rows, metric)).square().sum(dim=0).cumsum(0).cpu()
        total = float(weighed.square().sum())
        errors += torch.cat([torch.tensor([total], dtype=torch.float64), total - captured]).clamp(min=0)
    return Basis(rows=rows, errors=errors)


def fit_to_rows(matrix: Tensor, rows: Tensor, *, metric: Metric) -> Tensor:
    """The U [m, r] for which U V is nearest to the matrix for a given V [r, n], under the metric of the inputs."""
    metric = Metric(inputs=metric.inputs)
    target, basis = metric.weigh(matrix), metric.weigh(rows)
    fitted: Tensor = torch.linalg.lstsq(basis.T, target.T).solution
    return fitted.T


def _orthonormal(rows: Tensor, metric: Metric) -> Tensor:
    """Columns [n, R]: the first k span what the first k rows span under the metric of the inputs."""
    columns: Tensor = torch.linalg.qr(Metric(inputs=metric.inputs).weigh(rows).T).Q
    return columns


def pivot_form(factors: Factors) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """The same matrices with V = [I, T] on r chosen inputs: their lefts [m, r], T [r, n - r], the choice [n] bool.

    The inputs are chosen by QR with column pivoting, which keeps T small.
    """
    from scipy.linalg import qr

    rank, columns = factors.right.shape
    order = torch.as_tensor(qr(factors.right.cpu().numpy(), mode="r", pivoting=True)[1][:rank].copy())
    chosen = torch.zeros(columns, dtype=torch.bool)
    chosen[order] = True
    chosen = chosen.to(factors.right.device)
    corner = factors.right[:, chosen]
    rest = torch.linalg.solve(corner, factors.right[:, ~chosen])
    return tuple(left @ corner for left in factors.left), rest, chosen

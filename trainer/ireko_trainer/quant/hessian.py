"""The second moments of a matrix's inputs: what GPTQ needs to know of the calibration data, and nothing else.

The layer's squared output error for weights W + E is tr(E H E'), H the mean of x x' over tokens. It is kept as a
running mean, so that its scale does not grow with the data and a float32 sum loses nothing after a million tokens.
Only the upper triangle is computed until somebody asks for the matrix: a third of the work less at 512 columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ireko_trainer.errors import UserError

_PANEL = (
    128  # columns of one product: wide enough for the BLAS, narrow enough to skip most of the lower triangle
)
_LARGEST_DAMPING = 1e4  # times the mean of the diagonal; beyond it H is not what is wrong


class Hessian:
    """Running mean of x x' over tokens x [columns].

    `drift` holds the running mean of (x_dense - x) x', when the dense inputs are given too (GPTAQ).
    """

    def __init__(
        self, columns: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.columns = columns
        self.tokens = 0
        self.drift: Tensor | None = None
        self._upper = torch.zeros(columns, columns, device=device, dtype=dtype)

    def add(self, inputs: Tensor, *, dense: Tensor | None = None) -> None:
        """Take in `inputs` [N, columns]; `dense` [N, columns] are the same tokens in the unquantized model."""
        values = inputs.to(self._upper.dtype)
        count = len(values)
        if count == 0:
            return
        total = self.tokens + count
        keep, gain = self.tokens / total, 1.0 / total
        for start in range(0, self.columns, _PANEL):
            part = values[:, start : start + _PANEL]
            self._upper[start : start + _PANEL, start:].addmm_(
                part.T, values[:, start:], beta=keep, alpha=gain
            )
        if dense is not None:
            if self.drift is None:
                self.drift = torch.zeros_like(self._upper)
            self.drift.addmm_((dense.to(values.dtype) - values).T, values, beta=keep, alpha=gain)
        self.tokens = total

    def matrix(self) -> Tensor:
        """Return H [columns, columns], symmetric."""
        upper = self._upper.triu()
        return upper + upper.T.tril(-1)


def damped(hessian: Tensor, *, damping: float) -> Tensor:
    """Return H plus `damping` times the mean of its diagonal; columns without any input get that mean alone.

    Raises `UserError` where H is not finite: then the calibration forward pass overflowed.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise UserError(
            "the calibration data makes the model's activations overflow (NaN or infinity in a layer's input); "
            "load the teacher with spec.teacher.dtype: float32"
        )
    diagonal = hessian.diagonal()
    mean = float(diagonal.double().mean())
    floor = mean if mean > 0 else 1.0
    result = hessian.clone()
    result.diagonal().add_(damping * floor)
    result.diagonal()[diagonal <= 0] = floor
    return result


def inverse_root(hessian: Tensor, *, damping: float) -> tuple[Tensor, float]:
    """Return upper triangular U with U'U = (H + λI)^-1, in H's dtype, and the relative damping that it took.

    One Cholesky factorisation of H read backwards and one triangular inverse, in float64, which is cheaper and better
    conditioned than inverting H first. Where H is singular to that precision the damping grows tenfold until
    the factorisation succeeds.
    """
    identity = torch.eye(len(hessian), dtype=torch.float64, device=hessian.device)
    while damping <= _LARGEST_DAMPING:
        flipped = damped(hessian, damping=damping).double().flip(0, 1)
        lower, info = torch.linalg.cholesky_ex(flipped)
        if int(info) == 0:
            root = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
            if bool(torch.isfinite(root).all()):
                return root.to(hessian.dtype), damping
        damping = max(damping * 10, 1e-6)
    raise UserError(
        "the second moments of a layer's inputs cannot be factorised even with heavy damping: the calibration data "
        "holds values of very different size; use other texts, or method: RTN"
    )

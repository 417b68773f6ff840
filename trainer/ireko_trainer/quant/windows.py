"""Calibration windows of running text: equally long pieces, taken at random and the same ones for the same seed."""

from __future__ import annotations

import torch
from torch import Tensor

from ireko_trainer.errors import UserError


def calibration_windows(*, tokens: Tensor, window: int, count: int, seed: int, field: str) -> Tensor:
    """Return `count` windows [count, window] of `tokens` [N]; they may overlap.

    Raises `UserError` that names `field` when the text is shorter than one window.
    """
    if len(tokens) < window:
        raise UserError(
            f"{field}: the calibration text has {len(tokens)} tokens, fewer than one window of {window}; "
            f"give more text, or set {field}.maxLength to {len(tokens)} or less"
        )
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, len(tokens) - window + 1, (count,), generator=generator)
    return tokens[starts[:, None] + torch.arange(window)]

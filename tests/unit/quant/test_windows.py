from __future__ import annotations

import pytest
import torch

from ireko_trainer.errors import UserError
from ireko_trainer.quant import calibration_windows


def test_windows_are_pieces_of_the_text_and_the_same_for_the_same_seed() -> None:
    tokens = torch.arange(50)
    first, again, other = (
        calibration_windows(tokens=tokens, window=7, count=20, seed=seed, field="data") for seed in (3, 3, 4)
    )
    assert first.shape == (20, 7)
    assert torch.equal(first, first[:, :1] + torch.arange(7))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_text_as_long_as_the_window_is_enough() -> None:
    tokens = torch.arange(7)
    found = calibration_windows(tokens=tokens, window=7, count=2, seed=0, field="data")
    assert torch.equal(found, tokens.repeat(2, 1))


def test_a_text_shorter_than_the_window_is_refused_with_both_lengths() -> None:
    with pytest.raises(
        UserError, match=r"spec\.data\.calibration: .* has 6 tokens, fewer than one window of 7"
    ):
        calibration_windows(tokens=torch.arange(6), window=7, count=1, seed=0, field="spec.data.calibration")

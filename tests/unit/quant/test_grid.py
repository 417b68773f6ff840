from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ireko_trainer.errors import UserError
from ireko_trainer.quant.checkpoint import pack
from ireko_trainer.quant.grid import (
    absmax_scales,
    code_range,
    dequantize,
    group_columns,
    quantize,
    signed_scales,
)

widths = st.sampled_from([2, 3, 4, 8])


@st.composite
def matrices(draw: st.DrawFn) -> torch.Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows, columns = draw(st.integers(1, 9)), draw(st.sampled_from([1, 7, 32, 40, 64, 96, 128]))
    weight = torch.randn(rows, columns, generator=generator) * 10.0 ** draw(st.integers(-5, 3))
    kind = draw(st.sampled_from(["normal", "cubed", "one-sided", "zero row"]))
    if kind == "cubed":
        weight = weight**3
    if kind == "one-sided":
        weight = weight.abs()
    if kind == "zero row":
        weight[0] = 0
    return weight


@settings(deadline=None, max_examples=60)
@given(weight=matrices(), bits=widths)
def test_no_group_has_more_values_than_its_bits_can_name(weight: torch.Tensor, bits: int) -> None:
    quantized = quantize(weight, bits=bits, group_size=64)
    lowest, highest = code_range(bits)
    assert int(quantized.codes.min()) >= lowest
    assert int(quantized.codes.max()) <= highest
    groups = dequantize(quantized).reshape(-1, quantized.group)
    assert all(len(group.unique()) <= 2**bits for group in groups)


@settings(deadline=None, max_examples=60)
@given(weight=matrices(), bits=widths)
def test_the_error_is_at_most_half_a_scale_inside_the_range(weight: torch.Tensor, bits: int) -> None:
    quantized = quantize(weight, bits=bits, group_size=64)
    scales = quantized.scales.float().repeat_interleave(quantized.group, dim=1)
    lowest, highest = code_range(bits)
    inside = (weight / scales >= lowest) & (weight / scales <= highest)
    error = (dequantize(quantized) - weight).abs()
    assert bool((error <= scales.abs() * 0.5001)[inside].all())
    clipped = quantized.codes[~inside]
    assert bool(((clipped == lowest) | (clipped == highest)).all())


@settings(deadline=None, max_examples=60)
@given(weight=matrices(), bits=widths)
def test_searched_scales_are_never_worse_than_absmax(weight: torch.Tensor, bits: int) -> None:
    searched = dequantize(quantize(weight, bits=bits, group_size=64))
    absmax = dequantize(quantize(weight, bits=bits, group_size=64, scale_rule=absmax_scales))
    assert float((searched - weight).double().square().sum()) <= float(
        (absmax - weight).double().square().sum()
    ) * (1 + 1e-6)


@pytest.mark.parametrize(("bits", "ratio"), [(2, 0.6), (3, 0.8), (4, 0.9)])
def test_searched_scales_clearly_beat_absmax_on_gaussian_weights(bits: int, ratio: float) -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))

    def error(rule: object) -> float:
        quantized = quantize(weight, bits=bits, group_size=64, scale_rule=rule)  # type: ignore[arg-type]
        return float((dequantize(quantized) - weight).norm())

    assert error(None) < ratio * error(absmax_scales)
    assert error(None) < error(signed_scales)


@settings(deadline=None, max_examples=40)
@given(bits=widths, seed=st.integers(0, 999), scale=st.sampled_from([0.125, -0.125, 3.0, -0.0078125]))
def test_weights_that_lie_on_a_grid_are_kept(bits: int, seed: int, scale: float) -> None:
    lowest, highest = code_range(bits)
    codes = torch.randint(lowest, highest + 1, (4, 128), generator=torch.Generator().manual_seed(seed))
    codes[:, ::64] = lowest
    assert torch.equal(dequantize(quantize(codes * scale, bits=bits, group_size=64)), codes * scale)


def test_a_negative_scale_gives_the_extra_code_to_the_positive_side() -> None:
    weight = torch.tensor([[2.0, 1.0, -1.0, 0.0]])
    quantized = quantize(weight, bits=2, group_size=64)
    assert float(quantized.scales) == -1.0
    assert torch.equal(dequantize(quantized), weight)


def test_a_matrix_of_zeros_stays_zero() -> None:
    quantized = quantize(torch.zeros(3, 64), bits=3, group_size=64)
    assert torch.equal(dequantize(quantized), torch.zeros(3, 64))
    assert bool((quantized.scales != 0).all())


def test_scales_are_float16_and_multiply_without_rounding() -> None:
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(1))
    quantized = quantize(weight, bits=8, group_size=64)
    assert quantized.scales.dtype == torch.float16
    exact = quantized.codes.double().reshape(8, 2, 64) * quantized.scales.double()[..., None]
    assert torch.equal(dequantize(quantized).double(), exact.reshape(8, 128))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    weight = torch.ones(2, 64)
    weight[1, 3] = value
    with pytest.raises(UserError, match="diverged"):
        quantize(weight, bits=4, group_size=64)


@pytest.mark.parametrize(
    ("columns", "group_size", "group"),
    [(384, 64, 64), (96, 64, 32), (288, 128, 32), (40, 64, 40), (32, 64, 32), (30, 64, 30), (48, 16, 16)],
)
def test_groups_divide_the_row_or_are_the_row(columns: int, group_size: int, group: int) -> None:
    assert group_columns(columns, group_size=group_size) == group


@settings(deadline=None, max_examples=40)
@given(bits=st.integers(2, 8), rows=st.integers(1, 5), columns=st.integers(1, 100), seed=st.integers(0, 999))
def test_packing_and_unpacking_give_the_codes_back(bits: int, rows: int, columns: int, seed: int) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    quantized = quantize(weight, bits=bits, group_size=64)
    packed = pack(quantized)
    assert packed.shape == (rows, -(-columns * bits // 32))
    assert torch.equal(unpack_from_int32(packed, bits, quantized.codes.shape), quantized.codes)

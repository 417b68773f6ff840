"""GPTQ on one matrix: what the algebra promises."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ireko_trainer.errors import UserError
from ireko_trainer.quant.gptq import GptqOptions, gptq, gptq_together
from ireko_trainer.quant.grid import QuantizedTensor, code_range, dequantize, quantize
from ireko_trainer.quant.hessian import Hessian, damped, inverse_root

PLAIN = GptqOptions(sweeps=0, weighted_scales=False)


def problem(
    *, rows: int = 64, columns: int = 128, tokens: int = 512, seed: int = 0
) -> tuple[torch.Tensor, Hessian]:
    """A weight and the moments of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    mixing *= 2.0 ** torch.linspace(-4, 2, columns)[:, None]
    hessian = Hessian(columns)
    hessian.add(torch.randn(tokens, columns, generator=generator) @ mixing)
    return weight, hessian


def output_error(weight: torch.Tensor, quantized: QuantizedTensor, *, moments: torch.Tensor) -> torch.Tensor:
    """Mean squared output error of each row [O] on inputs with second moments [I, I]."""
    difference = (dequantize(quantized) - weight).double()
    return ((difference @ moments.double()) * difference).sum(dim=1)


def total_error(weight: torch.Tensor, quantized: QuantizedTensor, hessian: Hessian) -> float:
    return float(output_error(weight, quantized, moments=hessian.matrix()).sum())


def objective(
    weight: torch.Tensor, quantized: QuantizedTensor, hessian: Hessian, damping: float
) -> torch.Tensor:
    return output_error(weight, quantized, moments=damped(hessian.matrix(), damping=damping))


problems = st.builds(
    problem,
    rows=st.integers(1, 9),
    columns=st.sampled_from([4, 32, 64, 96, 172]),
    tokens=st.sampled_from([3, 40, 300]),
    seed=st.integers(0, 2**31),
)


@settings(deadline=None, max_examples=40)
@given(
    problem=problems, bits=st.sampled_from([2, 3, 4, 8]), act_order=st.booleans(), sweeps=st.integers(0, 2)
)
def test_no_row_is_worse_than_rounded_to_nearest(
    problem: tuple[torch.Tensor, Hessian], bits: int, act_order: bool, sweeps: int
) -> None:
    weight, hessian = problem
    options = GptqOptions(act_order=act_order, sweeps=sweeps)
    solved = gptq(weight, hessian=hessian, bits=bits, group_size=64, options=options)
    rounded = quantize(weight, bits=bits, group_size=64)
    ours = objective(weight, solved, hessian, options.damping)
    theirs = objective(weight, rounded, hessian, options.damping)
    assert bool((ours <= theirs * (1 + 1e-4) + 1e-12).all())


@pytest.mark.parametrize(("act_order", "most"), [(False, 0.45), (True, 0.35)])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_totals_are_far_below_rounding_on_correlated_inputs(act_order: bool, most: float, bits: int) -> None:
    options = dataclasses.replace(PLAIN, act_order=act_order)
    for seed in range(3):
        weight, hessian = problem(seed=seed)
        solved = gptq(weight, hessian=hessian, bits=bits, group_size=64, options=options)
        rounded = quantize(weight, bits=bits, group_size=64)
        assert total_error(weight, solved, hessian) < most * total_error(weight, rounded, hessian)


@settings(deadline=None, max_examples=25)
@given(problem=problems, bits=st.sampled_from([2, 3, 4]))
def test_sweeps_never_raise_the_error(problem: tuple[torch.Tensor, Hessian], bits: int) -> None:
    weight, hessian = problem
    errors = [
        objective(
            weight,
            gptq(weight, hessian=hessian, bits=bits, group_size=64, options=GptqOptions(sweeps=sweeps)),
            hessian,
            0.1,
        ).sum()
        for sweeps in range(4)
    ]
    assert all(later <= earlier * (1 + 1e-4) + 1e-12 for earlier, later in itertools.pairwise(errors))


def test_sweeps_earn_their_place() -> None:
    weight, hessian = problem()
    without, swept = (
        total_error(weight, gptq(weight, hessian=hessian, bits=3, group_size=64, options=options), hessian)
        for options in (PLAIN, GptqOptions(sweeps=1, weighted_scales=False))
    )
    assert swept < 0.9 * without


@settings(deadline=None, max_examples=25)
@given(bits=st.sampled_from([2, 3, 4]), seed=st.integers(0, 999))
def test_weighted_scales_lower_the_error_that_they_are_searched_for(bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, importance = torch.randn(8, 96, generator=generator), torch.rand(96, generator=generator) ** 4
    plain = quantize(weight, bits=bits, group_size=64)
    weighted = quantize(weight, bits=bits, group_size=64, importance=importance)
    errors = [
        float(((dequantize(tensor) - weight).square() * importance).sum()) for tensor in (weighted, plain)
    ]
    assert errors[0] < errors[1]


@settings(deadline=None, max_examples=20)
@given(
    rows=st.integers(1, 9),
    columns=st.sampled_from([32, 64, 172]),
    bits=st.sampled_from([2, 3, 4, 8]),
    act_order=st.booleans(),
    seed=st.integers(0, 999),
)
def test_uncorrelated_inputs_and_no_damping_give_rounding_exactly(
    rows: int, columns: int, bits: int, act_order: bool, seed: int
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    hessian = Hessian(columns)
    hessian.add(torch.eye(columns) * columns**0.5)
    options = GptqOptions(damping=0.0, act_order=act_order, sweeps=0)
    solved = gptq(weight, hessian=hessian, bits=bits, group_size=64, options=options)
    rounded = quantize(weight, bits=bits, group_size=64)
    assert torch.equal(solved.codes, rounded.codes)
    assert torch.equal(solved.scales, rounded.scales)


def test_act_order_is_the_plain_order_when_columns_come_sorted() -> None:
    weight, hessian = problem()
    order = torch.argsort(hessian.matrix().diagonal(), descending=True, stable=True)
    ordered = Hessian(len(order))
    ordered._upper = hessian.matrix()[order][:, order]
    ordered.tokens = hessian.tokens
    with_order, without = (
        gptq(
            weight[:, order],
            hessian=ordered,
            bits=3,
            group_size=64,
            options=GptqOptions(act_order=act_order),
        )
        for act_order in (True, False)
    )
    assert torch.equal(with_order.codes, without.codes)
    assert torch.equal(with_order.scales, without.scales)


def test_static_groups_keep_the_columns_in_their_place() -> None:
    """With act-order a file would otherwise need the order of the columns beside the codes."""
    weight, hessian = problem()
    solved = gptq(weight, hessian=hessian, bits=4, group_size=64, options=PLAIN)
    rounded = quantize(weight, bits=4, group_size=64)
    assert torch.equal(solved.scales, rounded.scales)
    assert float((dequantize(solved) - weight).abs().mean()) < 2 * float(
        (dequantize(rounded) - weight).abs().mean()
    )


def test_errors_decrease_with_bits() -> None:
    weight, hessian = problem()
    errors = [
        total_error(weight, gptq(weight, hessian=hessian, bits=bits, group_size=64), hessian)
        for bits in (2, 3, 4, 5, 6, 8)
    ]
    assert all(later < 0.5 * earlier for earlier, later in itertools.pairwise(errors))


def test_codes_stay_in_range_and_groups_below_their_number_of_values() -> None:
    weight, hessian = problem(columns=96)
    for bits in (2, 3, 4):
        solved = gptq(weight, hessian=hessian, bits=bits, group_size=64)
        lowest, highest = code_range(bits)
        assert lowest <= int(solved.codes.min())
        assert int(solved.codes.max()) <= highest
        assert solved.group == 32


def test_matrices_solved_together_equal_matrices_solved_alone() -> None:
    weight, hessian = problem(rows=24)
    parts = {"q": weight[:16], "k": weight[16:20], "v": weight[20:]}
    bits = {"q": 3, "k": 4, "v": 2}
    together = gptq_together(parts, hessian=hessian, bits=bits, group_size=64)
    for name, part in parts.items():
        alone = gptq(part, hessian=hessian, bits=bits[name], group_size=64)
        # Products over other numbers of rows may round differently, and a code on the edge may fall the other way.
        same = (alone.codes == together[name].codes).float().mean()
        assert together[name].bits == bits[name]
        assert float(same) > 0.98
        ours, theirs = (total_error(part, tensor, hessian) for tensor in (together[name], alone))
        assert ours == pytest.approx(theirs, rel=0.02)


def test_columns_that_are_never_used_are_rounded_to_nearest() -> None:
    weight, hessian = problem()
    inputs = torch.randn(300, 128, generator=torch.Generator().manual_seed(1))
    inputs[:, 64:] = 0
    hessian = Hessian(128)
    hessian.add(inputs)
    solved = gptq(weight, hessian=hessian, bits=3, group_size=64, options=PLAIN)
    assert torch.equal(solved.codes[:, 64:], quantize(weight, bits=3, group_size=64).codes[:, 64:])


# --- drifted inputs -------------------------------------------------------------------------------


def test_asymmetric_calibration_brings_the_output_closer_to_the_dense_models() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 64, generator=generator)
    dense = torch.randn(1000, 64, generator=generator) @ torch.randn(64, 64, generator=generator) / 8
    drifted = dense @ (torch.eye(64) + 0.05 * torch.randn(64, 64, generator=generator))
    hessian = Hessian(64)
    hessian.add(drifted, dense=dense)

    def gap(share: float) -> float:
        options = GptqOptions(asymmetry=share, damping=0.001)
        solved = gptq(weight, hessian=hessian, bits=8, group_size=64, options=options)
        return float((drifted @ dequantize(solved).T - dense @ weight.T).square().sum())

    assert gap(1.0) < 0.1 * gap(0.0)
    assert gap(1.0) < gap(0.5) < gap(0.0)


# --- moments --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    columns=st.sampled_from([3, 128, 200]),
    seed=st.integers(0, 999),
)
def test_the_running_mean_is_the_mean(sizes: list[int], columns: int, seed: int) -> None:
    inputs = torch.randn(sum(sizes) + 1, columns, generator=torch.Generator().manual_seed(seed))
    hessian = Hessian(columns)
    for part in inputs.split([*sizes, 1]):
        hessian.add(part)
    expected = inputs.double().T @ inputs.double() / len(inputs)
    assert hessian.tokens == len(inputs)
    torch.testing.assert_close(hessian.matrix().double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(hessian.matrix(), hessian.matrix().T)


@settings(deadline=None, max_examples=25)
@given(columns=st.integers(1, 40), seed=st.integers(0, 999))
def test_the_root_is_upper_triangular_and_squares_to_the_inverse(columns: int, seed: int) -> None:
    inputs = torch.randn(3 * columns, columns, generator=torch.Generator().manual_seed(seed)).double()
    moments = inputs.T @ inputs / len(inputs)
    root, damping = inverse_root(moments, damping=0.01)
    assert damping == 0.01
    assert torch.equal(root, root.triu())
    inverse = torch.linalg.inv(damped(moments, damping=0.01))
    torch.testing.assert_close(root.T @ root, inverse, rtol=1e-6, atol=1e-8)


def test_damping_grows_until_the_factorisation_succeeds() -> None:
    indefinite = torch.eye(8)
    indefinite[0, 1] = indefinite[1, 0] = 5.0
    root, damping = inverse_root(indefinite, damping=0.01)
    assert damping == pytest.approx(10.0)
    assert bool(torch.isfinite(root).all())


def test_a_singular_matrix_needs_damping_and_gets_it() -> None:
    weight, _ = problem(rows=4)
    hessian = Hessian(128)
    hessian.add(torch.ones(5, 128))
    solved = gptq(weight, hessian=hessian, bits=3, group_size=64, options=GptqOptions(damping=0.0))
    assert bool(torch.isfinite(dequantize(solved)).all())


def test_inputs_that_overflow_are_refused() -> None:
    hessian = Hessian(4)
    hessian.add(torch.full((2, 4), float("inf")))
    with pytest.raises(UserError, match="overflow"):
        gptq(torch.ones(2, 4), hessian=hessian, bits=4, group_size=4)

"""What is factored, at which rank, and what it shares."""

from __future__ import annotations

import pytest
import torch

from ireko_trainer.delta import (
    DeltaOptions,
    DeltaPlan,
    Metrics,
    Moments,
    apply_plan,
    check_options,
    collect_moments,
    measured_modules,
    plan_deltas,
    stored_numbers,
)
from ireko_trainer.delta.decompositions import residual_error
from ireko_trainer.delta.moments import _drawn_log_likelihood
from ireko_trainer.errors import UserError
from ireko_trainer.quant.layout import weight_matrix


def measured(model, texts, options, kind="distribution") -> Moments:
    return collect_moments(model=model, batches=texts, modules=measured_modules(model, options), kind=kind)


def planned(model, texts, **options) -> tuple[DeltaPlan, Moments, DeltaOptions]:
    wanted = DeltaOptions(**options)
    check_options(model=model, options=wanted)
    moments = measured(model, texts, wanted)
    return plan_deltas(model=model, moments=moments, options=wanted), moments, wanted


@pytest.mark.parametrize("style", ["llama", "bert", "gpt2"])
@pytest.mark.parametrize("sharing", ["Delta", "Basis"])
def test_a_plan_fills_the_target(build, texts, style: str, sharing: str) -> None:
    plan, _, _ = planned(build(style), texts, reduction=0.2, sharing=sharing)
    assert 0.2 <= plan.reduction < 0.22


def test_alike_blocks_share_and_unlike_blocks_do_not(build, texts) -> None:
    alike, _, _ = planned(build("llama", likeness=0.95), texts, reduction=0.4)
    unlike, _, _ = planned(build("llama"), texts, reduction=0.4)
    assert alike.following > alike.factored / 2
    assert alike.warning() is None
    assert unlike.nominal
    assert "only nominal" in str(unlike.warning())


def test_the_chosen_coefficient_is_no_worse_than_0_and_1(build, texts) -> None:
    model = build("llama", likeness=0.6)
    plan, moments, options = planned(model, texts, reduction=0.45)
    metrics = Metrics(model=model, moments=moments, initialization=options.initialization)
    followers = [piece for piece in plan.pieces if piece.base is not None]
    assert followers
    for piece in followers:
        target, base = (
            weight_matrix(model.get_submodule(name)).detach().double()
            for name in (piece.modules[0], piece.base)
        )
        metric = metrics.of(piece.modules[0])
        errors = {
            c: residual_error(target=target, base=base, coefficient=c, metric=metric, rank=piece.rank)
            for c in (0.0, 1.0, piece.coefficient)
        }
        assert errors[piece.coefficient] <= min(errors.values()) * (1 + 1e-9)
        assert piece.error == pytest.approx(errors[piece.coefficient], rel=1e-6)


def test_a_block_has_one_base_and_a_base_stays_dense(build, texts) -> None:
    plan, _, _ = planned(build("llama", likeness=0.9), texts, reduction=0.5)
    bases: dict[str, set[str]] = {}
    for piece in plan.pieces:
        if piece.base is not None:
            bases.setdefault(piece.modules[0].split(".")[2], set()).add(piece.base.split(".")[2])
    assert bases
    assert all(len(found) == 1 for found in bases.values())
    factored = {name for piece in plan.pieces for name in piece.modules}
    assert factored.isdisjoint({piece.base for piece in plan.pieces})


def test_the_papers_option_follows_with_c_1_at_one_rank(build, texts) -> None:
    plan, _, _ = planned(
        build("llama"),
        texts,
        rank=4,
        modules="Mlp",
        coefficients="One",
        initialization="Plain",
        compact=False,
    )
    assert {(piece.rank, piece.coefficient) for piece in plan.pieces} == {(4, 1.0)}
    assert {piece.modules[0].split(".")[2] for piece in plan.pieces} == {"1", "3"}
    assert all("mlp" in piece.modules[0] for piece in plan.pieces)
    saved = sum(32 * 48 - 4 * (32 + 48) - 1 for _ in plan.pieces)
    assert plan.dense_numbers - plan.stored_numbers == saved


def test_ranks_go_where_the_answers_need_them(build, texts) -> None:
    model = build("llama")
    with torch.no_grad():
        # What the last block's feed-forward part writes is made almost invisible.
        model.get_submodule("model.layers.3.mlp.down_proj").weight.mul_(1e-3)
    plan, _, _ = planned(model, texts, reduction=0.2, share_inputs=False)
    ranks = {piece.modules[0]: piece.rank for piece in plan.pieces}
    assert ranks["model.layers.3.mlp.down_proj"] < min(
        ranks.get(f"model.layers.{block}.mlp.down_proj", 32) for block in range(3)
    )


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("likeness", [0.0, 0.9])
def test_the_plan_counts_what_is_stored(build, texts, compact: bool, likeness: float) -> None:
    from ireko_trainer.delta import make_compact

    model = build("llama", likeness=likeness)
    plan, moments, options = planned(model, texts, reduction=0.4, compact=compact)
    factored = sum(
        weight_matrix(model.get_submodule(name)).numel() for piece in plan.pieces for name in piece.modules
    )
    apply_plan(
        model=model,
        plan=plan,
        metrics=Metrics(model=model, moments=moments, initialization=options.initialization),
    )
    if compact:
        make_compact(model)
    assert plan.stored_numbers - (plan.dense_numbers - factored) == stored_numbers(model)


def test_a_target_out_of_reach_names_the_nearest(build, texts) -> None:
    with pytest.raises(UserError, match=r"targetReduction: 0\.9 cannot be reached .* the nearest is 0\.\d+"):
        planned(build("llama"), texts, reduction=0.9, modules="Attention")


def test_a_rank_above_the_matrix_names_it(build, texts) -> None:
    with pytest.raises(UserError, match=r"rank: 17 is above the rank of model.layers.0.self_attn.k_proj"):
        planned(build("llama"), texts, rank=17)


def test_no_block_left_is_refused(build, texts) -> None:
    with pytest.raises(UserError, match="nothing to factor among all matrices with 4 blocks left alone"):
        planned(build("llama"), texts, reduction=0.1, keep_first=2, keep_last=2)


def test_moments_are_means_over_real_tokens(build, texts) -> None:
    model = build("bert")
    name = "bert.encoder.layer.0.attention.self.query"
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in texts:
            model(**batch)
    handle.remove()
    real = torch.cat([x[b["attention_mask"].bool()] for x, b in zip(seen, texts, strict=True)]).double()
    found = measured(model, texts, DeltaOptions(reduction=0.1))
    torch.testing.assert_close(found.inputs[name], real.T @ real / len(real), rtol=1e-5, atol=1e-7)
    assert found.inputs[name] is found.inputs[name.replace("query", "key")]


@pytest.mark.parametrize("kind", ["distribution", "number", "embedding"])
def test_gradients_are_those_of_drawn_answers(build, texts, kind) -> None:
    from transformers import BertModel

    model = BertModel(build("bert").config).eval() if kind == "embedding" else build("bert")
    found = measured(model, texts[:1], DeltaOptions(reduction=0.1), kind)
    name = next(iter(found.gradients))
    layer = model.get_submodule(name)
    outputs: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: outputs.append(output))
    _drawn_log_likelihood(kind, 0)(model(**texts[0]), texts[0])
    handle.remove()
    model.requires_grad_(requires_grad=True)
    outputs.clear()
    handle = layer.register_forward_hook(lambda _, __, output: outputs.append(output))
    value = _drawn_log_likelihood(kind, 0)(model(**texts[0]), texts[0])
    handle.remove()
    (gradient,) = torch.autograd.grad(value, outputs)
    gradient = gradient.flatten(0, 1).double()
    torch.testing.assert_close(
        found.gradients[name], gradient.T @ gradient / len(gradient), rtol=1e-3, atol=1e-6
    )

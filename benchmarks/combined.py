"""Is a small decoder better after one method or after several? decoder12 at equal bytes of the file that ships.

    python benchmarks/combined.py            # an hour of one free core; goes on where it was stopped
    python benchmarks/combined.py --quick    # one budget, few tokens and steps: checks that it runs

Perplexity by the protocol of `decoder12.py`, of the model as it is loaded from its file, which is at most as large as
the budget. The order is the pipeline's: a nested subnet is trained, then factored, then quantized.

* *bits* alone: the whole decoder under `Sensitivity` and GPTQ, groups of 64, widths 2, 3, 4 and 8.
* *MLFS* alone: a float16 subnet that fits. Palettes of subnets are distilled from decoder12, each for as many steps.
* *delta* alone: float16 factors that fit, distilled from decoder12 for as many steps.
* combinations: the same bits on a subnet of five sixths or two thirds, on 10 and 20 % fewer numbers by factors
  (not trained, but fitted anew to what was rounded), and on both.

Trained rows are means over seeds; a seed changes low-rank pairs, the order of texts and the turns of the subnets. The
last line of standard output is one JSON object. Results are kept in benchmarks/.cache.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from decoder12 import (
    Cache,
    Texts,
    batches,
    load_decoder,
    load_texts,
    print_result,
    print_table,
    quality,
    report,
    training_batches,
    whole,
)
from mlfs_decoder import SHAPES
from torch import Tensor
from transformers import PreTrainedModel

from ireko_api.spec import Quantization
from ireko_trainer.delta import (
    DeltaOptions,
    Metrics,
    Moments,
    apply_plan,
    collect_moments,
    delta_layers,
    forget_originals,
    make_compact,
    measured_modules,
    plan_deltas,
    refit_deltas,
    save_quantized_delta,
    train_deltas,
)
from ireko_trainer.mlfs import (
    Batch,
    Distillation,
    Hooks,
    Optimization,
    Palette,
    Shape,
    Supernet,
    SupernetStage,
    layers_kept,
    permute_by_importance,
    train_supernet,
)
from ireko_trainer.pipeline.bits import BitPlan, BitPlanner
from ireko_trainer.pipeline.checkpoints import load_model, weights_file
from ireko_trainer.quant import describe, save_quantized, stored_size

MIB = 2**20
BUDGETS = (2.2, 1.7, 1.4, 1.15)
"""MiB. The whole decoder takes 9.2 in float16 and 1.4002 at 2 bits everywhere: bits alone do not reach the last."""
TOLERANCE = 0.001
"""Share of a budget by which the smallest file of bits alone may miss it."""
ALONE = {
    2.2: Shape(hidden=192, heads=6, intermediate=192, layers=layers_kept(12, 5)),
    1.7: Shape(hidden=192, heads=6, intermediate=168, layers=layers_kept(12, 4)),
    1.4: Shape(hidden=192, heads=6, intermediate=192, layers=layers_kept(12, 3)),
    1.15: Shape(hidden=192, heads=6, intermediate=112, layers=layers_kept(12, 3)),
}
"""Subnets whose float16 file just fits."""
COMBINED = {"5/6": SHAPES["five sixths"], "2/3": SHAPES["feed-forward"]}
REDUCTIONS = (0.1, 0.2)
FACTOR_RATE, PAIR_RATE = 1e-3, 5e-3
"""Learning rates: of factors so deeply cut that there is much to learn, of low-rank pairs."""
QUANTIZATION = Quantization(method="GPTQ", importance="Sensitivity", bits=(2, 3, 4, 8))
_PACKED_RANKS = 32
_WINDOWS_PER_STEP = 4


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything."""

    budgets: tuple[float, ...] = BUDGETS
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 60
    """Of training, for every subnet of a palette and for factors."""
    windows: int = 64
    """For calibration."""


QUICK = Size(budgets=(1.7,), seeds=(0,), steps=1, windows=4)


@dataclass
class Bench:
    """decoder12, its texts, and models by how they were made."""

    size: Size
    texts: Texts
    cache: Cache
    teacher: PreTrainedModel = field(default_factory=load_decoder)

    @cached_property
    def calibration(self) -> list[dict[str, Tensor]]:
        """Windows that importance, moments, bits and GPTQ are measured on."""
        return batches(self.texts.calibration(self.size.windows))

    def batch_at(self, seed: int) -> Callable[[int], Batch]:
        """Windows of a step."""
        return training_batches(self.texts, windows=_WINDOWS_PER_STEP, seed=seed)

    def reference(self) -> float:
        """Perplexity of decoder12."""
        return float(self.cache.get({"what": "reference"}, lambda: quality(self.teacher, self.texts)))

    def kept(self, key: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """A result, computed at most once."""
        return self.cache.get({**key, "size": [self.size.steps, self.size.windows]}, compute)


# --- how models are made ------------------------------------------------------------------------------


def subnets(bench: Bench, shapes: Sequence[Shape], seed: int) -> list[PreTrainedModel]:
    """A palette distilled from decoder12, two of its subnets a step; every subnet gets its steps."""
    teacher = copy.deepcopy(bench.teacher)
    permute_by_importance(model=teacher, batches=[whole(batch) for batch in bench.calibration])
    supernet = Supernet(model=copy.deepcopy(teacher), rank=8, alpha=16.0)
    at_once = min(2, len(shapes))
    train_supernet(
        supernet=supernet,
        frozen_teacher=teacher,
        batches=bench.batch_at(seed),
        stage=SupernetStage(
            name="depths",
            palette=Palette(shapes=tuple(shapes)),
            optimization=Optimization(
                steps=bench.size.steps * len(shapes) // at_once, learning_rate=PAIR_RATE
            ),
            distillation=Distillation(),
            subnets_per_step=at_once,
            seed=seed,
        ),
        hooks=_progress("palette"),
    )
    return [supernet.extract(shape) for shape in shapes]


def factored(bench: Bench, model: PreTrainedModel, reduction: float, *, seed: int | None) -> PreTrainedModel:
    """A copy of a model with this share of its blocks' numbers saved; trained where a seed is given."""
    model = copy.deepcopy(model)
    options = DeltaOptions(reduction=reduction, multiple=1 if seed is not None else _PACKED_RANKS)
    moments = collect_moments(
        model=model,
        batches=bench.calibration,
        modules=measured_modules(model, options),
        kind="distribution",
    )
    plan = plan_deltas(model=model, moments=moments, options=options)
    metrics = Metrics(model=model, moments=moments, initialization=options.initialization)
    apply_plan(model=model, plan=plan, metrics=metrics)
    if seed is not None:
        train_deltas(
            model=model,
            batches=bench.batch_at(seed),
            kind="distribution",
            optimization=Optimization(steps=bench.size.steps, learning_rate=FACTOR_RATE, weight_decay=0.0),
            hooks=_progress("delta"),
            seed=seed,
        )
    forget_originals(model)
    make_compact(model)
    return model


def _progress(name: str) -> Hooks:
    def tell(step: int, metrics: Mapping[str, float]) -> None:
        if step % 10 == 0:
            report(f"{name}: step {step}, loss {metrics['loss']:.4f}")

    return Hooks(on_step=tell)


# --- how they ship ------------------------------------------------------------------------------------


def planner_of(bench: Bench, model: PreTrainedModel, quantization: Quantization | None) -> BitPlanner:
    return BitPlanner(model=model, quantization=quantization, batches=lambda: bench.calibration, seed=0)


def quantized(bench: Bench, make: Callable[[], PreTrainedModel], *, key: Mapping[str, Any]) -> dict[str, Any]:
    """The same at every budget, for a model that is only made where its results are not known."""

    def compute() -> dict[str, Any]:
        model = make()
        # One planner: what the bits are chosen by is measured once.
        planner = planner_of(bench, model, QUANTIZATION)
        return {str(budget): shipped(bench, planner, budget=budget) for budget in bench.size.budgets}

    found: dict[str, Any] = bench.kept({**key, "budgets": bench.size.budgets}, compute)
    return found


def shipped(bench: Bench, planner: BitPlanner, *, budget: float) -> dict[str, float] | None:
    """Size and perplexity of the file under a budget; None where nothing fits."""
    plan = planner.plan(max_bytes=int(budget * MIB))
    return None if plan.size_bytes > budget * MIB else as_loaded(bench, planner, plan)


def smallest(bench: Bench) -> dict[str, Any]:
    """The lowest bits everywhere in the whole decoder, at the budget that its file is as large as."""

    def compute() -> dict[str, float]:
        planner = planner_of(bench, bench.teacher, QUANTIZATION)
        return as_loaded(bench, planner, planner.plan(max_bytes=0))

    found = bench.kept({"what": "bits, lowest"}, compute)
    fits = {budget: abs(found["MiB"] / budget - 1) <= TOLERANCE for budget in bench.size.budgets}
    return {str(budget): found if one else None for budget, one in fits.items()}


def as_loaded(bench: Bench, planner: BitPlanner, plan: BitPlan) -> dict[str, float]:
    """Size and perplexity of the file that a plan makes."""
    model = planner.model
    weights, before = planner.weights_for(plan), copy.deepcopy(model.state_dict())
    if delta_layers(model) and plan.module_bits:
        moments = _inputs(bench, model)
        refit_deltas(model=model, weights=weights, bits=plan.module_bits, moments=moments.inputs)
    save = save_quantized_delta if delta_layers(model) else save_quantized
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        save(
            model=model,
            bits=plan.module_bits,
            group_size=planner.group_size,
            directory=path,
            weights=weights,
        )
        _restore(model, before)
        loaded = load_model(path, task="text-generation", device=torch.device("cpu"))
        return {
            "MiB": round(weights_file(path).stat().st_size / MIB, 3),
            "bits per weight": round(plan.average_bits, 2),
            "perplexity": quality(loaded, bench.texts),
        }


def _restore(model: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Undo a refit, which is for one choice of bits."""
    model.load_state_dict(state)
    for layer in delta_layers(model).values():
        if layer.owner is layer and layer.pivots is not None:
            layer.repivot(layer.pivots)


def _inputs(bench: Bench, model: PreTrainedModel) -> Moments:
    return collect_moments(
        model=model, batches=bench.calibration, modules=list(delta_layers(model)), kind=None
    )


# --- the table ----------------------------------------------------------------------------------------


def results(bench: Bench) -> dict[str, list[dict[str, Any]]]:
    """Method -> what every seed gave, by budget; None where a method does not fit."""
    found = {"bits": [quantized(bench, lambda: bench.teacher, key={"what": "bits"})]}
    found["bits, the lowest everywhere"] = [smallest(bench)]
    for reduction in REDUCTIONS:
        make = partial(factored, bench, bench.teacher, reduction, seed=None)
        key = {"what": "delta and bits", "reduction": reduction}
        found[f"delta {reduction:.0%} + bits"] = [quantized(bench, make, key=key)]
    for seed in bench.size.seeds:
        for name, one in {**_combined(bench, seed), **_alone(bench, seed)}.items():
            found.setdefault(name, []).append(one)
    return found


def _combined(bench: Bench, seed: int) -> dict[str, dict[str, Any]]:
    """Bits on subnets, and on factored subnets."""
    palette = cache(lambda: dict(zip(COMBINED, subnets(bench, [*COMBINED.values()], seed), strict=True)))
    reduction, found = REDUCTIONS[0], {}
    for name in COMBINED:
        key = {"shape": name, "seed": seed}
        found[f"MLFS {name} + bits"] = quantized(
            bench, lambda n=name: palette()[n], key={**key, "what": "MLFS and bits"}
        )
        found[f"MLFS {name} + delta {reduction:.0%} + bits"] = quantized(
            bench,
            lambda n=name: factored(bench, palette()[n], reduction, seed=None),
            key={**key, "what": "all", "reduction": reduction},
        )
    return found


def _alone(bench: Bench, seed: int) -> dict[str, dict[str, Any]]:
    """MLFS and factors in float16, each cut as deep as the budgets ask for."""
    budgets = bench.size.budgets

    def nested() -> dict[str, Any]:
        models = subnets(bench, [ALONE[budget] for budget in budgets], seed)
        return {
            str(budget): shipped(bench, planner_of(bench, model, None), budget=budget)
            for budget, model in zip(budgets, models, strict=True)
        }

    def shared(budget: float) -> Any:
        size = stored_size(describe(bench.teacher), bits={}, group_size=1)
        reduction = (size.total - budget * MIB) / size.blocks
        # Names and pivots of the factors take a little of the file.
        model = factored(bench, bench.teacher, reduction + 0.01, seed=seed)
        return shipped(bench, planner_of(bench, model, None), budget=budget)

    return {
        "MLFS": bench.kept(
            {"what": "MLFS", "seed": seed, "shapes": [f"{ALONE[budget]}" for budget in budgets]}, nested
        ),
        "delta": {
            str(budget): bench.kept(
                {"what": "delta", "seed": seed, "budget": budget}, lambda b=budget: shared(b)
            )
            for budget in budgets
        },
    }


def rows_of(bench: Bench, found: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    rows = []
    for budget in bench.size.budgets:
        for name, seeds in found.items():
            fits = [one[str(budget)] for one in seeds if one[str(budget)] is not None]
            if fits:
                rows.append({"budget MiB": budget, "methods": name, **_summary(bench, fits)})
    return rows


def _summary(bench: Bench, fits: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    values = [one["perplexity"] for one in fits]
    mean = statistics.fmean(values)
    return {
        "MiB": fits[0]["MiB"],
        "bits per weight": fits[0]["bits per weight"],
        "perplexity": round(mean, 3),
        "± seeds": round(statistics.stdev(values), 3) if len(values) > 1 else "",
        "excess": round(mean - bench.reference(), 3),
    }


def verdicts(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The best combination against the best single method of every budget."""
    by_budget: dict[float, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_budget.setdefault(row["budget MiB"], []).append(row)
    found = []
    for budget, offers in by_budget.items():
        single, several = (
            min(
                (o for o in offers if ("+" in o["methods"]) is combined),
                key=lambda o: float(o["perplexity"]),
                default=None,
            )
            for combined in (False, True)
        )
        if single and several:
            found.append(
                {
                    "budget MiB": budget,
                    "best single": single["methods"],
                    "its perplexity": single["perplexity"],
                    "best combination": several["methods"],
                    "perplexity": several["perplexity"],
                    "excess removed": round(1 - several["excess"] / single["excess"], 3),
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="little of everything; proves nothing")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="of the training (default 0 1 2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = QUICK if arguments.quick else Size()
    if arguments.seeds:
        size = Size(**{**vars(size), "seeds": tuple(arguments.seeds)})
    bench = Bench(
        size=size, texts=load_texts(), cache=Cache("combined-quick" if arguments.quick else "combined")
    )
    rows = rows_of(bench, results(bench))
    best = verdicts(rows)
    print_table("Perplexity", rows)
    print_table("Several methods against the best single one", best)
    outcome = {"rows": rows, "combined": best, "reference": round(bench.reference(), 4)}
    print_result("combined", results=outcome, seeds=size.seeds)


if __name__ == "__main__":
    main()

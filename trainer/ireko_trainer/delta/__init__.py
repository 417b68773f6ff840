"""DeltaLLM: blocks that share a base's matrices and keep low-rank differences, and plain low-rank where that is better.

moments = collect_moments(model=model, batches=batches, modules=measured_modules(model, options), kind="distribution")
plan = plan_deltas(model=model, moments=moments, options=DeltaOptions(reduction=0.15))
apply_plan(model=model, plan=plan, metrics=Metrics(model=model, moments=moments, initialization=…))
train_deltas(model=model, batches=…, kind="distribution", optimization=Optimization(steps=…, learning_rate=…))
forget_originals(model); make_compact(model); save_delta(model=model, directory=…); load_delta(directory)
materialize(model).save_pretrained(…)
"""

from __future__ import annotations

from ireko_trainer.delta.checkpoint import (
    is_delta,
    save_delta,
    save_quantized_delta,
    stored_numbers,
    unique_tensors,
)
from ireko_trainer.delta.compress import (
    apply_plan,
    forget_originals,
    make_compact,
    materialize,
    remember_originals,
)
from ireko_trainer.delta.decompositions import Spread, one_by_one
from ireko_trainer.delta.factors import Initialization, Metric, Metrics, Root, truncate
from ireko_trainer.delta.moments import Moments, collect_moments
from ireko_trainer.delta.options import DeltaOptions, check_options, expected_share, measured_modules
from ireko_trainer.delta.plan import DeltaPlan, DeltaPlanner, Piece, plan_deltas
from ireko_trainer.delta.refit import refit_deltas
from ireko_trainer.delta.shared_layers import (
    STRUCTURE_FILE,
    WEIGHTS_FILE,
    DeltaLinear,
    delta_layers,
    load_delta,
)
from ireko_trainer.delta.train import ReplacementSchedule, delta_parameters, train_deltas

__all__ = [
    "STRUCTURE_FILE",
    "WEIGHTS_FILE",
    "DeltaLinear",
    "DeltaOptions",
    "DeltaPlan",
    "DeltaPlanner",
    "Initialization",
    "Metric",
    "Metrics",
    "Moments",
    "Piece",
    "ReplacementSchedule",
    "Root",
    "Spread",
    "apply_plan",
    "check_options",
    "collect_moments",
    "delta_layers",
    "delta_parameters",
    "expected_share",
    "forget_originals",
    "is_delta",
    "load_delta",
    "make_compact",
    "materialize",
    "measured_modules",
    "one_by_one",
    "plan_deltas",
    "refit_deltas",
    "remember_originals",
    "save_delta",
    "save_quantized_delta",
    "stored_numbers",
    "train_deltas",
    "truncate",
    "unique_tensors",
]

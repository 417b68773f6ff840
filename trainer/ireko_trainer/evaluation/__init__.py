"""What a member of the family is worth: predictions and the numbers computed from them."""

from __future__ import annotations

from ireko_trainer.evaluation.language import Foresight, divergence, foresee, most_likely, score_foresight
from ireko_trainer.evaluation.metrics import METRICS, default_metric, score
from ireko_trainer.evaluation.predict import Forward, mean_pool, predict

__all__ = [
    "METRICS",
    "Foresight",
    "Forward",
    "default_metric",
    "divergence",
    "foresee",
    "mean_pool",
    "most_likely",
    "predict",
    "score",
    "score_foresight",
]

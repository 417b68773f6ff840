"""What a member of the family is worth: predictions and the numbers computed from them."""

from __future__ import annotations

from ireko_trainer.evaluation.metrics import METRICS, default_metric, score
from ireko_trainer.evaluation.predict import Forward, mean_pool, predict

__all__ = ["METRICS", "Forward", "default_metric", "mean_pool", "predict", "score"]

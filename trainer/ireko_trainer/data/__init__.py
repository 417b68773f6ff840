"""Texts and labels: from the manifest's data sources to batches of tokens."""

from __future__ import annotations

from ireko_trainer.data.encoded import Batch, EncodedDataset, split_holdout
from ireko_trainer.data.labels import LabelSpace, label_space
from ireko_trainer.data.load import load_data, load_split
from ireko_trainer.data.order import BatchOrder, evaluation_batches

__all__ = [
    "Batch",
    "BatchOrder",
    "EncodedDataset",
    "LabelSpace",
    "evaluation_batches",
    "label_space",
    "load_data",
    "load_split",
    "split_holdout",
]

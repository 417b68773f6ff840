"""Run a model over a data set, once, in the cheapest order, and hand the results back in the data's order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils.generic import ModelOutput

from ireko_trainer.data import Batch, EncodedDataset, evaluation_batches

Forward: TypeAlias = Callable[[Batch], ModelOutput]
"""A batch in, a Hugging Face output out (`.logits` or `.last_hidden_state`)."""


def mean_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean of the token vectors that the mask keeps: `[B, S, D]`, `[B, S]` → `[B, D]`.

    This is the sentence embedding of sentence-transformers models (Reimers & Gurevych 2019, §3).
    """
    weights = attention_mask.unsqueeze(-1).to(hidden.dtype)  # [B, S, 1]
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def predict(
    *,
    forward: Forward,
    data: EncodedDataset,
    task: str,
    batch_size: int,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """Outputs for every row of `data`, float32 on the CPU, in the order of `data`.

    Args:
        forward: the model, on `device` and in evaluation mode; it never sees the labels.
        data: the texts.
        task: `text-classification` gives logits `[N, num_labels]`, `feature-extraction` gives mean-pooled
            embeddings `[N, D]` of length 1.
        batch_size: rows per call.
        device: where the batches go.
        precision: float32, or bfloat16 to run the forward pass under autocast.
    """
    device = torch.device(device)
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16)
    outputs: Tensor | None = None
    with torch.inference_mode(), autocast:
        for indices, batch in evaluation_batches(data=data, batch_size=batch_size):
            inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
            rows = _outputs_of(forward(inputs), task=task, mask=inputs["attention_mask"]).float().cpu()
            if outputs is None:
                outputs = rows.new_empty((len(data), rows.shape[1]))
            outputs[indices] = rows
    if outputs is None:
        raise ValueError("cannot predict over a data set without rows")
    # A tensor made in inference mode could not take part in later training losses.
    return outputs.clone()


def _outputs_of(output: ModelOutput, *, task: str, mask: Tensor) -> Tensor:
    if task == "text-classification":
        logits: Tensor = output.logits
        return logits
    if task == "feature-extraction":
        return F.normalize(mean_pool(output.last_hidden_state.float(), mask), dim=1)
    raise ValueError(f"no prediction is defined for task {task!r}")

"""What a model is worth: a metric on the validation data, or its closeness to the teacher on a sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ireko_trainer.data import EncodedDataset, evaluation_batches
from ireko_trainer.evaluation import predict, score
from ireko_trainer.evaluation.predict import Forward

SAMPLE_SIZE = 256
"""Calibration texts on which shapes are compared before training and on which importance is measured."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Scores models on one data set against one teacher.

    `reference` holds the teacher's outputs on `data`: logits [N, C] or embeddings [N, D].
    """

    task: str
    regression: bool
    metric: str
    data: EncodedDataset
    batch_size: int
    reference: torch.Tensor
    device: torch.device = torch.device("cpu")
    precision: torch.dtype = torch.float32

    def metrics(self, forward: Forward) -> dict[str, float]:
        """Every metric that data and task allow."""
        return score(
            task=self.task,
            regression=self.regression,
            outputs=self._outputs(forward),
            labels=self.data.labels,
            reference=self.reference,
        )

    def quality(self, forward: Forward) -> float:
        """The one metric that selection goes by; the larger the better."""
        return self.metrics(forward)[self.metric]

    def closeness(self, forward: Forward) -> float:
        """How close a model is to the teacher; smoother than an accuracy on few texts. The larger the better.

        Minus the mean KL divergence for classes, minus the mean squared error for a regression, the fidelity of
        similarities for embeddings.
        """
        outputs = self._outputs(forward)
        if self.task == "feature-extraction":
            return score(
                task=self.task, regression=False, outputs=outputs, labels=None, reference=self.reference
            )["fidelity"]
        if self.regression:
            return -float(F.mse_loss(outputs, self.reference))
        student, teacher = F.log_softmax(outputs, dim=-1), F.log_softmax(self.reference, dim=-1)
        return -float(F.kl_div(student, teacher, reduction="batchmean", log_target=True))

    def _outputs(self, forward: Forward) -> torch.Tensor:
        return predict(
            forward=forward,
            data=self.data,
            task=self.task,
            batch_size=self.batch_size,
            device=self.device,
            precision=self.precision,
        )


def as_forward(model: PreTrainedModel) -> Forward:
    """A model in evaluation mode as a function of a batch."""
    model.eval()
    return lambda batch: model(**batch)


def sample_batches(
    data: EncodedDataset, *, batch_size: int, device: torch.device = torch.device("cpu")
) -> Iterator[Mapping[str, torch.Tensor]]:
    """The first `SAMPLE_SIZE` rows as batches without labels."""
    sample = data.take(min(SAMPLE_SIZE, len(data)))
    for _, batch in evaluation_batches(data=sample, batch_size=batch_size):
        yield {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}

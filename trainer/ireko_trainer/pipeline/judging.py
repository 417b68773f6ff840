"""What a model is worth: a metric on the validation data, or its closeness to the teacher on a sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ireko_trainer.data import EncodedDataset, evaluation_batches
from ireko_trainer.evaluation import (
    Foresight,
    divergence,
    foresee,
    most_likely,
    predict,
    score,
    score_foresight,
)
from ireko_trainer.evaluation.language import Likely
from ireko_trainer.evaluation.predict import Forward
from ireko_trainer.mlfs import architecture_of

SAMPLE_SIZE = 256
"""Calibration texts on which importance is measured and bits are chosen."""
SAMPLE_TOKENS = 32768
"""Of these texts at most: windows of a language model are long."""
BATCH_TOKENS = 2048
"""Of one batch of them at most."""


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


@dataclass(frozen=True, kw_only=True)
class LanguageJudge:
    """Scores language models on windows of text against one teacher.

    `reference` is what the teacher foresaw on `data`, and `teacher` is the teacher itself.
    """

    metric: str
    data: EncodedDataset
    batch_size: int
    teacher: Forward
    reference: Foresight
    device: torch.device = torch.device("cpu")
    precision: torch.dtype = torch.float32

    def metrics(self, forward: Forward) -> dict[str, float]:
        """Every metric of a language model."""
        outputs = foresee(forward=forward, data=self.data, **self._how)
        return score_foresight(outputs=outputs, data=self.data, reference=self.reference)

    def quality(self, forward: Forward) -> float:
        """The one metric that selection goes by; the larger the better."""
        return self.metrics(forward)[self.metric]

    def closeness(self, forward: Forward) -> float:
        """Minus the mean KL divergence from the teacher per token. The larger the better."""
        return -divergence(forward=forward, data=self.data, reference=self._likely, **self._how)

    @cached_property
    def _likely(self) -> list[Likely]:
        return most_likely(forward=self.teacher, data=self.data, **self._how)

    @property
    def _how(self) -> _How:
        return {"batch_size": self.batch_size, "device": self.device, "precision": self.precision}


class _How(TypedDict):
    batch_size: int
    device: torch.device
    precision: torch.dtype


AnyJudge = Judge | LanguageJudge


def as_forward(model: PreTrainedModel) -> Forward:
    """A model in evaluation mode as a function of a batch."""
    model.eval()
    options = architecture_of(model.config).options
    return lambda batch: model(**batch, **options)


def sample_of(data: EncodedDataset, *, texts: int, tokens: int) -> EncodedDataset:
    """The first `texts` rows, fewer where they hold more than `tokens` tokens."""
    within = int((data.lengths.cumsum(0) <= tokens).sum())
    return data.subset(range(max(1, min(texts, within))))


def sample_batches(
    data: EncodedDataset,
    *,
    batch_size: int,
    tokens: int = SAMPLE_TOKENS,
    device: torch.device = torch.device("cpu"),
) -> Iterator[Mapping[str, torch.Tensor]]:
    """The first rows, `SAMPLE_SIZE` of them and `tokens` tokens at most, as batches without labels.

    Batches of long texts hold fewer than `batch_size` of them: a language model answers with a row for every token.
    """
    sample = sample_of(data, texts=SAMPLE_SIZE, tokens=tokens)
    rows = max(1, min(batch_size, BATCH_TOKENS // int(sample.lengths.max())))
    for _, batch in evaluation_batches(data=sample, batch_size=rows):
        yield {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}

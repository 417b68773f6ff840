"""How good the models of a run are: on its validation data against its teacher, and at its questions."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ireko_trainer.data import EncodedDataset
from ireko_trainer.evaluation import Forward, foresee, predict
from ireko_trainer.evaluation.harness import answer_questions
from ireko_trainer.pipeline.judging import (
    AnyJudge,
    Judge,
    LanguageJudge,
    as_forward,
)
from ireko_trainer.pipeline.training import Training


def judge(
    training: Training,
    *,
    teacher: PreTrainedModel,
    data: EncodedDataset,
    precision: torch.dtype,
) -> AnyJudge:
    """A judge of models on `data` against `teacher`."""
    if training.inputs.task == "text-generation":
        return _language_judge(training, teacher=as_forward(teacher), data=data, precision=precision)
    reference = predict(
        forward=as_forward(teacher),
        data=data,
        task=training.inputs.task,
        batch_size=training.request.spec.evaluation.batch_size,
        device=training.device,
        precision=precision,
    )
    return Judge(
        task=training.inputs.task,
        regression=training.inputs.regression,
        metric=training.inputs.metric,
        data=data,
        batch_size=training.request.spec.evaluation.batch_size,
        reference=reference,
        device=training.device,
        precision=precision,
    )


def _language_judge(
    training: Training, *, teacher: Forward, data: EncodedDataset, precision: torch.dtype
) -> LanguageJudge:
    batch_size = training.request.spec.evaluation.batch_size
    return LanguageJudge(
        metric=training.inputs.metric,
        data=data,
        batch_size=batch_size,
        teacher=teacher,
        reference=foresee(
            forward=teacher, data=data, batch_size=batch_size, device=training.device, precision=precision
        ),
        device=training.device,
        precision=precision,
    )


def evaluation_data(training: Training) -> EncodedDataset:
    """The validation data, up to `spec.evaluation.limit`."""
    limit = training.request.spec.evaluation.limit
    data = training.inputs.validation
    return data if limit is None else data.take(min(limit, len(data)))


def answers(training: Training, model: PreTrainedModel) -> dict[str, float]:
    """Share of right answers to the questions of the manifest, by benchmark."""
    if not training.inputs.questions:
        return {}
    return answer_questions(
        model=model,
        tokenizer=training.inputs.teacher.tokenizer,
        questions=training.inputs.questions,
        batch_size=training.request.spec.evaluation.batch_size,
    )

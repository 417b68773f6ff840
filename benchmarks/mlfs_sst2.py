"""Are nested subnets as good as separately distilled ones, and cheaper? MiniLM-L6 on SST-2, against what is simpler.

    python benchmarks/mlfs_sst2.py --seeds 0 1 2   # hours on one CPU thread; goes on where it was stopped
    python benchmarks/mlfs_sst2.py --quick         # a minute: 128 texts and a few steps, checks that it runs

One palette of eight standard shapes is nested in a fine-tuned teacher and trained at once. Two of them are looked
at closely, half and a quarter of the teacher's body (the parameters without embeddings and head), each against

    untrained       the same slice before training
    alone           the same slice trained by itself for the same number of its own steps, same loss
    gamma 0         the palette without gradient scaling
    unordered       the palette without the importance permutation: slices keep arbitrary channels
    first layers    a body of the same size made of the teacher's first layers, trained alone for as many steps

and the palette's training time is set against eight separate distillations, each long enough that their mean
accuracy is that of the nested eight.

Accuracy is on the 872 sentences of dev: one standard error is one point. KL(teacher ‖ member) in nats is beside it
and is far less noisy. Time is CPU time of the training process, on one thread: seconds on a free core, whatever
else the machine does. One teacher (1800 steps, 0.899) serves all seeds; a seed changes the low-rank pairs, the
order of sentences and the draws of subnets. Every run is kept under benchmarks/.cache/ by its settings, so a
stopped benchmark goes on and a changed setting runs again; delete the directory after changing the algorithm.

The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import platform
import statistics
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import peft
import torch
import torch.nn.functional as F
import transformers
from sst2_teacher import BATCH_SIZE, QUICK_STEPS, REPOSITORY, STEPS, Sst2, finetuned_teacher, load_sst2
from torch import Tensor
from transformers import PreTrainedModel

from ireko_trainer.data import BatchOrder
from ireko_trainer.evaluation import Forward, predict
from ireko_trainer.mlfs import (
    Distillation,
    Optimization,
    Palette,
    Shape,
    Supernet,
    SupernetStage,
    count_parameters,
    draw,
    permute_by_importance,
    train_supernet,
)

CACHE = REPOSITORY / "benchmarks" / ".cache" / "mlfs-sst2"
HEAD_SIZE = 32
CALIBRATION_BATCHES = 24

ALL, FOUR, FIRST_THREE = (0, 1, 2, 3, 4, 5), (0, 2, 3, 5), (0, 1, 2)


def shape(hidden: int, intermediate: int, layers: tuple[int, ...] = ALL) -> Shape:
    return Shape(hidden=hidden, heads=hidden // HEAD_SIZE, intermediate=intermediate, layers=layers)


TARGETS = {"half": shape(384, 384), "quarter": shape(288, 192)}
FIRST_LAYERS = {"half": shape(384, 1536, FIRST_THREE), "quarter": shape(384, 384, FIRST_THREE)}
PALETTE = (
    *TARGETS.values(),
    shape(384, 768),
    shape(384, 192),
    shape(288, 768),
    shape(288, 384),
    shape(384, 768, FOUR),
    shape(384, 384, FOUR),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training and all that decides its outcome; a run with equal settings is not repeated."""

    shapes: tuple[Shape, ...]
    steps: int
    seed: int = 0
    subnets_per_step: int = 1
    learning_rate: float = 2e-3
    gamma: float = 0.5
    ordered: bool = True
    distillation: Distillation = field(default_factory=Distillation)
    teacher_steps: int = STEPS

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


class Bench:
    """The teacher, the data, and runs that are remembered."""

    def __init__(self, *, data: Sst2, teacher: PreTrainedModel, teacher_steps: int) -> None:
        self.data = data
        self.teacher_steps = teacher_steps
        self._teachers = {False: teacher, True: self._in_order(teacher)}
        self.plain_teacher = teacher
        self.full = Supernet(model=copy.deepcopy(teacher)).full

    def train(self, **settings: Any) -> dict[str, Any]:
        """The outcome of a run: CPU seconds, and accuracy and KL of every shape in it."""
        run = Run(**settings, teacher_steps=self.teacher_steps)
        path = CACHE / f"{run.digest}.json"
        if not path.is_file():
            outcome = self._train(run)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"run": asdict(run), **outcome}, indent=1))
            report(f"{len(run.shapes)} shape(s), {run.steps} steps, seed {run.seed}: {outcome}")
        return dict(json.loads(path.read_text()))

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
        return self.quality(lambda batch: self._teachers[False](**batch))

    @cached_property
    def _teacher_said(self) -> Tensor:
        return self._logits(lambda batch: self._teachers[False](**batch))

    def _logits(self, forward: Forward) -> Tensor:
        return predict(forward=forward, data=self.data.dev, task="text-classification", batch_size=64)

    def _in_order(self, teacher: PreTrainedModel) -> PreTrainedModel:
        ordered = copy.deepcopy(teacher)
        order = BatchOrder(lengths=self.data.train.lengths, batch_size=BATCH_SIZE, seed=12345)
        calibration = [self.data.train.batch(order.indices(step)) for step in range(CALIBRATION_BATCHES)]
        permute_by_importance(model=ordered, batches=calibration)
        return ordered

    def _train(self, run: Run) -> dict[str, Any]:
        teacher = self._teachers[run.ordered]
        supernet = Supernet(model=copy.deepcopy(teacher), precision=torch.bfloat16)
        order = BatchOrder(lengths=self.data.train.lengths, batch_size=BATCH_SIZE, seed=run.seed)
        started = time.process_time()
        train_supernet(
            supernet=supernet,
            frozen_teacher=teacher,
            batches=lambda step: self.data.train.batch(order.indices(step)),
            stage=SupernetStage(
                name="benchmark",
                palette=Palette(shapes=run.shapes),
                optimization=Optimization(steps=run.steps, learning_rate=run.learning_rate),
                distillation=run.distillation,
                subnets_per_step=run.subnets_per_step,
                gamma=run.gamma,
                seed=run.seed,
            ),
        )
        seconds = time.process_time() - started
        members = {label(one): self.quality(supernet.forward_fn(one)) for one in run.shapes}
        return {"seconds": round(seconds, 1), "members": members}


def label(one: Shape) -> str:
    return f"{one.hidden}/{one.intermediate}/{','.join(map(str, one.layers))}"


def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def spread(values: list[dict[str, float]]) -> dict[str, float]:
    """Mean over seeds, and the standard deviation of the accuracy where there are several."""
    accuracies = [value["accuracy"] for value in values]
    return {
        "accuracy": round(statistics.mean(accuracies), 4),
        "accuracySd": round(statistics.stdev(accuracies), 4) if len(values) > 1 else 0.0,
        "kl": round(statistics.mean(value["kl"] for value in values), 4),
    }


def look_closely(bench: Bench, *, steps: int, subnets: int, seeds: list[int]) -> dict[str, Any]:
    """Each target in the family against everything simpler."""
    families = {
        "member": {},
        "gamma 0": {"gamma": 0.0},
        "unordered": {"ordered": False},
    }
    common = {"shapes": PALETTE, "steps": steps, "subnets_per_step": subnets}
    rows: dict[str, Any] = {}
    for name, wanted in TARGETS.items():
        own = {seed: Run(**common, seed=seed).own_steps(wanted, bench.full) for seed in seeds}
        row: dict[str, Any] = {
            family: spread(
                [bench.train(**common, **changed, seed=seed)["members"][label(wanted)] for seed in seeds]
            )
            for family, changed in families.items()
        }
        for baseline, alone in (("alone", wanted), ("first layers", FIRST_LAYERS[name])):
            outcomes = [bench.train(shapes=(alone,), steps=own[seed], seed=seed) for seed in seeds]
            row[baseline] = spread([outcome["members"][label(alone)] for outcome in outcomes])
        row["untrained"] = bench.untrained(wanted, ordered=True)
        row["untrained, unordered"] = bench.untrained(wanted, ordered=False)
        row["ofTeacher"] = round(row["member"]["accuracy"] / bench.teacher["accuracy"], 4)
        row["ownSteps"] = round(statistics.mean(own.values()))
        rows[name] = row
        report(f"{name}: {row}")
    return rows


def compare_cost(
    bench: Bench, *, steps: int, subnets: int, lengths: list[int], seeds: list[int]
) -> dict[str, Any]:
    """Training time of the nested eight against eight separate distillations of equal mean accuracy."""

    def mean_accuracy(members: list[dict[str, float]]) -> float:
        return statistics.mean(member["accuracy"] for member in members)

    seed = seeds[0]
    nested = bench.train(shapes=PALETTE, steps=steps, subnets_per_step=subnets, seed=seed)
    goal = mean_accuracy(list(nested["members"].values()))
    tried = {}
    for length in lengths:
        alone = [bench.train(shapes=(one,), steps=length, seed=seed) for one in PALETTE]
        quality = mean_accuracy([member for run in alone for member in run["members"].values()])
        seconds = sum(run["seconds"] for run in alone)
        tried[length] = {"accuracy": round(quality, 4), "seconds": round(seconds, 1)}
        report(f"eight alone, {length} steps each: {tried[length]}")
        if quality >= goal:
            break
    reached = tried[length]["accuracy"] >= goal
    return {
        "nested": {"accuracy": round(goal, 4), "seconds": nested["seconds"]},
        "alone": tried,
        # If even the longest tried did not reach the nested eight, the true ratio is smaller still.
        "timeRatio": round(nested["seconds"] / tried[length]["seconds"], 3),
        "timeRatioIs": "measured" if reached else "an upper bound",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="128 texts and a few steps; proves nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of training (default 0)")
    parser.add_argument("--steps", type=int, default=600, help="steps of the palette (default 600)")
    parser.add_argument("--subnets", type=int, default=3, help="subnets per step (default 3)")
    parser.add_argument(
        "--alone-steps",
        type=int,
        nargs="+",
        default=[300, 600, 900],
        help="lengths of a separate distillation, tried in turn until the eight are as good as the nested eight",
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.steps, arguments.alone_steps = 4, [2]
    teacher_steps = QUICK_STEPS if arguments.quick else STEPS
    data = load_sst2(limit=128 if arguments.quick else None)
    bench = Bench(
        data=data, teacher=finetuned_teacher(data=data, steps=teacher_steps), teacher_steps=teacher_steps
    )
    report(f"teacher: {bench.teacher}")
    sizes = {name: count_parameters(bench.plain_teacher, one) for name, one in TARGETS.items()}
    whole = count_parameters(bench.plain_teacher, bench.full)
    results: dict[str, Any] = {
        "teacher": bench.teacher,
        "targets": look_closely(
            bench, steps=arguments.steps, subnets=arguments.subnets, seeds=arguments.seeds
        ),
        "palette": compare_cost(
            bench,
            steps=arguments.steps,
            subnets=arguments.subnets,
            lengths=arguments.alone_steps,
            seeds=arguments.seeds,
        ),
        "share": {
            name: {"body": round(size.body / whole.body, 3), "all": round(size.total / whole.total, 3)}
            for name, size in sizes.items()
        },
        "settings": {"steps": arguments.steps, "subnetsPerStep": arguments.subnets},
    }
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    versions["python"] = platform.python_version()
    print(
        json.dumps(
            {"benchmark": "mlfs_sst2", "results": results, "versions": versions, "seeds": arguments.seeds}
        )
    )


if __name__ == "__main__":
    main()

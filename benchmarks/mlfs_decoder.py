"""Does a slice of a decoder learn sooner than a new model of its size, and do nested slices as well as separate ones?

    python benchmarks/mlfs_decoder.py              # 15 minutes of one free CPU thread; goes on where it was stopped
    python benchmarks/mlfs_decoder.py --seeds 0 1 2
    python benchmarks/mlfs_decoder.py --quick      # two steps of everything: checks that it runs

The palette goes down to two thirds of decoder12's parameters (below that MLFS loses decoders): three shapes of that
size, cut in the feed-forward part, in the layers and in the hidden size, and one of five sixths. Training reads
windows of 256 tokens, half stories and half articles; loss is the logarithm of the protocol's perplexity
(`decoder12.py`, on half of its windows), and time is CPU time of the training process on one thread without what
measuring costs.

Loss against time, the shape cut in the feed-forward part:

    random        a new model of this shape, all weights trained on the texts
    sliced        the leading channels as they lie, all weights trained on the texts
    ordered       the same behind the importance permutation
    distilled     the same, a low-rank pair trained to imitate decoder12

Nested against separate: the whole palette in one supernet, against two of its shapes distilled one by one for as many
steps as each had in the palette.

A seed changes new weights, low-rank pairs, the order of texts and the turns of the subnets. Every run is kept under
benchmarks/.cache by its settings. The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from decoder12 import (
    Cache,
    Texts,
    batches,
    load_decoder,
    load_texts,
    print_result,
    print_table,
    quality,
    report,
    training_batches,
    whole,
)
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from ireko_trainer.mlfs import (
    Batch,
    Distillation,
    Hooks,
    Optimization,
    Palette,
    Shape,
    Supernet,
    SupernetStage,
    count_parameters,
    layers_kept,
    permute_by_importance,
    subnet_config,
    train_supernet,
    train_teacher,
)

LAYERS = tuple(range(12))
SHAPES = {
    "feed-forward": Shape(hidden=192, heads=6, intermediate=288, layers=LAYERS),
    "layers": Shape(hidden=192, heads=6, intermediate=512, layers=layers_kept(12, 8)),
    "hidden": Shape(hidden=144, heads=6, intermediate=448, layers=LAYERS),
    "five sixths": Shape(hidden=192, heads=6, intermediate=512, layers=layers_kept(12, 10)),
}
CURVES = "feed-forward"
SEPARATE = ("feed-forward", "layers")
SUBNETS_PER_STEP = 2
FULL_RATE, NEW_RATE, PAIR_RATE = 5e-4, 2e-3, 5e-3
"""Learning rates: of all weights of a slice, of a new model (as decoder12 was made), of low-rank pairs."""

Start = Literal["random", "sliced", "ordered"]
Curve = list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything."""

    steps: int = 60
    marks: int = 4
    """Measurements along a run, the last one at its end."""
    windows: int = 6
    """Of 256 tokens in a step."""
    calibration: int = 32
    measured: int = 16
    """Windows of each kind that the loss is measured on."""


QUICK = Size(steps=2, marks=1, windows=2, calibration=2, measured=2)


@dataclass
class Bench:
    """decoder12, its texts, and runs by their settings."""

    size: Size
    texts: Texts
    cache: Cache
    teacher: PreTrainedModel = field(default_factory=load_decoder)

    @cached_property
    def ordered(self) -> PreTrainedModel:
        """The same function with what matters first."""
        model = copy.deepcopy(self.teacher)
        calibration = self.texts.calibration(self.size.calibration)
        start = time.process_time()
        permute_by_importance(model=model, batches=[whole(batch) for batch in batches(calibration)])
        report(f"importance permutation: {time.process_time() - start:.1f} s")
        return model

    def loss(self, model: PreTrainedModel) -> float:
        """Logarithm of the protocol's perplexity."""
        return math.log(quality(model, self.texts))

    def batch_at(self, seed: int) -> Callable[[int], Batch]:
        """Windows of a step."""
        return training_batches(self.texts, windows=self.size.windows, seed=seed)

    def from_texts(self, start: Start, *, seed: int) -> Curve:
        """All weights of a slice or a new model, trained on the texts alone."""
        return self._kept({"what": start, "seed": seed}, lambda: self._from_texts(start, seed))

    def distilled(self, shapes: Sequence[str], *, steps: int, seed: int) -> dict[str, Curve]:
        """Slices trained to imitate decoder12, together; curves by shape."""
        key = {"what": "distilled", "shapes": list(shapes), "steps": steps, "seed": seed}
        return self._kept(key, lambda: self._distilled(shapes, steps, seed))

    def _kept(self, key: dict[str, Any], compute: Callable[[], Any]) -> Any:
        return self.cache.get({**key, "size": vars(self.size)}, compute)

    def _from_texts(self, start: Start, seed: int) -> Curve:
        model = self._started(start, seed)
        watch = _Watch(self.size, self.size.steps, lambda: {CURVES: self.loss(model.eval())})
        train_teacher(
            model=model,
            batches=self.batch_at(seed),
            optimization=Optimization(
                steps=self.size.steps, learning_rate=NEW_RATE if start == "random" else FULL_RATE
            ),
            seed=seed,
            hooks=Hooks(on_step=watch),
        )
        return watch.curves[CURVES]

    def _started(self, start: Start, seed: int) -> PreTrainedModel:
        shape = SHAPES[CURVES]
        if start == "random":
            torch.manual_seed(seed)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                subnet_config(self.teacher.config, shape), dtype=torch.float32
            )
            return model
        whole = self.ordered if start == "ordered" else self.teacher
        return Supernet(model=copy.deepcopy(whole)).extract(shape)

    def _distilled(self, shapes: Sequence[str], steps: int, seed: int) -> dict[str, Curve]:
        supernet = Supernet(model=copy.deepcopy(self.ordered), rank=8, alpha=16.0)
        watch = _Watch(
            self.size, steps, lambda: {name: self.loss(supernet.extract(SHAPES[name])) for name in shapes}
        )
        train_supernet(
            supernet=supernet,
            frozen_teacher=self.ordered,
            batches=self.batch_at(seed),
            stage=SupernetStage(
                name="depths",
                palette=Palette(shapes=tuple(SHAPES[name] for name in shapes)),
                optimization=Optimization(steps=steps, learning_rate=PAIR_RATE),
                distillation=Distillation(),
                subnets_per_step=min(SUBNETS_PER_STEP, len(shapes)),
                seed=seed,
            ),
            hooks=Hooks(on_step=watch),
        )
        return watch.curves


class _Watch:
    """Measures the loss at a few steps of a run, and what training has cost until then."""

    def __init__(self, size: Size, steps: int, measure: Callable[[], dict[str, float]]) -> None:
        self.curves: dict[str, Curve] = {}
        self._marks = {round(steps * (mark + 1) / size.marks) for mark in range(size.marks)}
        self._measure = measure
        self._measuring = 0.0
        self._began = time.process_time()
        self._note(0)

    def __call__(self, step: int, _metrics: object) -> None:
        if step in self._marks:
            self._note(step)

    def _note(self, step: int) -> None:
        before = time.process_time()
        seconds = before - self._began - self._measuring
        for name, loss in self._measure().items():
            point = {"step": step, "seconds": round(seconds, 1), "loss": round(loss, 4)}
            self.curves.setdefault(name, []).append(point)
        self._measuring += time.process_time() - before


def curve_rows(bench: Bench, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Loss against time of every start."""
    runs: dict[str, list[Curve]] = {
        start: [bench.from_texts(start, seed=seed) for seed in seeds]
        for start in ("random", "sliced", "ordered")
    }
    runs["distilled"] = [
        bench.distilled((CURVES,), steps=bench.size.steps, seed=seed)[CURVES] for seed in seeds
    ]
    return [
        {
            "start": start,
            "cpuSeconds": spread(curves, "seconds", place)["mean"],
            **spread(curves, "loss", place),
        }
        for start, curves in runs.items()
        for place in range(len(curves[0]))
    ]


def nested_rows(bench: Bench, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Shapes in one supernet against the same shapes one by one."""
    # Every step trains so many of the palette's shapes: this is what it takes for each to have its steps.
    together = bench.size.steps * len(SHAPES) // SUBNETS_PER_STEP
    nested = [bench.distilled(tuple(SHAPES), steps=together, seed=seed) for seed in seeds]
    rows = []
    for name in SHAPES:
        curves = [run[name] for run in nested]
        rows.append(_end(bench, name, "nested", curves, share=1 / len(SHAPES)))
        if name in SEPARATE:
            alone = [bench.distilled((name,), steps=bench.size.steps, seed=seed)[name] for seed in seeds]
            rows.append(_end(bench, name, "separate", alone, share=1.0))
    return rows


def _end(bench: Bench, name: str, how: str, curves: list[Curve], *, share: float) -> dict[str, Any]:
    full, kept = (
        count_parameters(bench.teacher, shape).total
        for shape in (Supernet(model=copy.deepcopy(bench.teacher)).full, SHAPES[name])
    )
    return {
        "shape": name,
        "parameters": round(kept / full, 3),
        "how": how,
        "untrained": spread(curves, "loss", 0)["mean"],
        **spread(curves, "loss", -1),
        "cpuSecondsEach": round(share * spread(curves, "seconds", -1)["mean"], 1),
    }


def spread(curves: list[Curve], name: str, place: int) -> dict[str, float]:
    """Mean over seeds at one place of the curves, and the standard deviation where there are several."""
    values = [curve[place][name] for curve in curves]
    deviation = {"sd": round(statistics.stdev(values), 4)} if len(values) > 1 else {}
    return {"mean": round(statistics.mean(values), 4), **deviation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="two steps of everything: checks that it runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if arguments.quick else Size()
    texts = load_texts()
    texts = Texts(**{**vars(texts), **_fewer(texts, size.measured)})
    bench = Bench(
        size=size, texts=texts, cache=Cache("mlfs_decoder_quick" if arguments.quick else "mlfs_decoder")
    )
    curves = curve_rows(bench, arguments.seeds)
    print_table("Loss against time, the shape cut in the feed-forward part", curves)
    nested = nested_rows(bench, arguments.seeds)
    print_table("Nested against separate", nested)
    loss = bench.cache.get({"what": "teacher", "size": vars(size)}, lambda: bench.loss(bench.teacher))
    print_result(
        "mlfs_decoder",
        results={"teacherLoss": round(loss, 4), "curves": curves, "nested": nested},
        seeds=arguments.seeds,
    )


def _fewer(texts: Texts, count: int) -> dict[str, Tensor]:
    return {"stories": texts.stories[:count], "articles": texts.articles[:count]}


if __name__ == "__main__":
    main()

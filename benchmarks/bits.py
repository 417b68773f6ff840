"""Which order of blocks should get the bits? LIM and ZD against chance, at equal bytes, on SST-2.

    python benchmarks/bits.py --threads 2    # 5 to 10 minutes, once more six to train the teacher
    python benchmarks/bits.py --quick        # a teacher of 20 steps, 100 texts: checks that it runs

Two tables. The grid: every matrix of every block at 2, 3 and 4 bits under three rules for the scale. The
order: budgets that let k of the 6 equal blocks rise one level, so that every order fills the budget to the
byte. Random orders are five; where one block rises, every choice of it that there is stands beside them, which
says how good an order could be at all.

Measured on the 872 texts of dev: accuracy (one standard error is about 1 point) and KL(teacher || quantized)
in nats, which uses the whole output and is less noisy. The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors
import torch
import transformers
from sst2_teacher import QUICK_STEPS, STEPS, Sst2, finetuned_teacher, load_sst2
from torch import Tensor
from transformers import PreTrainedModel

from ireko_trainer.data import EncodedDataset, evaluation_batches
from ireko_trainer.evaluation import predict
from ireko_trainer.quant import (
    Importance,
    Layout,
    QuantizedWeights,
    allocate,
    average_bits,
    dequantize,
    describe,
    fake_quantized,
    importance_tiers,
    lim,
    quantize,
    stored_size,
    zd,
)
from ireko_trainer.quant.grid import absmax_scales, signed_scales

LEVELS = (2, 3, 4, 8)
GROUP_SIZE = 64
SEEDS = (0, 1, 2, 3, 4)
CALIBRATION_TEXTS = 512
GRIDS = {
    "absmax": absmax_scales,
    "signed, extreme on the lowest code": signed_scales,
    "searched, signed": None,
}


@dataclass
class Bench:
    """The teacher, its answers, and every candidate that was measured."""

    model: PreTrainedModel
    dev: EncodedDataset
    layout: Layout = field(init=False)
    weights: QuantizedWeights = field(init=False)
    reference: Tensor = field(init=False)
    measured: dict[tuple[int, ...], dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layout = describe(self.model)
        self.weights = QuantizedWeights(model=self.model, group_size=GROUP_SIZE)
        self.reference = self.logits()

    def logits(self) -> Tensor:
        """[N, 2] float32, in the order of dev."""
        return predict(
            forward=lambda batch: self.model(**batch),
            data=self.dev,
            task="text-classification",
            batch_size=64,
        )

    def quality(self) -> dict[str, float]:
        """Accuracy and KL(teacher || model as it is now), in nats per text."""
        assert self.dev.labels is not None
        logits = self.logits()
        teacher, student = self.reference.log_softmax(-1), logits.log_softmax(-1)
        divergence = torch.nn.functional.kl_div(student, teacher, log_target=True, reduction="batchmean")
        correct = logits.argmax(-1).eq(self.dev.labels).float().mean()
        return {"accuracy": round(float(correct), 4), "kl": round(float(divergence), 5)}

    def size(self, block_bits: Mapping[str, int]) -> int:
        """Bytes of the file."""
        return stored_size(self.layout, bits=self.layout.module_bits(block_bits), group_size=GROUP_SIZE).total

    def measure(self, block_bits: Mapping[str, int]) -> dict[str, float]:
        """Quality of one allocation; the same allocation is measured once."""
        key = tuple(block_bits[name] for name in self.layout.blocks)
        if key not in self.measured:
            start = time.perf_counter()
            bits = self.layout.module_bits(block_bits)
            with fake_quantized(self.model, bits=bits, group_size=GROUP_SIZE, weights=self.weights):
                self.measured[key] = self.quality()
            report(f"{key}: {self.measured[key]} in {time.perf_counter() - start:.1f} s")
        return self.measured[key]


def report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def grid_table(bench: Bench, widths: tuple[int, ...]) -> list[dict[str, Any]]:
    """Blocks at each width under each rule for the scale; everything else stays float."""
    matrices = [m.module for block in bench.layout.blocks.values() for m in block]
    weights = [bench.model.get_submodule(module).weight for module in matrices]
    originals = [weight.data for weight in weights]
    rows = []
    for name, rule in GRIDS.items():
        for width in widths:
            error = 0.0
            for weight, original in zip(weights, originals, strict=True):
                weight.data = dequantize(
                    quantize(original, bits=width, group_size=GROUP_SIZE, scale_rule=rule)
                )
                error += float((weight.data - original).square().sum())
            rows.append({"scales": name, "bits": width, "squared_error": round(error, 3), **bench.quality()})
            report(str(rows[-1]))
    for weight, original in zip(weights, originals, strict=True):
        weight.data = original
    return rows


def outside_table(bench: Bench) -> list[dict[str, Any]]:
    """What storing the rest costs: float16 everywhere, then 8 bits for embeddings and head, blocks in
    float16."""
    rows = []
    for name, bits in (("float16", {}), ("embeddings and head at 8 bits", bench.layout.outside_bits())):
        with fake_quantized(bench.model, bits=bits, group_size=GROUP_SIZE, weights=bench.weights):
            size = stored_size(bench.layout, bits=bits, group_size=GROUP_SIZE).total
            rows.append({"stored": name, "bytes": size, **bench.quality()})
            report(str(rows[-1]))
    return rows


def orders(
    scores: Mapping[str, Mapping[str, float]], blocks: Iterable[str]
) -> dict[str, list[tuple[str, ...]]]:
    """Name -> the orders behind it, five where chance decides."""
    names = tuple(blocks)

    def flat(importance: Importance, seed: int = 0) -> tuple[str, ...]:
        relevant = scores["ZD" if importance == "ZD" else "LIM"]
        tiers = importance_tiers(importance=importance, blocks=names, scores=relevant, seed=seed)
        return tuple(name for tier in tiers for name in tier)

    return {
        "LIM": [flat("LIM")],
        "ZD": [flat("ZD")],
        "random": [flat("Random", seed) for seed in SEEDS],
        "first block, rest random": [flat("FirstBlock", seed) for seed in SEEDS],
        "reverse LIM": [flat("Reverse")],
    }


def order_table(
    bench: Bench, scores: Mapping[str, Mapping[str, float]], budgets: Iterable[tuple[int, int, int]]
) -> list[dict[str, Any]]:
    """Rows of every order at every budget (low, high, k): k blocks at `high`, the others at `low`."""
    names = tuple(bench.layout.blocks)
    weights = bench.layout.block_weights()
    rows = []
    for low, high, k in budgets:
        limit = bench.size({name: high if index < k else low for index, name in enumerate(names)}) + 64
        common = {"levels": [low, high], "raised": k, "max_bytes": limit}
        for order, sequences in {**orders(scores, names), "uniform": [names]}.items():
            tiers = (
                [(names,)] if order == "uniform" else [tuple((name,) for name in row) for row in sequences]
            )
            found = [
                allocate(tiers=tier, levels=(low, high), weights=weights, size_of=bench.size, max_bytes=limit)
                for tier in tiers
            ]
            qualities = [bench.measure(allocation.block_bits) for allocation in found]
            average = round(found[0].average_bits, 3)
            rows.append({**common, "order": order, "bytes": found[0].size_bytes, "average_bits": average})
            rows[-1] |= summary(qualities)
        if k > 1:
            continue  # there are too many choices of several blocks to measure them all
        choices = [
            {name: high if name in chosen else low for name in names}
            for chosen in itertools.combinations(names, k)
        ]
        average = round(average_bits(choices[0], weights), 3)
        row = {**common, "order": "every choice", "bytes": bench.size(choices[0]), "average_bits": average}
        rows.append(row | summary([bench.measure(choice) for choice in choices]))
    return rows


def summary(qualities: list[dict[str, float]]) -> dict[str, Any]:
    """Mean of each measure, and its range where there is more than one order."""
    row: dict[str, Any] = {"orders": len(qualities)}
    for key in ("accuracy", "kl"):
        values = [quality[key] for quality in qualities]
        row[key] = round(statistics.fmean(values), 5)
        if len(values) > 1:
            row[f"{key}_range"] = [min(values), max(values)]
    return row


def calibration(data: Sst2, count: int) -> list[dict[str, Tensor]]:
    return [batch for _, batch in evaluation_batches(data=data.train.take(count), batch_size=32)]


def print_table(rows: list[dict[str, Any]]) -> None:
    header = list(dict.fromkeys(key for row in rows for key in row))
    print("\n| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(str(row.get(key, "")) for key in header) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a barely trained teacher and few texts; proves nothing"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load_sst2()
    model = finetuned_teacher(data=data, steps=QUICK_STEPS if arguments.quick else STEPS)
    bench = Bench(model=model, dev=data.dev.take(100) if arguments.quick else data.dev)
    teacher = bench.quality()
    report(f"teacher: {teacher}")
    scores = {"LIM": lim(model=model, batches=calibration(data, CALIBRATION_TEXTS)), "ZD": zd(model=model)}
    report(str(scores))
    full = [(2, 3, 1), (2, 3, 3), (3, 4, 3)]
    results: dict[str, Any] = {
        "teacher": teacher,
        "scores": {name: {k: round(v, 4) for k, v in values.items()} for name, values in scores.items()},
        "outside": outside_table(bench),
        "grid": grid_table(bench, (2,) if arguments.quick else LEVELS[:-1]),
        "order": order_table(bench, scores, [(2, 3, 1)] if arguments.quick else full),
    }
    for name in ("outside", "grid", "order"):
        print_table(results[name])
    versions = {module.__name__: module.__version__ for module in (torch, transformers, safetensors)}
    versions["python"] = platform.python_version()
    print(json.dumps({"benchmark": "bits", "results": results, "versions": versions, "seeds": list(SEEDS)}))


if __name__ == "__main__":
    main()
